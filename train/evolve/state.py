"""How an experiment stands: its journal's lines, put together."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from helios.errors import UserError
from helios.train.records.journal import MEASURES, measured
from helios.train.search import births, ranking
from helios.train.search.births import Candidate, Replicate
from helios.train.search.selection import Box

# Fields of a birth. All others of a Candidate are measured, but for the lineage, which follows from the parents.
BORN = ("id", "name", "activation", "generation", "seed", "parent_id", "parent_name", "mutation", "settings", "refused",
        "arm", "operator", "parents", "bonus")


@dataclass(frozen=True)
class Result(Replicate):
    """What one training of a candidate came to."""

    id: str = ""
    replicate: int = 0
    phase: str = "search"  # or validation
    share: float = 1.0  # of its steps, to which it was trained; another result follows where that is not all
    run: str = ""  # name of its directory
    status: str = "complete"  # or diverged, stopped, failed
    why: str | None = None
    parameters: int | None = None
    memory_mb: float | None = None

    @property
    def over(self) -> bool:
        """Return whether the training will not go on."""
        return self.share == 1.0 or self.status != "complete"


def row(result: Result) -> dict[str, float | None]:
    """Return the measurements of a training by name."""
    return {name: measured(vars(result), name) for name in MEASURES}


@dataclass
class State:
    """The candidates and results of an experiment. experiment: its first line; None: not begun."""

    experiment: Mapping[str, Any] | None = None
    generations: list[list[str]] = field(default_factory=list)  # ids, in order of birth
    about: list[Mapping[str, Any]] = field(default_factory=list)  # the line of each generation
    born: dict[str, Candidate] = field(default_factory=dict)
    results: dict[tuple[str, str, int], Result] = field(default_factory=dict)  # by id, phase, replicate; the latest
    rungs: dict[tuple[str, int, float], Result] = field(default_factory=dict)  # by id, replicate, share
    reused: dict[str, str] = field(default_factory=dict)  # id → whose results it has
    dropped: dict[str, str] = field(default_factory=dict)  # id → why
    steps: dict[str, int] = field(default_factory=dict)  # id → steps of its trainings, where the budget is in seconds
    finalists: dict[str, str] = field(default_factory=dict)  # role → id
    verdict: Mapping[str, Any] | None = None
    known: dict[str, str] = field(default_factory=dict)  # by `key`, who was born with it first
    starts: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # id → what its birth says, as warm.start
    rows: dict[str, list[float]] = field(default_factory=dict)  # of Experiment.of, by id, until there are more results
    past: int = 0  # generations over, as breeding has seen them; of them are the next two
    within: Box | None = None  # of the first generation that has values
    front: Any = None  # values of those evolved by then that none is better than

    def take(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Take in further lines. Raises UserError for what no journal holds."""
        for entry in entries:
            try:
                _TAKE[entry["kind"]](self, entry)
            except (LookupError, TypeError, msgspec.ValidationError) as error:
                raise UserError(f"the journal is damaged: {entry.get('kind', 'a line')}: {error}") from error

    def start_of(self, id: str) -> str | None:
        """Return the id of whose weights a candidate's trainings in the search begin with; None: with new ones."""
        return self.starts.get(id, {}).get("of")

    def candidate(self, id: str) -> Candidate:
        """Return a candidate with what was measured in the search; without where nothing was yet."""
        born, whose = self.born[id], self.reused.get(id, id)
        found = self.of(whose)
        if not found:
            return born
        return dataclasses.replace(ranking.aggregate(born, found), status=self.status(id),
                                   parameters=found[0].parameters)

    def status(self, id: str) -> str | None:
        """Return how a candidate stands: complete, reused, stopped, diverged or failed; None: not measured yet."""
        whose = self.reused.get(id, id)
        found = self.of(whose)
        if not found:
            return None
        for result in found:
            if result.status != "complete":
                return result.status
        if whose in self.dropped or not found[-1].over:
            return "stopped"
        if any(result.val_loss is None for result in found):
            return "diverged"
        return "complete" if whose == id else "reused"

    def of(self, id: str, phase: str = "search") -> list[Result]:
        """Return a candidate's results, in order of replicate."""
        found: list[Result] = []
        while (result := self.results.get((id, phase, len(found)))) is not None:
            found.append(result)
        return found

    def values(self, id: str, measure: str, phase: str = "search") -> list[float | None]:
        """Return a measurement of each of its trainings."""
        return [measured(vars(r), measure) for r in self.trained(id, phase)]

    def trained(self, id: str, phase: str = "search") -> list[Result]:
        """Return a candidate's results; where it has another's, these. Of finalists with one genome, which began with
        other weights in the search, the first is trained again at the end."""
        if phase == "search":
            return self.of(self.reused.get(id, id))
        alike = (one for one in self.finalists.values() if key(self.born[one]) == key(self.born[id]))
        return self.of(next(alike, id), phase)

    def measured(self, id: str) -> dict[str, float | None]:
        """Return the mean of each measurement over its trainings; None where one is missing."""
        found = [row(result) for result in self.trained(id)]
        return {name: mean([measures[name] for measures in found]) for name in MEASURES}


