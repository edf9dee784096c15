"""The journal of an experiment: the kinds of its lines, and what is known of the experiment at a glance."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from helios.train.records import layout
from helios.train.records.overview import number

JOURNAL, RUNS = layout.JOURNAL, layout.RUNS
# Kinds of lines. There are also reused (a candidate has the results of another, `of`, whose settings are the same),
# speed and finalists.
EXPERIMENT, GENERATION, BIRTH, RESULT, DROPPED, END = "experiment", "generation", "birth", "result", "dropped", "end"
EVOLVED = "evolved"  # arm of a birth; random and preset are controls
SEARCH = "search"  # phase of a result; the other is validation
COMPLETE = "complete"  # status of a result; others are diverged, stopped, failed
FITNESS = "fitness"  # the name of the measure that a formula gives


class Measure(NamedTuple):
    """What may be an objective, or stand in a fitness. field: of the line of a result; share: it is divided by the
    steps; more: whether more is better; clock: whether a clock measures it, by which an experiment may come to another
    end on another machine, or the next time; settled: whether the settings alone say it, whatever the seed."""

    field: str
    share: bool = False
    more: bool = False
    clock: bool = False
    settled: bool = False


MEASURES: Mapping[str, Measure] = MappingProxyType({
    **{name: Measure(name) for name in ("val_loss", "best_val_loss", "train_loss")},
    "tokens_per_sec": Measure("tokens_per_sec_mean", more=True, clock=True),
    "instability": Measure("trouble", share=True), "spikes": Measure("spikes", share=True),
    "clip_rate": Measure("clip_rate"), "max_grad_norm": Measure("max_grad_norm"),
    "skipped": Measure("skipped", share=True), "alerts": Measure("cusum_alerts", share=True),
    "parameters": Measure("parameters", settled=True), "tokens": Measure("tokens", settled=True),
    "seconds": Measure("seconds", clock=True), "memory_mb": Measure("memory_mb")})
WITH_FITNESS = {**MEASURES, FITNESS: Measure(FITNESS, more=True)}


def measured(line: Mapping[str, Any], name: str) -> float | None:
    """Return a measure, or the fitness, of the line of a result; None where it has none."""
    measure = WITH_FITNESS.get(name, Measure(name))
    value, steps = number(line.get(measure.field)), number(line.get("steps"))
    return value if value is None or not measure.share else value / steps if steps else None


def more(name: str) -> bool:
    """Return whether more of a measure, or of the fitness, is better."""
    return WITH_FITNESS.get(name, Measure(name)).more


def objectives(first: Mapping[str, Any]) -> list[str]:
    """Return the names of an experiment's objectives. first: its first line."""
    settings = first.get("settings")
    settings = settings if isinstance(settings, dict) else {}
    given = first.get("objectives") or (FITNESS if settings.get("fitness") else settings.get("objectives"))
    names = given.split(",") if isinstance(given, str) else given if isinstance(given, list) else []
    found = [name.strip() for name in names if isinstance(name, str) and name.strip()]
    return list(dict.fromkeys(found)) or [FITNESS]


class Glance:
    """What is known of an experiment at a glance, put together from the lines of its journal in their order."""

    def __init__(self) -> None:
        self.first: dict[str, Any] = {}  # the line of the kind experiment
        self.generation: int | None = None
        self.births: dict[str, tuple[str, Any]] = {}  # id → name, arm
        self.dropped: set[str] = set()
        self.values: dict[str, dict[Any, float | None]] = {}  # id → replicate → first objective; None: not complete
        self.trained: set[tuple[str, str, str]] = set()  # id, phase, replicate: one may have results of parts
        self.sentences: list[str] | None = None  # of the verdict; None: not ended

    def take(self, line: Mapping[str, Any]) -> None:
        """Take in the next line; what is foreign in it is passed over."""
        kind, id_ = line.get("kind"), line.get("id")
        if kind == EXPERIMENT:
            self.first = dict(line)
        elif kind == GENERATION and type(line.get("generation")) is int:
            self.generation = line["generation"]
        elif kind == END:
            verdict = line.get("verdict")
            said = verdict.get("sentences") if isinstance(verdict, dict) else None
            self.sentences = [text for text in said if isinstance(text, str)] if isinstance(said, list) else []
        elif isinstance(id_, str) and kind == BIRTH:
            self.births[id_] = str(line.get("name") or id_), line.get("arm", EVOLVED)
        elif isinstance(id_, str) and kind == DROPPED:
            self.dropped.add(id_)
        elif isinstance(id_, str) and kind == RESULT:
            self.trained.add((id_, str(line.get("phase", SEARCH)), str(line.get("replicate"))))
            if line.get("phase", SEARCH) == SEARCH:
                over = line.get("status") == COMPLETE and line.get("share", 1) == 1 and number(line.get("val_loss"))
                value = None if over in (None, False) else measured(line, self.objectives[0])
                self.values.setdefault(id_, {})[str(line.get("replicate"))] = value

    @property
    def objectives(self) -> list[str]:
        """Return the names of the objectives, the first one first."""
        return objectives(self.first)

    def best(self) -> dict[str, Any] | None:
        """Return the evolved candidate with the best mean of the first objective over its replicates in the search,
        and that value. One that was dropped or of which a training is not complete does not count."""
        sign, found = -1 if more(self.objectives[0]) else 1, []
        for id_, by in self.values.items():
            values = [value for value in by.values() if value is not None]
            evolved = self.births.get(id_, ("", None))[1] == EVOLVED
            if evolved and id_ not in self.dropped and len(values) == len(by):
                found.append((sign * sum(values) / len(values), id_))
        if not found:
            return None
        value, best = min(found)
        return {"id": best, "name": self.births[best][0], "value": sign * value}

    def entry(self) -> dict[str, Any]:
        """Return what is known, by name; None: not known."""
        return {"experiment": self.first.get("id"), "generation": self.generation, "candidates": len(self.births),
                "results": len(self.trained), "dropped": len(self.dropped),
                "objectives": [{"name": name, "more": more(name)} for name in self.objectives],
                "best": self.best(), "ended": self.sentences is not None, "sentences": self.sentences or []}
