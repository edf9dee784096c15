"""matmul_uniform: products by loads from uniform addresses have the bits of matmul_cpu, whatever is fused into them."""

from __future__ import annotations

import numpy as np
import pytest

from helios.backends.vulkan.array import VkArray
from helios.backends.vulkan.backend import VulkanBackend
from helios.backends.vulkan.tuning import TILES, candidates, shape_class
from helios.model.activations import activation

from .vulkan import make

GELU = activation("gelu").formula
LAYOUTS = [(False, False), (False, True), (True, False), (True, True)]


@pytest.fixture
def be() -> VulkanBackend:
    be = make(profile="cpu")
    if TILES["matmul_uniform"][0] not in candidates(be.profile, be.matmul_kernel):
        pytest.skip(f"{be.device_name} has no 64-bit integers")
    return be


def used(be: VulkanBackend) -> set[str]:
    """The kernels of what is collected."""
    return {command.name for command in be.pending}


def arrays(be: VulkanBackend, *shapes: tuple[int, ...]) -> list[VkArray]:
    draw = np.random.default_rng(sum(map(sum, shapes)))
    return [be.array(draw.standard_normal(shape).astype(np.float32)) for shape in shapes]


def fused(be: VulkanBackend, a: VkArray, b: VkArray, ta: bool, tb: bool, m: int, n: int) -> list[bytes]:
    """A product by itself; as another's gradient through gelu; added to an array, in place; and with gelu and what it
    was before, where the layout is a linear layer's."""
    h, total = arrays(be, (m, n), (m, n))
    results = [be.matmul(a, b, ta, tb), be.activation_backward(GELU, h, be.matmul(a, b, ta, tb))[0]]
    be.assign(total, be.axpby(total, be.matmul(a, b, ta, tb), 1.0, 0.5), take=True)
    results.append(total)
    if (ta, tb) == (False, True):
        results += be.linear(a, b, GELU)
    return [be.numpy(x).tobytes() for x in results]


@pytest.mark.parametrize(("ta", "tb"), LAYOUTS)
@pytest.mark.parametrize("tile", TILES["matmul_uniform"], ids=lambda tile: f"R{tile['R']}")
def test_the_bits_of_matmul_cpu(be: VulkanBackend, tile: dict[str, int], ta: bool, tb: bool) -> None:
    columns = tile["CB"] * be.profile.subgroup_size
    # One tile; edges on both sides, rows of no subgroup, K in pieces of powers of two; more tiles than a digit counts.
    r = tile["R"]
    for m, n, k in ((r, columns, 32), (11 * r + 3, 2 * columns + 5, 299), (36 * r, columns + 1, 3)):
        a, b = arrays(be, (k, m) if ta else (m, k), (n, k) if tb else (k, n))
        found = []
        for be.tiles in ({shape_class(ta, tb, m, n, k): t} for t in (TILES["matmul_cpu"][0], tile)):
            be.matmul(a, b, ta, tb)
            kernels = used(be)
            found.append(fused(be, a, b, ta, tb, m, n))
        assert "matmul_uniform" in kernels and "matmul_cpu" not in kernels
        assert ("transpose" in kernels) == (tb or ta != tile["TA"])
        assert found[0] == found[1]


def test_where_it_serves(be: VulkanBackend) -> None:
    def kernels(m: int, n: int, k: int, *lead: int) -> set[str]:
        be.matmul(be.empty((*lead, m, k)), be.empty((*lead, k, n)))
        found, be.pending = used(be) & set(TILES), []  # not to be run
        return found

    assert kernels(512, 256, 64) == {"matmul_uniform"}
    small, few, batched = kernels(64, 64, 64), kernels(1 << 20, 4, 64), kernels(512, 256, 64, 3)
    assert small == few == batched == {"matmul_cpu"}
    be.tiles = {shape_class(False, False, 3, 4, 8): TILES["matmul_uniform"][0]}  # of a larger product of that class
    assert kernels(3, 4, 8) == {"matmul_cpu"}
    be.precision = "mixed"
    assert kernels(512, 256, 64) == {"matmul_cpu"}


def test_what_else_lies_where_it_is_written(be: VulkanBackend) -> None:
    """A product is placed over none of its inputs, nor over the other of its two outputs."""
    n = 16 * be.profile.subgroup_size
    a, b, w = arrays(be, (n, n + 256), (n + 256, n), (n, n + 256))
    taken = be.view(b, 256 * n, (n, n))  # all of b that the last dispatch reads
    expected = be.numpy(be.matmul(a, b))
    be.assign(taken, be.matmul(a, b), take=True)
    np.testing.assert_array_equal(be.numpy(taken), expected)

    y, pre = be.linear(a, w, GELU)
    assert pre is not None
    squares = be.numpy(be.mul(pre, pre))
    y, pre = be.linear(a, w, GELU)
    assert pre is not None
    square = be.mul(pre, pre)
    del y, pre
    np.testing.assert_array_equal(be.numpy(square), squares)