def key(candidate: Candidate, of: str | None = None) -> str:
    """Return a text that is equal for candidates whose trainings would be the same: those of one genome which begin
    with new weights, or with those of the same candidate, `of`."""
    return births.genome_key(candidate) + (f"\n{of}" if of else "")


def mean(values: list[float | None]) -> float | None:
    """Return the mean; None of none, and where a value is missing."""
    if len(values) == 1:  # nearly always, and fmean takes long
        return None if (x := values[0]) is None or not math.isfinite(x) else float(x)
    known = [x for x in values if x is not None and math.isfinite(x)]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _experiment(state: State, entry: Mapping[str, Any]) -> None:
    if state.experiment is not None:
        raise TypeError("there are two experiments in it")
    state.experiment = entry


def _generation(state: State, entry: Mapping[str, Any]) -> None:
    state.generations.append([])
    state.about.append(entry)


def _birth(state: State, entry: Mapping[str, Any]) -> None:
    born = msgspec.convert({name: entry[name] for name in BORN if name in entry}, Candidate)
    if born.id in state.born:
        raise TypeError(f"{born.id} is born twice")
    state.born[born.id] = born
    if start := entry.get("start"):
        state.starts[born.id] = start
        if start["of"] is not None and state.status(start["of"]) != "complete":
            raise TypeError(f"{born.id} begins with the weights of {start['of']}, who has no result")
    state.known.setdefault(key(born, state.start_of(born.id)), born.id)
    state.generations[born.generation].append(born.id)


def _result(state: State, entry: Mapping[str, Any]) -> None:
    result = msgspec.convert({k: v for k, v in entry.items() if k != "kind"}, Result)
    if result.id not in state.born:
        raise LookupError(f"{result.id} was not born")
    state.results[result.id, result.phase, result.replicate] = result
    state.rows.pop(result.id, None)
    if result.phase == "search":
        state.rungs[result.id, result.replicate, result.share] = result


def _dropped(state: State, entry: Mapping[str, Any]) -> None:
    state.dropped[entry["id"]] = entry["why"]
    state.rows.pop(entry["id"], None)


_TAKE = {
    "experiment": _experiment, "generation": _generation, "birth": _birth, "result": _result,
    "reused": lambda state, entry: state.reused.update({entry["id"]: entry["of"]}),
    "dropped": _dropped,
    "speed": lambda state, entry: state.steps.update({entry["id"]: entry["steps"]}),
    "finalists": lambda state, entry: state.finalists.update(entry["roles"]),
    "end": lambda state, entry: setattr(state, "verdict", entry["verdict"]),
}
