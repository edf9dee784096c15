"""The sum of exponentials where it is least at ease."""

from __future__ import annotations

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


@pytest.mark.parametrize("top", [0.001, 1.0, 20.0])
def test_rising_logits(each_backend: Backend, top: float) -> None:
    """Each is the highest so far, which must not cost a rounding each time."""
    be, logits = each_backend, np.linspace(0, top, 50_304, dtype=np.float32)[None]
    _, lse = be.cross_entropy(be.array(logits), be.array(np.zeros(1, np.int32)))
    np.testing.assert_allclose(be.numpy(lse), np.logaddexp.reduce(logits.astype(np.float64), axis=1), rtol=2e-7)
