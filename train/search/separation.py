"""Which of several candidates differ by more than chance makes of equals.

The winner of a search is the best of many, and often of few seeds. So a difference is called one only if it exceeds
what the range of as many equal candidates would exceed in 4 % of searches (Tukey's range test). The noise is estimated
from all candidates together, which makes much of few seeds; it is taken to be alike for all, and normally distributed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

RATE = 0.04  # of whole searches over equal candidates that separate any two
PERCENT = f"{100 * RATE:g} %"  # the same, in words


class Separation(NamedTuple):
    """What tells the candidates of a search apart."""

    candidates: int
    error: float  # standard error of the difference of two of them
    limit: float  # beyond which a difference separates


def separation(values: Sequence[Sequence[float]], paired: bool) -> Separation | None:
    """Return it for the measurements [candidates][replicates], finite all; None where they tell no noise.

    paired: the replicates of one position had the same initial values and batches. Then what they have in common is
    taken out of the noise.
    """
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
    """Return what the range of k means exceeds in RATE of all cases, in their standard errors."""
    from scipy.stats import studentized_range

    return float(studentized_range.isf(RATE, k, freedom))
