"""The queue of a device: what is submitted and waited for, brought in and out, and destroyed when it is done with.

The device counts submits in a timeline semaphore, whose value is the number of the last one done, and all before it. A
number may be waited for twice, and numbers in any order.

An interrupt (Ctrl-C) comes between any two steps of Python. What it may leave unknown is marked before a submit and
unmarked after; whoever finds the mark lets the device come to rest first. An interrupt in a finalizer would be lost, so
none is in Python: an object's end puts a weak reference with what is to be done into a list.
"""

from __future__ import annotations

import os
import time
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from threading import RLock
from typing import Any, TypeVar

import numpy as np

from helios.backends.vulkan.device import Device
from helios.backends.vulkan.memory import Chunk
from helios.backends.vulkan.recorder import Recorder

STAGING = 1 << 20  # bytes, at least
SLICE_NS = 500_000_000  # after so long, waiting lets an interrupt through
Destroy = Callable[[], object]
Thing = TypeVar("Thing")


class Queue:
    """Submits command buffers, one after another, and brings single arrays in and out."""

    def __init__(self, device: Device, recorder: Recorder) -> None:
        vk, self.device, self.recorder = device.vk, device, recorder
        self.vk = vk
        kind = vk.VkSemaphoreTypeCreateInfo(semaphoreType=vk.VK_SEMAPHORE_TYPE_TIMELINE, initialValue=0)
        semaphore = vk.vkCreateSemaphore(device.handle, vk.VkSemaphoreCreateInfo(pNext=kind), None)
        self._semaphore = vk.ffi.new("VkSemaphore[1]", [semaphore])
        self.number = 0  # of the latest submit, which an interrupt may have prevented
        self.done = 0  # the device is known to have done all submits up to this one
        self.waited = 0.0  # seconds that the host spent waiting
        self.lock, self.pid = RLock(), os.getpid()  # see exclusive.py
        self.unsettled: Callable[[], object] | None = None  # finds out whether an interrupted submit was made
        self.left: deque[Owned] = deque()  # by objects that are gone
        self.owned: set[Owned] = set()  # by those that are not
        self._retired: deque[tuple[int, list[Destroy]]] = deque()  # with the submit that must be done
        self._once = recorder.make()  # the command buffer of submit_once()
        self._unknown = False  # whether the device is done with that and with the staging memory
        self._staging: Chunk | None = None

    # -- submits ------------------------------------------------------------------------------------------------------
    def submit(self, *buffers: Any) -> int:
        """Submit command buffers, to run in this order after all submitted before; return the number to wait for."""
        vk = self.vk
        self.number += 1
        number = self.number
        value, array = vk.ffi.new("uint64_t[1]", [number]), vk.ffi.new("VkCommandBuffer[]", buffers)
        count = vk.ffi.new("VkTimelineSemaphoreSubmitInfo*")
        count.sType = vk.VK_STRUCTURE_TYPE_TIMELINE_SEMAPHORE_SUBMIT_INFO
        count.signalSemaphoreValueCount, count.pSignalSemaphoreValues = 1, value
        info = vk.ffi.new("VkSubmitInfo*")
        info.sType, info.pNext = vk.VK_STRUCTURE_TYPE_SUBMIT_INFO, count
        info.commandBufferCount, info.pCommandBuffers = len(buffers), array
        info.signalSemaphoreCount, info.pSignalSemaphores = 1, self._semaphore
        self.device.check(vk.lib.vkQueueSubmit(self.device.queue, 1, info, vk.ffi.NULL), "a submit")
        return number

    def wait(self, number: int) -> None:
        """Wait for a submit and all before it. Raises DeviceLost; an interrupt gets through twice a second."""
        if number > self.done:
            vk = self.vk
            value = vk.ffi.new("uint64_t[1]", [number])
            info = vk.ffi.new("VkSemaphoreWaitInfo*")
            info.sType = vk.VK_STRUCTURE_TYPE_SEMAPHORE_WAIT_INFO
            info.semaphoreCount, info.pSemaphores, info.pValues = 1, self._semaphore, value
            start = time.perf_counter()
            try:
                while (result := vk.lib.vkWaitSemaphores(self.device.handle, info, SLICE_NS)) == vk.VK_TIMEOUT:
                    pass
            finally:
                self.waited += time.perf_counter() - start
            self._check(result)
            self.done = max(self.done, number)
        self.tidy()

    def rest(self) -> None:
        """Wait for all that was submitted, not knowing what that is."""
        vk = self.vk
        self._check(vk.lib.vkQueueWaitIdle(self.device.queue))
        value = vk.ffi.new("uint64_t[1]")
        self._check(vk.lib.vkGetSemaphoreCounterValue(self.device.handle, self._semaphore[0], value))
        self.done = max(self.done, value[0])
        self._unknown = False
        self.tidy()

    def reached(self, number: int) -> bool:
        """Return, after an interrupt, whether the submit of that number was made at all; the device then rests."""
        self.rest()
        return self.done >= number

    def _check(self, result: int) -> None:
        if result == self.vk.VK_ERROR_DEVICE_LOST:
            self.device.lose("was lost while computing: it may have been reset (see dmesg), or work may take longer "
                             "than its watchdog allows")
        self.device.check(result, "waiting")

    # -- work for once ------------------------------------------------------------------------------------------------
    def submit_once(self, write: Callable[[Any], object]) -> int:
        """Submit what `write` puts into a command buffer, after a barrier. The number must go to finish()."""
        if self._unknown:
            self.rest()
        self._unknown = True
        self.recorder.begin(self._once)
        self.recorder.barrier(self._once)
        write(self._once)
        self.recorder.end(self._once)
        return self.submit(self._once)

    def finish(self, number: int) -> None:
        """Wait for what submit_once() has submitted."""
        self.wait(number)
        self._unknown = False

    def run(self, write: Callable[[Any], object]) -> None:
        """Submit what `write` puts into a command buffer, after a barrier, and wait for it."""
        self.finish(self.submit_once(write))

    def read(self, chunk: Chunk, offset: int, size: int) -> np.ndarray:
        """Return a copy of a chunk's bytes, uint8 [size]."""
        staging, recorder = self._host(size), self.recorder

        def write(buffer: Any) -> None:
            recorder.copy(buffer, chunk, offset, staging, 0, size)
            recorder.barrier_to_host(buffer)

        self.run(write)
        return np.frombuffer(staging.mapped, np.uint8, size).copy()

    def write(self, chunk: Chunk, offset: int, value: np.ndarray) -> None:
        """Copy a contiguous array into a chunk."""
        staging = self._host(value.nbytes)
        staging.fill([value])
        self.run(lambda buffer: self.recorder.copy(buffer, staging, 0, chunk, offset, value.nbytes))

    def _host(self, size: int) -> Chunk:
        """Memory of the host for one copy in or out, that the device does not work with."""
        if self._unknown:
            self.rest()
        if self._staging is None or self._staging.size < size:
            old, self._staging = self._staging, None
            if old is not None:
                old.destroy()
            self._staging = Chunk(self.device, max(size, STAGING), host=True)
        return self._staging

    # -- what is no longer needed -------------------------------------------------------------------------------------
    def retire(self, destroy: Destroy) -> None:
        """Call `destroy` once the device has done all that was submitted until now."""
        self._retired.append((self.number, [destroy]))
        self.tidy()

    def tidy(self) -> None:
        """Destroy what was retired or left behind and the device is done with."""
        while self.left:
            owned = self.left.popleft()
            self.owned.discard(owned)
            self._retired.append((self.number, owned.destroys))
        while self._retired and self._retired[0][0] <= self.done:
            for destroy in self._retired.popleft()[1]:
                destroy()


class Owned(weakref.ref):
    """What an object has from the device, registered as it is made, so that a constructor that fails leaks nothing.

    An object dies where its last reference does: in another thread, or in the middle of a recording. So its end only
    moves this into `queue.left`, and whoever uses the queue next destroys what it owned, when the device is done with
    it.
    """

    destroys: list[Destroy]

    @classmethod
    def by(cls, owner: object, queue: Queue) -> Owned:
        """Return what the owner has so far, which is nothing."""
        owned = cls(owner, queue.left.append)
        owned.destroys = []
        queue.owned.add(owned)
        return owned

    def add(self, thing: Thing, destroy: Callable[[Thing], object]) -> Thing:
        """Register a thing and how to destroy it; return it."""
        self.destroys.append(partial(destroy, thing))
        return thing
