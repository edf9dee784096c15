"""Controls of the batch and the learning rate, and the signs of a training's course: slope, plateau, hopelessness.

`alerts` is a step's mask of bits as cusum.py defines them. `calm` is a number of steps without any.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from helios.train.monitors.cusum import CHANNELS, CLIP, GRAD, TPS, VAL, Restorable


def _names(alerts: int) -> str:
    return " and ".join(c.column.removeprefix("cusum_") for c in CHANNELS if c.bit & alerts) + " alert"


class _Calm(Restorable):
    """Counts steps without an alert; each `calm` of them in a row undo one change."""

    def __init__(self, calm: int) -> None:
        self.calm, self.quiet = calm, 0

    def calmed(self, alerts: int) -> bool:
        """Count a step and return whether a change is to be undone."""
        self.quiet = 0 if alerts else self.quiet + 1
        return self.quiet > 0 and self.quiet % self.calm == 0


class AdaptiveBatch(_Calm):
    """Controls the batch: a grad or tps alert takes `step` sequences off, a clip alert adds them, calm undoes it."""

    STATE = ("batch", "quiet")

    def __init__(self, batch: int, minimum: int, maximum: int, step: int, calm: int) -> None:
        if not minimum <= batch <= maximum:
            raise ValueError(f"AdaptiveBatch: {batch} is not between {minimum} and {maximum}")
        super().__init__(calm)
        self.original, self.minimum, self.maximum, self.step = batch, minimum, maximum, step
        self.batch = batch

    def update(self, alerts: int) -> tuple[int, str | None]:
        """Return the next step's batch, and why it changed; None where it did not."""
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
ENTROPY = 1.0  # bits at which the rate stays: those of two equally frequent activations


class DynamicLR(_Calm):
    """Controls a factor on the schedule's rate.

    "cusum": a grad or val alert halves it, down to LR_LEAST; calm doubles it, up to 1. A tps alert counts neither way,
    since a busy machine says nothing of the rate.
    "entropy": it is 2^(1 - H / ENTROPY) within [1/2, 2], where H is the population's entropy in bits.
    """

    STATE = ("factor", "quiet")

    def __init__(self, mode: str, calm: int) -> None:
        if mode not in ("cusum", "entropy"):
            raise ValueError(f"DynamicLR: mode is cusum or entropy, got {mode!r}")
        super().__init__(calm)
        self.mode, self.factor = mode, 1.0

    def update(self, alerts: int, population_entropy: float | None = None) -> tuple[float, str | None]:
        """Return the next step's factor, and why it changed; None where it did not."""
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


class HeatCapacity(Restorable):
    """Measures d(loss)/d(lr) in nats: the slope of a regression of loss on rate over the last WINDOW steps.

    It says how they moved together, not that one moved the other: in a warm-up the loss also falls by itself. It is
    None until the window is full, and where the rate moves by less than SPAN of itself, for there it would be noise.
    """

    WINDOW = 50
    SPAN = 0.01
    STATE = ("points",)

    def __init__(self) -> None:
        self.points: list[list[float]] = []  # loss and rate

    def update(self, loss: float, lr: float) -> float | None:
        """Take in a step, if it is finite, and return the slope."""
        if math.isfinite(loss) and math.isfinite(lr):
            self.points = [*self.points, [float(loss), float(lr)]][-self.WINDOW:]
        losses, rates = np.array(self.points or [[0.0, 0.0]]).T
        if len(self.points) < self.WINDOW or np.ptp(rates) <= self.SPAN * np.abs(rates).max():
            return None
        apart = rates - rates.mean()
        return float(apart @ (losses - losses.mean()) / (apart @ apart))


class Plateau(Restorable):
    """Finds plateaus: `patience` evaluations without a loss that is lower by `min_delta` nats than the best before."""

    STATE = ("best", "waited")

    def __init__(self, patience: int, min_delta: float) -> None:
        self.patience, self.min_delta = patience, min_delta
        self.best: float | None = None
        self.waited = 0

    def update(self, val_loss: float) -> bool:
        """Take in an evaluation; return whether a plateau begins with it. NaN is no improvement."""
        better = math.isfinite(val_loss) and (
            self.best is None or (val_loss < self.best and self.best - val_loss >= self.min_delta))
        if better:
            self.best, self.waited = float(val_loss), 0
        else:
            self.waited += 1
        return self.waited == self.patience


def bound(values: Sequence[tuple[int, float]], steps: int) -> float:
    """Return the lowest validation loss that a training can still have at `steps`, from its evaluations so far.

    values: (step, loss) each. The bound is on the line through the last one with the slope of the steepest interval: at
    a constant rate losses fall ever more slowly, so the curve stays above. It is -inf for fewer than three evaluations,
    or where one is not finite.
    """
    if len(values) < 3 or not all(math.isfinite(loss) for _, loss in values):
        return -math.inf
    slopes = [(b - a) / (t - s) for (s, a), (t, b) in pairwise(values)]
    step, loss = values[-1]
    return loss + min(0.0, *slopes) * max(0, steps - step)
