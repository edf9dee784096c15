"""One entry an operation, from which its tests are generated (test_ops.py, test_hypothesis.py).

An OpInfo says how to call the op, draws samples, states how close float32 must come to float64 and why, and declares
the arguments that must raise. A new op needs an entry here; test_tape.py fails without one.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from helios import ops
from helios.backends.backend import Backend
from helios.backends.cpu_ref import CpuRef
from helios.model.activations import TABLE, activation
from helios.tensor import Tensor

from . import samples
from .arrays import Bad, Rng, Sample, ints
from .samples import elementwise

EPS = 2.0**-23  # the spacing of float32 at 1
ORACLE = CpuRef(np.float64)


@dataclass(frozen=True)
class OpInfo:
    name: str
    draw: Callable[[Rng], Iterator[Sample]]
    roundings: float  # of float32, that a device may differ by from float64, sums of many terms aside
    why: str
    bad: Callable[[], list[Bad]]
    adapt: Callable[..., Tensor] | None = None  # where the op's arguments are not (*inputs, **kwargs)
    op: str = ""  # of GRADIENTS, where it is not the name

    def call(self, *inputs: Tensor | None, **kwargs: Any) -> Tensor:
        return (self.adapt or getattr(ops, self.name))(*inputs, **kwargs)

    def tolerance(self, sample: Sample) -> float:
        """For |float32 - float64| relative to the largest value of a result or gradient.

        e^x turns the rounding of x, |x|·EPS/2, into a relative one. A sum of n terms of random sign walks to about √n
        and is rounded n times, each time by some 0.2·EPS of where it is: 0.14·√n·EPS of the sum as one standard
        deviation, if the device adds one by one (a tree does better). √n/2 is three and a half of them.
        """
        return (self.roundings + sample.exponent + math.sqrt(sample.terms) / 2) * EPS

    def samples(self) -> list[Sample]:
        return list(self.draw(generator(self.name)))


def generator(name: str) -> Rng:
    return np.random.default_rng(zlib.crc32(name.encode()))


# -- running a sample ------------------------------------------------------------------------------------------------

def forward(op: OpInfo, sample: Sample, be: Backend, grad: bool = False) -> tuple[Tensor, list[Tensor | None]]:
    tensors = [None if x is None else Tensor(be.array(x), be, grad and i in sample.differentiable)
               for i, x in enumerate(sample.inputs)]
    return op.call(*tensors, **sample.kwargs), tensors


def upstream(op: OpInfo, sample: Sample, shape: tuple[int, ...]) -> np.ndarray:
    """The random gradient that flows into the op's result."""
    return np.asarray(generator(op.name + repr(sample)).standard_normal(shape), np.float32)


def gradients(op: OpInfo, sample: Sample, be: Backend) -> list[np.ndarray]:
    """d(Σ op(inputs)·upstream)/d(input) for each differentiable input."""
    out, tensors = forward(op, sample, be, grad=True)
    weight = Tensor(be.array(upstream(op, sample, out.shape)), be)
    (out * weight).sum().backward()
    found = []
    for i in sample.differentiable:
        tensor = tensors[i]
        assert tensor is not None and tensor.grad is not None, f"input {i} got no gradient"
        assert tensor.grad.shape == tensor.shape and tensor.grad.dtype == be.float_dtype
        found.append(tensor.grad.numpy())
    return found


def close(got: np.ndarray, expected: np.ndarray, tolerance: float, scale: float = 0.0) -> None:
    """Every element within `tolerance` of the largest expected one."""
    assert got.shape == expected.shape
    assert np.isfinite(expected).all() and np.isfinite(got).all()
    bound = tolerance * max(np.abs(expected).max(), scale)
    error = np.abs(got.astype(np.float64) - expected)
    worst = np.unravel_index(error.argmax(), error.shape)
    assert error[worst] <= bound, (f"at {tuple(map(int, worst))}: got {got[worst]!r}, expected {expected[worst]!r}; "
                                   f"{(error > bound).sum()} of {error.size} differ by more than {bound:.3g}")


# -- the table -------------------------------------------------------------------------------------------------------

TRANSCENDENTAL = "one exp or tanh, which a device may round by several ulp, then 1 ± that"
DOT = "products summed in an order of the device's choice"
EXP = "exp, which a device may round by several ulp"


def activation_info(name: str) -> OpInfo:
    act = activation(name)
    return OpInfo(name, samples.activations(act), 32 if act.coefficients else 16, TRANSCENDENTAL,
                  lambda: samples.bad_activation(act), act, op="activation" if act.formula else "spline")


OPS: dict[str, OpInfo] = {op.name: op for op in [
    OpInfo("add", elementwise(2), 2, "one rounding", samples.bad_binary("add")),
    OpInfo("sub", elementwise(2), 2, "one rounding", samples.bad_binary("sub")),
    OpInfo("mul", samples.draw_mul, 2, "one rounding, two in a gradient", samples.bad_binary("mul")),
    OpInfo("scale", elementwise(1, alpha=(-1.7, 0.0, 1 / 3)), 2, "alpha and the product are rounded",
           lambda: [Bad((ints(3),), {"alpha": 2.0}, TypeError, "scale: expected floating point")]),
    *map(activation_info, TABLE),
    OpInfo("softcap", elementwise(1, scale=1.0, cap=(30.0, 0.5)), 16, TRANSCENDENTAL, samples.bad_softcap),
    OpInfo("reshape", samples.draw_reshape, 2, "nothing is computed; the gradient is a product", samples.bad_reshape),
    OpInfo("sum", samples.draw_sum, 8, "a tree of sums of positive numbers",
           lambda: [Bad((ints(3),), {}, TypeError, "sum: expected floating point, got int32")]),
    OpInfo("dropout", samples.draw_dropout, 4, "a division and a sum", samples.bad_dropout, samples.call_dropout),
    OpInfo("matmul", samples.draw_matmul, 16, DOT, samples.bad_matmul),
    OpInfo("linear", samples.draw_linear, 32, DOT + "; an activation on top", samples.bad_linear,
           samples.call_linear),
    OpInfo("layer_norm", samples.draw_layer_norm, 32, "x - mean loses the digits of the mean (8 deviations at most)",
           samples.bad_layer_norm),
    OpInfo("rms_norm", samples.draw_rms_norm, 32, "a root, a division and three products, as in layer_norm",
           samples.bad_rms_norm),
    OpInfo("embedding", samples.draw_embedding, 16, "one rounding, and the sums", samples.bad_embedding),
    OpInfo("attention", samples.draw_attention, 32, EXP, samples.bad_attention, samples.call_attention),
    OpInfo("cross_entropy", samples.draw_cross_entropy, 16, EXP, samples.bad_cross_entropy),
]}
