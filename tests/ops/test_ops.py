"""Tests of every op on every sample of the registry."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from functools import cache

import numpy as np
import pytest
from scipy.interpolate import BSpline

from helios import random
from helios.backends.backend import SPLINE_POINTS, SPLINE_REACH, Backend
from helios.model.activations import activation

from .arrays import Bad, Sample
from .registry import OPS, ORACLE, OpInfo, close, forward, generator, gradients, upstream

SAMPLES = {name: op.samples() for name, op in OPS.items()}
CASES = [pytest.param(name, i, id=f"{name}-{i}-{sample!r}")
         for name, samples in SAMPLES.items() for i, sample in enumerate(samples)]
SMOOTH = [pytest.param(name, i, id=f"{name}-{i}-{sample!r}")
          for name, samples in SAMPLES.items() for i, sample in enumerate(samples) if sample.differences]
BAD = [pytest.param(op, bad, id=f"{name}-{i}") for name, op in OPS.items() for i, bad in enumerate(op.bad())]


def case(name: str, i: int) -> tuple[OpInfo, Sample]:
    return OPS[name], SAMPLES[name][i]


@cache
def true_value(name: str, i: int) -> np.ndarray:
    return forward(*case(name, i), ORACLE)[0].numpy()


@cache
def true_gradients(name: str, i: int) -> list[np.ndarray]:
    return gradients(*case(name, i), ORACLE)


FIRST: dict[tuple[object, ...], str] = {}  # a digest of what a backend came to at first


def value(name: str, i: int, be: Backend) -> np.ndarray:
    out, _ = forward(*case(name, i), be)
    assert out.node is None and not out.requires_grad
    FIRST.setdefault(("value", name, i, be), digest([found := out.numpy()]))
    return found


def slopes(name: str, i: int, be: Backend) -> list[np.ndarray]:
    found = gradients(*case(name, i), be)
    FIRST.setdefault(("slopes", name, i, be), digest(found))
    return found


def digest(arrays: Iterable[np.ndarray]) -> str:
    return hashlib.sha256(b"".join(x.tobytes() for x in arrays)).hexdigest()


def test_oracle_by_definition() -> None:
    """What the other tests compare with, against the formulas written out for one element at a time."""
    be, rng = ORACLE, generator("definition")
    for x in (-7.3, -1.1, -0.2, 0.0, 0.4, 1.9, 6.1):
        at = np.array([x])
        silu, gelu = x / (1 + math.exp(-x)), x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        c = [np.array([v]) for v in (0.3, 0.5, -0.7, 1.1, 1.3)]
        for name, h, given, expected in [
                ("silu", at, [], silu), ("gelu", at, [], gelu), ("relu", at, [], max(x, 0)),
                ("swiglu", np.append(at, c[0]), [], silu * 0.3), ("universal", at, c[:2], silu * 0.3 + x * 0.5),
                ("kan_spline", at, c, 0.3 * silu + 0.5 * max(x, 0) - 0.7 * gelu + 1.1 * x + 1.3 * x * x)]:
            formula = activation(name).formula
            assert formula and be.activation(formula, h, *given)[0] == pytest.approx(expected, rel=1e-14, abs=1e-15)
        assert be.softcap(at, 3.0)[0] == pytest.approx(3 * math.tanh(x / 3), rel=1e-14)

    x2 = rng.standard_normal((2, 5))
    y, mean, rstd = be.layer_norm(x2, np.array([1.0, 2, 3, 4, 5]), np.array([0.0, 1, 0, 1, 0]), 1e-3)
    for row, m, r, out in zip(x2.tolist(), mean, rstd, y, strict=True):
        mu = sum(row) / 5
        deviation = math.sqrt(sum((v - mu) ** 2 for v in row) / 5 + 1e-3)
        assert (m, 1 / r) == pytest.approx((mu, deviation))
        assert out.tolist() == pytest.approx([(v - mu) / deviation * (j + 1) + j % 2 for j, v in enumerate(row)])

    y, rstd = be.rms_norm(x2, np.array([1.0, 2, 3, 4, 5]), 1e-3)
    for row, r, out in zip(x2.tolist(), rstd, y, strict=True):
        root = math.sqrt(sum(v * v for v in row) / 5 + 1e-3)
        assert 1 / r == pytest.approx(root) and out.tolist() == pytest.approx([v / root * (j + 1) for j, v in
                                                                               enumerate(row)])
    qkv, weights = rng.standard_normal((2, 3, 3, 2, 4)), rng.standard_normal((2, 4))
    qk = be.qk_norm(qkv.reshape(2, 3, 24), *weights, 2).reshape(2, 3, 2, 2, 4)
    for *at, part, h in np.ndindex(2, 3, 2, 2):
        x = qkv[*at, part, h].tolist()
        deviation = math.sqrt(sum(v * v for v in x) / 4 + 1e-5)
        expected = [v / deviation * w for v, w in zip(x, weights[part], strict=True)]
        assert qk[*at, part, h].tolist() == pytest.approx(expected)

    loss, lse = be.cross_entropy(x2, np.array([4, 0]))
    sums = [math.log(sum(math.exp(v) for v in row)) for row in x2]
    assert lse.tolist() == pytest.approx(sums)
    assert float(loss) == pytest.approx((sums[0] - x2[0, 4] + sums[1] - x2[1, 0]) / 2)
    capped = be.cross_entropy(x2, np.array([4, 0]), 0.7)[0]
    assert float(capped) == pytest.approx(float(be.cross_entropy(0.7 * np.tanh(x2 / 0.7), np.array([4, 0]))[0]))


def test_spline_by_definition() -> None:
    """Against SciPy's B-splines, and beyond the knots their tangents."""
    points = generator("spline").standard_normal((SPLINE_POINTS, 3))
    step = 2 * SPLINE_REACH / (SPLINE_POINTS - 3)
    knots = -SPLINE_REACH + step * (np.arange(SPLINE_POINTS + 4) - 3)
    for column, p in enumerate(points.T):
        curve = BSpline(knots, p, 3, extrapolate=False)
        for x in (-1e4, -4.3, -4.0, -3.9, -1.0, 0.0, 0.2, 2.5, 3.99, 4.0, 7.0):
            at = min(max(x, -SPLINE_REACH), SPLINE_REACH)
            slope = float(curve.derivative()(at))
            h = np.full((1, 3), x)
            assert ORACLE.spline(h, points)[0, column] == pytest.approx(float(curve(at)) + (x - at) * slope, rel=1e-9)
            assert ORACLE.spline_backward(h, points, np.ones((1, 3)))[0][0, column] == pytest.approx(slope, rel=1e-9)


