"""The files of a search in a run directory: candidates.jsonl and summary.json in its folder search/, and metrics.jsonl.

During a search, one of the first two may be missing or ahead of the other.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from helios.errors import UserError
from helios.model import GPTConfig
from helios.model.activations import parsed
from helios.train.config import SearchConfig
from helios.train.records.layout import METRICS, PLAN
from helios.train.records.rows import rows
from helios.train.search.births import Candidate
from helios.train.search.ranking import Summary

FOLDER, CANDIDATES, SUMMARY = PLAN, "candidates.jsonl", "summary.json"
NOT_YET: Summary = {
    "status": "running", "config": {}, "base": {}, "ranking": [], "winner": None, "winner_name": None,
    "winner_activation": None, "separated": False, "reasons": [], "unfair": [], "cost": {}, "device": ""}


@dataclass
class Track:
    """The rows of one replicate of a candidate, with NaN where a number is missing or not finite."""

    candidate: str  # its id
    first: int  # the run's step at which it began
    steps: list[int] = field(default_factory=list)  # of the replicate, from 1 on
    losses: list[float] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)  # (step of the replicate, loss)
    rates: list[float] = field(default_factory=list)  # tokens/s
    alerts: Counter[str] = field(default_factory=Counter)  # number by reason, as of skips
    skips: Counter[str] = field(default_factory=Counter)

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row of metrics.jsonl."""
        step = row["step"] - self.first + 1
        self.steps.append(step)
        self.losses.append(_finite(row.get("loss")))
        self.rates.append(_finite(row.get("tokens_per_sec")))
        if row.get("val_loss") is not None:
            self.evaluations.append((step, _finite(row["val_loss"])))
        if reason := row.get("cusum_alert_reason"):
            self.alerts.update(str(reason).split("; "))
        if row.get("skipped"):
            self.skips[str(row.get("skip_reason"))] += 1


def _finite(x: Any) -> float:
    return float(x) if isinstance(x, int | float) and math.isfinite(x) else math.nan


def find(path: Path) -> Path:
    """Return the run directory `path`, or the one whose folder search/ it is. Raises UserError if none searched."""
    path = path.absolute()
    run = path.parent if path.name == FOLDER and not (path / FOLDER).exists() else path
    if not any((run / FOLDER / name).exists() for name in (CANDIDATES, SUMMARY)):
        raise UserError(f"{path} holds no search: no {FOLDER}/{CANDIDATES}, no {FOLDER}/{SUMMARY}; give the directory "
                        f"of a run that searched")
    return run


def read(run: Path) -> tuple[list[Candidate], Summary]:
    """Return the candidates, in order of creation, and the summary, or NOT_YET. Raises UserError for damaged files."""
    candidates: dict[str, Candidate] = {}
    path = run / FOLDER / CANDIDATES
    for number, row in enumerate(rows(path, strict=True), 1):
        try:
            c = msgspec.convert(row, Candidate)
        except msgspec.ValidationError as error:
            raise _damaged(path, error, number) from error
        try:
            parsed("activation", c.activation)
            GPTConfig.from_dict(c.settings)
        except UserError as error:
            raise _damaged(path, error, number) from error
        if c.id in candidates or (c.parent_id is not None and c.parent_id not in candidates):
            raise _damaged(path, f"{c.id} is there twice, or before its parent {c.parent_id}", number)
        candidates[c.id] = c
    return list(candidates.values()), _summary(run / FOLDER / SUMMARY, candidates)


def _summary(path: Path, candidates: Mapping[str, Candidate]) -> Summary:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return NOT_YET
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    try:
        summary: Summary = msgspec.convert(json.loads(raw.decode()), Summary)
        SearchConfig.from_dict(summary["config"])
    except json.JSONDecodeError as error:
        raise _damaged(path, error.msg, error.lineno) from error
    except UnicodeDecodeError as error:
        raise _damaged(path, "no UTF-8") from error
    except (msgspec.ValidationError, UserError, RecursionError) as error:
        raise _damaged(path, error) from error
    if summary["status"] == "complete" and summary["winner"] not in (None, *candidates):
        raise _damaged(path, f"cannot use the winner {summary['winner']}, which is not in {CANDIDATES}")
    summary["ranking"] = [entry for entry in summary["ranking"] if entry["id"] in candidates]
    return summary


def tracks(run: Path, candidates: Iterable[Candidate]) -> list[Track]:
    """Return the rows of metrics.jsonl by replicate of `candidates`, in order of training.
    Raises UserError where a line is damaged."""
    found: dict[tuple[str, int], Track] = {}
    known, path = {c.id for c in candidates}, run / METRICS
    for number, row in enumerate(rows(path, strict=True), 1):
        c, step, replicate = (row.get(key) for key in ("symbio_candidate_id", "step", "symbio_replicate"))
        if not isinstance(c, str) or c not in known:
            continue
        if not isinstance(step, int) or not isinstance(replicate, int):
            raise _damaged(path, "no step or symbio_replicate", number)
        found.setdefault((c, replicate), Track(c, step)).add(row)
    return list(found.values())


def _damaged(path: Path, why: object, number: int = 0) -> UserError:
    """Return the error to raise. number: of the damaged line; 0: of the whole file."""
    return UserError(f"{path}{f', line {number},' if number else ''} is damaged: {why}")
