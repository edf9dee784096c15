"""The heap: places for the blocks that live on."""

from __future__ import annotations

import gc
import weakref
from collections import deque

from helios.backends.vulkan.memory import Block, Chunk, aligned
from helios.backends.vulkan.queue import Queue
from helios.errors import TooLarge

CHUNK = 64 << 20


class Place(weakref.ref):
    """Where a block is."""

    chunk: Chunk
    offset: int
    size: int


class Heap:
    """First fit in chunks; freed ranges merge; an empty chunk goes back to the device.

    A block dies where its last reference does: in the middle of an allocation that sets off the garbage collector, or
    in another thread. So that only moves its place into `freed`, and whoever works with the chunks takes that in first.
    A freed range may be lent again at once, for the queue runs one thing after another.
    """

    def __init__(self, queue: Queue, chunk_size: int = CHUNK) -> None:
        self.queue, self.chunk_size = queue, chunk_size
        self.chunks: dict[Chunk, list[tuple[int, int]]] = {}  # free (offset, size), in order
        self.places: set[Place] = set()  # of the blocks that live
        self.freed: deque[Place] = deque()
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
        """Give the block a place. Raises TooLarge where the device has none, even after collecting what cycles
        hold."""
        self._take_back()
        try:
            self._allocate(block)
        except TooLarge:
            gc.collect()
            self._take_back()
            self.queue.rest()  # which destroys chunks that the device was still working with
            self._allocate(block)

    def _allocate(self, block: Block) -> None:
        size = aligned(block.size)
        for chunk, free in self.chunks.items():
            for i, (offset, length) in enumerate(free):
                if length >= size:
                    free[i : i + 1] = [(offset + size, length - size)] if length > size else []
                    return self._put(block, chunk, offset)
        chunk = Chunk(self.queue.device, max(self.chunk_size, size))
        self.chunks[chunk] = [(size, chunk.size - size)] if chunk.size > size else []
        self._put(block, chunk, 0)

    def _put(self, block: Block, chunk: Chunk, offset: int) -> None:
        self._used += aligned(block.size)
        place = Place(block, self.freed.append)
        place.chunk, place.offset, place.size = chunk, offset, aligned(block.size)
        self.places.add(place)
        block.place(chunk, offset)

    def _take_back(self) -> None:
        while self.freed:
            place = self.freed.popleft()
            self.places.discard(place)
            self._free(place.chunk, place.offset, place.size)

    def _free(self, chunk: Chunk, at: int, size: int) -> None:
        self._used -= size
        merged: list[tuple[int, int]] = []
        for offset, length in sorted([*self.chunks[chunk], (at, size)]):
            if merged and sum(merged[-1]) == offset:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            else:
                merged.append((offset, length))
        self.chunks[chunk] = merged
        if merged == [(0, chunk.size)] and (chunk.size > self.chunk_size or len(self.chunks) > 1):
            del self.chunks[chunk]
            self.queue.retire(chunk.destroy)
