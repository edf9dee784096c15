"""A run as its directory tells it: settings, rows by column, events, samples, search. All figures come from here."""

from __future__ import annotations

import itertools
import math
import sys
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from helios.model.activations import short_names
from helios.train import checkpoint
from helios.train.monitors.trouble import Trouble
from helios.train.records.layout import EVENTS, METRICS, SAMPLES, read_config
from helios.train.records.overview import Overview, locked, updated
from helios.train.records.records import COLUMNS, MORE_COLUMNS
from helios.train.records.rows import lines, rows
from helios.train.search import files
from helios.train.search.births import Candidate
from helios.train.search.ranking import Summary

KNOWN = frozenset((*COLUMNS, *MORE_COLUMNS)) - {"step"}
LAYERS = "per_layer_grad_norms"
TRAINING = ("symbio_phase", "symbio_candidate_id", "symbio_replicate")  # whose values change where a training begins
SEARCH, AFTER = "search", "after"  # values of symbio_phase
AT_ONCE = 4096  # rows that are turned into columns together

Array = np.ndarray
Row = Mapping[str, Any]


class Training(NamedTuple):
    """A stretch of rows in which one model was trained."""

    rows: slice
    phase: str  # SEARCH, AFTER, or "" in a run without a search
    candidate: str  # its id in a search, else ""
    replicate: int  # 0 outside of a search


@dataclass(frozen=True)
class RunData:
    """What a run directory holds. Rows are in the order of their steps; a number that is missing or not finite is NaN.
    """

    path: Path
    about: Mapping[str, Any]  # config.json
    entry: Mapping[str, Any]  # how it stands, at a glance: records/overview.py
    steps: Array  # [N] of int
    numbers: Mapping[str, Array]  # [N] each, by column; nested ones with a dot: per_layer_grad_norms.blocks.0
    texts: Mapping[str, Array]  # [N] of str or None each, by column
    events: tuple[Row, ...]
    samples: tuple[Row, ...]
    candidates: tuple[Candidate, ...]
    summary: Summary
    checkpoints: Mapping[int, int]  # bytes by step

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def last(self) -> int:
        """Return the last recorded step, 0 where there is none."""
        return int(self.steps[-1]) if len(self) else 0

    def column(self, name: str) -> Array:
        """Return a column of numbers [N], all NaN where no row has it."""
        found = self.numbers.get(name)
        return np.full(len(self), math.nan) if found is None else found

    def text(self, name: str) -> Array:
        """Return a column of texts [N], None where a row has none."""
        found = self.texts.get(name)
        return np.full(len(self), None) if found is None else found

    def index(self, step: int) -> int | None:
        """Return the number of the row of a step, None where there is none."""
        i = int(np.searchsorted(self.steps, step))
        return i if i < len(self) and self.steps[i] == step else None

    def at(self, step: int, name: str) -> float | None:
        """Return the value of a column at a step, None where it is not known."""
        i = self.index(step)
        return None if i is None else known(self.column(name)[i])

    def setting(self, section: str, key: str) -> Any:
        """Return a setting's value, None where config.json lacks it."""
        found = self.about.get(section)
        return found.get(key) if isinstance(found, dict) else None

    # -- what the rows are of -----------------------------------------------------------------------------------------
    @cached_property
    def trainings(self) -> tuple[Training, ...]:
        """Return the trainings in their order: those of candidates, and the one that the run is for."""
        phases, ids = (self.text(name) for name in TRAINING[:2])
        seeds = np.nan_to_num(self.column(TRAINING[2]))
        found, start = [], 0
        for (phase, name, seed), same in itertools.groupby(zip(phases, ids, seeds, strict=True)):
            past = start + sum(1 for _ in same)
            found.append(Training(slice(start, past), phase or "", name or "", int(seed)))
            start = past
        return tuple(found)

    @cached_property
    def main(self) -> Array:
        """Return which rows [N] are of the training that the run is for: all but those of a search."""
        return self.text("symbio_phase") != SEARCH

    @property
    def searched(self) -> bool:
        """Return whether there are rows of a search."""
        return not self.main.all()

    @property
    def first(self) -> int:
        """Return the run's steps before the training that it is for."""
        before = self.steps[~self.main]
        return int(before[-1]) if len(before) else 0

    @cached_property
    def activations(self) -> Array:
        """Return the activation of each row's model [N], in short form."""
        rest = self.summary["winner_activation"] or self.setting("model", "activation") or "unknown"
        texts = [str(name or rest) for name in self.text("symbio_candidate_activation")]
        return np.array([*map(short_names(texts).get, texts)], dtype=object)

    @cached_property
    def steady(self) -> Array:
        """Return which rows [N] are no first step of a training or of a process, in which kernels are prepared."""
        steady = np.ones(len(self), bool)
        steady[[training.rows.start for training in self.trainings]] = False
        resumed = [event.get("step") for event in self.of_kind("resumed")]
        return steady & ~np.isin(self.steps, [s + 1 for s in resumed if type(s) is int])

    @cached_property
    def spikes(self) -> Array:
        """Return at which rows [N] the gradient norm spiked, as monitors/trouble.py defines it."""
        found = np.zeros(len(self), bool)
        norms, reasons = self.column("grad_norm"), self.text("skip_reason")
        for training in self.trainings:
            before: list[float] = []
            found[training.rows] = [
                Trouble.of({"grad_norm": known(x), "skip_reason": why}, before).spike
                for x, why in zip(norms[training.rows], reasons[training.rows], strict=True)]
        return found

    @cached_property
    def skipped(self) -> Array:
        """Return at which rows [N] the update was skipped."""
        return self.column("skipped") == 1

    @cached_property
    def clipped(self) -> Array:
        """Return at which rows [N] the gradient was scaled down."""
        return self.column("clip_coef") < 1

    @cached_property
    def tokens(self) -> Array:
        """Return how many tokens each step [N] read."""
        return np.round(self.column("tokens_per_sec") / 1000 * self.column("ms_per_iter"))

    def of_kind(self, *kinds: str) -> list[Row]:
        """Return the events of these kinds."""
        return [event for event in self.events if event.get("kind") in kinds]


