"""The events that a step's row is, besides a row, and what other events say of rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from helios.train.records.layout import EVENTS, METRICS
from helios.train.records.rows import lines, rows

# Column of a row → kind of the event that it also is.
COLUMNS = {"cusum_alert_reason": "alert", "batch_change_reason": "batch", "lr_change_reason": "lr",
           "plateau": "plateau"}


def skip_reason(stats: Mapping[str, float], loss_scaling: bool) -> str:
    """Return why the update of a step with these statistics (see backend.STATS) was skipped."""
    if not math.isfinite(stats["loss"]):
        return "loss not finite"
    if math.isfinite(stats["grad_norm"]):
        return "spike"
    return "overflow" if loss_scaling else "gradient not finite"


def events_of(row: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield kind, message and further entries of each event that a row is."""
    if row.get("skipped"):
        reason = row["skip_reason"]
        scale = f", loss scale now {row['loss_scale']:g}" if reason == "overflow" else ""
        yield "skipped", (f"update skipped: {reason}, gradient norm {row['grad_norm']:.4g}, loss {row['loss']:.4g}"
                          f"{scale}"), {"reason": reason}
    for column, kind in COLUMNS.items():
        if row.get(column):
            yield kind, str(row[column]), {}


def evaluations(run: Path) -> list[tuple[float, int]]:
    """Return loss and step of the evaluations of a run whose weights it went on with: at a switch, the model that was
    evaluated is gone."""
    gone = {event["step"] for event in rows(run / EVENTS) if event["kind"] == "switch"}
    return [(row["val_loss"], row["step"]) for _, row in lines(run / METRICS)
            if row["val_loss"] is not None and row["step"] not in gone]
