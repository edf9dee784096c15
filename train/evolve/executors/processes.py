"""Trainings in processes of this machine, several at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

import psutil

from helios.errors import NoDevice
from helios.train.device import memory_needed
from helios.train.evolve.state import Result
from helios.train.evolve.trainings import Job, Results
from helios.train.evolve.worker import Workers
from helios.train.progress import Display
from helios.train.signals import caught, told

# What tells numpy's libraries and lavapipe how many threads to have.
THREADS = ("LP_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
PROCESS = 300 * 2**20  # bytes that a process takes besides its training


class Processes:
    """Makes trainings in `folder`, each in a process of its own, `workers` at a time.

    By default there is one for each of the GPUs that are like the one that is chosen where none is named; on a
    processor as many as it has cores, if there is memory for all, with an equal share of the threads.
    """

    def __init__(self, folder: Path, workers: int | None, display: Display) -> None:
        self.folder, self.workers, self.display = folder, workers, display

    def __call__(self, jobs: Sequence[Job]) -> Results:
        waiting, done = enumerate(jobs), SimpleQueue[tuple[int, Result | BaseException]]()
        workers = Workers(self.display.warn)

        def work(env: dict[str, str]) -> None:
            for i, job in waiting:  # of which each thread takes the next one
                if workers.stopping:
                    break
                try:
                    done.put((i, workers.made(job, self.folder, env)))
                except BaseException as error:
                    done.put((i, error))

        def stop(number: int) -> None:
            told("stopping at once" if workers.stopping else
                 "stopping after these steps; Ctrl-C ends at once, without checkpoints")
            workers.stop()
            done.put((-1, KeyboardInterrupt()))

        threads = [Thread(target=work, args=(env,)) for env in environments(jobs, self.workers)]
        with caught(stop):
            try:
                for thread in threads:
                    thread.start()
                for _ in jobs:
                    i, result = done.get()
                    if isinstance(result, BaseException):
                        raise result
                    yield i, result
            finally:
                if not workers.stopping:
                    workers.stop()
                for thread in threads:
                    thread.join()


def environments(jobs: Sequence[Job], workers: int | None) -> list[dict[str, str]]:
    """Return the variables of each of the processes that make these trainings at the same time."""
    t = jobs[0].config.train
    gpus = devices(t.device) if t.backend != "cpu_ref" else []
    count = workers or len(gpus) or _room(jobs)
    threads = share_of_threads(len(os.sched_getaffinity(0)), count)
    return [threads | ({"HELIOS_DEVICE": gpus[i % len(gpus)]} if gpus else {})
            for i in range(min(count, len(jobs)))]


def share_of_threads(cores: int, count: int) -> dict[str, str]:
    """Return the variables of one of `count` processes on so many cores; what the user has set stays."""
    return {name: str(max(1, cores // count)) for name in THREADS if name not in os.environ}


def devices(named: str | None) -> list[str]:
    """Return the indices of the GPUs to train on: the one that is named, or all of the same kind as the one that is
    chosen where none is; none where that is a processor. With others, results would depend on who was free. Raises
    UserError where there is no such device."""
    from helios.backends.vulkan.device import choose, profiles

    named = os.environ.get("HELIOS_DEVICE") if named is None else named
    try:
        found = [profile for profile, _ in profiles()]
        chosen = choose(found, named)
    except NoDevice:  # of which each training says more
        return []
    like = [p for p in found if (p.name, p.driver) == (chosen.name, chosen.driver)]
    return [] if chosen.type == "cpu" else [str(p.index) for p in ([chosen] if named is not None else like)]


def _room(jobs: Sequence[Job]) -> int:
    """Return how many of these trainings a processor has cores and memory for."""
    most = PROCESS + max(memory_needed(job.config.model, job.config.train.batch_size) for job in jobs)
    return max(1, min(len(os.sched_getaffinity(0)), len(jobs), int(0.8 * psutil.virtual_memory().available / most)))
