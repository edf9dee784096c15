"""Threads share a backend, one in it at a time; a forked process may not use it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from helios import backends
from helios.backends import get_backend
from helios.backends.backend import Backend
from helios.backends.cpu_ref import CpuRef
from helios.capture import Capture
from helios.model import GPT, GPTConfig
from helios.optim import AdamW
from helios.tensor import Tensor, tensor

from .vulkan import make


def losses(be: Backend, seed: int, recorded: bool) -> list[float]:
    """Of three training steps of a model of its own."""
    model = GPT(GPTConfig(vocab_size=61, block_size=16, n_layer=1, n_head=2, n_embd=16), be, seed)
    optimizer = AdamW(model.named_parameters(), no_decay=model.config.no_decay)
    tokens = np.random.default_rng(seed).integers(0, 61, (2, 16)).astype(np.int32)
    rate = np.full(1, 1e-3, np.float32)

    def step(x: Tensor, lr: Tensor) -> tuple[Tensor]:
        loss = model.loss(x, x)
        loss.backward()
        optimizer.step(lr)
        optimizer.zero_grad()
        return (loss,)

    capture = Capture(step, be)
    if recorded:
        return [capture(tokens, rate)[0].item() for _ in range(3)]
    return [step(Tensor(be.array(tokens), be), Tensor(be.array(rate), be))[0].item() for _ in range(3)]


@pytest.mark.parametrize("opened", [make, CpuRef])
def test_models_in_two_threads_compute_as_they_do_alone(opened: Callable[[], Backend]) -> None:
    be = opened()
    alone = {(seed, recorded): losses(be, seed, recorded) for seed in (1, 2) for recorded in (False, True)}
    wrong: list[object] = []

    def work(seed: int) -> None:
        for n in range(12):
            recorded = bool((seed + n) % 2)
            try:
                found = losses(be, seed, recorded)
            except Exception as error:
                wrong.append(error)
            else:
                wrong.extend([found] * (found != alone[seed, recorded]))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_recording_takes_in_no_other_threads_work() -> None:
    be = make()
    x, begun, found = tensor(np.ones(8), be), threading.Event(), list[object]()

    def other() -> None:
        begun.wait()
        found.append(be.recording)
        found.append((x * 3.0).sum().item())

    def record(a: Tensor) -> tuple[Tensor]:
        begun.set()
        thread.join(0.2)
        return (a * 2.0,)

    thread = threading.Thread(target=other)
    thread.start()
    capture = Capture(record, be)
    program = capture.prepare(np.ones(3, np.float32))
    thread.join()
    assert found == [False, 24.0] and program.dispatches == 1


def test_threads_that_open_a_backend_get_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    make()
    monkeypatch.setattr(backends, "_make", cache(backends._make.__wrapped__))
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(get_backend("vulkan"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and len(set(map(id, found))) == 1


FORK = """
import os, sys, threading
import numpy as np
from helios.backends import get_backend
from helios.tensor import tensor
x = tensor(np.ones((40, 40)), "vulkan")
y = x @ x
child = os.fork()
if child == 0:
    for use in (x.numpy, y.sum, lambda: tensor([1.0], "vulkan"), lambda: get_backend("vulkan", None, "mixed")):
        try:
            use()
        except RuntimeError as error:
            assert f"was opened in process {os.getppid()}" in str(error) and "spawn" in str(error)
        else:
            sys.exit("no error")
    del x, y
    sys.exit(3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
assert y.sum().item() == 40**3
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_process_hears_that_it_must_open_its_own() -> None:
    make()
    done = subprocess.run([sys.executable, "-P", "-c", FORK], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