@pytest.mark.parametrize(("cap", "p"), [(0.0, 0.0), (2.0, 0.0), (2.0, 0.3)])
def test_attention_by_definition(cap: float, p: float) -> None:
    """One query, one head, one key at a time; the mask's row is (batch·heads + head)·T + query, its column the key."""
    b, t, heads, size, site = 2, 5, 3, 4, 11
    qkv = generator("attention by definition").standard_normal((b, t, 3, heads, size))
    state = random.state(7, 8)
    kept = random.keep((b * heads * t, t), state, site, p)
    out, lse = ORACLE.attention(qkv.reshape(b, t, -1), state, heads, cap, p, site)
    for i, h, query in np.ndindex(b, heads, t):
        scores = [float(qkv[i, query, 0, h] @ qkv[i, key, 1, h]) / math.sqrt(size) for key in range(query + 1)]
        scores = [cap * math.tanh(s / cap) if cap else s for s in scores]
        total = sum(math.exp(s) for s in scores)
        assert lse[i, h, query] == pytest.approx(math.log(total))
        row = (i * heads + h) * t + query
        mixed = sum(math.exp(s) / total * kept[row, key] / (1 - p) * qkv[i, key, 2, h] for key, s in enumerate(scores))
        assert out[i, query, h * size:(h + 1) * size] == pytest.approx(mixed)


@pytest.mark.parametrize(("name", "i"), SMOOTH)
def test_gradient_is_the_derivative(name: str, i: int) -> None:
    """Along random directions, in float64, with a random gradient flowing in."""
    op, sample = case(name, i)
    rng, step = generator(name), 1e-4
    weight = upstream(op, sample, true_value(name, i).shape)

    def value_at(inputs: tuple[np.ndarray | None, ...]) -> float:
        moved = Sample(inputs, sample.kwargs)
        return float((forward(op, moved, ORACLE)[0].numpy() * weight).sum())

    for place, grad in zip(sample.differentiable, true_gradients(name, i), strict=True):
        x = sample.inputs[place]
        assert x is not None
        for _ in range(3):
            direction = np.asarray(rng.standard_normal(x.shape))
            values = [value_at(tuple(x + k * step * direction if j == place else y
                                     for j, y in enumerate(sample.inputs))) for k in (-2, -1, 1, 2)]
            measured = np.dot([1, -8, 8, -1], values) / (12 * step)  # fourth order
            terms = grad * direction
            scale = max(np.sqrt((terms**2).sum()), sample.scale)
            assert abs(measured - terms.sum()) <= 1e-8 * scale, f"input {place}: {measured} and {terms.sum()}"


@pytest.mark.parametrize(("name", "i"), CASES)
def test_forward(name: str, i: int, each_backend: Backend) -> None:
    op, sample = case(name, i)
    out = value(name, i, each_backend)
    assert out.dtype == np.float32
    close(out, true_value(name, i), op.tolerance(sample), sample.scale)


@pytest.mark.parametrize(("name", "i"), CASES)
def test_gradients(name: str, i: int, each_backend: Backend) -> None:
    op, sample = case(name, i)
    for got, expected in zip(slopes(name, i, each_backend), true_gradients(name, i), strict=True):
        close(got, expected, op.tolerance(sample), sample.scale)


@pytest.mark.parametrize(("name", "i"), CASES)
def test_same_bits_twice(name: str, i: int, backend: Backend) -> None:
    for kind, of in (("value", lambda *at: [value(*at)]), ("slopes", slopes)):
        if (kind, name, i, backend) not in FIRST:  # this test alone was asked for
            of(name, i, backend)
        assert digest(of(name, i, backend)) == FIRST[kind, name, i, backend]


@pytest.mark.parametrize(("op", "bad"), BAD)
def test_declared_errors(op: OpInfo, bad: Bad, each_backend: Backend) -> None:
    with pytest.raises(bad.raises, match=bad.match):
        forward(op, Sample(bad.inputs, bad.kwargs), each_backend)
