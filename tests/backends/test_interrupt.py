"""An interrupt (Ctrl-C) at any point leaves a backend that goes on and is right.

What was collected runs exactly once, before or after; a replay happened or not; memory and command buffers that the
device works with are left alone.
"""

from __future__ import annotations

import itertools
import linecache
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import helios.backends.vulkan
from helios import ops
from helios.backends.vulkan.backend import VulkanBackend
from helios.capture import Capture
from helios.tensor import Tensor

from .vulkan import make

SOURCES = str(Path(helios.backends.vulkan.__file__).parent)
A = np.random.default_rng(0).standard_normal((140, 140)).astype(np.float32) / 8  # larger than the chunks of the tests
B = A[:12, :12] * 8
C = np.resize(A, (200, 200)) / 2  # in which no program computes


class Scenario:
    """Work on a backend, of which each call of `step` may be interrupted; `check` finds out whether all is right."""

    def __init__(self, be: VulkanBackend) -> None:
        self.be = be
        self.count = Tensor(be.array(np.zeros((), np.float32)), be)
        self.counts = {0}  # what it may be: one more for each time that adding was collected
        self.replays = {0}  # how many there may have been
        self.capture = Capture(self._replayed, be)
        self.replayed = Tensor(be.array(np.zeros((), np.float32)), be)
        self.other = Capture(lambda x: (self._forward(x),), be)
        self.expected = {len(x): self.numbers(x) for x in (A, B, C)}
        self.capture(A)
        self.replays = {1}

    def numbers(self, x: np.ndarray) -> np.ndarray:
        return self._forward(Tensor(self.be.array(x), self.be)).numpy()

    def _forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = ops.gelu(x @ x) * 0.1
        return x

    def _replayed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        one = Tensor(self.be.array(np.ones((), np.float32)), self.be)
        self.be.assign(self.replayed.data, (self.replayed + one).data)
        return self._forward(x), self.replayed

    # -- what is interrupted ------------------------------------------------------------------------------------------
    def lazy(self) -> None:
        one = Tensor(self.be.array(np.ones((), np.float32)), self.be)
        total = (self.count + one).data
        self.counts |= {n + 1 for n in self.counts}
        self.be.assign(self.count.data, total)
        self.counts = {max(self.counts)}  # collected, so it will be computed, once
        self.be.flush()

    def read(self) -> None:
        self.numbers(B)
        self.numbers(C)

    def upload(self) -> None:
        x = self.be.array(A)
        self.be.upload(x, A.T.copy())
        assert np.array_equal(self.be.numpy(x), A.T)

    def replay(self) -> None:
        self.replays |= {n + 1 for n in self.replays}
        self.capture(A)

    def under_way(self) -> None:
        reads = []
        for _ in range(3):
            self.replays |= {n + 1 for n in self.replays}
            reads.append(self.capture.submit(A))
        for read in reads:
            read()

    def move(self) -> None:
        """The arena grows for another program, and shrinks when that is gone."""
        large = Capture(lambda x: (ops.gelu(ops.gelu(x @ x) @ x).sum(),), self.be)
        large(np.ones((200, 200), np.float32))
        self.replay()
        del large
        self.replay()

    # -- whether it is right ------------------------------------------------------------------------------------------
    def check(self) -> None:
        count = self.count.item()  # with nothing else to compute but what was collected
        assert count in self.counts
        self.counts = {int(count)}
        for x in (A, B, C):
            assert np.array_equal(self.numbers(x), self.expected[len(x)])
        before = self.replayed.item()
        assert before in self.replays
        result, replays = self.capture(A)
        assert np.array_equal(result, self.expected[len(A)]) and replays == before + 1
        assert np.array_equal(self.other(B)[0], self.expected[len(B)])
        self.replays = {int(replays)}


STEPS: list[Callable[[Scenario], None]] = [
    Scenario.lazy, Scenario.read, Scenario.upload, Scenario.replay, Scenario.under_way, Scenario.move]


def interrupted(scenario: Scenario, step: Callable[[Scenario], None]) -> bool:
    """Whether the step ended by an interrupt."""
    try:
        step(scenario)
    except KeyboardInterrupt:
        return True
    return False


