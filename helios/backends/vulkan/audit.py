"""A check of what kernels declare: validation layers cannot see accesses through pointers.

Each command of a program runs alone, on memory where every byte that it did not declare is poisoned (0xFF: as floats,
NaN). Afterwards nothing outside its declared writes may have changed; and since what it read undeclared was poison, the
outputs of the whole must be those of an ordinary replay.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from helios.backends.backend import host_array
from helios.backends.vulkan.array import FLOAT, VkArray
from helios.backends.vulkan.memory import Chunk
from helios.backends.vulkan.program import VulkanProgram
from helios.backends.vulkan.stream import Command


def audit(program: VulkanProgram, inputs: Sequence[np.ndarray]) -> tuple[list[str], tuple[np.ndarray, ...]]:
    """Return what was written undeclared, one line each, and the outputs.

    It is slow, for it copies all device memory twice a command.
    """
    queue = program.queue
    program.place()
    for array, value in zip(program.inputs, inputs, strict=True):
        queue.write(*_place(array), host_array(value, FLOAT))
    chunks = list(program.arena.heap.chunks)
    faults: list[str] = []
    for command in program.commands:
        if not command.uses:
            continue
        before = [queue.read(chunk, 0, chunk.size) for chunk in chunks]
        touched, written = (_mask(chunks, command, access) for access in ("rw", "w"))
        for chunk, x, mask in zip(chunks, before, touched, strict=True):
            x = np.where(mask, x, 0xFF).astype(np.uint8)
            queue.write(chunk, 0, x)
        queue.run(partial(queue.recorder.write, batches=[[command]]))
        after = [queue.read(chunk, 0, chunk.size) for chunk in chunks]
        for chunk, x, y, may, mask in zip(chunks, before, after, touched, written, strict=True):
            changed = np.flatnonzero((np.where(may, x, 0xFF) != y) & ~mask)
            if len(changed):
                faults.append(f"{command.name}: {len(changed)} bytes changed outside its declared writes")
            queue.write(chunk, 0, np.where(mask, y, x))
    return faults, tuple(queue.read(*_place(out), out.nbytes).view(out.dtype).reshape(out.shape)
                         for out in program.outputs)


def _place(array: VkArray) -> tuple[Chunk, int]:
    chunk = array.handle.block.chunk
    assert chunk is not None
    return chunk, array.handle.block.offset + array.offset


def _mask(chunks: Sequence[Chunk], command: Command, access: str) -> list[np.ndarray]:
    """For each chunk, which bytes the command declares with any of these letters."""
    masks = [np.zeros(chunk.size, bool) for chunk in chunks]
    for use in command.uses:
        if set(use.access) & set(access):
            assert use.block.chunk is not None
            start = use.block.offset + use.offset
            masks[chunks.index(use.block.chunk)][start : start + use.size] = True
    return masks
