"""Kernels compiled ahead, by several threads: which are, and that the device finds what was compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helios.backends.vulkan import ahead
from helios.backends.vulkan.ahead import LEAST, Ahead, Compiler

from .vulkan import make

TRAINING = """
from tests.backends.vulkan import Training, make
be = make()
compiled = []
be.ahead.compile = lambda kernels, compile=be.ahead.compile: (compiled.extend(kernels), compile(kernels))
found = Training(be, "gelu").step()
print(len(compiled), len(be.ahead.idle), [x.tobytes().hex() for x in found])
"""


def first_step(cache: Path, threads: int) -> tuple[int, int, str, int]:
    """In a process of its own with empty caches: how many kernels were new, how many devices compiled them, what the
    step gave, and bytes in the driver's cache."""
    done = subprocess.run(
        [sys.executable, "-c", TRAINING], text=True, capture_output=True, check=True, cwd=Path(__file__).parents[2],
        env={**os.environ, "HELIOS_CACHE": str(cache), "MESA_SHADER_CACHE_DIR": "", "LP_NUM_THREADS": str(threads),
             "GALLIVM_PERF": "nopt"})
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


def test_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    be, runs = make(), list[bytes]()
    monkeypatch.setattr(ahead, "Compiler", lambda wanted: Recorder(runs))
    for threads, kernels in ((1, LEAST), (2, LEAST - 1), (2, LEAST)):
        be.ahead.threads = threads
        be.ahead.compile([bytes([i]) for i in range(kernels)])
        assert bool(runs) == (threads > 1 and kernels >= LEAST)
    assert sorted(runs) == [bytes([i]) for i in range(LEAST)] and 1 <= len(be.ahead.idle) <= 2


def test_an_error_of_a_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    be = make()
    be.ahead.threads = 2
    monkeypatch.setattr(ahead, "Compiler", lambda wanted: Recorder(None))
    with pytest.raises(RuntimeError, match="a submit failed"):
        be.ahead.compile([b""] * LEAST)
    assert be.numpy(be.array(np.ones(3))).tolist() == [1, 1, 1]


class Recorder(Compiler):
    def __init__(self, runs: list[bytes] | None) -> None:
        self.runs = runs

    def run(self, spirv: bytes) -> None:
        if self.runs is None:
            raise RuntimeError("a submit failed")
        self.runs.append(spirv)


def test_a_driver_without_a_cache_compiles_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESA_SHADER_CACHE_DISABLE", "true")
    assert Ahead(make().device).threads == 1