# -- before any line of the backend's -----------------------------------------------------------------------------
class Tracer:
    """Counts the lines of the backend that run, and interrupts before one of them."""

    def __init__(self, at: int = 0) -> None:
        self.at, self.lines = at, 0

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(SOURCES):
            return None
        before = linecache.getline(frame.f_code.co_filename, frame.f_lineno - 1)
        if event == "line" and before.strip() != "finally:":  # Python looks for interrupts at calls and in loops alone
            self.lines += 1
            if self.lines == self.at:
                raise KeyboardInterrupt
        return self

    @contextmanager
    def active(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            yield
        finally:
            sys.settrace(before)


def at_lines(be: VulkanBackend, points: int) -> int:
    """Interrupt each step before so many lines, evenly spread over it; return how often it was."""
    scenario, interrupts = Scenario(be), 0
    for step in STEPS:
        step(scenario)
        with (whole := Tracer()).active():
            step(scenario)
        for n in range(points):
            with Tracer(1 + (whole.lines - 1) * n // points).active():
                interrupts += interrupted(scenario, step)
            scenario.check()
    return interrupts


def test_before_any_line() -> None:
    assert at_lines(make(chunk_size=1 << 16), 40) > 200


# -- around the calls of the driver -----------------------------------------------------------------------------------
class Proxy(SimpleNamespace):
    """Another object, but for the attributes given."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.behind, name)


@contextmanager
def around(be: VulkanBackend, name: str, call: Callable[..., Any]) -> Iterator[None]:
    """Let `call` stand in for a function of the driver's."""
    with pytest.MonkeyPatch.context() as patch:
        vk = Proxy(behind=be.queue.vk, lib=Proxy(behind=be.queue.vk.lib, **{name: call}))
        patch.setattr(be.queue, "vk", vk)
        patch.setattr(be.queue.recorder, "vk", vk)
        yield


@pytest.mark.parametrize("name", ["vkQueueSubmit", "vkWaitSemaphores", "vkCmdCopyBuffer", "vkQueueWaitIdle"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_around_a_call(name: str, after: bool) -> None:
    be = make(chunk_size=1 << 16)
    scenario, real, calls, at = Scenario(be), getattr(be.queue.vk.lib, name), itertools.count(), -1

    def call(*args: Any) -> Any:
        now = next(calls) == at
        if now and not after:
            raise KeyboardInterrupt
        result = real(*args)
        if now:
            raise KeyboardInterrupt
        return result

    with around(be, name, call):
        for step in STEPS:
            for at in range(6):
                calls = itertools.count()
                interrupted(scenario, step)
                at = -1
                scenario.check()


@contextmanager
def interrupted_after_submit(be: VulkanBackend) -> Iterator[None]:
    """Within it, with the device busy, a submit is made but Python does not hear of it."""
    x = np.eye(512, dtype=np.float32)
    busy = Capture(lambda t: ((t @ t) @ (t @ t),), be)
    busy(x)
    read, real = busy.submit(x), be.queue.vk.lib.vkQueueSubmit

    def call(*args: Any) -> Any:
        assert real(*args) == 0
        raise KeyboardInterrupt

    with around(be, "vkQueueSubmit", call), pytest.raises(KeyboardInterrupt):
        yield
    del read


def test_an_interrupted_replay_keeps_its_inputs() -> None:
    be = make()
    total = Tensor(be.array(np.zeros((), np.float32)), be)

    def add(x: Tensor) -> tuple[Tensor]:
        be.assign(total.data, (total + x.sum()).data)
        return (total,)

    capture, x = Capture(add, be), np.ones(5000, np.float32)
    assert capture(x)[0] == 5000
    with interrupted_after_submit(be):
        capture(2 * x)
    assert capture(4 * x)[0] == 35_000


def test_an_interrupted_upload_brings_in_what_it_was_given() -> None:
    be = make()
    one, two = be.array(A), be.array(A)
    with interrupted_after_submit(be):
        be.upload(one, 2 * A)
    be.upload(two, 3 * A)
    assert np.array_equal(be.numpy(one), 2 * A) and np.array_equal(be.numpy(two), 3 * A)


def test_a_second_interrupt_while_the_first_is_settled() -> None:
    be = make()
    for made in (False, True):  # whether the submit was
        scenario, real = Scenario(be), be.queue.vk.lib.vkQueueSubmit

        def submit(*args: Any, made: bool = made, real: Callable[..., int] = real) -> int:
            assert not made or real(*args) == 0
            raise KeyboardInterrupt

        def rest(*args: Any) -> int:
            raise KeyboardInterrupt

        one = Tensor(be.array(np.ones((), np.float32)), be)
        be.assign(scenario.count.data, (scenario.count + one).data)
        with around(be, "vkQueueSubmit", submit), pytest.MonkeyPatch.context() as patch:
            patch.setattr(be.queue.vk.lib, "vkQueueWaitIdle", rest)
            with pytest.raises(KeyboardInterrupt):
                be.flush()
        be.assign(scenario.count.data, (scenario.count + one).data)
        scenario.counts = {2}
        scenario.check()


def test_no_finalizer_is_written_in_python() -> None:
    """An interrupt in one is printed and lost."""
    be = make()
    x, capture = be.array(A), Capture(lambda t: (t @ t,), be)
    capture(B)
    with (tracer := Tracer()).active():
        del x, capture
    assert tracer.lines == 0


# -- by signals -------------------------------------------------------------------------------------------------------
def test_by_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """At whatever point the time comes, most often in the middle of waiting."""
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: None)  # an interrupt in a library's finalizer is lost
    be = make(chunk_size=1 << 20)
    scenario, interrupts = Scenario(be), 0
    x = np.eye(256, dtype=np.float32)
    slow = Capture(lambda t: (((t @ t) @ (t @ t)) @ t,), be)
    slow(x)

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for n in range(120):
            step = STEPS[n % len(STEPS)]
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-4 * (1 + n // len(STEPS) * 3))
                slow.submit(x)
                step(scenario)
                signal.setitimer(signal.ITIMER_REAL, 0)  # in here, not after it, for the time may come just before
            except KeyboardInterrupt:
                interrupts += 1
            assert np.array_equal(slow(x)[0], x)
            scenario.check()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupts > 20


# -- what the validation layer says ------------------------------------------------------------------------------------
CODE = """
import sys
sys.path.insert(0, {tests!r})
from backends.test_interrupt import at_lines
from backends.vulkan import make
from helios.backends.vulkan import device
at_lines(make(chunk_size=1 << 16), 12)
for message in device.validation_messages:
    print(message)
"""


def test_nothing_is_freed_or_written_that_the_device_works_with() -> None:
    make()
    tests = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-P", "-c", CODE.format(tests=str(tests))], capture_output=True, text=True,
                          env={**os.environ, "HELIOS_VALIDATION": "1"})
    if "validation layer is not installed" in done.stderr and not os.environ.get("CI"):
        pytest.skip("the Khronos validation layer is not installed")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
