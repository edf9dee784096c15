"""Placement: lives that overlap in time do not in space, and the heap gives back what it lent."""

from __future__ import annotations

import gc
import weakref
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios import ops
from helios.backends.vulkan.arena import Life, plan
from helios.backends.vulkan.memory import ALIGN, Block, aligned
from helios.capture import Capture
from helios.errors import UserError
from helios.tensor import tensor

from .vulkan import make

life = st.builds(lambda size, first, length: Life(size, first, first + length), st.integers(1, 5000),
                 st.integers(0, 40), st.integers(0, 20))


@given(st.lists(life, max_size=40), st.sampled_from([1 << 62, 5120, 7680]))
def test_plan(lives: list[Life], page: int) -> None:
    offsets, total = plan(lives, page)
    spans = [(o, o + aligned(x.size)) for o, x in zip(offsets, lives, strict=True)]
    assert all(o % ALIGN == 0 for o in offsets) and max((b for _, b in spans), default=0) == total
    for i, x in enumerate(lives):
        for j, y in enumerate(lives[:i]):
            if x.first <= y.last and y.first <= x.last:
                assert spans[i][1] <= spans[j][0] or spans[j][1] <= spans[i][0], (x, y)
    assert all(a // page == (b - 1) // page for a, b in spans)
    live = [sum(aligned(x.size) for x in lives if x.first <= t <= x.last) for t in range(61)]
    assert max(live) <= total and (page < 1 << 62 or total <= sum(aligned(x.size) for x in lives))


def test_large_chunks_of_a_cpu_device_are_the_hosts_pages() -> None:
    be = make(chunk_size=1 << 16)
    x = np.random.default_rng(0).standard_normal((700, 1000)).astype(np.float32)
    large, small = be.array(x), be.array(x[:1])
    chunks = [array.handle.block.chunk for array in (large, small)]
    assert be.device.imports or "llvmpipe" not in be.device_name
    assert [chunk.pages is not None for chunk in chunks] == [be.device.imports, False]
    if be.device.imports:
        pages = weakref.ref(chunks[0].pages)
        assert be.device.profile.type == "cpu" and chunks[0].size < len(pages()) < chunks[0].size + (5 << 20)
        assert x.tobytes() in pages()[:]
        del large, chunks
        assert be.heap.pool < x.nbytes and pages() is None
    assert (be.numpy(small) == x[:1]).all()


def test_a_chain_needs_two_places() -> None:
    _, total = plan([Life(1000, i, i + 1) for i in range(50)])
    assert total == 2 * aligned(1000)


def test_heap_lends_no_byte_twice() -> None:
    be = make(chunk_size=1 << 14)
    draw, blocks = np.random.default_rng(0), []
    for _ in range(400):
        if blocks and draw.random() < 0.5:
            blocks.pop(int(draw.integers(len(blocks))))
        else:
            block = Block(int(draw.integers(1, 6000)))
            be.heap.allocate(block)
            blocks.append(block)
            del block
        spans = sorted((id(b.chunk), b.offset, b.offset + b.size) for b in blocks)
        assert all(a[0] != b[0] or a[2] <= b[1] for a, b in pairwise(spans))
        assert be.heap.used == sum(aligned(b.size) for b in blocks)
    blocks.clear()
    assert be.heap.used == 0 and be.heap.pool <= 1 << 14


def test_lazy_temporaries_are_given_back() -> None:
    be = make()
    x = tensor(np.ones((100, 100), np.float32), be)
    used = be.heap.used
    for _ in range(3):
        y = ops.gelu(x + x) @ x
        y.numpy()
        assert be.heap.used == used + aligned(40_000)
    del y
    assert be.heap.used == used


def test_elementwise_chains_work_in_place() -> None:
    """Ten operations in a row need one temporary, not two."""
    be = make()
    x = np.linspace(-1, 1, 50_000).astype(np.float32)

    def chain(t):  # type: ignore[no-untyped-def]
        for _ in range(10):
            t = ops.gelu(t)
        return (t.sum(),)

    used = be.heap.used
    capture = Capture(chain, be)
    capture(x)
    assert be.heap.used - used < 2.5 * x.nbytes  # the input and the temporary


def test_an_array_larger_than_an_allocation_is_refused_before_it_is_used() -> None:
    be = make()
    rows = be.profile.max_allocation // 4 // 1024 + 1
    x = tensor(np.ones((1024, 1), np.float32), be)
    with pytest.raises(UserError, match="one array of"):
        (ops.linear(tensor(np.ones((rows, 1), np.float32), be), x) * 2.0).sum().item()


def test_blocks_that_die_in_a_garbage_collection_are_given_back_once() -> None:
    """Cycles die whenever the collector runs, also in the middle of an allocation."""
    be = make(chunk_size=1 << 16)
    before, alive = gc.get_threshold(), []
    gc.set_threshold(5, 2, 2)
    try:
        for i in range(600):
            holder: list = [Block(700), None]
            be.heap.allocate(holder[0])
            holder[1] = holder
            if i % 3 == 0:
                alive.append(holder[0])
            del holder
            spans = sorted((id(b.chunk), b.offset, b.offset + b.size) for b in alive)
            assert all(a[0] != b[0] or a[2] <= b[1] for a, b in pairwise(spans))
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert be.heap.used == len(alive) * aligned(700)


