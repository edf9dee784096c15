"""Ctrl-C at random moments of what a user does, as in a notebook: what is computed afterwards is right."""

from __future__ import annotations

import random
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

import numpy as np
import pytest

from helios.capture import Capture
from helios.model import GPTConfig
from helios.tensor import Tensor, tensor
from helios.train.config import TrainConfig
from helios.train.state import TrainState

from .vulkan import make


def test_a_users_steps_by_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupts, some of which come in pairs, while models are made, trained, recorded and read."""
    # An interrupt may come in a finalizer of a library, where it is lost; and the next one in pytest's report on that.
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: None)
    be = make()
    x = np.random.default_rng(0).integers(0, 61, (2, 16)).astype(np.int32)
    a = tensor(np.random.default_rng(0).standard_normal((140, 140)) / 8, be)
    draw, pairs, interrupts = random.Random(0), [False], 0

    def steps(recorded: bool) -> list[float]:
        state = TrainState(GPTConfig(vocab_size=61, block_size=16, n_layer=1, n_head=2, n_embd=16),
                           TrainConfig(lr=1e-2), be, seed=1)

        def step(tokens: Tensor, lr: Tensor) -> tuple[Tensor]:
            loss = state.model.loss(tokens, tokens)
            loss.backward()
            state.opt.step(lr)
            state.opt.zero_grad()
            return (loss,)

        capture, rate = Capture(step, be), np.full(1, 1e-2, np.float32)
        if recorded:
            return [capture(x, rate)[0].item() for _ in range(2)]
        return [step(Tensor(be.array(x), be), Tensor(be.array(rate), be))[0].item() for _ in range(2)]

    works: list[Callable[[], object]] = [
        lambda: steps(False), lambda: steps(True), lambda: [(a @ a).numpy().tobytes() for _ in range(8)],
        lambda: [a.sum().item() for _ in range(8)]]
    expected = [work() for work in works]
    starts = [time.perf_counter(), *(work() and time.perf_counter() for work in works)]
    times = np.diff(starts)

    def interrupt(number: int, frame: FrameType | None) -> None:
        if pairs.pop():
            signal.setitimer(signal.ITIMER_REAL, 1e-6 + 2e-4 * draw.random())
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for n in range(200):
            work, pairs = n % len(works), [False, draw.random() < 0.3]
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, 1e-5 + draw.random() * times[work])
                    works[work]()
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                signal.setitimer(signal.ITIMER_REAL, 0)
                interrupts += 1
            other = n // len(works) % len(works)
            assert works[other]() == expected[other]
    finally:
        signal.signal(signal.SIGALRM, before)
    assert interrupts > 100
