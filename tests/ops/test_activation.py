"""Formulas as the activation of an array: on each backend, against float64, with gradients of what they depend on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helios import ops
from helios.backends.backend import Backend
from helios.formula import Formula
from helios.tensor import Tensor

from .formulas import EPS, EXAMPLES, bound, formulas

some = settings(max_examples=12, deadline=None, derandomize=True,  # two new pipelines each
                suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])


def check(formula: Formula, be: Backend, rows: int, features: int, seed: int = 0) -> None:
    """Of h [rows, features], and coefficients near their start, with a random gradient flowing in."""
    draw = np.random.default_rng(seed)
    inputs = [draw.uniform(-8, 8, (rows, features)).astype(np.float32) for _ in formula.inputs]
    start = [np.full(features, value) for value in formula.coefficients.values()]
    coefficients = [np.asarray(value + draw.uniform(-0.5, 0.5, features), np.float32) for value in start]
    upstream = draw.standard_normal((rows, features)).astype(np.float32)
    tensors = [Tensor(be.array(x), be, True) for x in (np.concatenate(inputs, -1), *coefficients)]
    out = ops.activation(tensors[0], formula, *tensors[1:])
    (out * Tensor(be.array(upstream), be)).sum().backward()
    assert all(t.grad is not None for t in tensors)
    slopes = np.split(tensors[0].grad.numpy(), len(inputs), -1) + [t.grad.numpy() for t in tensors[1:]]  # type: ignore

    points = dict(zip(formula.parameters, (*inputs, *coefficients), strict=True))
    known: dict = {}
    close(formula, "value", out.numpy(), *bound(formula.normal, points, known))
    for name, got in zip(formula.parameters, slopes, strict=True):
        value, error = (np.broadcast_to(v, upstream.shape) for v in bound(formula.slope(name), points, known))
        terms, error = value * upstream.astype(np.float64), (error + EPS * np.abs(value)) * np.abs(upstream)
        if name in formula.coefficients:  # each sum is rounded `rows` times
            error = error.sum(0) + EPS * rows * np.abs(terms).sum(0)
            terms = terms.sum(0)
        close(formula, name, got, terms, error)


def close(formula: Formula, what: str, got: np.ndarray, expected: np.ndarray, error: np.ndarray) -> None:
    off = np.abs(got - expected) - 8 * error - 1e-30
    assert np.isfinite(got).all() and off.max() <= 0, (str(formula), what, float(off.max()))


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples(each_backend: Backend, text: str) -> None:
    check(Formula.parse(text), each_backend, 5, 42)


@some
@given(formula=formulas(), rows=st.sampled_from([1, 7, 40]), features=st.sampled_from([1, 6, 33, 70]),
       seed=st.integers(0, 2**32 - 1))
def test_drawn(each_backend: Backend, formula: Formula, rows: int, features: int, seed: int) -> None:
    check(formula, each_backend, rows, features, seed)


@pytest.mark.parametrize("text", [text for text in EXAMPLES if Formula.parse(text).plain])
def test_in_the_pass_of_a_product(each_backend: Backend, text: str) -> None:
    """The identity times x is x, so that what remains is the activation, and in its gradient the fused slope."""
    be, x = each_backend, np.random.default_rng(1).uniform(-8, 8, (9, 34)).astype(np.float32)
    formula, eye = Formula.parse(text), np.eye(34, dtype=np.float32)
    h = Tensor(be.array(x), be, True)
    out = ops.linear(ops.linear(h, Tensor(be.array(eye), be, True), formula), Tensor(be.array(eye), be))
    out.sum().backward()
    assert h.grad is not None
    for node, got in ((formula.normal, out), (formula.slope("x"), h.grad)):
        close(formula, str(node), got.numpy(), *(np.broadcast_to(v, x.shape) for v in bound(node, {"x": x})))


def test_equal_formulas_share_their_kernel(backend: Backend) -> None:
    if backend.name != "vulkan":
        pytest.skip("cpu_ref has no kernels")
    x = Tensor(backend.array(np.ones((3, 8), np.float32)), backend)
    a = [Tensor(backend.array(np.full(8, value, np.float32)), backend) for value in (2.0, 3.0)]
    ops.activation(x, Formula.parse("p*silu(x)+q*x; p=1, q=0"), *a).numpy()
    before = len(backend.pipelines.kernels)  # type: ignore[attr-defined]
    again = ops.activation(x, Formula.parse("x*second+first*(x*sigmoid(x)); first=9, second=8"), *a).numpy()
    assert len(backend.pipelines.kernels) == before  # type: ignore[attr-defined]
    assert again[0, 0] == pytest.approx(2 / (1 + np.exp(-1)) + 3)
