"""Device memory: chunks, a heap for what lives on, arenas planned by lifetime for what does not.

A Block is a range of bytes that may not have its place yet: what a recorded function computes is placed only once all
of its uses are known. A Handle is what arrays hold: a block whose handle is gone is needed by recorded work alone.
"""

from __future__ import annotations

import gc
import mmap
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from helios.backends.vulkan.device import Device
from helios.errors import UserError

ALIGN = 256
CHUNK = 64 << 20
HUGE = 2 << 20  # bytes of a huge page, and more than any device asks of the alignment of what it imports
SHADER_DEVICE_ADDRESS, ALLOCATE_DEVICE_ADDRESS = 0x20000, 0x2  # flag bits that PyPI's vulkan does not name
lent: set[mmap.mmap] = set()  # to devices, which may still be writing where a chunk was dropped without destroy()


class Chunk:
    """One allocation with one buffer over all of it; `address` on the device, `mapped` bytes on the host or None.

    pages: where the device took in memory of the host.
    """

    pages: mmap.mmap | None = None

    def __init__(self, device: Device, size: int, host: bool = False) -> None:
        vk = device.vk
        self.device, self.size = device, size
        usage = (vk.VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | vk.VK_BUFFER_USAGE_TRANSFER_SRC_BIT
                 | vk.VK_BUFFER_USAGE_TRANSFER_DST_BIT | SHADER_DEVICE_ADDRESS)
        check_size(device, size)
        imported = device.imports and not host and size >= HUGE
        kind = vk.VK_EXTERNAL_MEMORY_HANDLE_TYPE_HOST_ALLOCATION_BIT_EXT
        outside = vk.VkExternalMemoryBufferCreateInfo(handleTypes=kind) if imported else None
        self.buffer = vk.vkCreateBuffer(device.handle, vk.VkBufferCreateInfo(
            pNext=outside, size=size, usage=usage, sharingMode=vk.VK_SHARING_MODE_EXCLUSIVE), None)
        need = vk.vkGetBufferMemoryRequirements(device.handle, self.buffer)
        bits, length, source, pages = need.memoryTypeBits, need.size, None, None
        try:
            if not host and need.size > device.available():
                raise vk.VkErrorOutOfDeviceMemory
            if imported:
                length = -(-need.size // HUGE) * HUGE
                pages, start = _pages(vk, length)
                get = vk.vkGetDeviceProcAddr(device.handle, "vkGetMemoryHostPointerPropertiesEXT")
                bits &= get(device.handle, kind, start, vk.VkMemoryHostPointerPropertiesEXT()).memoryTypeBits
                source = vk.VkImportMemoryHostPointerInfoEXT(handleType=kind, pHostPointer=start)
            flags = vk.VkMemoryAllocateFlagsInfo(pNext=source, flags=ALLOCATE_DEVICE_ADDRESS, deviceMask=0)
            self.memory = vk.vkAllocateMemory(device.handle, vk.VkMemoryAllocateInfo(
                pNext=flags, allocationSize=length, memoryTypeIndex=_type(device, bits, host)), None)
        except (vk.VkErrorOutOfDeviceMemory, vk.VkErrorOutOfHostMemory, OSError):
            vk.vkDestroyBuffer(device.handle, self.buffer, None)
            raise UserError(f"out of memory on {device.profile.name}: {mib(need.size)} more needed, "
                            f"{mib(device.available())} available; use a smaller batch, block or model") from None
        if pages:
            self.pages = pages
            lent.add(pages)
        vk.vkBindBufferMemory(device.handle, self.buffer, self.memory, 0)
        info = vk.ffi.new("VkBufferDeviceAddressInfo*")
        info.sType, info.buffer = vk.VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO, self.buffer
        self.address = vk.lib.vkGetBufferDeviceAddress(device.handle, info)
        self.mapped: Any = vk.vkMapMemory(device.handle, self.memory, 0, need.size, 0) if host else None

    def destroy(self) -> None:
        vk, device = self.device.vk, self.device.handle
        vk.vkDestroyBuffer(device, self.buffer, None)
        vk.vkFreeMemory(device, self.memory, None)
        if self.pages:
            lent.remove(self.pages)
            self.pages = None


def _pages(vk: Any, size: int) -> tuple[mmap.mmap, Any]:
    """Memory of the host, and where in it `size` bytes begin, in huge pages where the system has some: a CPU device's
    own pages are small, and in Aᵀ·B, for one, every step of K is on another."""
    pages = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a system without
        pages.madvise(mmap.MADV_HUGEPAGE)
    start = vk.ffi.cast("char*", vk.ffi.from_buffer(pages))
    return pages, start + -int(vk.ffi.cast("uintptr_t", start)) % HUGE


def check_size(device: Device, size: int) -> None:
    """UserError where an array of that many bytes is more than the device allocates at a time."""
    if size > device.profile.max_allocation:
        raise UserError(f"out of memory on {device.profile.name}: one array of {mib(size)} needed, "
                        f"{mib(device.profile.max_allocation)} the most; use a smaller batch, block or model")


def mib(n: int) -> str:
    return f"{n / 2**20:,.0f} MiB"


def _type(device: Device, bits: int, host: bool) -> int:
    """The first memory type with the wanted flags: cached and coherent for the host, device-local otherwise."""
    vk = device.vk
    coherent = vk.VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | vk.VK_MEMORY_PROPERTY_HOST_COHERENT_BIT
    wishes = ([coherent | vk.VK_MEMORY_PROPERTY_HOST_CACHED_BIT, coherent] if host
              else [vk.VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT, 0])
    memory = vk.vkGetPhysicalDeviceMemoryProperties(device.physical)
    for wish in wishes:
        for i in range(memory.memoryTypeCount):
            if bits >> i & 1 and memory.memoryTypes[i].propertyFlags & wish == wish:
                return i
    raise RuntimeError(f"{device.profile.name} has no {'host-visible' if host else 'device'} memory type")


class Block:
    """`size` bytes at chunk + offset, or without a place yet. Frees its heap range when nothing refers to it."""

    __slots__ = ("chunk", "handle", "heap", "offset", "size", "within")

    def __init__(self, size: int) -> None:
        self.size = size
        self.chunk: Chunk | None = None
        self.offset = 0
        self.heap: Heap | None = None
        self.within: Any = None  # keeps alive what this block is placed in
        self.handle: weakref.ref[Handle] | None = None

    def place(self, chunk: Chunk, offset: int, within: Any) -> None:
        self.chunk, self.offset, self.within = chunk, offset, within

    @property
    def address(self) -> int:
        assert self.chunk is not None
        return self.chunk.address + self.offset

    def wanted(self) -> bool:
        """An array still refers to it."""
        return self.handle is not None and self.handle() is not None

    def __del__(self) -> None:
        if self.heap is not None and self.chunk is not None:
            self.heap.freed.append((self.chunk, self.offset, self.size))


class Handle:
    __slots__ = ("__weakref__", "block", "viewed")

    def __init__(self, block: Block) -> None:
        self.block, self.viewed = block, False
        block.handle = weakref.ref(self)


class Heap:
    """First fit in chunks; freed ranges merge; an empty chunk goes back to the device.

    A block dies where its last reference does: in the middle of an allocation that sets off the garbage collector, or
    in another thread. So it only leaves a note in `freed`, and whoever works with the chunks takes the notes in first.
    """

    def __init__(self, device: Device, chunk_size: int = CHUNK) -> None:
        self.device, self.chunk_size = device, chunk_size
        self.chunks: dict[Chunk, list[tuple[int, int]]] = {}  # free (offset, size), in order
        self.freed: deque[tuple[Chunk, int, int]] = deque()
        self._used = 0

    @property
    def used(self) -> int:
        """Bytes in blocks."""
        self._take_back()
        return self._used

    @property
    def pool(self) -> int:
        """Bytes in chunks."""
        self._take_back()
        return sum(c.size for c in self.chunks)

    def allocate(self, block: Block) -> None:
        """Give the block a place. UserError where the device has none, even after collecting what cycles hold."""
        self._take_back()
        try:
            self._allocate(block)
        except UserError:
            gc.collect()
            self._take_back()
            self._allocate(block)

    def _allocate(self, block: Block) -> None:
        size = aligned(block.size)
        for chunk, free in self.chunks.items():
            for i, (offset, length) in enumerate(free):
                if length >= size:
                    free[i : i + 1] = [(offset + size, length - size)] if length > size else []
                    return self._put(block, chunk, offset)
        chunk = Chunk(self.device, max(self.chunk_size, size))
        self.chunks[chunk] = [(size, chunk.size - size)] if chunk.size > size else []
        self._put(block, chunk, 0)

    def _put(self, block: Block, chunk: Chunk, offset: int) -> None:
        block.place(chunk, offset, None)
        block.heap = self
        self._used += aligned(block.size)

    def _take_back(self) -> None:
        while self.freed:
            self._free(*self.freed.popleft())

    def _free(self, chunk: Chunk, at: int, size: int) -> None:
        self._used -= aligned(size)
        merged: list[tuple[int, int]] = []
        for offset, length in sorted([*self.chunks[chunk], (at, aligned(size))]):
            if merged and sum(merged[-1]) == offset:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            else:
                merged.append((offset, length))
        self.chunks[chunk] = merged
        if merged == [(0, chunk.size)] and (chunk.size > self.chunk_size or len(self.chunks) > 1):
            del self.chunks[chunk]
            chunk.destroy()


def aligned(n: int) -> int:
    return -(-max(n, 1) // ALIGN) * ALIGN


class Life(NamedTuple):
    """From its first to its last use, in dispatch numbers, both included."""

    size: int
    first: int
    last: int


def plan(lives: Sequence[Life], page: int = 1 << 62) -> tuple[list[int], int]:
    """Offsets such that lives that overlap in time do not in space, and the bytes needed in all.

    The largest first, each at the lowest offset that is free over its whole life, none across a multiple of `page`
    (what a device allocates at a time).
    """
    offsets = [0] * len(lives)
    placed: list[int] = []
    for i in sorted(range(len(lives)), key=lambda i: (-lives[i].size, lives[i].first)):
        life, at, need = lives[i], 0, aligned(lives[i].size)
        others = sorted((offsets[j], aligned(lives[j].size)) for j in placed
                        if lives[j].first <= life.last and life.first <= lives[j].last)
        for offset, size in others:
            if at + need <= offset:
                break
            at = max(at, offset + size)
            if at // page != (at + need - 1) // page:
                at = -(-at // page) * page
        offsets[i] = at
        placed.append(i)
    return offsets, max((offsets[i] + aligned(life.size) for i, life in enumerate(lives)), default=0)
