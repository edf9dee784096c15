"""What a training came to: a pure function of its run directory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from helios.train.config import resolve
from helios.train.monitors.trouble import came_to_nothing
from helios.train.records.layout import EVENTS, LIFE, METRICS, read_config
from helios.train.records.rows import rows
from helios.train.resume import settings_of
from helios.train.search.births import Replicate
from helios.train.search.tally import Tally

# How a training stands after the last event of its life; after any other it can go on.
STATUS = {"run_complete": "complete", "stopped": "stopped", "diverged": "diverged", "failed": "failed",
          "device_lost": "failed"}


@dataclass(frozen=True)
class Measured(Replicate):
    """The measurements of a training, and how it stands."""

    status: str = "unfinished"  # complete, diverged, stopped, failed; unfinished: it can go on
    why: str | None = None  # it did not complete, or has no validation loss; None: it did and has
    parameters: int | None = None
    # MiB that its arrays took at most; None on a backend without memory of its own. The pool that they are taken from
    # is that of the process, in which other trainings may have been before.
    memory_mb: float | None = None


def measure(run_dir: Path) -> Measured:
    """Return the measurements of the training in the run directory, counted as a search counts those of a candidate:
    the speed is that of the steps whose time is that of computing alone. Raises UserError where there is no run."""
    about, config = read_config(run_dir), resolve(base=settings_of(run_dir))
    log, events, tally = rows(run_dir / METRICS), rows(run_dir / EVENTS), Tally()
    recorded = _recording(log, events)
    for row in _as_made(log, events):
        # The step's own tokens, whatever its batch was.
        tally.step(row, round(row["tokens_per_sec"] * row["ms_per_iter"] / 1000), row["step"] not in recorded)
        tally.observe(row)
    found = tally.replicate(config.train.seed, about["parameters"], config, lambda: math.nan)
    status, why = _standing(log, events, found)
    memory = [used for row in log if (used := row.get("gpu_vram_used_mb")) is not None]
    return Measured(**vars(found), status=status, why=why, parameters=about["parameters"],
                    memory_mb=max(memory, default=None))


def _as_made(log: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the rows with NaN where a number was not finite; for an evaluation only an event tells that there was one.
    """
    evaluated = {e["step"] for e in events if e["kind"] == "non_finite" and "val_loss" in e["values"]}
    for row in log:
        wrong = [name for name in ("loss", "grad_norm") if row[name] is None]
        yield {**row, **dict.fromkeys(wrong, math.nan), **({"val_loss": math.nan} if row["step"] in evaluated else {})}


def _recording(log: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]]) -> set[int]:
    """Return the steps in whose time their commands were recorded: the first of a process, and of a new batch size,
    clip or spike threshold."""
    begun = {e["step"] + 1 for e in events if e["kind"] in ("run_start", "resumed")}
    sizes = [(row["step"], [row.get(name) for name in ("adaptive_batch_size", "grad_clip", "spike_threshold")])
             for row in log]
    return begun | {step for (_, before), (step, size) in pairwise(sizes) if size != before}


def _standing(log: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]], found: Replicate
              ) -> tuple[str, str | None]:
    """Return how the training stands, and why it is not simply complete."""
    last = next((e for e in reversed(events) if e["kind"] in LIFE), {"kind": "", "message": "it did not begin"})
    status = STATUS.get(last["kind"], "unfinished")
    if status == "complete":
        if nothing := came_to_nothing(log, log[-1] if log else None):
            return "diverged", nothing
        if found.val_loss is None:
            return ("diverged", "the last validation loss is not finite") if found.evaluations else (
                "complete", "it has no validation point: no evaluation was asked for")
        return status, None
    if LIFE.get(last["kind"]) == "active":
        return status, f"it was killed after step {found.steps}, or is under way"
    return ("diverged" if last.get("reason") == "nan" else status), str(last["message"])
