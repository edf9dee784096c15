"""The journal of an experiment: the kinds of its lines, and what is known of the experiment at a glance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from helios.train.records.overview import number

JOURNAL = "journal.jsonl"  # in an experiment's directory
RUNS = "runs"  # beside it: the folder of the experiment's run directories
EXPERIMENT, GENERATION, BIRTH, RESULT, DROPPED, END = KINDS = (
    "experiment", "generation", "birth", "result", "dropped", "end")
EVOLVED, RANDOM, PRESET = ARMS = ("evolved", "random", "preset")  # the last two are controls
SEARCH, VALIDATION = PHASES = ("search", "validation")
COMPLETE, DIVERGED, STOPPED, FAILED = STATUS = ("complete", "diverged", "stopped", "failed")  # of a result
FITNESS = "fitness"  # the name of the measure that a formula gives
MORE = frozenset({"tokens_per_sec", FITNESS})  # measures of which more is better; of all others less


def objectives(settings: Any) -> list[str]:
    """Return the names of an experiment's objectives: those of its setting `objectives`, or the fitness."""
    given = settings.get("objectives") if isinstance(settings, dict) else None
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
        self.results = 0
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
            self.results += 1
            if line.get("phase", SEARCH) == SEARCH:
                value = number(line.get(self.objectives[0])) if line.get("status") == COMPLETE else None
                self.values.setdefault(id_, {})[str(line.get("replicate"))] = value

    @property
    def objectives(self) -> list[str]:
        """Return the names of the objectives, the first one first."""
        return objectives(self.first.get("settings"))

    def best(self) -> dict[str, Any] | None:
        """Return the evolved candidate with the best mean of the first objective over its replicates in the search,
        and that value. One that was dropped or of which a training is not complete does not count."""
        sign, found = -1 if self.objectives[0] in MORE else 1, []
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
                "results": self.results, "dropped": len(self.dropped),
                "objectives": [{"name": name, "more": name in MORE} for name in self.objectives],
                "best": self.best(), "ended": self.sentences is not None, "sentences": self.sentences or []}
