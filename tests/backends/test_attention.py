"""Attention whose q and k lie in an array of their own."""

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
