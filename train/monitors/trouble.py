"""Which steps of a training are in trouble: the one definition that candidates are compared by, without a clock."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median
from typing import Any, NamedTuple

from helios.train.monitors.cusum import TPS

SPIKE = 10.0  # times the usual norm
WINDOW, LEAST = 50, 10  # norms that tell what is usual, and how many it takes


class Trouble(NamedTuple):
    """What was wrong at a step."""

    spike: bool  # the norm was above the spike threshold, or SPIKE times the median of the last ones
    skipped: bool  # the update was held back, and not for an overflow, which is how a loss scale is found
    alert: bool  # a shift of gradient norm, clipping or validation loss was reported; the speed is the machine's

    @property
    def any(self) -> bool:
        """Whether the step counts as one in trouble, once whatever was wrong."""
        return self.spike or self.skipped or self.alert

    @classmethod
    def of(cls, row: Mapping[str, Any], norms: list[float]) -> Trouble:
        """Judge the row of a step. norms: the last gradient norms before it, to which its own is added.

        So a spike is also seen where no threshold is set.
        """
        norm, reason = row["grad_norm"], row.get("skip_reason")
        finite = norm is not None and math.isfinite(norm)
        spike = reason == "spike" or (finite and len(norms) >= LEAST and norm > SPIKE * median(norms))
        if finite:
            norms[:] = [*norms, norm][-WINDOW:]
        skipped, alert = row.get("skipped") and reason != "overflow", (row.get("cusum_alerts") or 0) & ~TPS
        return cls(bool(spike), bool(skipped), bool(alert))
