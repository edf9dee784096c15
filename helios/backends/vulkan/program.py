"""A recorded function: one command buffer, replayed with one queue submit a call."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from helios.backends.vulkan.memory import Block, Chunk, aligned
from helios.backends.vulkan.stream import Command, groups
from helios.errors import DeviceLost

if TYPE_CHECKING:
    from helios.backends.vulkan.backend import VkArray, VulkanBackend

SLOTS = 2  # calls under way at a time: the host prepares one while the device runs another


class Slot:
    """Host memory for one call's inputs and outputs, and the command buffers that bring them in and out."""

    def __init__(self, program: VulkanProgram) -> None:
        be = program.backend
        vk, recorder = be.vk, be.recorder
        size = program.input_bytes
        self.host_in = Chunk(be.device, max(size, 4), host=True)
        self.host_out = Chunk(be.device, program.output_bytes, host=True)
        self.bring_in = recorder.begin()
        recorder.barrier(self.bring_in)  # after whatever was submitted before
        if size:
            block = program.inputs_block
            assert block.chunk is not None
            recorder.copy(self.bring_in, self.host_in, 0, block.chunk, block.offset, size)
            recorder.barrier(self.bring_in)
        recorder.end(self.bring_in)
        self.bring_out = recorder.begin()
        recorder.barrier(self.bring_out)
        offset = 0
        for out in program.outputs:
            r = out.range("r")
            assert r.block.chunk is not None
            recorder.copy(self.bring_out, r.block.chunk, r.block.offset + r.offset, self.host_out, offset, r.size)
            offset += aligned(r.size)
        self.stamps_at = offset
        if program.queries is not None:
            vk.lib.vkCmdCopyQueryPoolResults(self.bring_out, program.queries, 0, program.stamps, self.host_out.buffer,
                                             offset, 8, vk.VK_QUERY_RESULT_64_BIT | vk.VK_QUERY_RESULT_WAIT_BIT)
        recorder.barrier_to_host(self.bring_out)
        recorder.end(self.bring_out)
        self.fence = vk.vkCreateFence(be.device.handle, vk.VkFenceCreateInfo(), None)
        self.pending: Callable[[], tuple[np.ndarray, ...]] | None = None


