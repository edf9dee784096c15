"""How the cost of a training step grows with the batch and with each of a model's sizes, PyTorch's beside it."""

from __future__ import annotations

import gc
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from helios.bench.measure import exponent
from helios.bench.plot import save
from helios.bench.step import FULL, QUICK, Effort, Side, Training, peer
from helios.errors import TooLarge
from helios.train import checkpoint
from helios.train.config import Config, resolve
from helios.train.device import MIB, check_memory, open_backend

HEAD = 32  # the size of a head, whatever the width
BASE = {"batch_size": 4, "block_size": 128, "n_embd": 128, "n_layer": 2, "vocab_size": 1000}
# Axis → its setting, and the values it takes, each over a factor of 16.
AXES: Mapping[str, tuple[str, Sequence[int]]] = {
    "batch": ("batch_size", (1, 2, 4, 8, 16)),
    "T": ("block_size", (64, 128, 256, 512, 1024)),
    "D": ("n_embd", (64, 128, 256, 512, 1024)),
    "L": ("n_layer", (1, 2, 4, 8, 16)),
    "V": ("vocab_size", (1000, 2000, 4000, 8000, 16_000)),
}
# By figure, what it is told in, and how it is shown.
FIGURES = {"ms": "ms a step", "memory_mib": "memory, MiB", "dispatches": "dispatches", "record_ms": "to record, ms",
           "checkpoint_mib": "checkpoint, MiB", "peer_ms": "PyTorch, ms"}


class Point(NamedTuple):
    """A training step at one value of an axis: medians of milliseconds, and what it takes."""

    axis: str
    value: int
    ms: float
    memory_mib: float  # that arrays and recordings take
    dispatches: float
    record_ms: float  # the host's own time in a first step, with all kernels compiled; it does not count waiting
    checkpoint_mib: float  # weights and moments
    peer_ms: float | None


def points(axes: Sequence[str], peer_name: str, quick: bool, say: Callable[[str], None]) -> Iterator[Point]:
    """Yield each point, measured in a process of its own, which an axis ends with where memory does not suffice."""
    for axis in axes:
        for value in AXES[axis][1][:2 if quick else None]:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                try:
                    found = pool.submit(measured, axis, value, peer_name, QUICK if quick else FULL).result()
                except (TooLarge, BrokenProcessPool) as error:  # the latter where the system ended the process
                    say(f"{axis} {value:,}: {error or 'not enough memory'}")
                    break
            say(f"{axis} {value:,}: {found.ms:,.1f} ms")
            yield found


def config(axis: str, value: int) -> Config:
    """Return the settings of a point."""
    sizes = BASE | {AXES[axis][0]: value}
    return resolve("historic-6l", assignments=[f"{key}={size}" for key, size in sizes.items()] + [
        f"n_head={sizes['n_embd'] // HEAD}"])


def measured(axis: str, value: int, peer_name: str, effort: Effort) -> Point:
    """Measure steps and a peer's in turns. Raises TooLarge."""
    own = config(axis, value)
    be = open_backend("vulkan", None, lambda text: None, own.train.precision)
    check_memory(own.model, own.train.batch_size, be)
    shape = (2, own.train.batch_size, own.model.block_size)
    tokens, targets = np.random.default_rng(0).integers(0, own.model.vocab_size, shape).astype(np.int32)
    Training(own, be).step(tokens, targets)  # compiles all kernels
    gc.collect()
    side = Side(Training(own, be), peer(peer_name, own, be))
    start = time.thread_time()
    side.ours.step(tokens, targets)
    recording = 1e3 * (time.thread_time() - start)
    side.round(effort.warmup, tokens, targets)
    side.took, side.peer_took = [], []
    for _ in range(effort.rounds):
        side.round(effort.steps, tokens, targets)
    ours, ms = side.ours, median(side.took)
    with tempfile.TemporaryDirectory() as folder:
        saved = checkpoint.save(Path(folder), 1, ours.state.model.state_dict(), ours.state.opt.state_dict(), {})
        size = sum(file.stat().st_size for file in saved.iterdir())
    return Point(axis, value, ms, be.memory()["used"] / MIB, ours.program.dispatches, recording, size / MIB,
                 median(side.peer_took) if side.peer_took else None)


def exponents(found: Sequence[Point]) -> dict[str, dict[str, float]]:
    """Return by axis and figure the power of the axis by which the figure grows, over its three largest values."""
    of = lambda axis, name: [getattr(p, name) for p in found if p.axis == axis]
    return {axis: {name: exponent(of(axis, "value"), of(axis, name), 1e-3) for name in FIGURES
                   if all(getattr(p, name) is not None for p in found)}
            for axis in dict.fromkeys(p.axis for p in found)}


TITLES = ("axis", "value", *FIGURES.values(), "× PyTorch")


def cells(found: Sequence[Point]) -> Iterator[list[str]]:
    """Yield the rows of a table, after those of an axis one with its exponents."""
    powers = exponents(found)
    for i, p in enumerate(found):
        figures = [getattr(p, name) for name in FIGURES]
        yield [p.axis, f"{p.value:,}", *("–" if x is None else f"{x:,.4g}" for x in figures),
               f"{p.peer_ms / p.ms:.2f}" if p.peer_ms else "–"]
        if i + 1 == len(found) or found[i + 1].axis != p.axis:
            yield [p.axis, "power", *(f"{powers[p.axis][name]:.2f}" if name in powers[p.axis] else "–"
                                      for name in FIGURES), ""]


def plot(path: Path, found: Sequence[Point]) -> None:
    """Draw time and memory by each axis, as multiples of its first value, to a PNG file. Raises UserError."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(10, 4.5))
    for axes, name in zip(drawn.subplots(1, 2), ("ms", "memory_mib"), strict=True):
        for axis in dict.fromkeys(p.axis for p in found):
            mine = [p for p in found if p.axis == axis]
            axes.plot([p.value / mine[0].value for p in mine], [getattr(p, name) for p in mine], marker="o",
                      markersize=3, linewidth=1.2, label=axis)
        axes.set(xscale="log", yscale="log", xlabel="multiple of the smallest", ylabel=FIGURES[name])
        axes.grid(True, which="both", alpha=0.3)
        axes.legend(fontsize=8)
    save(path, drawn)
