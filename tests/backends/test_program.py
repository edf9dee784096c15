"""What a recorded function has from the device, and what its clock and its errors say."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from helios import ops
from helios.backends.vulkan import program as module
from helios.backends.vulkan.backend import VulkanBackend
from helios.capture import Capture
from helios.errors import DeviceLost, UserError
from helios.tensor import Tensor

from .vulkan import make

X = np.eye(8, dtype=np.float32)
PAIRS = {"vkAllocateMemory": "vkFreeMemory", "vkCreateBuffer": "vkDestroyBuffer",
         "vkCreateQueryPool": "vkDestroyQueryPool", "vkAllocateCommandBuffers": "vkFreeCommandBuffers"}


@pytest.fixture
def living(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How many of each the device has made and not destroyed since, by the name of the function that makes them."""
    vk, count = make().queue.vk, Counter[str]()

    def counted(name: str, real: Callable[..., Any], by: int) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            result = real(*args)
            count[name] += by
            return result

        return call

    for name, opposite in PAIRS.items():
        for function, by in ((name, 1), (opposite, -1)):
            monkeypatch.setattr(vk, function, counted(name, getattr(vk, function), by))
    yield count


def twice(be: VulkanBackend) -> Capture:
    return Capture(lambda x: (ops.gelu(x @ x) * 2.0,), be)


def test_a_program_leaves_nothing(living: Counter[str]) -> None:
    be = make()
    twice(be)(X)
    be.array(X)
    before = +living
    for _ in range(3):
        capture = twice(be)
        capture(X)
        next(iter(capture.programs.values())).profile()
        assert living["vkAllocateMemory"] == before["vkAllocateMemory"] + 4
        del capture
        be.array(X)
        assert +living == before


@pytest.mark.parametrize("at", range(4))
def test_nor_does_one_that_could_not_be_made(at: int, living: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory of the host may be missing for any of the four that it needs."""
    be, made = make(), 0
    twice(be)(X)
    be.array(X)
    before, needs = +living, dict(be.arena.needs)
    real = module.Chunk

    class Chunk(real):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **more: Any) -> None:
            nonlocal made
            made += 1
            if made > at:
                raise UserError("out of memory")
            super().__init__(*args, **more)

    with monkeypatch.context() as patched:
        patched.setattr(module, "Chunk", Chunk)
        with pytest.raises(UserError, match="out of memory"):
            twice(be)(X)
    gc.collect()
    be.array(X)
    assert +living == before and be.arena.needs == needs
    assert np.array_equal(twice(be)(X)[0], twice(make())(X)[0])


def test_a_program_that_dies_elsewhere_waits_for_who_uses_the_queue(living: Counter[str]) -> None:
    """Command buffers of one pool must not be freed in one thread while another thread writes into one of them."""
    be = make()
    holder = [twice(be)]
    holder[0](X)
    during = []

    def fn(x: Tensor) -> tuple[Tensor]:
        before = +living
        thread = threading.Thread(target=lambda: (holder.clear(), gc.collect()))
        thread.start()
        thread.join()
        during.append(+living == before)
        return (x * 2.0,)

    before = living["vkAllocateCommandBuffers"]
    capture = Capture(fn, be)
    capture(X)
    assert during == [True]
    assert living["vkAllocateCommandBuffers"] == before, "as many as the one that came in its place"


def test_a_clock_of_few_bits_that_wraps() -> None:
    be = make()
    be.device.profile = replace(be.device.profile, timestamp_ns=2.0, timestamp_bits=36)
    stamps = np.array([(1 << 36) - 500_000, 500_000, 1_500_000], np.uint64) | np.array([7, 1, 12], np.uint64) << 60
    np.testing.assert_array_equal(be.device.milliseconds(stamps), [2.0, 2.0])
    be.device.profile = replace(be.device.profile, timestamp_bits=64)
    np.testing.assert_array_equal(be.device.milliseconds(np.array([2**64 - 1, 999_999], np.uint64)), [2.0])
    be.device.profile = replace(be.device.profile, timestamp_bits=0)
    capture = twice(be)
    capture(X)
    (program,) = capture.programs.values()
    assert program.phases == {} and program.profile() == []


@pytest.mark.parametrize("n", [1, 2])
def test_a_lost_device_names_the_replay_that_was_waited_for(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    be = make()
    capture = twice(be)
    reads = [capture.submit(X) for _ in range(2)]
    vk = be.queue.vk
    be.queue.rest()
    be.queue.done = 0
    lost = SimpleNamespace(vkWaitSemaphores=lambda *args: vk.VK_ERROR_DEVICE_LOST,
                           vkGetQueryPoolResults=vk.lib.vkGetQueryPoolResults)
    constants = {n: getattr(vk, n) for n in dir(vk) if n.startswith("VK_")}
    with monkeypatch.context() as patched:
        patched.setattr(be.queue, "vk", SimpleNamespace(**constants, lib=lost, ffi=vk.ffi))
        with pytest.raises(DeviceLost, match=f"of replay {n}$"):
            reads[n - 1]()
