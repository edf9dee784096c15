"""The runs of the system that Helios replaces: what is known of each, also in the form of a run's files."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, NamedTuple

import msgspec

from helios.errors import UserError, nearest
from helios.train.records import overview

FILES = resources.files("helios.train") / "history"
STATUS = "historic"


@dataclass(frozen=True)
class Points:
    """Figures of single steps: rows under the names of columns of metrics.jsonl, "step" among them."""

    columns: tuple[str, ...]
    rows: tuple[tuple[float, ...], ...]


class Stretch(NamedTuple):
    """Mean and lowest loss of the steps first ≤ step < past, and how many of them are in the records."""

    first: int
    past: int
    mean: float
    low: float
    recorded: int | None = None


class Spikes(NamedTuple):
    """How many steps of first ≤ step ≤ last were spikes, and their highest norm."""

    first: int
    last: int
    steps: int
    norm: float


class Saved(NamedTuple):
    """A checkpoint."""

    step: int
    bytes: int | None = None


class Trained(NamedTuple):
    """A candidate of a search. loss: the lowest of its training steps, by which it was ranked."""

    id: str
    activation: str
    first: int
    last: int
    recorded: int  # of its steps
    loss: float
    mean_loss: float
    fitness: float
    spikes: int
    clipped: int  # steps
    clip_coef: float  # mean
    alerts: int  # steps
    tokens_per_sec: float  # mean, as ms_per_iter
    ms_per_iter: float
    ops: int  # operations in a step
    parent: str | None = None

    @property
    def generation(self) -> int:
        return int(self.id.removeprefix("gen").split("_")[0])


@dataclass(frozen=True)
class Phase:
    """A part of a run with a search, "search" or "after". loss, tokens_per_sec, ms_per_iter: means."""

    name: str
    first: int
    steps: int
    recorded: int
    spikes: int
    alerts: int | None = None
    loss: float | None = None
    tokens_per_sec: float | None = None
    ms_per_iter: float | None = None

    @property
    def words(self) -> str:
        return {"search": "in the search", "after": "after it"}[self.name]


@dataclass(frozen=True)
class Sample:
    """What the model said."""

    step: int
    prompt: str
    text: str


@dataclass(frozen=True)
class Norms:
    """Gradient norms before clipping. healthy: the mean of those at most the first limit of `above`."""

    mean: float | None = None
    low: float | None = None
    high: float | None = None
    healthy: float | None = None
    percentiles: tuple[tuple[float, float], ...] = ()  # per cent of the steps, norm
    above: tuple[tuple[float, int], ...] = ()  # limit, number of steps above it


@dataclass(frozen=True)
class Historic:
    """What is known of a historic run; None or empty where something is not. Losses are in nats a token."""

    name: str
    run_id: str
    status: str  # in words
    domain: str
    text: str  # file name of the training text
    begun: str  # UTC, as in events
    steps: int  # made
    planned: int
    parameters: int
    device: Mapping[str, Any]
    config: Mapping[str, Mapping[str, Any]]  # sections of the settings, as in a config.json
    mean: Mapping[str, float]  # over the run, by column
    points: tuple[Points, ...]
    notes: tuple[str, ...]
    why: Mapping[str, str] = field(default_factory=dict)  # topic of a difference → its cause
    text_size: str | None = None
    ended: str | None = None
    seconds: float | None = None
    recorded: int | None = None  # of the steps
    host: Mapping[str, Any] = field(default_factory=dict)
    timing: Mapping[str, float] = field(default_factory=dict)  # ms of a step, by phase
    memory: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # MB, from and to, by column
    norms: Norms = field(default_factory=Norms)
    stretches: tuple[Stretch, ...] = ()
    spikes: tuple[Spikes, ...] = ()
    phases: tuple[Phase, ...] = ()
    candidates: tuple[Trained, ...] = ()  # the best first
    samples: tuple[Sample, ...] = ()
    checkpoints: tuple[Saved, ...] = ()
    best_validation: float | None = None  # where another figure than the lowest of the points was given
    winner: str | None = None  # of the search, as announced
    trained_after: str | None = None  # the search, most likely
    clipped: float | None = None  # share of the steps
    not_finite: int | None = None  # gradients
    last_monitored: int | None = None  # step
    gap: float | None = None  # ratio of the fastest activation's speed to the slowest's, in the original's words

    def by_step(self) -> dict[int, dict[str, float]]:
        """Return the known columns of single steps."""
        found: dict[int, dict[str, float]] = {}
        for points in self.points:
            for row in points.rows:
                values = dict(zip(points.columns, row, strict=True))
                step = int(values.pop("step"))
                found.setdefault(step, {}).update(values)
        return dict(sorted(found.items()))

    def column(self, name: str) -> dict[int, float]:
        """Return the known values of a column, by step."""
        return {step: row[name] for step, row in self.by_step().items() if name in row}

    # -- as a run's files hold it -------------------------------------------------------------------------------------
    def about(self) -> dict[str, Any]:
        """Return what config.json would hold."""
        return {"run_id": self.run_id, STATUS: True, "created": self.begun, "domain": self.domain,
                "chat": self.domain == "chat", "parameters": self.parameters, "device": dict(self.device),
                "host": dict(self.host), "data": {"data": self.text}, "symbio_winner": self.winner,
                **{section: dict(values) for section, values in self.config.items()}}

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of metrics.jsonl that are known, with the columns that are."""
        return [{"step": step, **row, **self._stage(step)} for step, row in self.by_step().items()]

    def _stage(self, step: int) -> dict[str, Any]:
        phase = next((p.name for p in reversed(self.phases) if step >= p.first), None)
        found: dict[str, Any] = {} if phase is None else {"symbio_phase": phase}
        for c in self.candidates:
            if c.first <= step <= c.last:
                found |= {"symbio_candidate_id": c.id, "symbio_candidate_name": c.id, "symbio_generation": c.generation,
                          "symbio_candidate_activation": c.activation, "symbio_candidate_parent_id": c.parent}
        return found

    def events(self) -> list[dict[str, Any]]:
        """Return the lines of events.jsonl: begin, notes and checkpoints, whose time is not known, and end."""
        event = lambda step, kind, message, time=None: {"step": step, "time": time, "kind": kind, "message": message}
        end = "run_complete" if self.steps == self.planned else "interrupted"
        return [event(0, "run_start", f"on {self.device['name']}", self.begun),
                *(event(0, "note", note) for note in self.notes),
                *(event(step, "checkpoint", f"checkpoint of step {step:,}") for step, _ in self.checkpoints),
                *([event(self.steps, end, self.status, self.ended)] if self.ended else [])]

    def said(self) -> list[dict[str, Any]]:
        """Return the lines of samples.jsonl."""
        return [{**vars(s), "temperature": 0.8, "top_k": 40} for s in self.samples]

    def searched(self) -> list[dict[str, Any]]:
        """Return the lines of candidates.jsonl, in the order of training: fields of a candidate where they mean the
        same, and best_loss and alerts, which Helios does not rank by and counts otherwise."""
        return [{"id": c.id, "name": c.id, "activation": c.activation, "generation": c.generation,
                 "parent_id": c.parent, "parent_name": c.parent, "lineage": [c.parent] if c.parent else [],
                 "steps": c.recorded, "best_loss": c.loss, "fitness": c.fitness, "spikes": c.spikes,
                 "clip_rate": c.clipped / c.recorded, "tokens_per_sec_mean": c.tokens_per_sec, "alerts": c.alerts,
                 "status": "complete"} for c in sorted(self.candidates, key=lambda c: c.first)]

    def summary(self) -> dict[str, Any] | None:
        """Return what search/summary.json would hold; None where the search's figures are not known."""
        if not self.candidates:
            return None
        best = self.candidates[0]
        return {"status": "complete", "config": dict(self.config["search"]), "base": dict(self.config["model"]),
                "ranking": [{"rank": rank, "id": c.id, "name": c.id, "activation": c.activation, "settings": {},
                             "score": c.loss, "val_loss_mean": None, "val_loss_se": None, "fitness": c.fitness,
                             "difference": c.loss - best.loss, "difference_se": None, "separated": None}
                            for rank, c in enumerate(self.candidates, 1)],
                "winner": best.id, "winner_name": best.id, "winner_activation": best.activation,
                "winner_settings": {}, "separated": False, "reasons": [], "unfair": list(self.notes), "cost": {},
                "refused": 0, "device": self.device["name"]}

    def saved(self) -> list[dict[str, Any]]:
        """Return the checkpoints, with the validation losses of their steps."""
        val = self.column("val_loss")
        return [{"step": step, "val_loss": val.get(step), "bytes": size} for step, size in self.checkpoints]

    def entry(self) -> dict[str, Any]:
        """Return what a list of runs has of it: status "historic", and how it stood in `reason`."""
        seen = overview.Overview()
        seen.config(self.about())
        for row in self.rows():
            seen.metrics(row)
        found = seen.entry(None, overview.seconds(self.ended or self.begun))
        return found | {"status": STATUS, "reason": self.status, "step": self.steps, "steps": self.planned,
                        "best_val_loss": self.best_validation or found["best_val_loss"],
                        "tokens_per_sec": self.mean["tokens_per_sec"], STATUS: True,
                        "coverage": self.recorded / self.steps if self.recorded else None}


def names() -> Sequence[str]:
    """Return the names of the historic runs."""
    return sorted(file.name.removesuffix(".toml") for file in FILES.iterdir() if file.name.endswith(".toml"))


def read(name: str) -> Historic:
    """Return what is known of the run of that name. Raises UserError where there is none."""
    if name not in names():
        raise UserError(f"unknown historic run {name!r}{nearest(name, names())}; there are {', '.join(names())}")
    return msgspec.convert(tomllib.loads((FILES / f"{name}.toml").read_text("utf-8")), Historic)
