"""Random numbers that are functions of where they are needed, the same on every machine and for good.

Dropout masks come from Philox 4x32-10, keyed by the seed, counted by (column // 4, row, site, step). They are computed
again where they are needed, on any backend, bit for bit; nothing is stored between passes or in a checkpoint but the
seed and the step. What the host draws comes from Philox 4x64-10, keyed by the seed and the number of a stream.
Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC11.
"""

from __future__ import annotations

import math

import numpy as np

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_IN_CACHE = 1 << 16  # words that are made at a time


# -- dropout ----------------------------------------------------------------------------------------------------------
def state(seed: int, step: int) -> np.ndarray:
    """Return the int32 [3] that kernels read: seed low, seed high, step."""
    words = [seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF, step & 0xFFFFFFFF]
    return np.array(words, dtype=np.uint32).view(np.int32)


def philox(c0: np.ndarray, c1: np.ndarray, c2: int, c3: int, k0: int, k1: int) -> np.ndarray:
    """Return Philox 4x32-10, uint32 [..., 4], of counters c0 and c1 (uint32, which are broadcast), c2 and c3."""
    x0, x1 = c0.astype(np.uint64), c1.astype(np.uint64)
    x2, x3 = np.full(1, c2, np.uint64), np.full(1, c3, np.uint64)
    for _ in range(10):
        p0, p1 = _M0 * x0, _M1 * x2
        x0, x1 = (p1 >> _HALF) ^ (x1 ^ np.uint64(k0)), p1 & _LOW
        x2, x3 = (p0 >> _HALF) ^ (x3 ^ np.uint64(k1)), p0 & _LOW
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    words = np.empty((*np.broadcast_shapes(c0.shape, c1.shape), 4), np.uint32)
    for i, x in enumerate((x0, x1, x2, x3)):
        words[..., i] = x
    return words


def bits(shape: tuple[int, ...], rng: np.ndarray, site: int) -> np.ndarray:
    """Return uint32 of `shape`; element j of row i (over all leading axes) is word j % 4 of counter (j // 4, i, site,
    step)."""
    columns, rows = shape[-1] if shape else 1, np.arange(math.prod(shape[:-1]))
    size = max(1, _IN_CACHE // max(1, columns))
    parts = [bits_of(rows[start:start + size], columns, rng, site) for start in range(0, len(rows), size)]
    return np.concatenate(parts).reshape(shape) if parts else np.empty(shape, np.uint32)


def bits_of(rows: np.ndarray, columns: int, rng: np.ndarray, site: int) -> np.ndarray:
    """Return uint32 [..., columns], the first ones of `rows`, ints [...], as `bits` gives them."""
    k0, k1, step = (int(x) for x in rng.view(np.uint32))
    counters, rows = np.arange((columns + 3) // 4, dtype=np.uint32), rows.astype(np.uint32)
    return philox(counters, rows[..., None], site, step, k0, k1).reshape(*rows.shape, -1)[..., :columns]


def keep(shape: tuple[int, ...], rng: np.ndarray, site: int, p: float) -> np.ndarray:
    """Return dropout's mask, True with probability 1 - p (to 2⁻³²)."""
    return bits(shape, rng, site) >= np.uint32(threshold(p))


def threshold(p: float) -> int:
    """Return the uint32 below which an element is dropped."""
    return min(int(p * 2**32), 2**32 - 1)


# -- on the host ------------------------------------------------------------------------------------------------------
# numpy promises to keep the raw output of its generators, not its distributions; and its transcendental functions (or
# those of the C library) differ in last digits between versions and processors. So the logarithm and the sine are made
# here, of operations that are rounded one by one as IEEE 754 says.
_PAIRS = 1 << 13  # computed at a time, in the processor's cache
_LOG = [2 / (2 * k + 1) for k in range(14)]  # log m = t·Σ 2·t²ᵏ/(2k + 1), t = (m - 1)/(m + 1); to 1e-14 from ½ to 1
_LOG_2 = 0.6931471805599453
_SIN = [(-1) ** k / math.factorial(2 * k + 1) for k in range(8)]  # sin φ = φ·Σ (-1)ᵏ·φ²ᵏ/(2k + 1)!; to 1e-16 up to π/4


def words(count: int, seed: int, stream: int, *position: int) -> np.ndarray:
    """Return uint64 [count] of a stream, from one of its positions on: up to three numbers, each from 0 to 2⁶⁴ - 1."""
    return _generator(seed, stream, position).random_raw(count)


def uniform(count: int, seed: int, stream: int, *position: int) -> np.ndarray:
    """Return float64 [count], uniform in [0, 1), of the first 53 bits of words()."""
    return (words(count, seed, stream, *position) >> np.uint64(11)) * 2.0**-53


def normal(count: int, seed: int, stream: int, *position: int) -> np.ndarray:
    """Return float32 [count] of a normal distribution of mean 0 and variance 1, each two of two of words().

    Computed in float64 (Box & Muller, 1958). The largest possible value is 8.57.
    """
    generator, found = _generator(seed, stream, position), np.empty((-(-count // 2), 2), np.float32)
    for start in range(0, len(found), _PAIRS):
        pairs = found[start : start + _PAIRS]
        raw = generator.random_raw(2 * len(pairs)).reshape(-1, 2)
        u = ((raw[:, 0] >> np.uint64(12)).view(np.int64) + 0.5) * 2.0**-52  # exact, and neither 0 nor 1
        radius = np.sqrt(-2.0 * _log(u))
        # Half the angle, from -π/4 to π/4, gives sine and cosine of an angle with a cosine that is not negative, to
        # which a further bit gives a sign.
        angle = raw[:, 1].view(np.int64)
        sine = _sin((angle >> 11) * (math.pi / 4 * 2.0**-52))
        square = sine * sine
        pairs[:, 0] = radius * (1.0 - 2.0 * square) * (1 - 2 * (angle & 1))
        pairs[:, 1] = radius * 2.0 * sine * np.sqrt(1.0 - square)
    return found.reshape(-1)[:count]


def _generator(seed: int, stream: int, position: tuple[int, ...]) -> np.random.Philox:
    counter = np.zeros(4, np.uint64)
    counter[1 : 1 + len(position)] = position
    return np.random.Philox(key=np.array([seed % 2**64, stream], np.uint64), counter=counter)


def _log(x: np.ndarray) -> np.ndarray:
    """The natural logarithm of float64s that are normal and positive."""
    m, e = np.frexp(x)
    t = (m - 1.0) / (m + 1.0)
    return t * _series(t * t, _LOG) + e * _LOG_2


def _sin(x: np.ndarray) -> np.ndarray:
    """The sine of float64s from -π/4 to π/4."""
    return x * _series(x * x, _SIN)


def _series(x: np.ndarray, coefficients: list[float]) -> np.ndarray:
    """The sum of coefficients[k]·xᵏ."""
    total = np.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total *= x
        total += c
    return total
