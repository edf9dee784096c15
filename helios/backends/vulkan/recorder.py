"""What is written into command buffers: copies, barriers, and groups of commands."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from helios.backends.vulkan.device import Device
from helios.backends.vulkan.memory import Chunk
from helios.backends.vulkan.pipelines import Pipelines
from helios.backends.vulkan.stream import Command, Range


class Recorder:
    """Makes command buffers of one pool, and writes them."""

    def __init__(self, device: Device, pipelines: Pipelines) -> None:
        vk, self.device, self.pipelines = device.vk, device, pipelines
        self.vk = vk
        self.pool = vk.vkCreateCommandPool(device.handle, vk.VkCommandPoolCreateInfo(
            flags=vk.VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT, queueFamilyIndex=device.family), None)
        self.stages = vk.VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | vk.VK_PIPELINE_STAGE_TRANSFER_BIT
        access = (vk.VK_ACCESS_SHADER_READ_BIT | vk.VK_ACCESS_SHADER_WRITE_BIT | vk.VK_ACCESS_TRANSFER_READ_BIT
                  | vk.VK_ACCESS_TRANSFER_WRITE_BIT)
        self._barrier = vk.ffi.new("VkMemoryBarrier*")
        self._barrier.sType = vk.VK_STRUCTURE_TYPE_MEMORY_BARRIER
        self._barrier.srcAccessMask = self._barrier.dstAccessMask = access
        self._to_host = vk.ffi.new("VkMemoryBarrier*")
        self._to_host.sType = vk.VK_STRUCTURE_TYPE_MEMORY_BARRIER
        self._to_host.srcAccessMask = vk.VK_ACCESS_TRANSFER_WRITE_BIT
        self._to_host.dstAccessMask = vk.VK_ACCESS_HOST_READ_BIT
        self._push = vk.ffi.new("char[]", pipelines.push_bytes)
        self._region = vk.ffi.new("VkBufferCopy*")

    def make(self) -> Any:
        """Return a new command buffer."""
        return self.vk.vkAllocateCommandBuffers(self.device.handle, self.vk.VkCommandBufferAllocateInfo(
            commandPool=self.pool, level=self.vk.VK_COMMAND_BUFFER_LEVEL_PRIMARY, commandBufferCount=1))[0]

    def free(self, buffer: Any) -> None:
        self.vk.vkFreeCommandBuffers(self.device.handle, self.pool, 1, [buffer])

    def begin(self, buffer: Any, again: bool = False) -> None:
        """Empty a command buffer, which the device must be done with, and open it.

        again: it may be submitted while an earlier submit of it is under way.
        """
        vk = self.vk
        vk.vkResetCommandBuffer(buffer, 0)  # one that an interrupt left open too
        vk.vkBeginCommandBuffer(buffer, vk.VkCommandBufferBeginInfo(
            flags=vk.VK_COMMAND_BUFFER_USAGE_SIMULTANEOUS_USE_BIT if again else 0))

    def end(self, buffer: Any) -> None:
        self.vk.vkEndCommandBuffer(buffer)

    def barrier(self, buffer: Any) -> None:
        """Order what follows, dispatches and copies, after all of both before."""
        self.vk.lib.vkCmdPipelineBarrier(buffer, self.stages, self.stages, 0, 1, self._barrier, 0, self.vk.ffi.NULL,
                                         0, self.vk.ffi.NULL)

    def barrier_to_host(self, buffer: Any) -> None:
        """Let the host see what was copied before."""
        vk = self.vk
        vk.lib.vkCmdPipelineBarrier(buffer, vk.VK_PIPELINE_STAGE_TRANSFER_BIT, vk.VK_PIPELINE_STAGE_HOST_BIT, 0,
                                    1, self._to_host, 0, vk.ffi.NULL, 0, vk.ffi.NULL)

    def copy(self, buffer: Any, source: Chunk, source_offset: int, target: Chunk, target_offset: int, size: int
             ) -> None:
        region = self._region
        region.srcOffset, region.dstOffset, region.size = source_offset, target_offset, size
        self.vk.lib.vkCmdCopyBuffer(buffer, source.buffer, target.buffer, 1, region)

    def write(self, buffer: Any, batches: Sequence[Sequence[Command]], queries: Any = None, each: bool = False,
              shuffle: random.Random | None = None) -> int:
        """Write the groups with a barrier between each two; return how many barriers.

        queries: takes a timestamp at the start, at every mark and at the end; with `each` after every command instead,
        which then runs alone. shuffle: reorder within groups.
        """
        vk, barriers, stamp, bound = self.vk, 0, 0, None

        def timestamp() -> None:
            nonlocal stamp
            if queries is not None:
                vk.lib.vkCmdWriteTimestamp(buffer, vk.VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, queries, stamp)
                stamp += 1

        timestamp()
        dirty = False
        for batch in batches:
            if not batch[0].uses:
                if not each:
                    timestamp()
                continue
            if dirty:
                self.barrier(buffer)
                barriers += 1
            dirty = True
            order = list(batch)
            if shuffle:
                shuffle.shuffle(order)
            for i, command in enumerate(order):
                if each and i:
                    self.barrier(buffer)
                bound = self._command(buffer, command, bound)
                if each:
                    timestamp()
        if not each:
            timestamp()
        return barriers

    def _command(self, buffer: Any, command: Command, bound: Any) -> Any:
        vk, kernel = self.vk, command.kernel
        if isinstance(kernel, str):
            target = command.uses[-1]
            chunk = target.block.chunk
            assert chunk is not None
            if kernel == "zero":
                vk.lib.vkCmdFillBuffer(buffer, chunk.buffer, target.block.offset + target.offset, target.size, 0)
            else:
                source = command.uses[0]
                assert source.block.chunk is not None
                self.copy(buffer, source.block.chunk, source.block.offset + source.offset, chunk,
                          target.block.offset + target.offset, target.size)
            return bound
        if bound is not kernel.pipeline:
            vk.lib.vkCmdBindPipeline(buffer, vk.VK_PIPELINE_BIND_POINT_COMPUTE, kernel.pipeline)
        values = [a.address if isinstance(a, Range) else 0 if a is None else a for a in command.args]
        packed = kernel.packing.pack(*values)
        vk.ffi.memmove(self._push, packed, len(packed))
        vk.lib.vkCmdPushConstants(buffer, self.pipelines.layout, vk.VK_SHADER_STAGE_COMPUTE_BIT, 0,
                                  -(-len(packed) // 4) * 4, self._push)
        vk.lib.vkCmdDispatch(buffer, *command.grid, 1)
        return kernel.pipeline
