"""The stream: what is to be computed, as a list of commands whose blocks may have no place yet.

`groups` splits placed commands where one touches what an earlier one writes, or writes what an earlier one touches.
The recorder puts a barrier between groups; nothing else emits barriers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from helios.backends.vulkan.memory import Block
from helios.backends.vulkan.pipelines import Kernel


class Range:
    """Bytes of a block, and how a command uses them: "r", "w" or "rw"."""

    __slots__ = ("access", "block", "offset", "size")

    def __init__(self, block: Block, offset: int, size: int, access: str) -> None:
        self.block, self.offset, self.size, self.access = block, offset, size, access

    @property
    def address(self) -> int:
        return self.block.address + self.offset

    def overlaps(self, other: Range) -> bool:
        """Return whether some byte is in both. Blocks without a place share none with other blocks."""
        if self.block is other.block:
            return self.offset < other.offset + other.size and other.offset < self.offset + self.size
        if self.block.chunk is None or other.block.chunk is None:
            return False
        return self.address < other.address + other.size and other.address < self.address + self.size


class Command:
    """A dispatch of `kernel` over `grid`; a copy (kernel "copy": uses = source, target); a fill with zeros ("zero");
    or a mark (a phase's name; no uses).

    args: a kernel's arguments in order, pointers as Ranges or None. elementwise: an output may lie over an input.
    """

    __slots__ = ("args", "elementwise", "grid", "kernel", "uses")

    def __init__(self, kernel: Kernel | str, uses: list[Range], grid: tuple[int, int] = (1, 1),
                 args: Sequence[Any] = (), elementwise: bool = False) -> None:
        self.kernel, self.uses, self.grid, self.args, self.elementwise = kernel, uses, grid, args, elementwise

    @property
    def name(self) -> str:
        return self.kernel if isinstance(self.kernel, str) else self.kernel.name


def groups(commands: Iterable[Command]) -> list[list[Command]]:
    """Return the commands in order, in groups within which any order gives the same. A mark stands alone."""
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
