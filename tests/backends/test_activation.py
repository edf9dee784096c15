"""The kernels of activations: what their outputs may lie over, and how much of a device they keep busy."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from helios.backends.vulkan.array import VkArray
from helios.capture import Capture
from helios.formula import Formula
from helios.model.activations import activation
from helios.tensor import Tensor

from .vulkan import make


@pytest.mark.parametrize("profile", ["cpu", "simt"])
@pytest.mark.parametrize("text", ["swiglu", "universal", "a*silu(g)*u+b*sin(u); a=1, b=0.1", "kan_bspline"])
def test_outputs_may_lie_over_inputs(profile: str, text: str) -> None:
    """The arena has outputs in the places of inputs that are as large and that nothing reads later, be it all of them
    or all but h: 1 row is as large as coefficients, 16 as the B-spline's points, 32 as its partial sums."""
    be, act, draw = make(profile=profile), activation(text), np.random.default_rng(0)
    first = [act.formula] if act.formula else []
    forward, backward = ((be.activation, be.activation_backward) if act.formula else (be.spline, be.spline_backward))

    def both(copy: Callable[[VkArray], VkArray], h: VkArray, g: VkArray, *c: VkArray) -> list[VkArray]:
        there, back = [copy(x) for x in (h, *c)], [copy(x) for x in (h, *c, g)]
        return [forward(*first, *there), *backward(*first, *back), there[0], back[0]]

    def recorded(kept: bool, *given: Tensor) -> tuple[Tensor, ...]:
        found = both(lambda x: be.scale(x, 1.0), *(t.data for t in given))
        # What is returned itself would have a place outside of the arena.
        return tuple(Tensor(be.scale(x, 1.0), be) for x in (found if kept else found[:-2]))

    for rows, kept in itertools.product((1, 16, 32), (False, True)):
        shapes = [(rows, act.parts * 70), (rows, 70), *((*value.shape, 70) for value in act.coefficients.values())]
        given = [draw.standard_normal(shape).astype(np.float32) for shape in shapes]
        plain = [be.numpy(x) for x in both(lambda x: x, *map(be.array, given))]
        for got, expected in zip(Capture(partial(recorded, kept), be)(*given), plain, strict=False):
            np.testing.assert_array_equal(got, expected)


def test_a_lane_of_a_gpu_has_few_elements_where_nothing_is_summed() -> None:
    be, rows = make(profile="simt"), 4096
    capture = Capture(lambda h: (Tensor(be.activation(Formula.parse("silu(g)*u"), h.data), be),), be)
    capture(np.zeros((rows, 2 * be.lanes), np.float32))
    (program,) = capture.programs.values()
    (grid,) = (command.grid for command in program.commands if command.name == "activation")
    assert grid[0] * grid[1] == rows / be.span
