"""The test of which candidates differ by more than equal ones do by chance.

The winner of a search is the best of many, often by few seeds. So a difference counts only if it exceeds what the
range of as many equal candidates exceeds in 4 % of searches (Tukey's range test). The noise is taken to be normal and
alike for all candidates, and is estimated from all of them together, so that few seeds suffice.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

RATE = 0.04  # share of searches over equal candidates in which any two are separated
PERCENT = f"{100 * RATE:g} %"  # the same, in words


class Separation(NamedTuple):
    """The test's measure for the candidates of a search."""

    candidates: int
    error: float  # standard error of the difference between two of them
    limit: float  # a larger difference separates two


def separation(values: Sequence[Sequence[float]], paired: bool) -> Separation | None:
    """Return the test for finite measurements [candidates][replicates]; None where they do not show the noise.
    paired: replicates at the same position had the same initial values and batches, whose effect is no noise then."""
    x = np.array(values, np.float64)
    if x.ndim != 2 or x.shape[0] < 2 or x.shape[1] < 2:
        return None
    (k, n), rest = x.shape, x - x.mean(1, keepdims=True)
    freedom = k * (n - 1)
    if paired:
        rest, freedom = rest - rest.mean(0), (k - 1) * (n - 1)
    of_mean = float(np.sqrt((rest * rest).sum() / freedom / n))
    return Separation(k, float(np.sqrt(2)) * of_mean, _range(k, freedom) * of_mean)


@cache
def _range(k: int, freedom: int) -> float:
    """Return what the range of k equal means, in their standard errors, exceeds in RATE of all cases."""
    from scipy.stats import studentized_range

    return float(studentized_range.isf(RATE, k, freedom))
