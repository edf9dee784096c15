"""Two floats at once: only where they lie at an even place, and with the same values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from helios.backends.cpu_ref import CpuRef
from helios.backends.vulkan.array import VkArray
from helios.backends.vulkan.backend import VulkanBackend
from helios.formula import Formula

from .vulkan import make

View = Callable[..., VkArray]


def record(be: VulkanBackend, fn: Callable[[View], Any], start: int) -> list[tuple[str, Any]]:
    """The commands, each with its PAIRS, of work on views into one array, all of them `start` floats further on."""
    memory = be.array(np.zeros(20_000, np.float32))
    program = be.record(lambda: [fn(lambda at, *shape: be.view(memory, start + at, shape))][:0], [])
    return [(c.name, c.kernel.defines.get("PAIRS")) for c in program.commands if not isinstance(c.kernel, str)]


@pytest.mark.parametrize(("pairs", "lengths"), [(1, (6, 8, 10)), (0, (6, 7, 10)), (0, (6, 8, 9)), (1, (5, 8, 10))])
@pytest.mark.parametrize("start", [0, 1, 2])
def test_products(pairs: int, lengths: tuple[int, int, int], start: int) -> None:
    be, (m, n, k) = make(), lengths
    product = lambda view: be.matmul(view(0, m, k), view(1000, n, k), False, True)
    assert record(be, product, start) == [("matmul_cpu", pairs if start % 2 == 0 else 0)]


@pytest.mark.parametrize("start", [0, 1, 2])
@pytest.mark.parametrize("width", [24, 27])
def test_rows_and_elements(width: int, start: int) -> None:
    be = make()
    work: list[Callable[[View], Any]] = [
        lambda v: be.attention(v(0, 2, 4, 3 * width), None, 3, 0.0, 0.0, 0),
        lambda v: be.layer_norm(v(0, 5, width), v(1000, width), v(2000, width), 1e-5),
        lambda v: be.layer_norm_backward(v(0, 5, width), v(1000, width), v(2000, 5), v(3000, 5), v(4000, 5, width)),
        lambda v: be.rms_norm(v(0, 5, width), v(1000, width), 1e-5),
        lambda v: be.rms_norm_backward(v(0, 5, width), v(1000, width), v(2000, 5), v(4000, 5, width)),
        lambda v: be.mul(v(0, 5, width), v(1000, 5, width)),
        lambda v: be.activation(Formula.parse("silu(g)*u"), v(0, 5, 2 * width)),
        lambda v: be.cross_entropy(v(0, 5, width), be.array(np.zeros(5, np.int32))),
    ]
    expected = int(width == 24 and start % 2 == 0)
    for fn in work:
        name, pairs = record(be, fn, start)[0]
        assert pairs == expected, name


def test_an_odd_number_of_decayed_weights() -> None:
    be, ref, rng = make(), CpuRef(np.dtype(np.float32)), np.random.default_rng(0)
    w, grad, m = rng.standard_normal((3, 40)).astype(np.float32)
    stats = np.array([1, 1, 0, 1, 0.1, 0.05, 0, 1, 1, 0, 0], np.float32)
    settings = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-6, "weight_decay": 0.5}
    for n_decay, pairs in ((3, 0), (4, 1)):
        results = []
        for backend in (be, ref):
            arrays = [backend.array(x.copy()) for x in (w, grad, m, m * m, stats, np.array([0.1], np.float32))]
            backend.adamw(*arrays, **settings, n_decay=n_decay)
            results.append(backend.numpy(arrays[0]))
        np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-6)
        update = lambda v, n=n_decay: be.adamw(v(0, 40), v(100, 40), v(200, 40), v(300, 40), v(400, 12), v(500, 1),
                                               **settings, n_decay=n)
        assert record(be, update, 0) == [("adamw", pairs)]


@pytest.mark.parametrize(("start", "names"), [(0, 1), (1, 2), (2, 1)])
def test_what_is_fused_lies_at_an_even_place_too(start: int, names: int) -> None:
    be = make()
    a, b = be.array(np.ones((6, 8), np.float32)), be.array(np.ones((8, 10), np.float32))
    assert len(record(be, lambda view: be.axpby(be.matmul(a, b), view(0, 6, 10), 1.0, 1.0), start)) == names


@pytest.mark.parametrize("profile", ["cpu", "simt"])
def test_a_place_changes_no_bit_of_a_product_or_of_attention(profile: str) -> None:
    be, rng = make(profile=profile), np.random.default_rng(0)
    memory = rng.standard_normal(40_000).astype(np.float32)
    results = []
    for start in (0, 1, 2):
        moved = be.array(np.concatenate([np.zeros(start, np.float32), memory]))
        view = lambda at, *shape, moved=moved, start=start: be.view(moved, start + at, shape)
        out, lse = be.attention(view(0, 2, 19, 3 * 24), None, 2, 30.0, 0.0, 0)
        dqkv = be.attention_backward(view(0, 2, 19, 3 * 24), out, lse, view(9000, 2, 19, 24), None, 2, 30.0, 0.0, 0)
        products = [be.matmul(view(0, *((34, 140) if ta else (140, 34))), view(9000, *((130, 34) if tb else (34, 130))),
                              ta, tb) for ta in (False, True) for tb in (False, True)]
        results.append([be.numpy(x).tobytes() for x in (out, lse, dqkv, *products)])
    assert results[0] == results[1] == results[2]
