"""What each training of an experiment has of a machine: processors, memory, a GPU."""

from __future__ import annotations

import os
from types import SimpleNamespace

import psutil
import pytest

from helios.train.config import resolve
from helios.train.evolve.executors import processes
from helios.train.evolve.stops import StopsConfig
from helios.train.evolve.trainings import Job


@pytest.mark.parametrize(("gpus", "given", "free", "found"), [
    ([], None, 64, [("4", None)] * 2),  # two trainings on eight cores
    ([], 1, 64, [("8", None)]),
    ([], None, 0.3, [("8", None)]),  # GiB: memory for one
    (["1", "3"], None, 64, [("4", "1"), ("4", "3")]), (["1"], None, 64, [("8", "1")]),
    (["1"], 2, 64, [("4", "1"), ("4", "1")])])
def test_what_processes_there_are(gpus: list[str], given: int | None, free: float, found: list[tuple[str, str | None]],
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    for name in processes.THREADS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")  # a user's, which stays
    monkeypatch.setattr(processes, "devices", lambda named: gpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free * 2**30))
    job = Job("one", resolve("tiny", flags={"backend": "vulkan"}), {}, 1.0, "one", 0, "search", StopsConfig())
    made = processes.environments([job, job], given)
    assert [(env["LP_NUM_THREADS"], env.get("HELIOS_DEVICE")) for env in made] == found
    assert not any("OMP_NUM_THREADS" in env for env in made)


@pytest.mark.parametrize(("cpus", "trainings", "found"), [
    ([None, 16, 16], 4, 8), ([None, 16, 16], 1, 16), ([4, 16], 2, 4), ([2], 8, 1), ([None], 2, 1)])  # None: a mere head
def test_how_many_processors_a_training_has(cpus: list[int | None], trainings: int, found: int) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    from helios.train.evolve.executors.ray import threads_of

    nodes = [{"Alive": True, "Resources": {"memory": 1.0, **({"CPU": float(n)} if n else {})}} for n in cpus]
    assert threads_of([{"Alive": False, "Resources": {"CPU": 1.0}}, *nodes], trainings) == found
