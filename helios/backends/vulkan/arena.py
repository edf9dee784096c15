"""The arena: memory for what recorded work computes and nothing outside refers to.

All programs of a backend share one, and so does work that is collected and run once: the queue runs one thing after
another, and nothing in the arena is read by a later one. Within a program, `layout` lets those share bytes that are
never needed at the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from helios.backends.vulkan.heap import Heap
from helios.backends.vulkan.memory import ALIGN, Block, aligned, check_size
from helios.backends.vulkan.stream import Command

NEVER_WRITTEN = ("this array was never written: what was to compute it failed, or was recorded by a function whose "
                 "recording failed; compute it again")


class Life(NamedTuple):
    """From its first to its last use, in dispatch numbers, both included."""

    size: int
    first: int
    last: int


def plan(lives: Sequence[Life], page: int = 1 << 62) -> tuple[list[int], int]:
    """Return offsets such that lives that overlap in time do not in space, and the bytes needed in all.

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


class Layout(NamedTuple):
    """Where in the arena each of a program's blocks is, and the bytes it takes there."""

    offsets: dict[Block, int]
    size: int


class Arena:
    """Pages of the heap, all but the last of the size that the device allocates at most, as many bytes as the largest
    of the programs needs that live.

    version: counts moves. A program whose blocks were placed in an older one must place and record them again.
    """

    def __init__(self, heap: Heap) -> None:
        self.heap = heap
        self.page = heap.queue.device.profile.max_allocation // ALIGN * ALIGN
        self.pages: list[Block] = []
        self.version = 0
        self.needs: dict[object, int] = {}  # of each program, by a key of its own

    @property
    def size(self) -> int:
        return sum(page.size for page in self.pages)

    def layout(self, commands: Sequence[Command]) -> Layout:
        """Plan where the blocks are that have no place outside, and give a place in the heap to those of them that an
        array still refers to. An elementwise command writes an output over an input that nothing reads later."""
        lives: dict[Block, list[int]] = {}
        for i, command in enumerate(commands):
            for use in command.uses:
                if use.block.chunk is None:
                    if use.block not in lives and use.access == "r":
                        raise RuntimeError(NEVER_WRITTEN)
                    lives.setdefault(use.block, [i, i])[1] = i
        for block in [b for b in lives if b.wanted()]:
            self.heap.allocate(block)
            del lives[block]
        root: dict[Block, Block] = {b: b for b in lives}
        for i, command in enumerate(commands):
            if not command.elementwise:
                continue
            taken = set[Block]()
            for out in (u.block for u in command.uses if u.access == "w" and u.block in root
                        and root[u.block] is u.block):
                if lives[out][0] != i:
                    continue
                for use in command.uses:
                    old = use.block
                    if use.access == "r" and old in root and lives[root[old]][1] == i and (
                            use.size == old.size == out.size) and root[old] not in taken:
                        taken.add(root[old])
                        lives[root[old]][1] = max(lives[out][1], i)
                        root[out] = root[old]
                        break
        roots = [b for b in lives if root[b] is b]
        for block in roots:
            check_size(self.heap.queue.device, block.size)
        offsets, size = plan([Life(b.size, *lives[b]) for b in roots], self.page)
        at = dict(zip(roots, offsets, strict=True))
        return Layout({block: at[root[block]] for block in lives}, size)

    def fit(self, size: int = 0) -> None:
        """Take as much memory as the largest program needs and at least `size` bytes, and give the rest back.

        Raises TooLarge where the device has too little.
        """
        self.heap.queue.tidy()  # which hears of programs that are gone
        need = max(size, *self.needs.values(), 0)
        if need != self.size:
            self.version += 1
            self.pages = []  # first: what the device is still working with stays until it has done
            for start in range(0, need, self.page):
                page = Block(min(self.page, need - start))
                self.heap.allocate(page)
                self.pages.append(page)

    def place(self, layout: Layout) -> None:
        """Place blocks where they are now. They keep nothing alive: the arena may move on."""
        for block, at in layout.offsets.items():
            page = self.pages[at // self.page]
            assert page.chunk is not None
            block.place(page.chunk, page.offset + at % self.page)
