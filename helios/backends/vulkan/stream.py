"""The stream: dispatches collected, placed in memory, separated by the barriers they need, submitted.

Work is first a list of Commands whose blocks may have no place yet. `place` plans their memory, `groups` splits them
where one touches what an earlier one writes (or writes what an earlier one touches), and `write` puts them in a command
buffer with one barrier between groups. Nothing else emits barriers.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

from helios.backends.vulkan.device import Device
from helios.backends.vulkan.memory import ALIGN, Block, Chunk, Heap, Life, check_size, plan
from helios.backends.vulkan.pipelines import Kernel, Pipelines


class Range:
    """Bytes of a block, and how a command uses them: "r", "w" or "rw"."""

    __slots__ = ("access", "block", "offset", "size")

    def __init__(self, block: Block, offset: int, size: int, access: str) -> None:
        self.block, self.offset, self.size, self.access = block, offset, size, access

    @property
    def address(self) -> int:
        return self.block.address + self.offset

    def overlaps(self, other: Range) -> bool:
        """Some byte is in both; blocks without a place share none with other blocks."""
        if self.block is other.block:
            return self.offset < other.offset + other.size and other.offset < self.offset + self.size
        if self.block.chunk is None or other.block.chunk is None:
            return False
        return self.address < other.address + other.size and other.address < self.address + self.size


class Command:
    """A dispatch of `kernel` over `grid`; a copy (kernel "copy": uses = source, target); a fill with zeros ("zero");
    or a mark (a phase's name; no uses). `args` are a kernel's arguments in order, pointers as Ranges or None."""

    __slots__ = ("args", "elementwise", "grid", "kernel", "uses")

    def __init__(self, kernel: Kernel | str, uses: list[Range], grid: tuple[int, int] = (1, 1),
                 args: Sequence[Any] = (), elementwise: bool = False) -> None:
        self.kernel, self.uses, self.grid, self.args, self.elementwise = kernel, uses, grid, args, elementwise

    @property
    def name(self) -> str:
        return self.kernel if isinstance(self.kernel, str) else self.kernel.name


def place(commands: Sequence[Command], heap: Heap) -> list[Block]:
    """Give every block without a place one: in the heap where an array still refers to it, else in arenas (returned)
    shared by lifetime. An elementwise command writes over an input that nothing reads later."""
    lives: dict[Block, list[int]] = {}
    for i, command in enumerate(commands):
        for use in command.uses:
            if use.block.chunk is None:
                lives.setdefault(use.block, [i, i])[1] = i
    for block in [b for b in lives if b.wanted()]:
        heap.allocate(block)
        del lives[block]
    root: dict[Block, Block] = {b: b for b in lives}
    for i, command in enumerate(commands):
        if not command.elementwise:
            continue
        for out in (u.block for u in command.uses if u.access == "w" and u.block in root and root[u.block] is u.block):
            if lives[out][0] != i:
                continue
            for use in command.uses:
                old = use.block
                if use.access == "r" and old in root and lives[root[old]][1] == i and use.size == old.size == out.size:
                    lives[root[old]][1] = max(lives[out][1], i)
                    root[out] = root[old]
                    break
    roots = [b for b in lives if root[b] is b]
    for block in roots:
        check_size(heap.device, block.size)
    page = heap.device.profile.max_allocation // ALIGN * ALIGN
    offsets, total = plan([Life(b.size, *lives[b]) for b in roots], page)
    arenas = [Block(min(page, total - start)) for start in range(0, total, page)]
    for arena in arenas:
        heap.allocate(arena)
    at = dict(zip(roots, offsets, strict=True))
    for block in lives:
        arena = arenas[at[root[block]] // page]
        assert arena.chunk is not None
        block.place(arena.chunk, arena.offset + at[root[block]] % page, arena)
    return arenas


def groups(commands: Iterable[Command]) -> list[list[Command]]:
    """Consecutive commands that may run in any order together. A mark stands alone."""
    result: list[list[Command]] = []
    reads: list[tuple[int, int]] = []
    writes: list[tuple[int, int]] = []
    for command in commands:
        spans = [(u.address, u.address + u.size, u.access) for u in command.uses]
        clash = any(a < end and start < b for start, end, _ in spans for a, b in writes) or any(
            a < end and start < b for start, end, access in spans if "w" in access for a, b in reads)
        if clash or not result or not command.uses or not result[-1][-1].uses:
            result.append([])
            reads, writes = [], []
        result[-1].append(command)
        for start, end, access in spans:
            (writes if "w" in access else reads).append((start, end))
    return result


class Recorder:
    """Writes command buffers."""

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

    def begin(self, again: bool = False) -> Any:
        """A new command buffer, open; `again`: it may be submitted while an earlier submit of it is under way."""
        vk = self.vk
        buffer = vk.vkAllocateCommandBuffers(self.device.handle, vk.VkCommandBufferAllocateInfo(
            commandPool=self.pool, level=vk.VK_COMMAND_BUFFER_LEVEL_PRIMARY, commandBufferCount=1))[0]
        vk.vkBeginCommandBuffer(buffer, vk.VkCommandBufferBeginInfo(
            flags=vk.VK_COMMAND_BUFFER_USAGE_SIMULTANEOUS_USE_BIT if again else 0))
        return buffer

    def end(self, buffer: Any) -> Any:
        self.vk.vkEndCommandBuffer(buffer)
        return buffer

    def free(self, buffer: Any) -> None:
        self.vk.vkFreeCommandBuffers(self.device.handle, self.pool, 1, [buffer])

    def barrier(self, buffer: Any) -> None:
        self.vk.lib.vkCmdPipelineBarrier(buffer, self.stages, self.stages, 0, 1, self._barrier, 0, self.vk.ffi.NULL,
                                         0, self.vk.ffi.NULL)

    def barrier_to_host(self, buffer: Any) -> None:
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
        """Write the groups with a barrier between each two; returns the barriers. With `queries`, a timestamp at the
        start, at every mark and at the end; or, with `each`, after every command. `shuffle` reorders within groups."""
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

