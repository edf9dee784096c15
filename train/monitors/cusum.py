"""Change-point detection: whether gradient norm, clipping, speed, validation loss, waiting or memory have shifted.

CUSUM (Page 1954): with z the deviation of a value from a baseline in standard deviations, the sums
max(0, S + z - slack) and max(0, S - z - slack) stay near zero on noise and grow steadily after a shift; one above the
sensitivity is a shift. In the textbook the baseline is known and does not move. Here it is learned and moves, so

* a value is compared with the n before it by Student's t, taken to the normal scale, as in the self-starting CUSUM
  (Hawkins 1987), so that an imprecise baseline of few values raises no more false alerts than a good one;
* the baseline follows: after it is learned, every value moves mean and variance with the weight 1/n, n growing to the
  window. What moves by less than slack standard deviations in a window is no shift, in either direction;
* one value counts as `cap` standard deviations at most, in the sums and in the baseline, so that a single spike is no
  shift. Values of the validation loss, which are few and have no outliers, count in full;
* a shift in the harmless direction moves the baseline, without alert or pause, to the mean since that sum was last
  zero, which is the likeliest time of the shift. After an alert the baseline is learned anew, over `window` values;
* no standard deviation is taken to be below a floor, a change too small to matter. Else a clip coefficient of exactly
  1, or a loss on the same batches, would raise an alert by its last digit;
* the noise of the validation loss is taken from second differences, which remove the trend, and from their median,
  which ignores the steep beginning.

Measured with the defaults, the first four channels together, on 10,000 steps of independent noise (norm lognormal of
sigma 0.25 around 0.9, clip coefficient min(1, 1/norm), speed ±5 %, a validation loss of ±0.03 at every step): 3 of
1,000 runs have a false alert, all of the validation loss. At a sensitivity of 10 it is 5 of 200, at 8 64 of 200. A norm
× 2.5 is found after 7 steps in the median of 300 runs and 11 at most, a speed × 0.7 or a coefficient from 1 to 0.6
after 7. A norm that doubles within 400 steps, as in real runs, is let pass. Correlated noise does worse: with a
correlation of 0.3 from one evaluation to the next, and one at every step, 32 of 60 runs have a false alert, again of
the validation loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import fmean, median
from typing import Any, NamedTuple

CAP, REACH = 2.5, 4.0  # most standard deviations that one value counts as in the sums, and in the baseline
VAL_WINDOW, VAL_KEPT = 5, 17  # evaluations that make a baseline, and from which the noise is estimated
LEAST_MEMORY, LEAST_COUNT = 20, 4  # least n of a baseline that follows, and of one that was moved
LARGEST = 1e100  # the square of a larger value may overflow
TINY = 1e-30  # stands for values that have no logarithm
GRAD, CLIP, TPS, VAL, FLUSH, MEMORY = 1, 2, 4, 8, 16, 32
MACHINE = TPS | FLUSH | MEMORY  # what the machine decides, not the training


class Channel(NamedTuple):
    column: str
    bit: int  # in the mask of alerts
    source: str  # column of the values
    reason: str  # of an alert
    direction: int  # of harm: 1 up, -1 down
    log: bool  # whether logarithms are watched
    floor: float
    cap: float = CAP
    trend: bool = False


CHANNELS = (
    # A norm that wanders by a third within a window is seen in healthy training.
    Channel("cusum_grad", GRAD, "grad_norm", "grad_norm regime shift", 1, True, 0.3),
    # A clip coefficient of 0.85 leaves nearly the whole step.
    Channel("cusum_clip", CLIP, "clip_coef", "persistent clipping onset", -1, False, 0.15),
    Channel("cusum_tps", TPS, "tokens_per_sec", "throughput collapse", -1, True, 0.05),
    # Other evaluation batches would change the loss by about a hundredth of a nat.
    Channel("cusum_val", VAL, "val_loss", "validation loss divergence", 1, False, 0.01, cap=math.inf, trend=True),
    # The wait is what the host's own work leaves of a step, and wanders where others use the machine.
    Channel("cusum_flush", FLUSH, "timing_flush_ms", "longer waiting for the device", 1, True, 0.3),
    Channel("cusum_memory", MEMORY, "gpu_mem_pool_mb", "memory growth", 1, True, 0.05),
)


class Restorable:
    """An object whose attributes named in STATE, all plain values, are kept in a checkpoint."""

    STATE: tuple[str, ...] = ()

    def state(self) -> dict[str, Any]:
        """Return what `restore` takes."""
        return {name: getattr(self, name) for name in self.STATE}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        for name in self.STATE:
            setattr(self, name, state[name])


class Cusum(Restorable):
    """Watches one series by both sums.

    direction: 1 where a rise is harm, -1 where a fall is. floor: least standard deviation. cap: most standard
    deviations that one value counts as. trend: whether the series moves mostly by a trend. The others are the settings
    cusum_… of MonitorConfig.
    """

    STATE = ("value", "skip", "values", "n", "mean", "variance", "up", "down", "since", "total")

    def __init__(self, direction: int, floor: float, sensitivity: float, slack: float, window: int, grace: int,
                 cap: float = CAP, trend: bool = False) -> None:
        if window < 2 or sensitivity <= 0 or floor <= 0:
            raise ValueError(f"Cusum needs a window of 2 or more, a sensitivity and a floor above 0; "
                             f"got {window}, {sensitivity}, {floor}")
        self.direction, self.floor, self.sensitivity, self.slack = direction, floor, sensitivity, slack
        self.window, self.grace, self.cap, self.trend = window, grace, cap, trend
        self.reset()

    def reset(self) -> None:
        """Begin anew, as for another series."""
        self.value: float | None = None  # the larger sum; None while learning
        self.skip = self.grace  # values still to be left out
        self._forget()

    def _forget(self) -> None:
        self.values: list[float] = []  # to learn from; of a series with a trend, later the last ones
        self.n = 0  # how many values the baseline counts as; 0: none is learned yet
        self.mean = self.variance = 0.0
        self.up = self.down = 0.0  # towards harm, and away from it
        self.since, self.total = 0, 0.0  # values since `down` was zero, and their sum

    def update(self, x: float | None) -> str | None:
        """Take in the next value, None where none was measured; return "shift", "not finite" (such a value changes
        nothing) or None."""
        if x is None:
            return None
        if not abs(x) < LARGEST:
            return "not finite"
        if self.skip:
            self.skip -= 1
            return None
        x = self.direction * float(x)
        if self.n:
            return self._watch(x)
        self.value = None
        self.values.append(x)
        if len(self.values) == self.window:
            self._learn()
        return None

    def _learn(self) -> None:
        v, self.n = self.values, self.window
        if self.trend:
            self.mean = fmean(v)
            return
        # Limited to REACH robust standard deviations, since a spike would make the baseline too wide.
        middle = median(v)
        reach = REACH * max(self.floor, _spread(x - middle for x in v))
        v = [_within(x, middle, reach) for x in v]
        self.mean, self.values = fmean(v), []
        self.variance = sum((x - self.mean) ** 2 for x in v) / (self.window - 1)

    def _noise(self) -> tuple[float, float]:
        """Return the standard deviation and its degrees of freedom (of bends, which overlap, by simulation)."""
        if not self.trend:
            return max(self.floor, math.sqrt(self.variance)), self.n - 1
        # A second difference over √6 has the variance of independent values, and is 0 on a straight line.
        v = self.values
        bends = [(a - 2 * b + c) / math.sqrt(6) for a, b, c in zip(v, v[1:], v[2:], strict=False)] or [0.0]
        return max(self.floor, _spread(bends)), max(1.0, len(bends) / 5)

    def _watch(self, x: float) -> str | None:
        sigma, freedom = self._noise()
        known = math.sqrt(self.n / (self.n + 1))  # the baseline's mean has an error of its own
        z = _within(_normal((x - self.mean) / sigma * known, freedom), 0.0, self.cap)
        self.up = max(0.0, self.up + z - self.slack)
        self.down = max(0.0, self.down - z - self.slack)
        self.since, self.total = (self.since + 1, self.total + x) if self.down else (0, 0.0)
        self.value = max(self.up, self.down)
        if self.up > self.sensitivity:
            self._forget()
            return "shift"
        step = _within(x - self.mean, 0.0, REACH * sigma)
        self.n = min(self.n + 1, max(self.window, LEAST_MEMORY))
        self.mean += step / self.n
        if self.trend:
            self.values = [*self.values, x][-VAL_KEPT:]
        else:
            self.variance += (step * step * known * known - self.variance) / self.n
        if self.down > self.sensitivity:
            self.mean, self.n = self.total / self.since, min(max(self.since, LEAST_COUNT), self.n)
            self.up, self.down, self.since, self.total = 0.0, 0.0, 0, 0.0
        return None


def _within(x: float, middle: float, reach: float) -> float:
    return min(max(x, middle - reach), middle + reach)


def _spread(deviations: Iterable[float]) -> float:
    """Return normal values' standard deviation, by the median of their sizes, which outliers hardly move."""
    return 1.4826 * median(map(abs, deviations))


