"""Samples of the arguments of every operation, and arguments that must raise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from helios import ops, random
from helios.formula import Formula
from helios.model.activations import Activation
from helios.tensor import Tensor

from .arrays import (
    BATCH,
    EXTREME,
    HUGE,
    LARGE,
    SCALAR,
    SMALL,
    Bad,
    Rng,
    Sample,
    integers,
    ints,
    normal,
    off_zero,
    zeros,
)

# -- element by element ----------------------------------------------------------------------------------------------

def elementwise(arity: int, scale: float = 0.0, **choices: tuple[float, ...]) -> Callable[[Rng], Iterator[Sample]]:
    """Samples of `arity` equal shapes, one for each shape; `choices` are keywords whose values take turns."""
    def draw(rng: Rng) -> Iterator[Sample]:
        turns = [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
        for kwargs, shape in zip(itertools.cycle(turns), SMALL + LARGE, strict=False):
            inputs = tuple(off_zero(rng, *shape) for _ in range(arity))
            yield Sample(inputs, kwargs, scale=scale, differences=shape in SMALL)
        for kwargs in turns:
            yield Sample((EXTREME,) + (np.ones_like(EXTREME),) * (arity - 1), kwargs, differences=False)
    return draw


def activations(act: Activation) -> Callable[[Rng], Iterator[Sample]]:
    """Samples of an activation: of its inputs side by side, and its coefficients."""
    def draw(rng: Rng) -> Iterator[Sample]:
        def sample(x: np.ndarray, *shape: int, differences: bool = False) -> Sample:
            coefficients = [normal(rng, *value.shape, shape[-1]) for value in act.coefficients.values()]
            return Sample((x, *coefficients), scale=1.0, terms=math.prod(shape[:-1]) if coefficients else 1,
                          differences=differences)

        if act.fused:
            yield Sample((off_zero(rng),), scale=1.0)
        for shape in (*SMALL[1:], *LARGE, (5, 6), (33, 66), (3, 260)):  # the last three by twos
            x = off_zero(rng, *shape[:-1], act.parts * shape[-1])
            yield sample(x, *shape, differences=shape in SMALL or shape == (5, 6))
        yield sample(np.concatenate([EXTREME, np.ones_like(EXTREME)][:act.parts]), len(EXTREME))
    return draw


def bad_activation(act: Activation) -> list[Bad]:
    features = [zeros(*value.shape, 4) for value in act.coefficients.values()]
    op, h = "activation" if act.formula else "spline", zeros(2, act.parts * 4)
    found = [Bad((ints(*h.shape), *features), {}, TypeError, f"{op}: expected floating point, got int32")]
    if act.parts > 1:
        found += [Bad((x, *features), {}, ValueError, "is gated: the last axis must have an even length")
                  for x in (zeros(4, 3), zeros())]
    if features:
        wrong = r"must have shape \(4,\), got \(3,\)" if act.formula else r"points \(3,\), expected"
        found += [Bad((h, *features[:-1], zeros(3)), {}, ValueError, wrong),
                  Bad((zeros(), *features), {}, ValueError, "must have shape" if act.formula else "does not fit")]
    if act.formula:
        found.append(Bad((h, *features, zeros(4)), {}, ValueError,
                         rf"has {len(features)} coefficients, got {len(features) + 1}"))
    return found


def draw_mul(rng: Rng) -> Iterator[Sample]:
    yield from elementwise(2)(rng)
    yield Sample((normal(rng, *HUGE), normal(rng, *HUGE)), differences=False)


def bad_binary(name: str) -> Callable[[], list[Bad]]:
    return lambda: [
        Bad((zeros(3), zeros(4)), {}, ValueError, rf"{name}: shapes must be equal, got \(3,\), \(4,\)"),
        Bad((zeros(3, 1), zeros(3)), {}, ValueError, f"{name}: shapes must be equal"),
        Bad((zeros(3), ints(3)), {}, TypeError, f"{name}: expected floating point, got int32"),
    ]


def bad_softcap() -> list[Bad]:
    return [Bad((zeros(3),), {"cap": cap}, ValueError, "softcap: cap must be positive") for cap in (0.0, -1.0)] + [
        Bad((ints(3),), {"cap": 1.0}, TypeError, "softcap: expected floating point")]


def draw_reshape(rng: Rng) -> Iterator[Sample]:
    for shape, to in [((6,), (2, 3)), ((2, 3, 5), (-1, 5)), (SCALAR, (1, 1)), ((1,), SCALAR), ((7, 3), (-1,)),
                      ((33, 65), (5, 39, 11))]:
        yield Sample((normal(rng, *shape),), {"shape": to})


def bad_reshape() -> list[Bad]:
    return [Bad((zeros(2, 3),), {"shape": to}, ValueError, r"reshape: \(2, 3\) does not fit")
            for to in ((7,), (4, -1), (-1, -1), (-2, -3), SCALAR)]


def draw_sum(rng: Rng) -> Iterator[Sample]:
    for shape in SMALL + LARGE:
        yield Sample((np.abs(normal(rng, *shape)),), terms=math.prod(shape), differences=shape in SMALL)


def draw_dropout(rng: Rng) -> Iterator[Sample]:
    shapes = [*SMALL, (33,), (13, 67), (70001, 3)]
    for (p, with_residual), shape in zip(itertools.cycle(itertools.product((0.1, 0.0, 0.5), (False, True))),
                                         shapes + shapes[1:5], strict=False):
        state = random.state(int(rng.integers(2**63)), int(rng.integers(2**31)))
        residual = normal(rng, *shape) if with_residual else None
        yield Sample((normal(rng, *shape), state, residual), {"p": p, "site": int(rng.integers(100))},
                     differences=shape in SMALL)


def bad_dropout() -> list[Bad]:
    ok = {"p": 0.1, "site": 1}
    return [Bad((zeros(3), ints(3), None), {"p": p, "site": 1}, ValueError, r"dropout: p must lie in \[0, 1\)")
            for p in (1.0, -0.1, math.nan)] + [
        Bad((zeros(3), ints(2), None), ok, ValueError, r"dropout: rng must have shape \(3,\), got \(2,\)"),
        Bad((zeros(3), zeros(3), None), ok, TypeError, "dropout: rng must be int32"),
        Bad((zeros(3), ints(3), zeros(4)), ok, ValueError, "dropout: shapes must be equal"),
        Bad((ints(3), ints(3), None), ok, TypeError, "dropout: expected floating point"),
    ]


def call_dropout(h: Tensor, rng: Tensor, residual: Tensor | None, p: float, site: int) -> Tensor:
    return ops.dropout(h, p, rng, site, residual)


# -- matrices --------------------------------------------------------------------------------------------------------

LAYOUTS = list(itertools.product((False, True), repeat=2))


def draw_matmul(rng: Rng) -> Iterator[Sample]:
    def sample(lead_a: tuple[int, ...], lead_b: tuple[int, ...], m: int, n: int, k: int, ta: bool, tb: bool) -> Sample:
        a = normal(rng, *lead_a, *((k, m) if ta else (m, k)))
        b = normal(rng, *lead_b, *((n, k) if tb else (k, n)))
        rows = m if lead_b else m * math.prod(lead_a)  # that a gradient of b is summed over
        return Sample((a, b), {"ta": ta, "tb": tb}, terms=max(k, n, rows), differences=a.size * n <= 500)

    for ta, tb in LAYOUTS:
        for m, n, k in [(1, 1, 1), (5, 3, 7), (1, 17, 5), (17, 65, 33), (130, 67, 129), (64, 64, 64)]:
            yield sample(SCALAR, SCALAR, m, n, k, ta, tb)
        yield sample((3,), (3,), 5, 3, 7, ta, tb)
        yield sample((2, 3), (2, 3), 17, 19, 37, ta, tb)
    for tb in (False, True):  # one b for the whole batch
        yield sample((3,), SCALAR, 5, 3, 7, False, tb)
        yield sample((2, 3), SCALAR, 17, 19, 37, False, tb)
    yield sample((BATCH,), (BATCH,), 1, 1, 2, False, False)
    yield sample(SCALAR, SCALAR, 66_000, 2, 3, False, False)
    yield sample(SCALAR, SCALAR, 2, 3, 66_000, True, False)


def bad_matmul() -> list[Bad]:
    return [
        Bad((zeros(2, 3), zeros(2, 3)), {}, ValueError, r"matmul: \(2, 3\) · \(2, 3\): the inner lengths differ"),
        Bad((zeros(2, 3), zeros(3, 4)), {"ta": True}, ValueError, "inner lengths differ"),
        Bad((zeros(2, 3), zeros(3, 4)), {"tb": True}, ValueError, "inner lengths differ"),
        Bad((zeros(3), zeros(3, 4)), {}, ValueError, "at least two axes"),
        Bad((zeros(2, 3), zeros(3)), {}, ValueError, "at least two axes"),
        Bad((zeros(5, 2, 3), zeros(4, 3, 2)), {}, ValueError, "the leading axes differ"),
        Bad((zeros(2, 3), zeros(4, 3, 2)), {}, ValueError, "the leading axes differ"),
        Bad((zeros(5, 3, 2), zeros(3, 2)), {"ta": True}, ValueError, "the leading axes differ"),
        Bad((ints(2, 3), zeros(3, 2)), {}, TypeError, "matmul: expected floating point"),
    ]


def draw_linear(rng: Rng) -> Iterator[Sample]:
    for activation in (None, "gelu(x)", "silu(x)", "relu(x)", "x*tanh(softplus(x))"):
        for shape, n in [((1, 1), 1), ((7,), 3), ((5, 7), 3), ((2, 3, 5), 11), ((17, 33), 65), ((3, 43, 67), 129)]:
            x, w = normal(rng, *shape), normal(rng, n, shape[-1])
            yield Sample((x, w), {"activation": activation}, terms=max(*x.shape, n, x.size // x.shape[-1]),
                         differences=x.size * n <= 500)
    yield Sample((normal(rng, 66_000, 3), normal(rng, 2, 3)), {"activation": "gelu(x)"}, terms=66_000,
                 differences=False)


def call_linear(x: Tensor, w: Tensor, activation: str | None) -> Tensor:
    return ops.linear(x, w, None if activation is None else Formula.parse(activation))


def bad_linear() -> list[Bad]:
    none: dict[str, Any] = {"activation": None}
    return [
        Bad((zeros(2, 3), zeros(3, 4)), none, ValueError, r"linear: x \(2, 3\) does not fit weight \(3, 4\)"),
        Bad((zeros(2, 3), zeros(3)), none, ValueError, "does not fit"),
        Bad((zeros(), zeros(3, 1)), none, ValueError, "does not fit"),
        Bad((zeros(2, 3), zeros(4, 3)), {"activation": "g*u"}, ValueError,
            r"linear: activation must be a formula in x alone, got g\*u; use ops.activation"),
        Bad((zeros(2, 3), ints(4, 3)), none, TypeError, "linear: expected floating point"),
    ]


# -- rows ------------------------------------------------------------------------------------------------------------

def draw_layer_norm(rng: Rng) -> Iterator[Sample]:
    for shape in [(1, 1), (7,), (5, 7), (3, 5, 17), (4, 33), (13, 257), (37, 256)]:
        x, weight, bias = normal(rng, *shape), normal(rng, shape[-1]), normal(rng, shape[-1])
        # one element: x - mean is exactly 0, and so is dx
        yield Sample((x, weight, bias), {"eps": 1e-5}, terms=x.size, differences=x.size <= 300)
    many = np.array([-1.5, -0.5, 0.5, 1.5]) + normal(rng, 66_000, 4, spread=0.1)  # no row with a variance near 0
    yield Sample((np.asarray(many, np.float32), normal(rng, 4), normal(rng, 4)), terms=66_000, differences=False)
    # a mean above the deviation: the variance by E[x²] - mean² would lose its digits
    yield Sample((normal(rng, 11, 65) + np.float32(8), normal(rng, 65), normal(rng, 65)), differences=False)


def bad_layer_norm() -> list[Bad]:
    return [
        Bad((zeros(2, 3), zeros(2), zeros(3)), {}, ValueError, r"weight must have shape \(3,\), got \(2,\)"),
        Bad((zeros(2, 3), zeros(3), zeros(1)), {}, ValueError, r"bias must have shape \(3,\), got \(1,\)"),
        Bad((zeros(), zeros(1), zeros(1)), {}, ValueError, "layer_norm: .* at least one axis"),
        Bad((ints(2, 3), zeros(3), zeros(3)), {}, TypeError, "layer_norm: expected floating point"),
    ]


def draw_rms_norm(rng: Rng) -> Iterator[Sample]:
    for shape in [(1, 1), (7,), (5, 7), (3, 5, 17), (4, 33), (13, 257), (37, 256), (66_000, 4)]:
        x, weight = normal(rng, *shape), normal(rng, shape[-1])
        # one element: dx is the difference of two numbers of the size of 1
        yield Sample((x, weight), {"eps": 1e-5}, terms=x.size, scale=float(shape[-1] == 1), differences=x.size <= 300)
    yield Sample((normal(rng, 11, 65) + np.float32(8), normal(rng, 65)), differences=False)
    yield Sample((normal(rng, 5, 9), normal(rng, 9)), {"eps": 0.5})


def bad_rms_norm() -> list[Bad]:
    return [
        Bad((zeros(2, 3), zeros(2)), {}, ValueError, r"rms_norm: weight must have shape \(3,\), got \(2,\)"),
        Bad((zeros(), zeros(1)), {}, ValueError, "rms_norm: .* at least one axis"),
        Bad((ints(2, 3), zeros(3)), {}, TypeError, "rms_norm: expected floating point"),
    ]


def draw_embedding(rng: Rng) -> Iterator[Sample]:
    for v, d, index_shape, more in [(1, 1, (1,), None), (7, 3, (2, 5), None), (7, 3, (2, 5), 0), (11, 5, (3, 4), 9),
                                    (13, 1, (2, 3, 5), 1), (101, 67, (3, 33), 31), (4001, 33, (2, 129), 0),
                                    (97, 3, (600, 110), 7)]:
        positions = None if more is None else normal(rng, index_shape[-1] + more, d)
        terms = math.prod(index_shape[:-1]) + math.prod(index_shape) // v
        yield Sample((normal(rng, v, d), integers(rng, v, *index_shape), positions), terms=terms,
                     differences=v * d < 100)
    yield Sample((normal(rng, 5, 33), ints(3, 67) + 2, None), terms=3 * 67, differences=False)  # all the same row


def bad_embedding() -> list[Bad]:
    return [
        Bad((zeros(4, 3), zeros(2, 5), None), {}, TypeError, "embedding: index must be int32, got float"),
        Bad((ints(4, 3), ints(2, 5), None), {}, TypeError, "embedding: expected floating point"),
        Bad((zeros(4), ints(5), None), {}, ValueError, r"embedding: table \(4,\) must be \[V, D\]"),
        Bad((zeros(4, 3), ints(), None), {}, ValueError, r"embedding: .* index \(\) \[..., T\]"),
        Bad((zeros(4, 3), ints(2, 5), zeros(4, 3)), {}, ValueError, r"positions \(4, 3\) must be \[≥ 5, 3\]"),
        Bad((zeros(4, 3), ints(2, 5), zeros(5, 2)), {}, ValueError, r"positions \(5, 2\) must be"),
    ]


def draw_attention(rng: Rng) -> Iterator[Sample]:
    for b, t, n_head, size, cap, p in [
            (1, 1, 1, 1, 0.0, 0.0), (2, 1, 3, 5, 30.0, 0.0), (1, 7, 1, 5, 0.0, 0.0), (2, 7, 2, 1, 2.0, 0.0),
            (1, 5, 3, 5, 30.0, 0.1), (2, 16, 1, 5, 2.0, 0.1), (2, 16, 2, 16, 30.0, 0.0), (3, 33, 4, 16, 0.0, 0.1),
            (1, 33, 2, 32, 30.0, 0.1), (1, 70, 5, 5, 2.0, 0.0), (2, 70, 3, 32, 30.0, 0.0), (1, 70, 2, 64, 30.0, 0.1),
            (2, 37, 1, 64, 0.0, 0.0)]:
        qkv, state = normal(rng, b, t, 3 * n_head * size), random.state(int(rng.integers(2**63)), 3)
        yield Sample((qkv, state), {"n_head": n_head, "cap": cap, "p": p, "site": 7}, terms=max(t, size),
                     exponent=largest_score(qkv, n_head, cap), differences=b * t <= 32)
    for cap in (0.0, 30.0):  # scores above 100: e^score overflows unless the largest is taken off first
        qkv = normal(rng, 1, 33, 3 * 2 * 16, spread=6.0)
        yield Sample((qkv, None), {"n_head": 2, "cap": cap}, terms=33, exponent=largest_score(qkv, 2, cap),
                     differences=False)
    for b, t, n_head, size, cap, p in [
            (2, 5, 3, 5, 0.0, 0.0), (1, 7, 2, 8, 2.0, 0.1), (1, 33, 2, 16, 30.0, 0.0), (2, 37, 3, 32, 0.0, 0.1),
            (1, 19, 2, 64, 30.0, 0.1), (1, 17, 1, 35, 0.0, 0.0), (16_501, 2, 2, 6, 0.0, 0.0)]:
        yield normed_sample(rng, b, t, n_head, size, cap, p)


def normed_sample(rng: Rng, b: int, t: int, n_head: int, size: int, cap: float, p: float) -> Sample:
    """With the norm of q and k, whose weights' gradients sum over all positions and heads; 0 where there is one key."""
    qkv, weights = normal(rng, b, t, 3 * n_head * size), [normal(rng, size) for _ in "qk"]
    state = random.state(int(rng.integers(2**63)), 3)
    return Sample((qkv, state, *weights), {"n_head": n_head, "cap": cap, "p": p, "site": 7},
                  terms=max(b * t * n_head, size), exponent=largest_score(qkv, n_head, cap, weights),
                  scale=float(t == 1), differences=b * t <= 32)


