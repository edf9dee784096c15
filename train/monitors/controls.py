"""What acts on a run while it trains, or tells that it is time to: batch, learning rate, plateau, hopelessness.

`alerts` is the mask of a step's alerts, of the bits in cusum.py. `calm` counts steps without any.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from helios.train.monitors.cusum import CHANNELS, CLIP, GRAD, TPS, VAL


def _names(alerts: int) -> str:
    return " and ".join(c.column.removeprefix("cusum_") for c in CHANNELS if c.bit & alerts) + " alert"


class _Calm:
    """Counts quiet steps; every `calm` of them are one occasion to go back a step."""

    def __init__(self, calm: int) -> None:
        self.calm, self.quiet = calm, 0

    def passed(self, alerts: int) -> bool:
        self.quiet = 0 if alerts else self.quiet + 1
        return self.quiet > 0 and self.quiet % self.calm == 0


class AdaptiveBatch:
    """An alert of grad or tps takes `step` sequences off the batch, one of clip adds as many; calm leads back."""

    def __init__(self, batch: int, minimum: int, maximum: int, step: int, calm: int) -> None:
        if not minimum <= batch <= maximum:
            raise ValueError(f"AdaptiveBatch: {batch} is not between {minimum} and {maximum}")
        self.original, self.minimum, self.maximum, self.step = batch, minimum, maximum, step
        self.batch, self._calm = batch, _Calm(calm)

    def state(self) -> dict[str, Any]:
        return {"batch": self.batch, "quiet": self._calm.quiet}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.batch, self._calm.quiet = state["batch"], state["quiet"]

    def update(self, alerts: int) -> tuple[int, str | None]:
        """The batch for the next step, and why it changed, if it did."""
        before, reason = self.batch, _names(alerts)
        if self._calm.passed(alerts):
            back = self.original - self.batch
            self.batch += max(-self.step, min(back, self.step))
            reason = f"{self._calm.calm} calm steps"
        else:
            self.batch += self.step * (bool(alerts & CLIP) - bool(alerts & (GRAD | TPS)))
            self.batch = max(self.minimum, min(self.batch, self.maximum))
        return self.batch, None if self.batch == before else f"{reason}: batch {before} to {self.batch}"


LR_LEAST = 1 / 16
ENTROPY = 1.0  # bits at which the rate stays; what two equally frequent activations have


class DynamicLR:
    """A factor on the schedule's rate.

    "cusum": an alert of grad or val halves it, down to LR_LEAST; after calm it doubles, up to 1. Alerts of tps count
    neither way: a busy machine says nothing of the rate.
    "entropy": 2^(1 - H / ENTROPY) within [1/2, 2], H the population's entropy in bits: the less varied, the faster.
    """

    def __init__(self, mode: str, calm: int) -> None:
        if mode not in ("cusum", "entropy"):
            raise ValueError(f"DynamicLR: mode is cusum or entropy, got {mode!r}")
        self.mode, self.factor, self._calm = mode, 1.0, _Calm(calm)

    def state(self) -> dict[str, Any]:
        return {"factor": self.factor, "quiet": self._calm.quiet}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.factor, self._calm.quiet = state["factor"], state["quiet"]

    def update(self, alerts: int, population_entropy: float | None = None) -> tuple[float, str | None]:
        """The factor for the next step, and why it changed, if it did."""
        before, reason = self.factor, None
        alerts &= ~TPS
        if self.mode == "entropy":
            if population_entropy is not None:
                self.factor = 2.0 ** max(-1.0, min(1.0 - population_entropy / ENTROPY, 1.0))
                reason = f"population entropy {population_entropy:.3g} bits"
        elif self._calm.passed(alerts):
            self.factor, reason = min(1.0, 2 * before), f"{self._calm.calm} calm steps"
        elif alerts & (GRAD | VAL):
            self.factor, reason = max(LR_LEAST, before / 2), _names(alerts & (GRAD | VAL))
        return self.factor, None if self.factor == before else f"{reason}: rate × {self.factor:g}"


class HeatCapacity:
    """d(loss)/d(lr) in nats per unit of the rate: the slope of a regression of loss on rate over the last WINDOW steps.

    It says how they moved together, not that one moved the other: in a warm-up the loss also falls by itself.
    None until the window is full, and while the rate moves by less than a hundredth: there the slope would be noise.
    """

    WINDOW = 50
    SPAN = 0.01

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []

    def state(self) -> dict[str, Any]:
        return {"points": [list(p) for p in self.points]}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.points = [(loss, lr) for loss, lr in state["points"]]

    def update(self, loss: float, lr: float) -> float | None:
        """Steps that are not finite are left out."""
        if math.isfinite(loss) and math.isfinite(lr):
            self.points = [*self.points, (float(loss), float(lr))][-self.WINDOW:]
        losses, rates = np.array(self.points or [(0.0, 0.0)]).T
        if len(self.points) < self.WINDOW or np.ptp(rates) <= self.SPAN * np.abs(rates).max():
            return None
        apart = rates - rates.mean()
        return float(apart @ (losses - losses.mean()) / (apart @ apart))


class Plateau:
    """Whether the last `patience` evaluations brought no loss that is `min_delta` nats better than the best before."""

    def __init__(self, patience: int, min_delta: float) -> None:
        self.patience, self.min_delta = patience, min_delta
        self.best: float | None = None
        self.waited = 0

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]

    def update(self, val_loss: float) -> bool:
        """True once a plateau, when it is long enough; not again before an improvement. NaN is none."""
        better = math.isfinite(val_loss) and (
            self.best is None or (val_loss < self.best and self.best - val_loss >= self.min_delta))
        if better:
            self.best, self.waited = float(val_loss), 0
        else:
            self.waited += 1
        return self.waited == self.patience


def bound(values: Sequence[tuple[int, float]], steps: int) -> float:
    """The lowest validation loss a training can still have at `steps`, from its evaluations (step, loss) so far.

    The line through the last one with the slope of the steepest interval: under a constant rate losses fall ever more
    slowly, so the curve stays above. -inf while fewer than three evaluations are there, or where one is not finite.
    """
    if len(values) < 3 or not all(math.isfinite(loss) for _, loss in values):
        return -math.inf
    slopes = [(b - a) / (t - s) for (s, a), (t, b) in pairwise(values)]
    step, loss = values[-1]
    return loss + min(0.0, *slopes) * max(0, steps - step)
