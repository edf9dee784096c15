"""A recorded function: one command buffer, replayed with one queue submit a call."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from helios.backends.backend import Dispatch, host_array
from helios.backends.vulkan.arena import Arena, Layout
from helios.backends.vulkan.array import FLOAT, VkArray
from helios.backends.vulkan.exclusive import exclusive
from helios.backends.vulkan.memory import Block, Chunk, aligned
from helios.backends.vulkan.queue import Owned, Queue
from helios.backends.vulkan.stream import Command, groups
from helios.errors import DeviceLost

SLOTS = 2  # calls under way at a time: the host prepares one while the device runs another


class Call:
    """A replay that was submitted under `number`, the nth of its program; its outputs once they were read."""

    def __init__(self, slot: Slot, number: int, nth: int) -> None:
        self.slot, self.number, self.nth = slot, number, nth
        self.values: tuple[np.ndarray, ...] | None = None


class Slot:
    """Memory of the host for one call's inputs and outputs, and the command buffers that bring them in and out."""

    def __init__(self, program: VulkanProgram) -> None:
        queue, own, size = program.queue, program.own, program.input_bytes
        recorder = queue.recorder
        self.call: Call | None = None  # whose outputs have not been read
        self.unknown = False  # whether an interrupt left the device working with it
        self.host_in = own.add(Chunk(queue.device, max(size, 4), host=True), Chunk.destroy)
        self.host_out = own.add(Chunk(queue.device, program.output_bytes, host=True), Chunk.destroy)
        self.bring_in, self.bring_out = (own.add(recorder.make(), recorder.free) for _ in range(2))
        recorder.begin(self.bring_in)
        recorder.barrier(self.bring_in)  # after whatever was submitted before
        if size:
            block = program.inputs_block
            assert block.chunk is not None
            recorder.copy(self.bring_in, self.host_in, 0, block.chunk, block.offset, size)
            recorder.barrier(self.bring_in)
        recorder.end(self.bring_in)
        recorder.begin(self.bring_out)
        recorder.barrier(self.bring_out)
        offset = 0
        for out in program.outputs:
            r = out.range("r")
            assert r.block.chunk is not None
            recorder.copy(self.bring_out, r.block.chunk, r.block.offset + r.offset, self.host_out, offset, r.size)
            offset += aligned(r.size)
        self.stamps_at = offset
        if program.queries is not None:
            vk = queue.vk
            vk.lib.vkCmdCopyQueryPoolResults(self.bring_out, program.queries, 0, program.stamps, self.host_out.buffer,
                                             offset, 8, vk.VK_QUERY_RESULT_64_BIT | vk.VK_QUERY_RESULT_WAIT_BIT)
        recorder.barrier_to_host(self.bring_out)
        recorder.end(self.bring_out)