class VulkanProgram:
    """`commands` in order, all placed; `inputs` are written before each replay and `outputs` read after it."""

    def __init__(self, backend: VulkanBackend, commands: list[Command], inputs: Sequence[VkArray],
                 outputs: Sequence[VkArray], inputs_block: Block) -> None:
        self.backend, self.commands, self.inputs, self.outputs = backend, commands, inputs, outputs
        self.inputs_block = inputs_block
        self.batches = groups(commands)
        self.dispatches = sum(bool(c.uses) for c in commands)
        self.phases: dict[str, float] = {}
        self.marks = ["", *(c.name for c in commands if not c.uses)]
        self.submits = 0
        vk = backend.vk
        self.stamps = len(self.marks) + 1
        self.queries = self._query_pool(self.stamps) if backend.device.timestamps else None
        self.input_bytes = sum(aligned(x.nbytes) for x in inputs)
        self.output_bytes = sum(aligned(x.nbytes) for x in outputs) + 8 * self.stamps
        self.barriers = 0
        self.main = self._record(None)
        self.slots = [Slot(self) for _ in range(SLOTS)]
        self._fences = [vk.ffi.new("VkFence[1]", [slot.fence]) for slot in self.slots]
        self._submits = [self._submit_info(slot) for slot in self.slots]

    def _query_pool(self, n: int) -> Any:
        vk = self.backend.vk
        return vk.vkCreateQueryPool(self.backend.device.handle, vk.VkQueryPoolCreateInfo(
            queryType=vk.VK_QUERY_TYPE_TIMESTAMP, queryCount=n), None)

    def _record(self, shuffle: random.Random | None) -> Any:
        recorder = self.backend.recorder
        buffer = recorder.begin(again=True)
        if self.queries is not None:
            self.backend.vk.lib.vkCmdResetQueryPool(buffer, self.queries, 0, self.stamps)
        self.barriers = recorder.write(buffer, self.batches, self.queries, shuffle=shuffle)
        return recorder.end(buffer)

    def shuffle(self, seed: int) -> None:
        """Record again with the commands of every barrier-free group in another order: no bit may change."""
        self.wait()
        self.backend.recorder.free(self.main)
        self.main = self._record(random.Random(seed))
        self._submits = [self._submit_info(slot) for slot in self.slots]

    def _submit_info(self, slot: Slot) -> Any:
        vk = self.backend.vk
        buffers = vk.ffi.new("VkCommandBuffer[3]", [slot.bring_in, self.main, slot.bring_out])
        info = vk.ffi.new("VkSubmitInfo*")
        info.sType = vk.VK_STRUCTURE_TYPE_SUBMIT_INFO
        info.commandBufferCount, info.pCommandBuffers = 3, buffers
        return info, buffers  # the caller keeps `buffers` alive

    def submit(self, inputs: Sequence[np.ndarray]) -> Callable[[], tuple[np.ndarray, ...]]:
        be = self.backend
        if be.recording:
            raise RuntimeError("a recorded function cannot be called in a function that is being recorded")
        be.flush()
        which = self.submits % SLOTS
        slot = self.slots[which]
        if slot.pending:
            slot.pending()
        for x, value in zip(self.inputs, inputs, strict=True):
            if value.shape != x.shape:
                raise ValueError(f"replay: recorded for an input of shape {x.shape}, got {value.shape}")
        be.copy_to_host(slot.host_in, [be.convert(v) for v in inputs])
        be.device.check(be.vk.lib.vkQueueSubmit(be.device.queue, 1, self._submits[which][0], slot.fence), "a submit")
        self.submits += 1
        be.submits += 1
        be.under_way.add(self)  # what the device works with must outlive every other reference to it
        result: tuple[np.ndarray, ...] | None = None

        def read() -> tuple[np.ndarray, ...]:
            nonlocal result
            if result is None:
                try:
                    be.wait(self._fences[which])
                except DeviceLost as error:
                    raise DeviceLost(f"{error}; it had begun {self._reached()} of replay {self.submits}") from None
                slot.pending = None
                if not any(s.pending for s in self.slots):
                    be.under_way.discard(self)
                host = np.frombuffer(slot.host_out.mapped, np.uint8)
                values, offset = [], 0
                for out in self.outputs:
                    raw = host[offset : offset + out.nbytes]
                    values.append(raw.view(out.dtype).reshape(out.shape).copy())
                    offset += aligned(out.nbytes)
                if self.queries is not None:
                    self._set_phases(host[slot.stamps_at : slot.stamps_at + 8 * self.stamps].view(np.uint64))
                result = tuple(values)
            return result

        slot.pending = read
        return read

    def wait(self) -> None:
        for slot in self.slots:
            if slot.pending:
                slot.pending()

    def _reached(self) -> str:
        """The last phase whose timestamp was written: where a lost device was."""
        if self.queries is None:
            return "an unknown phase"
        vk, found = self.backend.vk, np.zeros((self.stamps, 2), np.uint64)  # value, whether it is there
        vk.lib.vkGetQueryPoolResults(self.backend.device.handle, self.queries, 0, self.stamps, found.nbytes,
                                     vk.ffi.from_buffer(found), 16,
                                     vk.VK_QUERY_RESULT_64_BIT | vk.VK_QUERY_RESULT_WITH_AVAILABILITY_BIT)
        begun = [name for name, (_, there) in zip(self.marks, found[:-1], strict=True) if there and name]
        return begun[-1] if begun else "nothing"

    def _set_phases(self, stamps: np.ndarray) -> None:
        took = np.diff(stamps).astype(np.float64) * self.backend.device.profile.timestamp_ns / 1e6
        self.phases = {}
        for name, ms in zip(self.marks, took, strict=True):
            if name:
                self.phases[name] = self.phases.get(name, 0.0) + float(ms)

    def profile(self) -> list[tuple[Command, float]]:
        """Milliseconds of each command, run alone, on the inputs of the last call. It changes what a replay changes."""
        be = self.backend
        self.wait()
        queries = self._query_pool(self.dispatches + 1)
        buffer = be.recorder.begin()
        be.vk.lib.vkCmdResetQueryPool(buffer, queries, 0, self.dispatches + 1)
        be.recorder.write(buffer, self.batches, queries, each=True)
        be.run(be.recorder.end(buffer))
        stamps = np.zeros(self.dispatches + 1, np.uint64)
        vk = be.vk
        vk.lib.vkGetQueryPoolResults(be.device.handle, queries, 0, len(stamps), stamps.nbytes,
                                     vk.ffi.from_buffer(stamps), 8, vk.VK_QUERY_RESULT_64_BIT)
        vk.vkDestroyQueryPool(be.device.handle, queries, None)
        took = np.diff(stamps).astype(np.float64) * be.device.profile.timestamp_ns / 1e6
        return list(zip((c for batch in self.batches for c in batch if c.uses), took, strict=True))

    def __del__(self) -> None:
        try:
            vk, device = self.backend.vk, self.backend.device.handle
            for slot in self.slots:
                vk.vkDestroyFence(device, slot.fence, None)
                for buffer in (slot.bring_in, slot.bring_out):
                    self.backend.recorder.free(buffer)
                slot.host_in.destroy()
                slot.host_out.destroy()
            self.backend.recorder.free(self.main)
            if self.queries is not None:
                vk.vkDestroyQueryPool(device, self.queries, None)
        except Exception:  # at interpreter exit half of this may be gone; the driver frees what is left
            pass