def _normal(t: float, freedom: float) -> float:
    """Return Student's t on the scale of a standard normal variable (Wallace 1959)."""
    size = (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(t * t / freedom))
    return math.copysign(size, t)


class Monitor:
    """Watches the channels of a run. The validation loss, whose values are few, has a window of VAL_WINDOW at most and
    no grace."""

    def __init__(self, sensitivity: float, slack: float, window: int, grace: int) -> None:
        self.parts = [Cusum(c.direction, c.floor, sensitivity, slack, min(window, VAL_WINDOW) if c.trend else window,
                            0 if c.trend else grace, c.cap, c.trend) for c in CHANNELS]

    def reset(self) -> None:
        """Begin anew, as for another model."""
        for part in self.parts:
            part.reset()

    def forget(self, bits: int) -> None:
        """Learn the baselines of the channels with these bits anew."""
        for c, part in zip(CHANNELS, self.parts, strict=True):
            if c.bit & bits:
                part.reset()

    def usual_norm(self) -> float | None:
        """Return the gradient norm that is usual at present, None while its baseline is learned."""
        norm = self.parts[0]
        return math.exp(norm.mean) if norm.n else None

    def state(self) -> dict[str, Any]:
        """Return what `restore` takes."""
        return {c.column: part.state() for c, part in zip(CHANNELS, self.parts, strict=True)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned; a channel that is new begins anew."""
        for c, part in zip(CHANNELS, self.parts, strict=True):
            if c.column in state:
                part.restore(state[c.column])

    def update(self, grad_norm: float | None, clip_coef: float | None, tokens_per_sec: float | None,
               val_loss: float | None, timing_flush_ms: float | None = None, gpu_mem_pool_mb: float | None = None
               ) -> dict[str, Any]:
        """Take in a step's measurements, None where there is none; return the channels' columns (the larger sum, None
        while learning), cusum_alerts (the channels' bits) and cusum_alert_reason."""
        columns: dict[str, Any] = {}
        alerts, reasons = 0, []
        values = grad_norm, clip_coef, tokens_per_sec, val_loss, timing_flush_ms, gpu_mem_pool_mb
        for c, part, x in zip(CHANNELS, self.parts, values, strict=True):
            if c.log and x is not None and math.isfinite(x):
                x = math.log(max(x, TINY))
            found = part.update(x)
            columns[c.column] = part.value
            if found:
                alerts |= c.bit
                reasons.append(c.reason if found == "shift" else f"{c.source} {found}")
        return columns | {"cusum_alerts": alerts, "cusum_alert_reason": "; ".join(reasons) or None}