@exclusive("submit", "profile", "shuffle", "_values")
class VulkanProgram:
    """`commands` in order, placed outside the arena or by `layout` in it. `inputs`, one after another in
    `inputs_block`, are written before each replay and `outputs` read after it.

    prepare: called before each replay; runs what was collected, or raises where nothing may be submitted.
    """

    def __init__(self, queue: Queue, arena: Arena, prepare: Callable[[], None], commands: list[Command],
                 layout: Layout, inputs: Sequence[VkArray], inputs_block: Block, outputs: Sequence[VkArray]) -> None:
        self.queue, self.arena, self.layout, self._prepare = queue, arena, layout, prepare
        self.commands, self.inputs, self.inputs_block, self.outputs = commands, inputs, inputs_block, outputs
        self.own = Owned.by(self, queue)
        arena.fit(layout.size)
        arena.needs[key := object()] = layout.size
        self.own.add(key, arena.needs.pop)
        arena.place(layout)
        self.batches = groups(commands)
        self.kernels: Sequence[str] = tuple(c.name for c in commands if c.uses)
        self.dispatches, self.barriers, self.arena_bytes = len(self.kernels), 0, layout.size
        self.phases: dict[str, float] = {}
        self.marks = ["", *(c.name for c in commands if not c.uses)]
        self.stamps = len(self.marks) + 1
        self.queries = self.own.add(*self._query_pool(self.stamps)) if queue.device.timestamps else None
        self.input_bytes = sum(aligned(x.nbytes) for x in inputs)
        self.output_bytes = sum(aligned(x.nbytes) for x in outputs) + 8 * self.stamps
        self.calls = 0
        self._seed: int | None = None  # of shuffle()
        self._main = self.own.add([queue.recorder.make()], lambda buffers: queue.recorder.free(*buffers))
        self._version = -1
        self.place()
        self.slots = [Slot(self) for _ in range(SLOTS)]

    def _query_pool(self, n: int) -> tuple[Any, Callable[[Any], object]]:
        """A pool of n timestamps, and how to destroy it."""
        vk, device = self.queue.vk, self.queue.device.handle
        pool = vk.vkCreateQueryPool(device, vk.VkQueryPoolCreateInfo(
            queryType=vk.VK_QUERY_TYPE_TIMESTAMP, queryCount=n), None)
        return pool, lambda pool: vk.vkDestroyQueryPool(device, pool, None)

    def place(self) -> None:
        """Follow the arena to where it is: place what lies in it, and record the commands again if that moved."""
        self.arena.fit()
        if self._version != (version := self.arena.version):
            self.arena.place(self.layout)
            self._record()
            self._version = version

    def _record(self) -> None:
        recorder = self.queue.recorder
        buffer = recorder.make()
        recorder.begin(buffer, again=True)
        if self.queries is not None:
            self.queue.vk.lib.vkCmdResetQueryPool(buffer, self.queries, 0, self.stamps)
        shuffle = None if self._seed is None else random.Random(self._seed)
        self.barriers = recorder.write(buffer, self.batches, self.queries, shuffle=shuffle)
        recorder.end(buffer)
        (old,), self._main[:] = self._main, [buffer]
        self.queue.retire(partial(recorder.free, old))

    def shuffle(self, seed: int) -> None:
        """Record again with the commands of every barrier-free group in another order: no bit may change."""
        self._seed = seed
        self._record()

    def submit(self, inputs: Sequence[np.ndarray]) -> Callable[[], tuple[np.ndarray, ...]]:
        """Start a replay; the returned function waits for it and gives the outputs.

        Raises ValueError for inputs of other shapes than it was recorded for.
        """
        self._prepare()
        slot = self.slots[self.calls % SLOTS]
        if slot.call:
            self._values(slot.call)
        elif slot.unknown:
            self.queue.rest()
        for x, value in zip(self.inputs, inputs, strict=True):
            if value.shape != x.shape:
                raise ValueError(f"replay: recorded for an input of shape {x.shape}, got {value.shape}")
        values = [host_array(value, FLOAT) for value in inputs]
        self.place()
        slot.unknown = True
        slot.host_in.fill(values)
        number = self.queue.submit(slot.bring_in, *self._main, slot.bring_out)
        self.calls += 1
        call = slot.call = Call(slot, number, self.calls)
        slot.unknown = False
        return lambda: self._values(call)

    def _values(self, call: Call) -> tuple[np.ndarray, ...]:
        if call.values is None:
            try:
                self.queue.wait(call.number)
            except DeviceLost as error:
                raise DeviceLost(f"{error}; it had begun {self._reached()} of replay {call.nth}") from None
            host, at = np.frombuffer(call.slot.host_out.mapped, np.uint8), call.slot.stamps_at
            if self.queries is not None:
                self._set_phases(host[at : at + 8 * self.stamps].view(np.uint64))
            values, offset = [], 0
            for out in self.outputs:
                raw = host[offset : offset + out.nbytes]
                values.append(raw.view(out.dtype).reshape(out.shape).copy())
                offset += aligned(out.nbytes)
            call.values = tuple(values)
            call.slot.call = None
        return call.values

    def _reached(self) -> str:
        """The last phase whose timestamp was written: where a lost device was."""
        if self.queries is None:
            return "an unknown phase"
        vk, found = self.queue.vk, np.zeros((self.stamps, 2), np.uint64)  # value, whether it is there
        vk.lib.vkGetQueryPoolResults(self.queue.device.handle, self.queries, 0, self.stamps, found.nbytes,
                                     vk.ffi.from_buffer(found), 16,
                                     vk.VK_QUERY_RESULT_64_BIT | vk.VK_QUERY_RESULT_WITH_AVAILABILITY_BIT)
        begun = [name for name, (_, there) in zip(self.marks, found[:-1], strict=True) if there and name]
        return begun[-1] if begun else "nothing"

    def _set_phases(self, stamps: np.ndarray) -> None:
        phases: dict[str, float] = {}
        for name, ms in zip(self.marks, self.queue.device.milliseconds(stamps), strict=True):
            if name:
                phases[name] = phases.get(name, 0.0) + float(ms)
        self.phases = phases

    def profile(self) -> list[Dispatch]:
        """Run each command alone, on the inputs of the last call, and time it. It changes what a replay changes.

        Gives nothing where the device has no timestamps.
        """
        if self.queries is None:
            return []
        self.place()
        queries, destroy = self._query_pool(self.dispatches + 1)
        vk, device, recorder = self.queue.vk, self.queue.device, self.queue.recorder

        def write(buffer: Any) -> None:
            vk.lib.vkCmdResetQueryPool(buffer, queries, 0, self.dispatches + 1)
            recorder.write(buffer, self.batches, queries, each=True)

        stamps = np.zeros(self.dispatches + 1, np.uint64)
        try:
            self.queue.run(write)
            vk.lib.vkGetQueryPoolResults(device.handle, queries, 0, len(stamps), stamps.nbytes,
                                         vk.ffi.from_buffer(stamps), 8, vk.VK_QUERY_RESULT_64_BIT)
        finally:
            self.queue.retire(partial(destroy, queries))
        commands = (c for batch in self.batches for c in batch if c.uses)
        return [Dispatch(c.name, {} if isinstance(c.kernel, str) else c.kernel.defines, float(ms))
                for c, ms in zip(commands, device.milliseconds(stamps), strict=True)]
