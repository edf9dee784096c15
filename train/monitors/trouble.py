"""The steps of a training that are in trouble, by which candidates are compared; the clock has no part in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any, NamedTuple

from helios.train.monitors.cusum import MACHINE

SPIKE = 10.0  # times the usual norm is a spike
WINDOW, LEAST = 50, 10  # last norms whose median is usual, and how many it needs


class Trouble(NamedTuple):
    """The kinds of trouble at a step."""

    spike: bool  # the norm was above the spike threshold, or above SPIKE times the median of the last ones
    skipped: bool  # the update was skipped, except for an overflow, by which loss scaling finds its scale
    alert: bool  # of gradient norm, clipping or validation loss; the others are the machine's

    @property
    def any(self) -> bool:
        """Return whether there was trouble of any kind."""
        return self.spike or self.skipped or self.alert

    @classmethod
    def of(cls, row: Mapping[str, Any], norms: list[float]) -> Trouble:
        """Judge the row of a step. norms: the gradient norms before it, to which its own is added; by them a spike is
        seen without a threshold, too."""
        norm, reason = row["grad_norm"], row.get("skip_reason")
        finite = norm is not None and math.isfinite(norm)
        spike = reason == "spike" or (finite and len(norms) >= LEAST and norm > SPIKE * median(norms))
        if finite:
            norms[:] = [*norms, norm][-WINDOW:]
        skipped, alert = row.get("skipped") and reason != "overflow", (row.get("cusum_alerts") or 0) & ~MACHINE
        return cls(bool(spike), bool(skipped), bool(alert))


def came_to_nothing(log: Iterable[Mapping[str, Any]], last: Mapping[str, Any] | None) -> str:
    """Return why a training with these rows of metrics.jsonl came to nothing; "" where it did not. last: the last row;
    None: there is none."""
    if last and last["loss"] is None:
        return "the loss is not finite (a lower --lr may help)"
    if last and all(row.get("skipped") for row in log):
        return f"every update was skipped ({last['skip_reason']})"
    return ""
