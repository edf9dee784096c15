"""The Vulkan backend: arrays, recording, and the execution of what was collected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from helios.backends.backend import PRECISIONS, Shape
from helios.backends.vulkan import tuning
from helios.backends.vulkan.device import Device, describe
from helios.backends.vulkan.fuse import fuse
from helios.backends.vulkan.memory import CHUNK, Block, Chunk, Handle, Heap, aligned
from helios.backends.vulkan.pipelines import Kernel, Pipelines
from helios.backends.vulkan.primitives import Primitives
from helios.backends.vulkan.program import VulkanProgram
from helios.backends.vulkan.stream import Command, Range, Recorder, groups, place
from helios.errors import DeviceLost

__all__ = ["VkArray", "VulkanBackend", "describe"]

MAX_ELEMENTS = 2**31 - 1  # kernels count elements in 32 bits
LAZY_LIMIT = 4096  # commands collected outside a recording before they are submitted
FLOAT, INT = np.dtype(np.float32), np.dtype(np.int32)


class VkArray:
    """A shape over contiguous bytes of a block."""

    __slots__ = ("dtype", "handle", "offset", "shape")

    def __init__(self, handle: Handle, offset: int, shape: Shape, dtype: np.dtype) -> None:
        self.handle, self.offset, self.shape, self.dtype = handle, offset, shape, dtype

    @property
    def size(self) -> int:
        n = 1
        for length in self.shape:
            n *= length
        return n

    @property
    def nbytes(self) -> int:
        return 4 * self.size

    def range(self, access: str) -> Range:
        return Range(self.handle.block, self.offset, self.nbytes, access)


class VulkanBackend(Primitives):
    name = "vulkan"
    float_dtype = FLOAT

    def __init__(self, wanted: str | None = None, profile: str | None = None, chunk_size: int = CHUNK,
                 precision: str = PRECISIONS[0]) -> None:
        """`wanted`: a device by index or part of its name; `profile`: use the kernels for another kind of device."""
        self.device, self.precision = Device(wanted, profile), precision
        self.vk, self.profile = self.device.vk, self.device.profile
        self.device_name, self.driver = self.profile.name, self.profile.driver
        self.tiles = tuning.load(self.profile, self.matmul_kernel)
        self.heap = Heap(self.device, chunk_size)
        self.pipelines = Pipelines(self.device)
        self.recorder = Recorder(self.device, self.pipelines)
        self.pending: list[Command] = []
        self.recording = False
        self.under_way: set[VulkanProgram] = set()
        self.submits = 0
        fence = self.vk.vkCreateFence(self.device.handle, self.vk.VkFenceCreateInfo(), None)
        self._fence = self.vk.ffi.new("VkFence[1]", [fence])
        self._staging: Chunk | None = None

    # -- arrays -------------------------------------------------------------------------------------------------------
    def empty(self, shape: Shape, dtype: np.dtype = FLOAT) -> VkArray:
        """Undefined contents, and no place until it is written."""
        x = VkArray(Handle(Block(0)), 0, tuple(shape), dtype)
        if x.size == 0:
            raise ValueError(f"an array of shape {shape} has no elements")
        if x.size > MAX_ELEMENTS:
            raise ValueError(f"an array of shape {shape} has {x.size:,} elements; the limit is {MAX_ELEMENTS:,}")
        x.handle.block.size = x.nbytes
        return x

    def convert(self, value: np.ndarray) -> np.ndarray:
        """float32 or int32, contiguous."""
        value = np.asarray(value)
        dtype = FLOAT if np.issubdtype(value.dtype, np.floating) else INT
        if dtype == INT and value.dtype != INT and value.size and not np.array_equal(value.astype(INT), value):
            raise ValueError(f"integers must fit int32, got {value.min()} to {value.max()}")
        return np.ascontiguousarray(value, dtype).reshape(value.shape)  # which makes a scalar [1]

    def array(self, value: np.ndarray) -> VkArray:
        value = self.convert(value)
        x = self.empty(value.shape, value.dtype)
        self.heap.allocate(x.handle.block)
        self._write(x, value)
        return x

    def zeros(self, shape: Shape) -> VkArray:
        x = self.empty(shape)
        self.pending.append(Command("zero", [x.range("w")]))
        return x

    def reshape(self, x: VkArray, shape: Shape) -> VkArray:
        if -1 in shape:
            rest = -int(np.prod(shape, dtype=np.int64))
            shape = tuple(x.size // rest if n == -1 else n for n in shape)
        return self.view(x, 0, shape)

    def view(self, x: VkArray, start: int, shape: Shape) -> VkArray:
        x.handle.viewed = True
        return VkArray(x.handle, x.offset + 4 * start, tuple(shape), x.dtype)

    def numpy(self, x: VkArray) -> np.ndarray:
        if self.recording:
            raise RuntimeError("a value cannot be read while it is being recorded: return it from the function")
        self.flush()
        r = x.range("r")
        if r.block.chunk is None:
            raise RuntimeError("this array was never written")
        staging = self.staging(x.nbytes)
        buffer = self.recorder.begin()
        self.recorder.barrier(buffer)
        self.recorder.copy(buffer, r.block.chunk, r.block.offset + r.offset, staging, 0, max(x.nbytes, 4))
        self.recorder.barrier_to_host(buffer)
        self.run(self.recorder.end(buffer))
        return np.frombuffer(staging.mapped, x.dtype, x.size).reshape(x.shape).copy()

    def upload(self, target: VkArray, value: np.ndarray) -> None:
        value = self.convert(value)
        if value.shape != target.shape or value.dtype != target.dtype:
            raise ValueError(f"upload: {value.dtype} {value.shape} does not fit {target.dtype} {target.shape}")
        self.flush()
        if target.handle.block.chunk is None:
            self.heap.allocate(target.handle.block)
        self._write(target, value)

    def _write(self, x: VkArray, value: np.ndarray) -> None:
        """At once, past the commands collected: the caller knows that none of them touches x."""
        r, staging = x.range("w"), self.staging(x.nbytes)
        assert r.block.chunk is not None
        self.copy_to_host(staging, [value])
        buffer = self.recorder.begin()
        self.recorder.barrier(buffer)
        self.recorder.copy(buffer, staging, 0, r.block.chunk, r.block.offset + r.offset, max(x.nbytes, 4))
        self.run(self.recorder.end(buffer))

    def copy_to_host(self, chunk: Chunk, values: Sequence[np.ndarray]) -> None:
        """Into a host chunk, each from the next multiple of the alignment on."""
        host, offset = np.frombuffer(chunk.mapped, np.uint8), 0
        for value in values:
            host[offset : offset + value.nbytes] = value.reshape(-1).view(np.uint8)
            offset += aligned(value.nbytes)

    def staging(self, nbytes: int) -> Chunk:
        """Host memory of at least that size, for one copy in or out."""
        if self._staging is None or self._staging.size < nbytes:
            if self._staging is not None:
                self._staging.destroy()
            self._staging = Chunk(self.device, max(nbytes, 1 << 20), host=True)
        return self._staging

    def assign(self, target: VkArray, value: VkArray, take: bool = False) -> None:
        if target.shape != value.shape:
            raise ValueError(f"assign: {value.shape} does not fit {target.shape}")
        if take and self._place_at(target, value):
            return
        self.pending.append(Command("copy", [value.range("r"), target.range("w")]))

    def _place_at(self, target: VkArray, value: VkArray) -> bool:
        """Place value's block, still without a place and referred to by nothing else, at the target: then what computes
        it writes there. Refused where commands since then touch the target, save elementwise ones reading it."""
        block, home = value.handle.block, target.range("w")
        if block.chunk is not None or value.handle.viewed or block.size != home.size or home.block.chunk is None:
            return False
        if home.offset % 16:  # kernels may load vectors from where a block starts
            return False
        first = next((i for i, c in enumerate(self.pending) if any(u.block is block for u in c.uses)), None)
        if first is None:
            return False
        for i, command in enumerate(self.pending[first:]):
            for u in command.uses:
                same = u.block is home.block and u.offset == home.offset and u.size == home.size
                if u.overlaps(home) and not (i == 0 and command.elementwise and same):
                    return False
        block.place(home.block.chunk, home.block.offset + home.offset, home.block)
        return True

    # -- execution ----------------------------------------------------------------------------------------------------
    def dispatch(self, kernel: Kernel, workgroups: int, elementwise: bool = False, **given: Any) -> None:
        """Collect a dispatch of `workgroups` (any number) with the kernel's arguments by name."""
        uses, args = [], []
        for param in kernel.params:
            value = given.pop(param.name)
            if param.access and value is not None:
                value = value.range(param.access)
                uses.append(value)
            args.append(value)
        if given:
            raise TypeError(f"kernel {kernel.name} has no argument {', '.join(given)}")
        y = -(-workgroups // self.profile.max_groups)
        self.pending.append(Command(kernel, uses, (-(-workgroups // y), y), args, elementwise))
        if len(self.pending) > LAZY_LIMIT and not self.recording:
            self.flush()

    def mark(self, phase: str) -> None:
        if self.recording:
            self.pending.append(Command(phase, []))

    def flush(self) -> None:
        """Run what was collected, and wait."""
        if not self.pending or self.recording:
            return
        commands, self.pending = fuse(self.pending, self.pipelines), []
        arenas = place(commands, self.heap)
        buffer = self.recorder.begin()
        self.recorder.barrier(buffer)
        self.recorder.write(buffer, groups(commands))
        self.run(self.recorder.end(buffer))
        del arenas  # kept until here

    def run(self, buffer: Any) -> None:
        """Submit one command buffer, wait for it and free it."""
        vk = self.vk
        info = vk.ffi.new("VkSubmitInfo*")
        buffers = vk.ffi.new("VkCommandBuffer[1]", [buffer])
        info.sType, info.commandBufferCount, info.pCommandBuffers = vk.VK_STRUCTURE_TYPE_SUBMIT_INFO, 1, buffers
        self.device.check(vk.lib.vkQueueSubmit(self.device.queue, 1, info, self._fence[0]), "a submit")
        self.submits += 1
        self.wait(self._fence)
        self.recorder.free(buffer)

    def wait(self, fence: Any) -> None:
        """Until the fence is signalled, letting an interrupt through twice a second; then reset it."""
        vk, device = self.vk, self.device
        while (result := vk.lib.vkWaitForFences(device.handle, 1, fence, 1, 500_000_000)) == vk.VK_TIMEOUT:
            pass
        if result == vk.VK_ERROR_DEVICE_LOST:
            raise DeviceLost(f"{self.device_name} ({self.driver}) was lost while computing: it may have been reset "
                             "(see dmesg), or work may take longer than its watchdog allows")
        device.check(result, "waiting")
        vk.lib.vkResetFences(device.handle, 1, fence)

    def record(self, fn: Callable[..., Sequence[VkArray]], inputs: Sequence[tuple[Shape, np.dtype]]) -> VulkanProgram:
        if self.recording:
            raise RuntimeError("a function cannot be recorded while another one is")
        self.flush()
        total = sum(aligned(4 * int(np.prod(shape, dtype=np.int64))) for shape, _ in inputs)
        block = Block(total)
        self.heap.allocate(block)
        handle, offset, arrays = Handle(block), 0, []
        for shape, dtype in inputs:
            arrays.append(VkArray(handle, offset, shape, FLOAT if np.issubdtype(dtype, np.floating) else INT))
            offset += aligned(arrays[-1].nbytes)
        self.recording = True
        try:
            outputs = list(fn(*arrays))
            commands = fuse(self.pending, self.pipelines)
        finally:
            self.recording, self.pending = False, []
        for out in outputs:
            if out.handle.block.chunk is None:
                self.heap.allocate(out.handle.block)
        place(commands, self.heap)
        self.pipelines.save()
        return VulkanProgram(self, commands, arrays, outputs, block)

    def memory(self) -> dict[str, int]:
        return {"used": self.heap.used, "pool": self.heap.pool, "total": self.profile.memory_bytes,
                "available": self.device.available()}
