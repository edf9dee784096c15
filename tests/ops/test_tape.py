"""The tape: what it adds up, what it refuses, what it lets go of; and that the tables are complete."""

from __future__ import annotations

import ast
import inspect
import weakref

import numpy as np
import pytest

import helios.tensor
from helios import ops, random
from helios.backends.backend import Array, Backend
from helios.backends.cpu_ref import CpuRef
from helios.formula import Formula
from helios.gradients import GRADIENTS
from helios.tensor import Tensor, tensor

from .registry import OPS


def leaf(be: Backend, *values: float) -> Tensor:
    return tensor(list(values), be, requires_grad=True)


def grad(t: Tensor) -> list[float]:
    assert t.grad is not None
    return t.grad.numpy().tolist()


def test_a_value_used_twice_gets_both_gradients(each_backend: Backend) -> None:
    x = leaf(each_backend, 1.0, -2.0, 3.0)
    y = x * x  # a leaf used twice …
    z = y * 2.0 + y * y  # … and an inner value used three times: z = 2x² + x⁴
    z.sum().backward()
    assert grad(x) == [8.0, -40.0, 120.0]  # 4x + 4x³


def test_grad_accumulates_over_losses(each_backend: Backend) -> None:
    x = leaf(each_backend, 1.0, -2.0, 3.0)
    (x * 2.0).sum().backward()
    (x * x).sum().backward()
    assert grad(x) == [4.0, -2.0, 8.0]


def test_grad_home_receives_the_gradient(each_backend: Backend) -> None:
    x = leaf(each_backend, 1.0, -2.0, 3.0)
    memory = each_backend.zeros((7,))
    x.grad_home = each_backend.view(memory, 2, (3,))
    (x * x).sum().backward()
    assert each_backend.numpy(memory).tolist() == [0.0, 0.0, 2.0, -4.0, 6.0, 0.0, 0.0]
    assert grad(x) == [2.0, -4.0, 6.0]
    (x * x * x).sum().backward()
    assert each_backend.numpy(memory).tolist() == [0.0, 0.0, 5.0, 8.0, 33.0, 0.0, 0.0]
    assert x.grad is not None and x.grad.data is x.grad_home


def test_grad_home_is_not_shared(each_backend: Backend) -> None:
    """Rules that hand on the incoming gradient, or a view of it, give it to several tensors at once."""
    x, y, z = (leaf(each_backend, 1.0, -2.0, 3.0) for _ in range(3))
    weight = tensor([[5.0], [6.0], [7.0]], each_backend)
    x.grad_home = each_backend.zeros((3,))
    inner = (z * 2.0).reshape(3, 1)
    for _ in range(2):  # the second round adds to the gradients of the first
        ((x.reshape(3, 1) + y.reshape(3, 1)) * weight).sum().backward()
    (x * x).sum().backward()
    assert grad(x) == [12.0, 8.0, 20.0] and grad(y) == [10.0, 12.0, 14.0]
    y.grad = None
    (((x.reshape(3, 1) + inner) - y.reshape(3, 1)) * weight).sum().backward()
    assert grad(x) == [17.0, 14.0, 27.0] and grad(y) == [-5.0, -6.0, -7.0] and grad(z) == [10.0, 12.0, 14.0]


def test_gradients_flow_only_where_they_are_required(each_backend: Backend) -> None:
    x, constant = leaf(each_backend, 1.0, -2.0), tensor([3.0, 4.0], each_backend)
    (x * constant).sum().backward()
    assert grad(x) == [3.0, 4.0] and constant.grad is None
    assert (constant * constant).node is None


def test_a_tape_runs_once(each_backend: Backend) -> None:
    x = leaf(each_backend, 1.0, -2.0)
    y = ops.gelu(x)
    loss = y.sum()
    loss.backward()
    once = grad(x)
    with pytest.raises(RuntimeError, match=r"tape was already run .*'sum'.* compute the loss again"):
        loss.backward()
    with pytest.raises(RuntimeError, match=r"tape was already run .*'activation'"):
        (y * 2.0).sum().backward()  # a new loss on a value of the old tape
    assert grad(x) == once


