"""matmul_coopmat.comp, also without matrix units: emulated (emulation.py)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from helios.backends.cpu_ref import CpuRef
from helios.backends.vulkan import tuning
from helios.backends.vulkan.backend import VkArray, VulkanBackend

from .emulation import matrix_units
from .vulkan import Training, make


@pytest.fixture(scope="module")
def units() -> Iterator[VulkanBackend]:
    with matrix_units() as be:
        yield be


# The larger one that ships, shallower for lavapipe's 32 KiB of shared memory; an uneven one of the depth that ships.
TILES = (tuning.TILES["matmul_coopmat"][0] | {"BK": 16}, {"BM": 32, "BN": 64, "BK": 32, "WM": 32, "WN": 16})
LAYOUTS = list(itertools.product((False, True), repeat=2))


def operands(m: int, n: int, k: int, ta: bool, tb: bool, lead_a: tuple[int, ...] = (), lead_b: tuple[int, ...] = ()
             ) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(m * n * k)
    a, b = draw.standard_normal((*lead_a, *((k, m) if ta else (m, k)))), draw.standard_normal(
        (*lead_b, *((n, k) if tb else (k, n))))
    return a.astype(np.float32), b.astype(np.float32)


def product(units: VulkanBackend, a: VkArray, b: VkArray, ta: bool, tb: bool, fours: bool) -> np.ndarray:
    """Return op(A)·op(B), which is read by fours or one at a time.

    So that few kernels are compiled, layout and `fours` choose the tile: both operands, in both layouts, read in both
    ways, meet both tiles.
    """
    tile, kernels = TILES[ta ^ tb ^ fours], units.pipelines.kernels
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tuning.TILES, "matmul_coopmat", (tile, tile))
        result = units.numpy(units.matmul(a, b, ta, tb))
    used = tile | {"TA": ta, "TB": tb, "VEC_A": fours, "VEC_B": fours}
    assert any(key[0] == "matmul_coopmat" and used.items() <= kernel.defines.items() for key, kernel in kernels.items())
    return result


def check(units: VulkanBackend, a: np.ndarray, b: np.ndarray, ta: bool, tb: bool, fours: bool) -> None:
    oracle = CpuRef(np.float64, "mixed")
    expected = oracle.matmul(oracle.array(a), oracle.array(b), ta, tb)
    got = product(units, units.array(a), units.array(b), ta, tb, fours)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("fours", "shapes"), [
    (False, [(1, 1, 1), (65, 67, 33), (70, 131, 99)]), (True, [(64, 64, 64), (148, 132, 100), (16, 200, 36)])],
    ids=["alone", "by fours"])
@pytest.mark.parametrize(("ta", "tb"), LAYOUTS)
def test_any_shape(units: VulkanBackend, ta: bool, tb: bool, fours: bool, shapes: list[tuple[int, int, int]]) -> None:
    for m, n, k in shapes:
        check(units, *operands(m, n, k, ta, tb), ta, tb, fours)
    assert "matmul" not in {key[0] for key in units.pipelines.kernels}


@pytest.mark.parametrize(("ta", "tb"), LAYOUTS)
def test_batches(units: VulkanBackend, ta: bool, tb: bool) -> None:
    check(units, *operands(17, 19, 37, ta, tb, (2, 3), (2, 3)), ta, tb, False)
    check(units, *operands(20, 36, 40, ta, tb, (3,), (3,)), ta, tb, True)
    if not ta:
        check(units, *operands(17, 36, 40, ta, tb, (2, 3)), ta, tb, True)


def test_edges_are_not_stored(units: VulkanBackend) -> None:
    """Not a number beyond the edge of the operands, nor a write beyond the edge of the result."""
    for start, m, n, k in ((32, 3, 3, 5), (33, 3, 3, 4), (32, 4, 4, 4)):  # alone, not aligned, by fours
        whole = np.full(128, np.nan, np.float32)
        whole[start:start + max(m * k, k * n)] = 1
        x = units.array(whole)
        for ta, tb in LAYOUTS:
            a = units.view(x, start, (k, m) if ta else (m, k))
            b = units.view(x, start, (n, k) if tb else (k, n))
            assert (product(units, a, b, ta, tb, m == 4) == k).all()


@pytest.mark.parametrize("qk_norm", [False, True])
def test_a_training_step(units: VulkanBackend, qk_norm: bool) -> None:
    """All of a step's products, with their epilogues, and attention, against the kernels for other GPUs."""
    backends = units, make(profile="simt", precision="mixed")
    ours, simt = (Training(be, "gelu", n_embd=32, qk_norm=qk_norm) for be in backends)
    for _ in range(3):
        a, b = ours.step(), simt.step()
        np.testing.assert_allclose(a[0], b[0], rtol=1e-4)
        np.testing.assert_allclose(a[1], b[1], rtol=1e-2)
    names = {c.name for c in ours.program.commands}
    assert names >= {"matmul_coopmat", "attention_coopmat", "attention_backward_coopmat"}
