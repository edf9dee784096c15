"""Device memory: chunks, which the device allocates, and blocks, which have a place in one or will have.

What a recorded function computes is placed only once all of its uses are known, so a Block may not have its place yet.
A Handle is what arrays hold: a block whose handle is gone is needed by recorded work alone.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import numpy as np

from helios.backends.vulkan.device import Device
from helios.errors import TooLarge

ALIGN = 256
HUGE = 2 << 20  # bytes of a huge page, and more than any device asks of the alignment of what it imports
SHADER_DEVICE_ADDRESS, ALLOCATE_DEVICE_ADDRESS = 0x20000, 0x2  # flag bits that PyPI's vulkan does not name
lent: set[mmap.mmap] = set()  # to devices, which may still be writing where a chunk was dropped without destroy()


class Chunk:
    """One allocation with one buffer over all of it, at `address` on the device.

    mapped: its bytes, where it is memory that the host sees too. pages: where the device took in memory of the host.
    Raises TooLarge where the device has no such memory left.
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
            raise TooLarge(f"out of memory on {device.profile.name}: {mib(need.size)} more needed, "
                           f"{mib(device.available())} available; use a smaller batch or model") from None
        if pages:
            self.pages = pages
            lent.add(pages)
        vk.vkBindBufferMemory(device.handle, self.buffer, self.memory, 0)
        info = vk.ffi.new("VkBufferDeviceAddressInfo*")
        info.sType, info.buffer = vk.VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO, self.buffer
        self.address = vk.lib.vkGetBufferDeviceAddress(device.handle, info)
        self.mapped: Any = vk.vkMapMemory(device.handle, self.memory, 0, need.size, 0) if host else None
        device.chunks.add(self)

    def fill(self, values: Iterable[np.ndarray]) -> None:
        """Copy the values into memory that the host sees, each to the next multiple of ALIGN."""
        host, offset = np.frombuffer(self.mapped, np.uint8), 0
        for value in values:
            host[offset : offset + value.nbytes] = value.reshape(-1).view(np.uint8)
            offset += aligned(value.nbytes)

    def destroy(self) -> None:
        """Give the memory back, once. The device must be done with it."""
        if self not in self.device.chunks:
            return
        self.device.chunks.remove(self)
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
    """`size` bytes at chunk + offset, or without a place yet. The heap takes its place back when nothing refers to
    it."""

    __slots__ = ("__weakref__", "chunk", "handle", "offset", "size", "within")

    def __init__(self, size: int) -> None:
        self.size = size
        self.chunk: Chunk | None = None
        self.offset = 0
        self.within: Block | None = None  # another block, kept alive, that this one is a part of
        self.handle: weakref.ref[Handle] | None = None

    def place(self, chunk: Chunk, offset: int, within: Block | None = None) -> None:
        self.chunk, self.offset, self.within = chunk, offset, within

    @property
    def address(self) -> int:
        assert self.chunk is not None
        return self.chunk.address + self.offset

    def wanted(self) -> bool:
        """Return whether an array still refers to it."""
        return self.handle is not None and self.handle() is not None


class Handle:
    """What the arrays over a block share. viewed: there are arrays over parts of it, or other shapes of it."""

    __slots__ = ("__weakref__", "block", "viewed")

    def __init__(self, block: Block) -> None:
        self.block, self.viewed = block, False
        block.handle = weakref.ref(self)


def aligned(n: int) -> int:
    """Return the next multiple of ALIGN, at least one."""
    return -(-max(n, 1) // ALIGN) * ALIGN


def check_size(device: Device, size: int) -> None:
    """Raise TooLarge where an array of that many bytes is more than the device allocates at a time."""
    if size > device.profile.max_allocation:
        raise TooLarge(f"out of memory on {device.profile.name}: one array of {mib(size)} needed, "
                       f"{mib(device.profile.max_allocation)} the most; use a smaller batch or model")


def mib(n: int) -> str:
    return f"{n / 2**20:,.0f} MiB"
