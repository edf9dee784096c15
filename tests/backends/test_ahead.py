"""Pipelines made by several threads, and kernels compiled ahead: which are, and that the device finds them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helios.backends.vulkan import ahead
from helios.backends.vulkan.ahead import LEAST, Ahead, Compiler
from helios.backends.vulkan.backend import VulkanBackend
from helios.backends.vulkan.pipelines import Kernel

from .vulkan import make

TRAINING = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from backends.vulkan import Training, make
be = make()
found = Training(be, "gelu").step()
fresh = sum(kernel.fresh for kernel in be.pipelines.kernels.values())
print(fresh, len(be.ahead.idle), [x.tobytes().hex() for x in found])
"""


def first_step(cache: Path, threads: int) -> tuple[int, int, str, int]:
    """In a process of its own with empty caches: how many kernels were new, how many devices compiled them, what the
    step gave, and bytes in the driver's cache."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", TRAINING], text=True, capture_output=True,
        env={**os.environ, "HELIOS_CACHE": str(cache), "MESA_SHADER_CACHE_DIR": "", "LP_NUM_THREADS": str(threads),
             "GALLIVM_PERF": "nopt"})
    assert not done.returncode, done.stderr
    kernels, devices, found = done.stdout.split(maxsplit=2)
    return int(kernels), int(devices), found, sum(path.stat().st_size for path in cache.rglob("mesa_cache.db"))


def test_the_device_takes_it_from_the_cache(tmp_path: Path) -> None:
    """What is compiled twice, the driver's cache holds twice: a few kernels, where writing it was late."""
    if not make().device_name.startswith("llvmpipe"):
        pytest.skip("only lavapipe compiles when a kernel first runs")
    kernels, devices, found, size = first_step(tmp_path / "several", 2)
    assert kernels > 20 and devices == 2
    *same, alone = first_step(tmp_path / "one", 1)
    assert same == [kernels, 0, found] and alone <= size < 1.5 * alone
    assert first_step(tmp_path / "several", 2) == (0, 0, found, size)


def some(be: VulkanBackend, count: int, fresh: bool = True) -> list[Kernel]:
    """Kernels without a pipeline, in no order of their numbers."""
    made = [be.kernel("transpose", BLOCK=4, PAIRS=0, NUMBER=i) for i in range(count)]
    for kernel in made:
        kernel.fresh = fresh
    return made


@pytest.mark.parametrize("threads, count, fresh, devices", [
    (1, LEAST, True, 0), (2, LEAST - 1, True, 0), (2, LEAST, False, 0), (2, LEAST, True, 2), (2, 1, True, 0)])
def test_where_it_pays(monkeypatch: pytest.MonkeyPatch, threads: int, count: int, fresh: bool, devices: int) -> None:
    be, runs = make(), list[bytes]()
    monkeypatch.setattr(ahead, "Compiler", lambda wanted: Recorder(runs))
    be.ahead.threads, be.ahead.late = threads, True
    made = some(be, count, fresh)
    be.ahead.prepare()
    assert all(kernel.pipeline for kernel in made) and not be.pipelines.new
    assert sorted(runs) == sorted(kernel.spirv for kernel in made) * bool(devices) and len(be.ahead.idle) <= devices


def test_where_a_device_more_fails_the_one_that_computes_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    be = make()
    be.ahead.threads, be.ahead.late = 2, True
    made = some(be, LEAST)
    monkeypatch.setattr(ahead, "Compiler", lambda wanted: Recorder(None))
    be.ahead.prepare()
    assert all(kernel.pipeline for kernel in made) and not be.ahead.idle and not be.pipelines.new


@pytest.mark.parametrize("told, threads", [("3", 3), ("0", 1), ("many", None), ("-1", None)])
def test_threads_are_those_that_lavapipe_is_told_to_use(monkeypatch: pytest.MonkeyPatch, told: str, threads: int | None
                                                        ) -> None:
    be = make()
    cores = len(os.sched_getaffinity(0))
    monkeypatch.setenv("LP_NUM_THREADS", told)
    lavapipe = be.device_name.startswith("llvmpipe")
    assert Ahead(be.pipelines).threads == (threads if lavapipe and threads else cores)


class Recorder(Compiler):
    def __init__(self, runs: list[bytes] | None) -> None:
        self.runs = runs

    def run(self, spirv: bytes) -> None:
        if self.runs is None:
            raise RuntimeError("a submit failed")
        self.runs.append(spirv)


def test_a_driver_without_a_cache_compiles_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESA_SHADER_CACHE_DISABLE", "true")
    assert not Ahead(make().pipelines).late
