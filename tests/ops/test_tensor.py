"""A Tensor among Python's and numpy's own operators and protocols."""

from __future__ import annotations

import copy
import operator
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from helios.backends.backend import Backend
from helios.capture import Capture
from helios.tensor import Tensor, tensor

X = np.array([[1.0, 2.0], [3.0, 5.0]], np.float32)


@pytest.mark.parametrize("compute", [
    lambda x: x + 1, lambda x: 1 + x, lambda x: x - 2, lambda x: 2 - x, lambda x: x * np.float32(2),
    lambda x: np.float32(2) * x, lambda x: np.int64(2) * x, lambda x: np.float64(0.5) + x, lambda x: x / 4,
    lambda x: -x, lambda x: sum([x, x])])
def test_arithmetic_with_numbers(each_backend: Backend, compute: Callable[[Any], Any]) -> None:
    x = tensor(X, each_backend, True)
    y = compute(x)
    assert isinstance(y, Tensor)
    np.testing.assert_allclose(y.numpy(), compute(X), rtol=1e-6)
    y.sum().backward()
    assert x.grad is not None
    slope = (compute(np.float32(3)) - compute(np.float32(1))) / 2
    np.testing.assert_allclose(x.grad.numpy(), np.full_like(X, slope), rtol=1e-6)


def test_a_recorded_number_is_in_every_replay(each_backend: Backend) -> None:
    capture = Capture(lambda x: (1 - x,), each_backend)
    for x in (X, 2 * X):
        np.testing.assert_array_equal(capture(x)[0], 1 - x)


@pytest.mark.parametrize(("compute", "error", "message"), [
    (lambda t: X * t, TypeError, "mul: expected a Tensor or a number, got ndarray"),
    (lambda t: t + X, TypeError, "add: expected a Tensor or a number, got ndarray"),
    (lambda t: t + "1", TypeError, "add: expected a Tensor or a number, got str"),
    (lambda t: t - None, TypeError, "sub: expected a Tensor or a number, got NoneType"),
    (lambda t: t / t, TypeError, "div: expected a number, got Tensor"),
    (lambda t: 2 / t, TypeError, "div: nothing is divided by a tensor"),
    (lambda t: X / t, TypeError, "div: nothing is divided by a tensor"),
    (lambda t: t * 1e300, ValueError, r"mul: 1e\+300 is more than float32 holds"),
    (lambda t: tensor([1], t.backend) + 1, TypeError, "add: expected floating point, got int32"),
    (lambda t: t[0], TypeError, r"no indices: take numpy\(\)\[…\]"), (list, TypeError, "no iterator"),
    (lambda t: t == t, TypeError, "no ==: compare what numpy"), (lambda t: t != 1.0, TypeError, "no =="),
    (bool, ValueError, r"expected one element, but this tensor has shape \(2, 2\)"),
    (float, ValueError, "one element"), (int, ValueError, "one element"), (Tensor.item, ValueError, "one element"),
    (lambda t: len(t.sum()), TypeError, "no length"),
    (lambda t: np.array(t, copy=False), ValueError, "cannot share a tensor's memory")])
def test_what_is_not_defined_says_so(each_backend: Backend, compute: Callable[[Tensor], object],
                                     error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        compute(tensor(X, each_backend))


def test_a_single_element_is_a_python_number(each_backend: Backend) -> None:
    two, zero = tensor([2.5], each_backend), tensor([[0]], each_backend)
    assert (float(two), int(two), bool(two), bool(zero), two.item(), operator.index(len(two))) == (
        2.5, 2, True, False, 2.5, 1)


def test_numpy_takes_a_copy(each_backend: Backend) -> None:
    x = tensor(X, each_backend, True)
    np.asarray(x)[0, 0] = 9
    assert np.array_equal(np.asarray(x), X) and np.asarray(x, np.int64).dtype == np.int64
    assert np.array_equal(tensor(x, "cpu_ref").numpy(), X) and len(x) == 2 and {x: 1}[x] == 1


def test_a_deep_copy_is_apart(each_backend: Backend) -> None:
    x = tensor(X, each_backend, True)
    y = copy.deepcopy({"x": x})["x"]
    each_backend.upload(y.data, 2 * X)
    assert np.array_equal(x.numpy(), X) and y.requires_grad and y.backend is each_backend


def test_what_is_on_a_device_is_not_pickled(backend: Backend) -> None:
    if backend.name != "vulkan":
        pytest.skip("numpy's arrays are pickled")
    assert np.array_equal(pickle.loads(pickle.dumps(tensor(X, "cpu_ref"))).numpy(), X)
    x = tensor(X, backend)
    for thing in (x, x.data, backend):
        with pytest.raises(TypeError, match=r"neither pickled nor copied: pass on what Tensor.numpy\(\)"):
            pickle.dumps(thing)
    with pytest.raises(TypeError, match="neither pickled nor copied"):
        copy.deepcopy(backend)
