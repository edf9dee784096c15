"""The Vulkan backend: arrays, and the execution of what was collected or recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from helios.backends.backend import PRECISIONS, RECORDED_UPLOAD, Backend, Shape, host_array
from helios.backends.vulkan import tuning
from helios.backends.vulkan.ahead import Ahead
from helios.backends.vulkan.arena import NEVER_WRITTEN, Arena
from helios.backends.vulkan.array import FLOAT, INT, VkArray, not_pickled
from helios.backends.vulkan.device import Device
from helios.backends.vulkan.exclusive import exclusive, functions
from helios.backends.vulkan.fuse import fuse
from helios.backends.vulkan.heap import CHUNK, Heap
from helios.backends.vulkan.memory import Block, Handle, aligned
from helios.backends.vulkan.pipelines import Kernel, Pipelines
from helios.backends.vulkan.primitives import Primitives
from helios.backends.vulkan.program import VulkanProgram
from helios.backends.vulkan.queue import Queue
from helios.backends.vulkan.recorder import Recorder
from helios.backends.vulkan.stream import Command, groups

MAX_ELEMENTS = 2**31 - 1  # kernels count elements in 32 bits
LAZY_LIMIT = 4096  # commands collected outside a recording before they are submitted


@exclusive(*functions(Backend), "flush")
class VulkanBackend(Primitives):
    """The primitives on a Vulkan device; see helios.backends.backend.Backend. Any thread may use it."""

    __reduce__ = not_pickled
    name = "vulkan"
    float_dtype = FLOAT

    def __init__(self, wanted: str | None = None, profile: str | None = None, chunk_size: int = CHUNK,
                 precision: str = PRECISIONS[0]) -> None:
        """Open a device. wanted: its index or part of its name; profile: use the kernels for another kind of device.

        Raises NoDevice where there is none, UserError where `wanted` names none.
        """
        self.device, self.precision = Device(wanted, profile), precision
        self.profile = self.device.profile
        self.device_name, self.driver = self.profile.name, self.profile.driver
        self.others: Sequence[str] = self.device.others
        self.tiles = tuning.load(self.profile, self.matmul_kernel)
        self.pipelines = Pipelines(self.device)
        self.ahead = Ahead(self.pipelines)
        self.queue = Queue(self.device, Recorder(self.device, self.pipelines))
        self.heap = Heap(self.queue, chunk_size)
        self.arena = Arena(self.heap)
        self.pending: list[Command] = []
        self._recording = False

    @property
    def recording(self) -> bool:
        with self.queue.lock:  # in another thread's recording: wait for its end
            return self._recording

    @property
    def kind(self) -> str:
        return self.profile.profile

    @property
    def device_type(self) -> str:
        return self.profile.type

    @property
    def max_allocation(self) -> int:
        return self.profile.max_allocation

    @property
    def submits(self) -> int:
        return self.queue.number

    @property
    def waited(self) -> float:
        return self.queue.waited

    # -- arrays -------------------------------------------------------------------------------------------------------
    def empty(self, shape: Shape, dtype: np.dtype = FLOAT) -> VkArray:
        """Return an array of undefined contents, which has no place until it is written."""
        x = VkArray(Handle(Block(0)), 0, tuple(shape), dtype)
        if x.size == 0:
            raise ValueError(f"an array of shape {shape} has no elements")
        if x.size > MAX_ELEMENTS:
            raise ValueError(f"an array of shape {shape} has {x.size:,} elements; the limit is {MAX_ELEMENTS:,}")
        x.handle.block.size = x.nbytes
        return x

    def array(self, value: np.ndarray) -> VkArray:
        value = host_array(value, FLOAT)
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
        if self._recording:
            raise RuntimeError("a value cannot be read while it is being recorded: return it from the function")
        self.flush()
        r = x.range("r")
        if r.block.chunk is None:
            raise RuntimeError(NEVER_WRITTEN)
        return self.queue.read(r.block.chunk, r.block.offset + r.offset, r.size).view(x.dtype).reshape(x.shape)

    def upload(self, target: VkArray, value: np.ndarray) -> None:
        if self._recording:
            raise RuntimeError(RECORDED_UPLOAD)
        value = host_array(value, FLOAT)
        if value.shape != target.shape or value.dtype != target.dtype:
            raise ValueError(f"upload: {value.dtype} {value.shape} does not fit {target.dtype} {target.shape}")
        self.flush()
        if target.handle.block.chunk is None:
            self.heap.allocate(target.handle.block)
        self._write(target, value)

    def _write(self, x: VkArray, value: np.ndarray) -> None:
        """At once, past the commands collected: the caller knows that none of them touches x."""
        r = x.range("w")
        assert r.block.chunk is not None
        self.queue.write(r.block.chunk, r.block.offset + r.offset, value)

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
    def dispatch(self, kernel: Kernel, workgroups: int | tuple[int, int], elementwise: bool = False, **given: Any
                 ) -> None:
        uses, args = [], []
        for param in kernel.params:
            value = given.pop(param.name)
            if param.access and value is not None:
                value = value.range(param.access)
                uses.append(value)
            args.append(value)
        if given:
            raise TypeError(f"kernel {kernel.name} has no argument {', '.join(given)}")
        if isinstance(workgroups, int):
            y = -(-workgroups // self.profile.max_groups)
            workgroups = -(-workgroups // y), y
        self.pending.append(Command(kernel, uses, workgroups, args, elementwise))
        if len(self.pending) > LAZY_LIMIT and not self._recording:
            self.flush()

    def mark(self, phase: str) -> None:
        if self._recording:
            self.pending.append(Command(phase, []))

    def flush(self) -> None:
        """Run what was collected, and wait. After an interrupt it was run, or is still to be."""
        if not self.pending or self._recording:
            return
        placed: list[Block] = []
        number = self.queue.number + 1
        self.queue.unsettled = partial(self._settle, number, placed)
        try:
            commands = fuse(self.pending, self.pipelines)
            layout = self.arena.layout(commands)
            placed.extend(layout.offsets)
            self.ahead.prepare()
            self.arena.fit(layout.size)
            self.arena.place(layout)
            self.queue.submit_once(lambda buffer: self.queue.recorder.write(buffer, groups(commands)))
        except Exception:
            self.pending, self.queue.unsettled = [], None
            raise
        except BaseException:
            self._settle(number, placed)
            raise
        self.pending, self.queue.unsettled = [], None
        self.queue.finish(number)
        self.arena.fit()

    def _settle(self, number: int, placed: Sequence[Block]) -> None:
        """Forget what was collected if the submit of that number was made, or let it be submitted again."""
        if self.queue.reached(number):
            self.pending = []
        else:
            for block in placed:
                block.chunk = None
        self.queue.unsettled = None

    def _before_replay(self) -> None:
        if self._recording:
            raise RuntimeError("a recorded function cannot be called in a function that is being recorded")
        self.flush()

    def record(self, fn: Callable[..., Sequence[VkArray]], inputs: Sequence[tuple[Shape, np.dtype]]) -> VulkanProgram:
        if self._recording:
            raise RuntimeError("a function cannot be recorded while another one is")
        self.flush()
        total = sum(aligned(4 * int(np.prod(shape, dtype=np.int64))) for shape, _ in inputs)
        block = Block(total)
        self.heap.allocate(block)
        handle, offset, arrays = Handle(block), 0, []
        for shape, dtype in inputs:
            arrays.append(VkArray(handle, offset, shape, FLOAT if np.issubdtype(dtype, np.floating) else INT))
            offset += aligned(arrays[-1].nbytes)
        self._recording = True
        try:
            outputs = list(fn(*arrays))
            commands = fuse(self.pending, self.pipelines)
        finally:
            self._recording, self.pending = False, []
        for out in outputs:
            if out.handle.block.chunk is None:
                self.heap.allocate(out.handle.block)
        layout = self.arena.layout(commands)
        self.ahead.prepare()
        self.pipelines.save()
        return VulkanProgram(self.queue, self.arena, self._before_replay, commands, layout, arrays, block, outputs)

    def memory(self) -> dict[str, int]:
        self.arena.fit()  # without what programs needed that are gone
        return {"used": self.heap.used, "pool": self.heap.pool, "total": self.profile.memory_bytes,
                "available": self.device.available()}
