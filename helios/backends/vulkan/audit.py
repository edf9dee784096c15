"""A check of what kernels declare: validation layers cannot see accesses through pointers.

Each command of a program runs alone, on memory where every byte that it did not declare is poisoned (0xFF: as floats,
NaN). Afterwards nothing outside its declared writes may have changed; and since what it read undeclared was poison, the
outputs of the whole must be those of an ordinary replay.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from helios.backends.vulkan.memory import Chunk
from helios.backends.vulkan.program import VulkanProgram
from helios.backends.vulkan.stream import Command


def audit(program: VulkanProgram, inputs: Sequence[np.ndarray]) -> tuple[list[str], tuple[np.ndarray, ...]]:
    """(what was written undeclared, one line each; the outputs). Slow: copies all device memory twice a command."""
    be = program.backend
    program.wait()
    for array, value in zip(program.inputs, inputs, strict=True):
        be.upload(array, value)
    chunks = list(be.heap.chunks)
    faults: list[str] = []
    for command in program.commands:
        if not command.uses:
            continue
        before = [_read(program, chunk) for chunk in chunks]
        touched, written = (_mask(chunks, command, access) for access in ("rw", "w"))
        poisoned = [np.where(mask, x, 0xFF).astype(np.uint8) for x, mask in zip(before, touched, strict=True)]
        _write(program, chunks, poisoned)
        buffer = be.recorder.begin()
        be.recorder.write(buffer, [[command]])
        be.run(be.recorder.end(buffer))
        after = [_read(program, chunk) for chunk in chunks]
        for x, y, mask in zip(poisoned, after, written, strict=True):
            changed = np.flatnonzero((x != y) & ~mask)
            if len(changed):
                faults.append(f"{command.name}: {len(changed)} bytes changed outside its declared writes")
        _write(program, chunks, [np.where(mask, y, x) for x, y, mask in zip(before, after, written, strict=True)])
    return faults, tuple(be.numpy(out) for out in program.outputs)


def _mask(chunks: Sequence[Chunk], command: Command, access: str) -> list[np.ndarray]:
    """For each chunk, which bytes the command declares with any of these letters."""
    masks = [np.zeros(chunk.size, bool) for chunk in chunks]
    for use in command.uses:
        if set(use.access) & set(access):
            assert use.block.chunk is not None
            start = use.block.offset + use.offset
            masks[chunks.index(use.block.chunk)][start : start + use.size] = True
    return masks


def _read(program: VulkanProgram, chunk: Chunk) -> np.ndarray:
    be = program.backend
    staging = be.staging(chunk.size)
    buffer = be.recorder.begin()
    be.recorder.barrier(buffer)
    be.recorder.copy(buffer, chunk, 0, staging, 0, chunk.size)
    be.recorder.barrier_to_host(buffer)
    be.run(be.recorder.end(buffer))
    return np.frombuffer(staging.mapped, np.uint8, chunk.size).copy()


def _write(program: VulkanProgram, chunks: Sequence[Chunk], values: Sequence[np.ndarray]) -> None:
    be = program.backend
    for chunk, value in zip(chunks, values, strict=True):
        staging = be.staging(chunk.size)
        be.copy_to_host(staging, [value])
        buffer = be.recorder.begin()
        be.recorder.barrier(buffer)
        be.recorder.copy(buffer, staging, 0, chunk, 0, chunk.size)
        be.run(be.recorder.end(buffer))
