"""Whole training steps, ours and PyTorch's in turn, and what a step consists of."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from helios import random
from helios.backends.backend import Backend
from helios.backends.vulkan.primitives import ELEMENTWISE
from helios.bench.measure import PAUSE_S, torch_device, torch_module
from helios.capture import Capture
from helios.model import GPT
from helios.optim import AdamW
from helios.tensor import Tensor
from helios.train.config import Config

PEERS = ("torch", "torch-compile", "none")


class KernelTime(NamedTuple):
    name: str
    calls: int  # in a step
    ms: float  # of all of them


class Effort(NamedTuple):
    rounds: int
    steps: int  # of each side in a round
    warmup: int
    profiles: int


FULL, QUICK = Effort(6, 3, 2, 3), Effort(1, 1, 1, 1)


class Training:
    """The whole step as helios-train records it, without accumulation, on tokens drawn at random."""

    def __init__(self, config: Config, be: Backend) -> None:
        t, self.config, self.backend = config.train, config, be
        self.model = GPT(config.model, be, t.seed).train()
        self.optimizer = AdamW(self.model.named_parameters(), t.lr, (t.beta1, t.beta2), t.eps, t.weight_decay,
                               t.grad_clip, t.spike_threshold, loss_scaling=t.precision == "mixed")
        self.capture, self.steps = Capture(self._step, be), 0

    def _step(self, tokens: Tensor, targets: Tensor, rng: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
        self.optimizer.zero_grad()
        loss = self.model.loss(tokens, targets, rng=rng)
        loss.backward(self.optimizer.loss_scale)
        self.optimizer.step(lr, loss)
        return loss, self.optimizer.stats

    def step(self, tokens: np.ndarray, targets: np.ndarray) -> float:
        """The loss before it."""
        t = self.config.train
        self.steps += 1
        return float(self.capture(tokens, targets, random.state(t.seed, self.steps), np.array([t.lr], np.float32))[0])

    @property
    def program(self) -> Any:
        return next(iter(self.capture.programs.values()))

    def arena_bytes(self) -> int:
        """Of what one step computes and the next does not need; planned by lifetime."""
        blocks = {use.block.within for c in getattr(self.program, "commands", ()) for use in c.uses}
        return sum(b.size for b in blocks if b is not None and not b.wanted())

    def kernels(self, times: int) -> list[KernelTime]:
        """By name, the slowest first, each command run alone; medians over several steps."""
        if not hasattr(self.program, "profile"):
            return []
        runs = [self.program.profile() for _ in range(times)]
        found: dict[str, list[float]] = defaultdict(list)
        for command, *ms in zip((c for c, _ in runs[0]), *([ms for _, ms in run] for run in runs), strict=True):
            found[label(command)].append(statistics.median(ms))
        return sorted((KernelTime(name, len(ms), sum(ms)) for name, ms in found.items()), key=lambda k: -k.ms)


def label(command: Any) -> str:
    """A command's kernel, with what tells its variants apart: a product's layout, the op it computes or ends in."""
    defines = getattr(command.kernel, "defines", {})
    ops = {expression: op for op, expression in ELEMENTWISE.items()}
    layout = "nt"[defines["TA"]] + "nt"[defines["TB"]] if "TA" in defines else ""
    backward = "backward" if defines.get("BACKWARD") else ""
    parts = [command.name, backward, layout, *(ops.get(defines.get(name, ""), "") for name in ("EXPR", "EPILOGUE"))]
    return " ".join(part for part in parts if part)


class Waiting:
    """Seconds that the host spends waiting for the device."""

    def __init__(self, be: Any) -> None:
        self.seconds, self.be, self.inner = 0.0, be, getattr(be, "wait", None)

    def __enter__(self) -> Waiting:
        if self.inner:
            self.be.wait = self._wait
        return self

    def __exit__(self, *error: object) -> None:
        if self.inner:
            del self.be.wait  # the method shows again

    def _wait(self, fence: Any) -> None:
        start = time.perf_counter()
        assert self.inner
        self.inner(fence)
        self.seconds += time.perf_counter() - start


def peer(name: str, config: Config, be: Backend) -> Callable[[np.ndarray, np.ndarray], float] | None:
    """The other side's step; UserError where PyTorch is missing."""
    if name == "none":
        return None
    torch_module()
    from helios.bench import torch_gpt

    return torch_gpt.Training(config.model, config.train, name == "torch-compile", torch_device(be)).step


def measure(preset: str, ours: Training, peer_name: str, effort: Effort) -> dict[str, Any]:
    """The entry of "steps" in the JSON."""
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
        before = getattr(be, "submits", 0)
        for _ in range(effort.steps):
            with Waiting(be) as waiting:
                took.append(_timed(ours.step, tokens, targets))
            host.append(took[-1] - 1e3 * waiting.seconds)
        submits += getattr(be, "submits", 0) - before
        time.sleep(PAUSE_S)
        peer_took += [_timed(theirs, tokens, targets) for _ in range(effort.steps) if theirs]
    ms = statistics.median(took)
    rate, peer_rate = (1e3 * shape[0] * shape[1] / statistics.median(x) if x else None for x in (took, peer_took))
    assert rate
    program = ours.program
    return {
        "preset": preset, "parameters": config.model.parameters(), "batch": shape[0],
        "activation": config.model.activation,
        "precision": config.train.precision, "tokens_per_sec": rate, "ms_per_step": ms,
        "dispatches": program.dispatches, "submits": submits / len(took), "barriers": getattr(program, "barriers", 0),
        "host_ms": statistics.median(host), "arena_bytes": ours.arena_bytes(),
        "peer": None if theirs is None else peer_name, "peer_tokens_per_sec": peer_rate,
        "ratio": rate / peer_rate if peer_rate else None,
        "kernels": [k._asdict() for k in ours.kernels(effort.profiles)],
    }


def _timed(step: Callable[[np.ndarray, np.ndarray], float] | None, *inputs: np.ndarray) -> float:
    """Milliseconds; a step returns its loss, so it is done."""
    assert step
    start = time.perf_counter()
    step(*inputs)
    return 1e3 * (time.perf_counter() - start)
