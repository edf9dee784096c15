"""Hazards: whatever commands share memory in a conflicting way never share a group, and order is kept."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from helios.backends.vulkan.memory import Block
from helios.backends.vulkan.stream import Command, Range, groups

use = st.tuples(st.integers(0, 50), st.integers(1, 12), st.sampled_from(["r", "w", "rw"]))


def commands(spec: list[list[tuple[int, int, str]]]) -> list[Command]:
    block = Block(64)
    block.place(SimpleNamespace(address=0), 0, None)  # type: ignore[arg-type]
    return [Command("zero" if uses else "mark", [Range(block, *u) for u in uses]) for uses in spec]


def conflict(a: Command, b: Command) -> bool:
    return any(x.address < y.address + y.size and y.address < x.address + x.size and "w" in x.access + y.access
               for x in a.uses for y in b.uses)


@given(st.lists(st.lists(use, max_size=3), max_size=30))
def test_groups(spec: list[list[tuple[int, int, str]]]) -> None:
    given_commands = commands(spec)
    batches = groups(given_commands)
    assert [c for batch in batches for c in batch] == given_commands
    for batch in batches:
        assert len(batch) == 1 or all(c.uses for c in batch), "a mark stands alone"
        for i, c in enumerate(batch):
            assert not any(conflict(c, other) for other in batch[:i])
    for before, after in pairwise(batches):  # no needless barrier
        if before[0].uses and after[0].uses:
            assert any(conflict(after[0], c) for c in before)


def test_readers_share_a_group_and_a_writer_ends_it() -> None:
    spec = [[(0, 4, "w")], [(0, 4, "r"), (8, 4, "w")], [(0, 4, "r"), (16, 4, "w")], [(0, 4, "w")]]
    assert [len(batch) for batch in groups(commands(spec))] == [1, 2, 1]  # RAW, then WAR