def largest_score(qkv: np.ndarray, n_head: int, cap: float, weights: Sequence[np.ndarray] = ()) -> float:
    """The largest |q·k|/√size, at most cap."""
    b, t, width = qkv.shape
    q, k, _ = qkv.reshape(b, t, 3, n_head, width // (3 * n_head)).transpose(2, 0, 3, 1, 4)
    if weights:
        q, k = (x / np.sqrt((x * x).mean(-1, keepdims=True)) * w for x, w in zip((q, k), weights, strict=True))
    largest = float(np.abs(q @ k.swapaxes(-1, -2)).max()) / math.sqrt(q.shape[-1])
    return min(largest, cap) if cap else largest


def call_attention(qkv: Tensor, rng: Tensor | None, *weights: Tensor, n_head: int, **kwargs: Any) -> Tensor:
    return ops.attention(qkv, n_head, rng=rng, qk_norm=weights or None, **kwargs)


def bad_attention() -> list[Bad]:
    ok: dict[str, Any] = {"n_head": 2}
    x = zeros(2, 5, 12)
    return [
        Bad((zeros(5, 12), None), ok, ValueError, r"attention: qkv must be \[B, T, 3·D\]"),
        Bad((x, None), {"n_head": 5}, ValueError, "D a multiple of 5 heads"),
        Bad((x, None), {"n_head": 0}, ValueError, "D a multiple of 0 heads"),
        Bad((x, None), ok | {"cap": -1.0}, ValueError, "attention: cap must be ≥ 0"),
        Bad((x, ints(3)), ok | {"p": 1.0}, ValueError, r"p in \[0, 1\)"),
        Bad((x, None), ok | {"p": 0.1}, ValueError, "attention: dropout needs rng"),
        Bad((x, ints(4)), ok | {"p": 0.1}, ValueError, r"attention: rng must have shape \(3,\)"),
        Bad((x, zeros(3)), ok | {"p": 0.1}, TypeError, "attention: rng must be int32"),
        Bad((ints(2, 5, 12), None), ok, TypeError, "attention: expected floating point"),
        Bad((x, None, zeros(2), zeros(1)), ok, ValueError, r"qk_norm must be two weights \[2\], got \(2,\), \(1,\)"),
        Bad((x, None, zeros(2)), ok, ValueError, r"qk_norm must be two weights \[2\], got \(2,\)"),
        Bad((x, None, zeros(2), ints(2)), ok, TypeError, "attention: expected floating point"),
    ]


def draw_cross_entropy(rng: Rng) -> Iterator[Sample]:
    for shape, spread in [((1, 1), 1), ((5, 2), 1), ((7,), 1), ((3, 7, 13), 1), ((2, 3, 101), 1), ((5, 4000), 1),
                          ((67, 257), 3), ((66_000, 3), 1), ((9, 33), 100)]:
        logits, v = normal(rng, *shape, spread=spread), shape[-1]
        # with one class, loss and gradient are exactly 0: differences of numbers of the size of 1
        yield Sample((logits, integers(rng, v, *shape[:-1])), terms=max(v, logits.size // v), scale=float(v == 1),
                     exponent=float(np.abs(logits).max()), differences=logits.size < 300 and spread == 1)
    for shape, cap, spread in [((1, 1), 2.0, 1), ((7,), 30.0, 1), ((3, 7, 13), 2.0, 3), ((2, 3, 100), 2.0, 1),
                               ((67, 257), 30.0, 30), ((5, 4000), 30.0, 100), ((66_000, 3), 2.0, 1)]:
        logits, v = normal(rng, *shape, spread=spread), shape[-1]
        # a capped logit has the digits of the cap
        yield Sample((logits, integers(rng, v, *shape[:-1])), {"cap": cap}, terms=max(v, logits.size // v),
                     scale=float(v == 1), exponent=cap, differences=logits.size < 700 and spread < 30)


def bad_cross_entropy() -> list[Bad]:
    return [
        Bad((zeros(5, 7), ints(4)), {}, ValueError, r"cross_entropy: targets must have shape \(5,\), got \(4,\)"),
        Bad((zeros(5, 7), ints(5, 1)), {}, ValueError, "cross_entropy: targets must have shape"),
        Bad((zeros(5, 7), zeros(5)), {}, TypeError, "cross_entropy: targets must be int32, got float"),
        Bad((zeros(), ints()), {}, ValueError, "cross_entropy: logits need at least one axis"),
        Bad((zeros(5, 7), ints(5)), {"cap": -1.0}, ValueError, "cross_entropy: cap must be ≥ 0, got -1"),
        Bad((zeros(5, 7), ints(5)), {"cap": math.nan}, ValueError, "cross_entropy: cap must be ≥ 0, got nan"),
        Bad((ints(5, 7), ints(5)), {}, TypeError, "cross_entropy: expected floating point"),
    ]