def test_backward_starts_from_a_scalar(each_backend: Backend) -> None:
    x = leaf(each_backend, 1.0, -2.0)
    for t in (x * 2.0, (x * 2.0).reshape(1, 2), x):
        with pytest.raises(ValueError, match=r"starts from a scalar; this tensor has shape"):
            t.backward()


def test_backward_needs_a_tape(each_backend: Backend) -> None:
    with pytest.raises(RuntimeError, match="nothing that this tensor was computed from requires a gradient"):
        tensor([1.0, 2.0], each_backend).sum().backward()


class Watched(CpuRef):
    """Notes which arrays are alive when gelu's gradient is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, weakref.ref[np.ndarray]] = {}
        self.alive: list[str] = []

    def activation_backward(self, formula: Formula, h: Array, *coefficients_and_g: Array) -> tuple[Array, ...]:
        if str(formula) == "gelu(x)":
            self.alive = [name for name, ref in self.values.items() if ref() is not None]
        return super().activation_backward(formula, h, *coefficients_and_g)


def test_values_are_freed_once_used() -> None:
    be = Watched()
    x = leaf(be, 1.0, -2.0)
    a = ops.gelu(x)
    b = ops.silu(a)
    c = ops.relu(b)
    loss = c.sum()
    be.values = {name: weakref.ref(t.data) for name, t in (("a", a), ("b", b), ("c", c))}
    del a, b, c
    assert all(be.values[name]() is not None for name in "abc")  # the tape holds what its rules may read
    loss.backward()
    assert be.alive == ["a"]  # the rule of relu had let go of b and c before the rule of gelu ran
    assert all(be.values[name]() is None for name in "abc")
    assert np.isfinite(loss.item()) and x.grad is not None


@pytest.mark.parametrize("name", OPS)
def test_backends_do_not_mix(name: str) -> None:
    """Each argument in turn comes from another backend than the first."""
    one, other = CpuRef(), CpuRef()
    sample = next(s for s in OPS[name].samples() if s.kwargs.get("p", 1.0))  # without dropout rng is not looked at
    for odd in range(1, len(sample.inputs)):
        if sample.inputs[odd] is None:
            continue
        tensors = [None if x is None else tensor(x, other if i == odd else one) for i, x in enumerate(sample.inputs)]
        with pytest.raises(ValueError, match="tensors on cpu_ref and on cpu_ref"):
            OPS[name].call(*tensors, **sample.kwargs)


def recorded_ops() -> set[str]:
    """The names that ops.py and tensor.py put on the tape, read from their source."""
    calls = (node for module in (ops, helios.tensor) for node in ast.walk(ast.parse(inspect.getsource(module)))
             if isinstance(node, ast.Call))
    return {call.args[0].value for call in calls
            if isinstance(call.func, ast.Name) and call.func.id in ("record", "elementwise")
            and isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str)}


def test_every_recorded_op_has_a_gradient_and_every_gradient_a_test() -> None:
    assert recorded_ops() == set(GRADIENTS)
    assert set(GRADIENTS) == {op.op or name for name, op in OPS.items()}


def test_every_differentiable_input_is_tested_on_every_op() -> None:
    """Finite differences exist for each op, and no sample silently lacks a gradient."""
    for name, op in OPS.items():
        smooth = [s for s in op.samples() if s.differences]
        assert smooth and all(s.differentiable for s in smooth), name
        assert op.bad(), f"{name} declares no errors"


def test_ops_without_gradients_leave_no_tape(each_backend: Backend) -> None:
    state = Tensor(each_backend.array(random.state(1, 1)), each_backend)
    x = tensor(np.ones((2, 3)), each_backend)
    assert ops.dropout(x, 0.5, state, 1).node is None
    assert ops.linear(x, tensor(np.ones((4, 3)), each_backend), Formula.parse("gelu(x)")).node is None
