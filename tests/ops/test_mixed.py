"""Mixed precision: matmul, linear and attention on float16 inputs, everything else as before."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from helios import ops
from helios.backends import get_backend
from helios.backends.backend import Backend
from helios.backends.cpu_ref import CpuRef
from helios.errors import UserError
from helios.tensor import Tensor

from .arrays import Sample
from .registry import OPS, OpInfo, close, forward, generator, gradients

ROUNDING = ("matmul", "linear", "attention")
ORACLE = CpuRef(np.float64, "mixed")
SAMPLES = {name: OPS[name].samples() for name in ROUNDING}
CASES = [pytest.param(name, i, id=f"{name}-{i}-{sample!r}")
         for name, samples in SAMPLES.items() for i, sample in enumerate(samples)]
HALF = 2.0**-11  # how far, relatively, a float16 may be from what it stands for


def case(name: str, i: int) -> tuple[OpInfo, Sample]:
    return OPS[name], SAMPLES[name][i]


@cache
def true_value(name: str, i: int) -> np.ndarray:
    return forward(*case(name, i), ORACLE)[0].numpy()


def awkward() -> np.ndarray:
    """Every float16 and what lies halfway to the next, on the point and beside it; too large and too small ones."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves = np.sort(halves[np.isfinite(halves)])
    ties = ((halves[1:].astype(np.float64) + halves[:-1]) / 2).astype(np.float32)
    beside = [np.nextafter(ties, np.float32(end)) for end in (-np.inf, np.inf)]
    others = np.array([65519.99, 65520, 65536, 1e5, 5e34, 3e38, 1e-8, 2.0**-25, 1e-40, 0], np.float32)
    draw = generator("awkward")
    powers = (draw.standard_normal(20_000) * 10.0 ** draw.uniform(-9, 6, 20_000)).astype(np.float32)
    return np.concatenate([halves, ties, *beside, others, -others, powers])


def test_inputs_are_rounded_to_nearest_even(each_mixed: Backend) -> None:
    x = awkward()
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16).astype(np.float32)
    one = each_mixed.array(np.ones((1, 1), np.float32))
    got = each_mixed.numpy(each_mixed.matmul(each_mixed.array(x[:, None]), one))[:, 0]
    np.testing.assert_array_equal(got, expected)
    got = each_mixed.numpy(each_mixed.matmul(one, each_mixed.array(x[None])))[0]
    np.testing.assert_array_equal(got, expected)
    qkv = np.array([[[0, 0, 1 + 3 * HALF]]], np.float32)  # of one position the result is v
    out, _ = each_mixed.attention(each_mixed.array(qkv), None, 1, 0.0, 0.0, 0)
    assert each_mixed.numpy(out) == 1 + 4 * HALF


def normed(sample: Sample) -> bool:
    """Whether q and k are computed before they are rounded."""
    return "n_head" in sample.kwargs and len(sample.inputs) > 2


@pytest.mark.parametrize(("name", "i"), CASES)
def test_forward(name: str, i: int, each_mixed: Backend) -> None:
    op, sample = case(name, i)
    out, _ = forward(op, sample, each_mixed)
    assert out.dtype == np.float32
    close(out.numpy(), true_value(name, i), op.tolerance(sample) + HALF * normed(sample), sample.scale)


@pytest.mark.parametrize(("name", "i"), CASES)
def test_gradients(name: str, i: int, each_mixed: Backend) -> None:
    op, sample = case(name, i)
    # The activation's gradient differs in its last digit, and where that decides a rounding, by a float16's last digit.
    rounded_again = HALF if sample.kwargs.get("activation") or normed(sample) else 0.0
    for got, expected in zip(gradients(op, sample, each_mixed), gradients(op, sample, ORACLE), strict=True):
        close(got, expected, op.tolerance(sample) + rounded_again, sample.scale)


@pytest.mark.parametrize("name", ROUNDING)
def test_it_is_near_f32_and_not_equal_to_it(name: str) -> None:
    op, sample = max((case(name, i) for i in range(len(SAMPLES[name]))), key=lambda case: case[1].inputs[0].size)
    exact, mixed = (forward(op, sample, be)[0].numpy() for be in (CpuRef(np.float64), ORACLE))
    assert 1e-5 < np.abs(exact - mixed).max() / np.abs(exact).max() < 8 * HALF


def test_nothing_else_is_rounded(each_mixed: Backend) -> None:
    x = np.array([[1 + 2.0**-20, 3.0]], np.float32)
    t = Tensor(each_mixed.array(x), each_mixed)
    assert (ops.add(t, t).numpy() == 2 * x).all() and (ops.relu(t).numpy() == x).all()
    index = Tensor(each_mixed.array(np.zeros((1, 1), np.int32)), each_mixed)
    assert (ops.embedding(t, index).numpy()[0] == x).all()


def test_backends_of_a_precision() -> None:
    mixed = get_backend("cpu_ref", precision="mixed")
    assert mixed.precision == "mixed" and get_backend("cpu_ref").precision == "f32"
    assert mixed is get_backend("cpu_ref", precision="mixed")
    with pytest.raises(UserError, match="unknown precision 'f16'"):
        get_backend("cpu_ref", precision="f16")