def read(path: Path) -> RunData:
    """Return what the run directory `path` holds. Raises UserError where it is none, or where its search is damaged."""
    seen, about, events = Overview(), read_config(path), tuple(rows(path / EVENTS))
    seen.config(about)
    for event in events:
        seen.event(event)
    steps, numbers, texts = columns(_seen(seen, (row for _, row in lines(path / METRICS))))
    candidates, summary = files.read(path)
    sizes = {}
    for place in checkpoint.directories(path):
        with suppress(FileNotFoundError):  # removed meanwhile by the run
            sizes[checkpoint.step_of(place)] = sum(file.stat().st_size for file in place.iterdir() if file.is_file())
    return RunData(path, about, seen.entry(locked(path), updated(path)), steps, numbers, texts, events,
                   tuple(rows(path / SAMPLES)), tuple(candidates), summary, sizes)


def _seen(overview: Overview, found: Iterable[Row]) -> Iterator[Row]:
    for row in found:
        overview.metrics(row)
        yield row


def columns(found: Iterable[Row]) -> tuple[Array, dict[str, Array], dict[str, Array]]:
    """Return the steps, the columns of numbers and those of texts of rows of metrics.jsonl, in the order of their
    steps. Of several rows of a step the last one counts; a row without a step does not."""
    steps = array("q")
    parts: dict[tuple[str, type], list[tuple[int, Array]]] = {}  # by column and kind: the first row's number, values
    stepped = (row for row in found if type(step := row.get("step")) is int and 0 <= step < 2**63)
    while some := list(itertools.islice(stepped, AT_ONCE)):
        for name, values in _by_column(some):
            if str in (kinds := set(map(type, values))):
                texts = [sys.intern(x) if isinstance(x, str) else None for x in values]
                parts.setdefault((name, object), []).append((len(steps), np.array(texts, object)))
            if np.isfinite(numbers := _numbers(values, kinds)).any():
                parts.setdefault((name, float), []).append((len(steps), numbers))
        steps.extend(row["step"] for row in some)
    every = np.array(steps, np.int64)
    _, back = np.unique(every[::-1], return_index=True)
    order = len(every) - 1 - back  # the last row of each step

    def of(kind: type, unknown: float | None) -> dict[str, Array]:
        whole: dict[str, Array] = {name: np.full(len(every), unknown, kind) for name, own in parts if own is kind}
        for name, values in whole.items():
            for start, numbers in parts[name, kind]:
                values[start:start + len(numbers)] = numbers
        return {name: values[order] for name, values in whole.items()}

    return every[order], of(float, math.nan), of(object, None)


def _by_column(some: Sequence[Row]) -> Iterator[tuple[str, list[Any]]]:
    """Yield the known columns of rows, with None where a row lacks one."""
    for name in dict.fromkeys(itertools.chain.from_iterable(some)):
        values = [row.get(name) for row in some]
        if name == LAYERS:
            nested = [x if isinstance(x, dict) else {} for x in values]
            for layer in dict.fromkeys(itertools.chain.from_iterable(nested)):
                yield f"{name}.{layer}", [number(x.get(layer)) for x in nested]
        if name in KNOWN:
            yield name, values


def _numbers(values: Sequence[Any], kinds: Collection[type]) -> Array:
    """Return the values, which are of these kinds, as floats, with NaN for what is no finite number."""
    if not {*kinds} - {float, int, bool, type(None)}:
        with suppress(OverflowError):  # an integer beyond all floats
            found = np.array(values, float)
            found[np.isinf(found)] = math.nan
            return found
    return np.array([math.nan if (x := number(value)) is None else x for value in values])


def number(value: Any) -> float | None:
    """Return what JSON held if it is a finite number, or a truth value."""
    if not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond all floats
        return None


# -- statistics: of the known values of a part of a column; None where there are none ----------------------------------

def known(x: Any) -> float | None:
    """Return a number, None where it is not finite."""
    return float(x) if np.isfinite(x) else None


def finite(values: Array) -> Array:
    """Return the values that are known."""
    return values[np.isfinite(values)]


def mean(values: Array) -> float | None:
    """Return the mean of the known values."""
    return float(np.mean(v)) if (v := finite(values)).size else None


def median(values: Array) -> float | None:
    """Return the median of the known values."""
    return float(np.median(v)) if (v := finite(values)).size else None


def percentile(values: Array, p: float) -> float | None:
    """Return the value that p % of the known values lie below."""
    return float(np.percentile(v, p)) if (v := finite(values)).size else None


def lowest(values: Array) -> float | None:
    """Return the lowest known value."""
    return float(np.min(v)) if (v := finite(values)).size else None


def highest(values: Array) -> float | None:
    """Return the highest known value."""
    return float(np.max(v)) if (v := finite(values)).size else None


def share(where: Array) -> float | None:
    """Return the share of rows that a condition [N] holds for."""
    return float(np.mean(where)) if where.size else None
