"""Attention whose q and k lie in an array of their own, and those that the norm of q and k gives."""

from __future__ import annotations

import numpy as np
import pytest

from helios import random
from helios.backends.backend import Backend
from helios.backends.cpu_ref import CpuRef

from .vulkan import make


def of_their_own(be: Backend, n_head: int, size: int, cap: float, p: float) -> None:
    """q and k beside v, or in an array of their own while qkv has nothing there: the same bits, also of gradients."""
    draw, shape, d = np.random.default_rng(size), (2, 37), n_head * size
    whole, g = (draw.standard_normal((*shape, n)).astype(np.float32) for n in (3 * d, d))
    without = whole.copy()
    without[..., : 2 * d] = np.nan
    state = be.array(random.state(11, 3))
    found = []
    for qkv, qk in ((whole, None), (without, be.array(whole[..., : 2 * d]))):
        x = be.array(qkv)
        out, lse = be.attention(x, state, n_head, cap, p, 7, qk=qk)
        dqkv = be.attention_backward(x, out, lse, be.array(g), state, n_head, cap, p, 7, qk=qk)
        found.append([be.numpy(a) for a in (out, lse, dqkv)])
    assert np.isfinite(found[0][2]).all()
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("precision", ["f32", "mixed"])
@pytest.mark.parametrize("kind", ["cpu_ref", "cpu", "simt"])
def test_q_and_k_of_their_own(kind: str, precision: str) -> None:
    be = CpuRef(precision=precision) if kind == "cpu_ref" else make(profile=kind, precision=precision)
    for n_head, size, cap, p in ((3, 16, 2.0, 0.0), (2, 5, 0.0, 0.2)):
        of_their_own(be, n_head, size, cap, p)


def test_norms_are_not_rounded() -> None:
    """In mixed precision attention rounds what the norm of q and k gives, as all that it multiplies, and nothing else
    is."""
    draw = np.random.default_rng(0)
    given = [draw.standard_normal(shape).astype(np.float32) for shape in ((2, 9, 3 * 24), (8,), (8,), (2, 9, 3 * 24))]
    found = []
    for precision in ("f32", "mixed"):
        be = make(precision=precision)
        arrays = [be.array(x) for x in given]
        results = be.qk_norm(*arrays[:3], 3), *be.qk_norm_backward(*arrays, 3), arrays[3]
        found.append([be.numpy(x).tobytes() for x in results])
    assert found[0] == found[1]


@pytest.mark.parametrize("profile", ["cpu", "simt"])
@pytest.mark.parametrize(("rows", "heads", "size"), [(1, 1, 2), (37, 3, 6), (300, 4, 32), (5, 2, 0)])
def test_a_place_changes_no_bit_of_the_norm(profile: str, rows: int, heads: int, size: int) -> None:
    """By twos or one by one; the gradient by v stays as it is, and nothing beyond the arrays is touched. A head of 0
    stands for one of a two more than a subgroup has lanes."""
    be = make(profile=profile)
    size = size or 2 * be.profile.subgroup_size + 2
    width = 3 * heads * size
    memory = np.random.default_rng(0).standard_normal(2 * rows * width + 2 * size + 2).astype(np.float32)
    results = []
    for start in (0, 1, 2):
        moved = be.array(np.concatenate([np.zeros(start, np.float32), memory]))
        at, views = start, []
        for shape in ((rows, 1, width), (size,), (size,), (rows, 1, width)):
            views.append(be.view(moved, at, shape))
            at += int(np.prod(shape))
        arrays = be.qk_norm(*views[:3], heads), *be.qk_norm_backward(*views, heads), moved
        results.append([be.numpy(x)[start * (x is moved):].tobytes() for x in arrays])
    assert results[0] == results[1] == results[2]
    after = np.frombuffer(results[0][-1], np.float32)
    kept = np.ones((rows, width), bool)
    kept[:, : 2 * heads * size] = False
    start = rows * width + 2 * size
    assert (after[:start] == memory[:start]).all() and (after[-2:] == memory[-2:]).all()
    assert ((after[start:-2] == memory[start:-2]) == kept.reshape(-1)).all()
