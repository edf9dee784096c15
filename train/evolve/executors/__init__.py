"""Who makes the trainings of an experiment: this process, several on this machine, or a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from helios.errors import UserError, nearest
from helios.train.evolve.executors.local import Local
from helios.train.evolve.executors.processes import Processes
from helios.train.evolve.trainings import Job, Results
from helios.train.progress import Display


class Executor(Protocol):
    """Makes trainings in the folder runs/ of an experiment."""

    def __call__(self, jobs: Sequence[Job]) -> Results:
        """Yield each job's position and result, in any order. Raises KeyboardInterrupt where a signal ended one, and
        UserError for what a user can put right; trainings that were begun go on from their checkpoints then. Closed, it
        ends those that are under way."""
        ...


def _ray(folder: Path, workers: int | None, address: str, display: Display) -> Executor:
    try:
        from helios.train.evolve.executors.ray import OnRay
    except ModuleNotFoundError as error:
        raise UserError(f"--executor ray needs {error.name}; install it with: pip install 'helios-gpt[ray]'") from error
    return OnRay(folder, workers, address, display)


EXECUTORS: Mapping[str, Callable[[Path, int | None, str, Display], Executor]] = {
    "local": lambda folder, workers, address, display: Local(folder, display),
    "processes": lambda folder, workers, address, display: Processes(folder, workers, display),
    "ray": _ray}


def executor(where: str, folder: Path, workers: int | None, display: Display) -> Executor:
    """Return the executor that `where` names, as KIND or KIND://ADDRESS. Raises UserError."""
    kind, _, address = where.partition("://")
    if kind not in EXECUTORS:
        raise UserError(f"unknown executor {kind!r}{nearest(kind, EXECUTORS)}; there are {', '.join(EXECUTORS)}")
    if address and kind != "ray":
        raise UserError(f"--executor {where}: only ray has an address; give {kind}, or ray://{address}")
    if workers and kind == "local":
        raise UserError("--workers is of processes and ray; give --executor processes, or leave --workers out")
    return EXECUTORS[kind](folder, workers, address, display)
