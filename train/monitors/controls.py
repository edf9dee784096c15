"""What acts on a run while it trains, or tells that it is time to: batch, learning rate, plateau, hopelessness.

`alerts` is the mask of a step's alerts, of the bits in cusum.py. `calm` counts steps without any.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from helios.train.monitors.cusum import CHANNELS, CLIP, GRAD, TPS, VAL, Kept


def _names(alerts: int) -> str:
    return " and ".join(c.column.removeprefix("cusum_") for c in CHANNELS if c.bit & alerts) + " alert"


class _Calm(Kept):
    """Counts quiet steps; every `calm` of them are one occasion to go back a step."""

    def __init__(self, calm: int) -> None:
        self.calm, self.quiet = calm, 0

    def calmed(self, alerts: int) -> bool:
        """Count a step; return whether it is such an occasion."""
        self.quiet = 0 if alerts else self.quiet + 1
        return self.quiet > 0 and self.quiet % self.calm == 0


class AdaptiveBatch(_Calm):
    """Controls the batch: an alert of grad or tps takes `step` sequences off, one of clip adds as many, and calm leads
    back.
    """

    KEPT = ("batch", "quiet")

    def __init__(self, batch: int, minimum: int, maximum: int, step: int, calm: int) -> None:
        if not minimum <= batch <= maximum:
            raise ValueError(f"AdaptiveBatch: {batch} is not between {minimum} and {maximum}")
        super().__init__(calm)
        self.original, self.minimum, self.maximum, self.step = batch, minimum, maximum, step
        self.batch = batch

    def update(self, alerts: int) -> tuple[int, str | None]:
        """Return the batch for the next step, and why it changed, if it did."""
        before, reason = self.batch, _names(alerts)
        if self.calmed(alerts):
            back = self.original - self.batch
            self.batch += max(-self.step, min(back, self.step))
            reason = f"{self.calm} calm steps"
        else:
            self.batch += self.step * (bool(alerts & CLIP) - bool(alerts & (GRAD | TPS)))
            self.batch = max(self.minimum, min(self.batch, self.maximum))
        return self.batch, None if self.batch == before else f"{reason}: batch {before} to {self.batch}"


LR_LEAST = 1 / 16
ENTROPY = 1.0  # bits at which the rate stays; what two equally frequent activations have


class DynamicLR(_Calm):
    """Controls a factor on the schedule's rate.

    "cusum": an alert of grad or val halves it, down to LR_LEAST; after calm it doubles, up to 1. Alerts of tps count
    neither way: a busy machine says nothing of the rate.
    "entropy": 2^(1 - H / ENTROPY) within [1/2, 2], H the population's entropy in bits: the less varied, the faster.
    """

    KEPT = ("factor", "quiet")

    def __init__(self, mode: str, calm: int) -> None:
        if mode not in ("cusum", "entropy"):
            raise ValueError(f"DynamicLR: mode is cusum or entropy, got {mode!r}")
        super().__init__(calm)
        self.mode, self.factor = mode, 1.0

    def update(self, alerts: int, population_entropy: float | None = None) -> tuple[float, str | None]:
        """Return the factor for the next step, and why it changed, if it did."""
        before, reason = self.factor, None
        alerts &= ~TPS
        if self.mode == "entropy":
            if population_entropy is not None:
                self.factor = 2.0 ** max(-1.0, min(1.0 - population_entropy / ENTROPY, 1.0))
                reason = f"population entropy {population_entropy:.3g} bits"
        elif self.calmed(alerts):
            self.factor, reason = min(1.0, 2 * before), f"{self.calm} calm steps"
        elif alerts & (GRAD | VAL):
            self.factor, reason = max(LR_LEAST, before / 2), _names(alerts & (GRAD | VAL))
        return self.factor, None if self.factor == before else f"{reason}: rate × {self.factor:g}"


class HeatCapacity(Kept):
    """Measures d(loss)/d(lr), in nats per unit of the rate: the slope of a regression of loss on rate over the last
    WINDOW steps.

    It says how they moved together, not that one moved the other: in a warm-up the loss also falls by itself.
    None until the window is full, and while the rate moves by less than a hundredth: there the slope would be noise.
    """

    WINDOW = 50
    SPAN = 0.01
    KEPT = ("points",)

    def __init__(self) -> None:
        self.points: list[list[float]] = []  # loss and rate

    def update(self, loss: float, lr: float) -> float | None:
        """Take in a step, unless it is not finite, and return the slope."""
        if math.isfinite(loss) and math.isfinite(lr):
            self.points = [*self.points, [float(loss), float(lr)]][-self.WINDOW:]
        losses, rates = np.array(self.points or [[0.0, 0.0]]).T
        if len(self.points) < self.WINDOW or np.ptp(rates) <= self.SPAN * np.abs(rates).max():
            return None
        apart = rates - rates.mean()
        return float(apart @ (losses - losses.mean()) / (apart @ apart))


class Plateau(Kept):
    """Tells when `patience` evaluations brought no loss that is `min_delta` nats better than the best before."""

    KEPT = ("best", "waited")

    def __init__(self, patience: int, min_delta: float) -> None:
        self.patience, self.min_delta = patience, min_delta
        self.best: float | None = None
        self.waited = 0

    def update(self, val_loss: float) -> bool:
        """Return True once a plateau, when it is long enough; not again before an improvement, which NaN is not."""
        better = math.isfinite(val_loss) and (
            self.best is None or (val_loss < self.best and self.best - val_loss >= self.min_delta))
        if better:
            self.best, self.waited = float(val_loss), 0
        else:
            self.waited += 1
        return self.waited == self.patience


def bound(values: Sequence[tuple[int, float]], steps: int) -> float:
    """Return the lowest validation loss that a training can still have at `steps`, from its evaluations so far.

    values: (step, loss) each. It lies on the line through the last one with the slope of the steepest interval: under a
    constant rate losses fall ever more slowly, so the curve stays above. It is -inf while fewer than three evaluations
    are there, or where one is not finite.
    """
    if len(values) < 3 or not all(math.isfinite(loss) for _, loss in values):
        return -math.inf
    slopes = [(b - a) / (t - s) for (s, a), (t, b) in pairwise(values)]
    step, loss = values[-1]
    return loss + min(0.0, *slopes) * max(0, steps - step)
