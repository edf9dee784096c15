"""The sum of exponentials where it is least at ease."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helios.backends.backend import Backend


@pytest.mark.parametrize("v", [5, 40, 401])
def test_logits_of_minus_infinity(each_backend: Backend, v: int) -> None:
    """They weigh nothing, wherever they are."""
    be, logits = each_backend, np.random.default_rng(0).standard_normal((5, v)).astype(np.float32)
    logits[0, 0] = logits[1, :2] = logits[2, v // 2] = logits[3, : v - 1] = logits[4, 1:] = -np.inf
    targets = np.array([v - 1, v - 1, 0, v - 1, 0], np.int32)
    loss, lse = (be.numpy(x) for x in be.cross_entropy(be.array(logits), be.array(targets)))
    with np.errstate(divide="ignore"):
        expected = np.logaddexp.reduce(logits.astype(np.float64), axis=1)
    np.testing.assert_allclose(lse, expected, rtol=1e-6)
    np.testing.assert_allclose(loss, np.mean(expected - logits[range(5), targets]), rtol=1e-5)


def test_infinite_logits_count_as_the_cap(each_backend: Backend) -> None:
    be, targets = each_backend, each_backend.array(np.array([0, 2], np.int32))
    one = be.array(np.ones((), np.float32))
    rows = [np.array([[0, 0.1, x], [x, 0.3, -x]], np.float32) for x in (np.inf, 1e4)]
    found = []
    for x in rows:
        loss, lse = be.cross_entropy(be.array(x), targets, 2.0)
        found.append([be.numpy(y) for y in (loss, lse, be.cross_entropy_backward(be.array(x), targets, lse, one, 2.0))])
    for infinite, large in zip(*found, strict=True):
        assert np.isfinite(infinite).all() and np.array_equal(infinite, large)
    assert not found[0][2][1, [0, 2]].any()  # no gradient at the cap


@pytest.mark.parametrize("top", [0.001, 1.0, 20.0])
def test_rising_logits(each_backend: Backend, top: float) -> None:
    """Each is the highest so far, which must not cost a rounding each time."""
    be, logits = each_backend, np.linspace(0, top, 50_304, dtype=np.float32)[None]
    _, lse = be.cross_entropy(be.array(logits), be.array(np.zeros(1, np.int32)))
    np.testing.assert_allclose(be.numpy(lse), np.logaddexp.reduce(logits.astype(np.float64), axis=1), rtol=2e-7)


def check_long_sums(be: Backend) -> None:
    """Sum tens of thousands of terms to a millionth, however few lanes add them up: terms all alike, so that every
    addition is rounded the same way; a few far above the rest; at random. The logarithm is near 0, so it has the sum's
    digits."""
    draw = np.random.default_rng(0)
    for v in (4000, 50_303, 50_304):
        for x in (np.zeros(v), np.where(draw.random(v) < 1e-3, 5.0, -0.3), draw.standard_normal(v)):
            logits = (x - np.logaddexp.reduce(x)).astype(np.float32)[None]
            _, lse = be.cross_entropy(be.array(logits), be.array(np.zeros(1, np.int32)))
            error = be.numpy(lse).astype(np.float64)[0] - np.logaddexp.reduce(logits[0].astype(np.float64))
            assert abs(error) <= 1e-6, f"{v} classes"


def test_long_sums(each_backend: Backend) -> None:
    check_long_sums(each_backend)


def test_long_sums_of_four_lanes(backend: Backend) -> None:
    if backend.device_type != "cpu" or backend.name != "vulkan":
        pytest.skip("only lavapipe's SIMD width can be chosen")
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from helios.backends import get_backend
from ops.test_cross_entropy import check_long_sums
be = get_backend("vulkan")
check_long_sums(be)
print(be.profile.subgroup_size)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True,
                          env={**os.environ, "LP_NATIVE_VECTOR_WIDTH": "128", "MESA_SHADER_CACHE_DISABLE": "true"})
    assert done.returncode == 0 and done.stdout == "4\n", done.stderr
