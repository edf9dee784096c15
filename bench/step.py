"""Measurements of whole training steps, ours and PyTorch's in turn, and of the kernels in a step."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from helios import random
from helios.backends.backend import Backend, Dispatch, Program
from helios.backends.vulkan.variants import ELEMENTWISE
from helios.bench.measure import PAUSE_S, torch_device, torch_module
from helios.model.activations import TABLE, activation
from helios.train.config import Config
from helios.train.state import TrainState

PEERS = ("torch", "torch-compile", "none")


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


def peer(name: str, config: Config, be: Backend) -> Callable[[np.ndarray, np.ndarray], float] | None:
    """Return the peer's step, None for "none". Raises UserError where PyTorch is missing."""
    if name == "none":
        return None
    torch_module()
    from helios.bench import torch_gpt

    return torch_gpt.Training(config.model, config.train, name == "torch-compile", torch_device(be)).step


def measure(preset: str, ours: Training, peer_name: str, effort: Effort) -> dict[str, Any]:
    """Measure steps in turn with a peer; return the entry of "steps" in the JSON."""
    config, be = ours.config, ours.backend
    theirs = peer(peer_name, config, be)
    shape = (config.train.batch_size, config.model.block_size)
    tokens, targets = np.random.default_rng(0).integers(0, config.model.vocab_size, (2, *shape)).astype(np.int32)
    for side in filter(None, (ours.step, theirs)):
        for _ in range(effort.warmup):
            side(tokens, targets)
    took, peer_took, host = list[float](), list[float](), list[float]()
    submits = 0
    for _ in range(effort.rounds):
        time.sleep(PAUSE_S)
        before = be.submits
        for _ in range(effort.steps):
            waited = be.waited
            took.append(_timed(ours.step, tokens, targets))
            host.append(took[-1] - 1e3 * (be.waited - waited))
        submits += be.submits - before
        time.sleep(PAUSE_S)
        peer_took += [_timed(theirs, tokens, targets) for _ in range(effort.steps) if theirs]
    ms = statistics.median(took)
    rate, peer_rate = (1e3 * shape[0] * shape[1] / statistics.median(x) if x else None for x in (took, peer_took))
    assert rate
    program = ours.program
    return {
        "preset": preset, "parameters": config.model.parameters(), "batch": shape[0],
        "activation": config.model.activation, "precision": config.train.precision, "tokens_per_sec": rate,
        "ms_per_step": ms, "dispatches": program.dispatches, "submits": submits / len(took),
        "barriers": program.barriers, "host_ms": statistics.median(host), "arena_bytes": program.arena_bytes,
        "peer": None if theirs is None else peer_name, "peer_tokens_per_sec": peer_rate,
        "ratio": rate / peer_rate if peer_rate else None,
        "kernels": [k._asdict() for k in ours.kernels(effort.profiles)],
    }


def _timed(step: Callable[[np.ndarray, np.ndarray], float] | None, *inputs: np.ndarray) -> float:
    """Return the milliseconds of a step, which is done when it has returned its loss."""
    assert step
    start = time.perf_counter()
    step(*inputs)
    return 1e3 * (time.perf_counter() - start)
