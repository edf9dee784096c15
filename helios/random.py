"""Random bits without state: Philox 4x32-10 keyed by the seed, counted by (column // 4, row, site, step).

A mask is recomputed where it is needed, on any backend, bit for bit; nothing is stored between passes or in a
checkpoint but the seed and the step. Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC11.
"""

from __future__ import annotations

import numpy as np

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)


def state(seed: int, step: int) -> np.ndarray:
    """The int32 [3] that kernels read: seed low, seed high, step."""
    words = [seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF, step & 0xFFFFFFFF]
    return np.array(words, dtype=np.uint32).view(np.int32)


def philox(c0: np.ndarray, c1: np.ndarray, c2: int, c3: int, k0: int, k1: int) -> np.ndarray:
    """Philox 4x32-10: counters c0 and c1 (uint32, equal shapes) → uint32 [..., 4]."""
    x0, x1 = c0.astype(np.uint64), c1.astype(np.uint64)
    x2, x3 = np.full_like(x0, c2), np.full_like(x0, c3)
    for _ in range(10):
        p0, p1 = _M0 * x0, _M1 * x2
        x0, x1 = (p1 >> np.uint64(32)) ^ x1 ^ np.uint64(k0), p1 & _LOW
        x2, x3 = (p0 >> np.uint64(32)) ^ x3 ^ np.uint64(k1), p0 & _LOW
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return np.stack([x0, x1, x2, x3], axis=-1).astype(np.uint32)


def bits(shape: tuple[int, ...], rng: np.ndarray, site: int) -> np.ndarray:
    """uint32 of `shape`: element j of row i (all leading axes): word j % 4 of counter (j // 4, i, site, step)."""
    columns = shape[-1] if shape else 1
    rows = int(np.prod(shape[:-1], dtype=np.int64))
    k0, k1, step = (int(x) for x in rng.view(np.uint32))
    i, j = np.meshgrid(np.arange(rows, dtype=np.uint32), np.arange((columns + 3) // 4, dtype=np.uint32), indexing="ij")
    words = philox(j, i, site, step, k0, k1).reshape(rows, -1)
    return words[:, :columns].reshape(shape)


def keep(shape: tuple[int, ...], rng: np.ndarray, site: int, p: float) -> np.ndarray:
    """Dropout's mask: True with probability 1 - p (to 2⁻³²)."""
    return bits(shape, rng, site) >= np.uint32(threshold(p))


def threshold(p: float) -> int:
    """The uint32 below which an element is dropped."""
    return min(int(p * 2**32), 2**32 - 1)
