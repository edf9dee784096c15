"""What the oracle's attention is made of: heads, norms of q and k, scores, queries that are computed together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from helios import random
from helios.backends.backend import QK_EPS, Array

QUERIES = 32  # that are computed together; keys later than all of them are not


def split(x: Array, n_head: int, parts: int = 3) -> Array:
    """Return [B, T, parts·D] as [parts, B, n_head, T, D/n_head]."""
    b, t, width = x.shape
    return x.reshape(b, t, parts, n_head, width // (parts * n_head)).transpose(2, 0, 3, 1, 4)


def join(x: Array) -> Array:
    """Return [B, n_head, T, D/n_head] as [B, T, D]."""
    b, n_head, t, size = x.shape
    return x.transpose(0, 2, 1, 3).reshape(b, t, n_head * size)


def qk_hats(qkv: Array, n_head: int) -> tuple[Array, Array]:
    """Return q and k over their heads' root mean squares, [2, B, n_head, T, D/n_head], and 1 over those."""
    qk = split(qkv, n_head)[:2]
    rstd = 1 / np.sqrt((qk * qk).mean(-1, keepdims=True) + QK_EPS)
    return qk * rstd, rstd


def qk_weights(q_weight: Array, k_weight: Array) -> Array:
    return np.stack((q_weight, k_weight))[:, None, None, None]


def scores(q: Array, k: Array, cap: float) -> Array:
    out = q @ k.swapaxes(-1, -2)
    out *= 1 / math.sqrt(q.shape[-1])
    if cap:
        out /= cap
        np.tanh(out, out=out)
        out *= cap
    return out


def blocks(q: Array, rng: Array | None, p: float, site: int
            ) -> Iterator[tuple[slice, slice, Array, Callable[[Array], Array]]]:
    """Yield positions of some queries of [..., T, D], those of the keys that any of them sees, which are hidden,
    [queries, keys], and dropout of their weights, [..., queries, keys]."""
    t, numbers = q.shape[-2], np.arange(math.prod(q.shape[:-1])).reshape(q.shape[:-1])
    for start in range(0, t, QUERIES):
        end = min(start + QUERIES, t)
        kept = None
        if p:
            assert rng is not None
            kept = random.bits_of(numbers[..., start:end], end, rng, site) >= np.uint32(random.threshold(p))
        yield slice(start, end), slice(end), ~np.tri(end - start, end, start, dtype=bool), partial(_dropped, kept, p)


def _dropped(kept: Array | None, p: float, weights: Array) -> Array:
    return weights if kept is None else np.where(kept, weights / (1 - p), 0)
