"""Measurements of whole training steps, ours and a peer's in turn, and of the kernels in a step."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from helios import random
from helios.backends.backend import Backend, Dispatch, Program
from helios.backends.vulkan.variants import ELEMENTWISE
from helios.bench import numpy_gpt
from helios.bench.measure import PAUSE_S, torch_device, torch_module
from helios.model.activations import TABLE, activation
from helios.train.config import Config
from helios.train.state import TrainState

PEERS = ("torch", "torch-compile", "numpy", "none")
Step = Callable[[np.ndarray, np.ndarray], float]


class KernelTime(NamedTuple):
    name: str
    calls: int  # in a step
    ms: float  # of all calls


class Effort(NamedTuple):
    rounds: int
    steps: int  # of each side in a round
    warmup: int  # steps before the first round
    profiles: int  # times that each kernel is timed alone


FULL, QUICK = Effort(6, 3, 2, 3), Effort(1, 1, 1, 1)


class Training:
    """The step that helios-train records, without accumulation."""

    def __init__(self, config: Config, be: Backend) -> None:
        self.config, self.backend, self.steps = config, be, 0
        self.state = TrainState(config.model, replace(config.train, accum=1), be, config.train.seed)

    def step(self, tokens: np.ndarray, targets: np.ndarray) -> float:
        """Make a step on tokens and targets, int32 [B, T] each, and return its loss."""
        t = self.config.train
        self.steps += 1
        inputs = tokens, targets, random.state(t.seed, self.steps), np.array([t.lr], np.float32)
        return float(self.state.submit([inputs])()[0])

    @property
    def program(self) -> Program:
        return next(iter(self.state.last.programs.values()))

    def kernels(self, times: int) -> list[KernelTime]:
        """Return the step's kernels, the slowest first, with the medians of `times` runs of each command alone."""
        found: dict[str, list[float]] = defaultdict(list)
        for runs in zip(*(self.program.profile() for _ in range(times)), strict=True):
            found[label(runs[0])].append(statistics.median(run.ms for run in runs))
        return sorted((KernelTime(name, len(ms), sum(ms)) for name, ms in found.items()), key=lambda k: -k.ms)


def label(dispatch: Dispatch) -> str:
    """Return a dispatch's kernel and what tells its variants apart: a product's layout, the op it computes or fuses."""
    defines = dispatch.defines
    formula = _names().get(defines.get("FORMULA", ""), "formula")
    ops = {expression: op.replace("activation", formula) for op, expression in ELEMENTWISE.items()}
    layout = "nt"[defines["TA"]] + "nt"[defines["TB"]] if "TA" in defines else ""
    own = formula if dispatch.kernel.startswith("activation") else ""
    kinds = (name.lower() for name in ("RMS", "BACKWARD") if defines.get(name))
    does = (ops.get(defines.get(name, ""), "") for name in ("EXPR", "EPILOGUE"))
    parts = [dispatch.kernel, own, *kinds, layout, *does]
    return " ".join(part for part in parts if part)


@cache
def _names() -> dict[str, str]:
    """Return the names of the table's activations by their GLSL."""
    return {formula.glsl: name for name in TABLE if (formula := activation(name).formula)}


def peer(name: str, config: Config, be: Backend) -> Step | None:
    """Return the peer's step, None for "none". Raises UserError where PyTorch is missing, or the model is not one that
    the peer has."""
    check_peers([name], [config])
    if name == "none":
        return None
    if name == "numpy":
        return numpy_gpt.Training(config.model, config.train).step
    from helios.bench import torch_gpt

    return torch_gpt.Training(config.model, config.train, name == "torch-compile", torch_device(be)).step


@dataclass
class Side:
    """A training and its peer's step, with the milliseconds that steps of both took."""

    ours: Training
    theirs: Step | None
    took: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)  # without waiting
    peer_took: list[float] = field(default_factory=list)
    submits: int = 0

    def round(self, steps: int, tokens: np.ndarray, targets: np.ndarray) -> None:
        """Make so many steps, then as many of the peer's."""
        be = self.ours.backend
        time.sleep(PAUSE_S)
        before = be.submits
        for _ in range(steps):
            waited = be.waited
            self.took.append(_timed(self.ours.step, tokens, targets))
            self.host.append(self.took[-1] - 1e3 * (be.waited - waited))
        self.submits += be.submits - before
        time.sleep(PAUSE_S)
        self.peer_took += [_timed(self.theirs, tokens, targets) for _ in range(steps) if self.theirs]


def check_peers(names: Iterable[str], configs: Iterable[Config]) -> None:
    """Raise UserError where PyTorch is missing that is among the peers, or a model is not one that a peer has."""
    for name in names:
        if name == "numpy":
            for config in configs:
                numpy_gpt.check(config.model)
        elif name != "none":
            torch_module()


def measure(preset: str, trainings: Sequence[Training], peer_name: str, effort: Effort) -> list[dict[str, Any]]:
    """Measure steps of trainings that differ in their activation alone, and of a peer beside each, all in turns; return
    their entries of "steps" in the JSON, in which times_first is a step's time over that of the first training's."""
    sides = [Side(ours, peer(peer_name, ours.config, ours.backend)) for ours in trainings]
    config = trainings[0].config
    shape = (config.train.batch_size, config.model.block_size)
    tokens, targets = np.random.default_rng(0).integers(0, config.model.vocab_size, (2, *shape)).astype(np.int32)
    for side in sides:
        for step in filter(None, (side.ours.step, side.theirs)):
            for _ in range(effort.warmup):
                step(tokens, targets)
    for _ in range(effort.rounds):
        for side in sides:
            side.round(effort.steps, tokens, targets)
    first = statistics.median(sides[0].took)
    return [_entry(preset, side, peer_name, first, effort.profiles) for side in sides]


def _entry(preset: str, side: Side, peer_name: str, first: float, profiles: int) -> dict[str, Any]:
    model, train, program = side.ours.config.model, side.ours.config.train, side.ours.program
    ms = statistics.median(side.took)
    rate, peer_rate = (1e3 * train.batch_size * model.block_size / statistics.median(x) if x else None
                       for x in (side.took, side.peer_took))
    assert rate
    return {
        "preset": preset, "parameters": model.parameters(), "batch": train.batch_size,
        "activation": model.activation, "precision": train.precision, "tokens_per_sec": rate,
        "ms_per_step": ms, "times_first": ms / first, "dispatches": program.dispatches,
        "submits": side.submits / len(side.took), "barriers": program.barriers,
        "host_ms": statistics.median(side.host), "arena_bytes": program.arena_bytes,
        "peer": None if side.theirs is None else peer_name, "peer_tokens_per_sec": peer_rate,
        "ratio": rate / peer_rate if peer_rate else None,
        "kernels": [k._asdict() for k in side.ours.kernels(profiles)],
    }


def _timed(step: Step, *inputs: np.ndarray) -> float:
    """Return the milliseconds of a step, which is done when it has returned its loss."""
    start = time.perf_counter()
    step(*inputs)
    return 1e3 * (time.perf_counter() - start)
