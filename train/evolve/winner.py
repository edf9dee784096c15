"""winner.toml: the settings of an experiment's winner, for runs of one's own."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

from helios.model.settings import declared
from helios.train.config import SECTIONS as ALL
from helios.train.config import Config
from helios.train.evolve.experiment import Experiment
from helios.train.evolve.space import SECTIONS, configured
from helios.train.evolve.state import State
from helios.train.evolve.terms import count, other
from helios.train.markdown import plain
from helios.train.search import operators

FILE = "winner.toml"


def text(experiment: Experiment, state: State, winner: str) -> str:
    """Return the file: in comments whose settings it holds and what was shown of them, then all settings of the model,
    the training and the monitors that are not as by default. Steps, evaluations and the seed are the base run's."""
    config = configured(experiment.asked.base, state.born[winner].genome)
    lines = [f"# {plain(line)}" for line in _head(experiment, state, winner)]
    for section in SECTIONS:
        found = [f"{key} = {json.dumps(x, ensure_ascii=False)}" for key, x in other(getattr(config, section)).items()]
        lines += ["", f"[{section}]", *found] if found else []
    return "\n".join(lines) + "\n"


def _head(experiment: Experiment, state: State, winner: str) -> Iterator[str]:
    evolve, c = experiment.asked.evolve, state.born[winner]
    verdict = state.verdict or {}
    yield f"{c.name} ({winner}), winner of the experiment {experiment.id}, for helios-train --config {FILE}."
    yield f"Its line: {' -> '.join(step(state, id) for id in line(state, winner))}."
    yield ("It is better than the preset:" if verdict.get("better") else
           "It was not shown to be better than the preset:")
    yield from (f"- {sentence}" for sentence in verdict.get("sentences", ()))
    yield fresh(experiment)
    yield (f"Candidates were trained with {evolve.per_candidate:,.10g} {evolve.budget}. The steps below, or those by "
           f"default, are the base run's: {experiment.asked.base.train.steps:,}.")


def fresh(experiment: Experiment) -> str:
    """Return in a sentence how the finalists were trained again."""
    evolve = experiment.asked.evolve
    if not (n := evolve.validation_replicates):
        return "The finalists were not trained again on fresh seeds, so that nothing may be called better."
    return (f"This was measured on {count(n, 'fresh seed')}, in trainings of "
            f"{evolve.per_candidate * evolve.validation_factor:,.10g} {evolve.budget} each.")


def line(state: State, id: str) -> list[str]:
    """Return a candidate's ancestors by first parents, the eldest first, and itself."""
    found = [id]
    while (parent := state.born[found[-1]].parent_id) is not None:
        found.append(parent)
    return found[::-1]


def ancestors(state: State, id: str) -> set[str]:
    """Return a candidate and all it comes from, by any parent."""
    found, left = set[str](), [id]
    while left:
        if (one := left.pop()) not in found:
            found.add(one)
            left += state.born[one].parents
    return found


def step(state: State, id: str) -> str:
    """Return a candidate's id, how it was born, and what changed then."""
    c = state.born[id]
    told = "; ".join(filter(None, (c.operator, c.mutation)))
    return f"{id} ({told})" if told else id


def differs(experiment: Experiment, state: State, id: str) -> str:
    """Return in short what a candidate has other than the preset."""
    c = state.born[id]
    other = operators.shown(c.settings)
    return ", ".join(filter(None, (c.activation * (c.activation != experiment.space.activation), other))) or "nothing"


def flag(folder: Path) -> str:
    """Return the flag that gives a run the winner's settings."""
    return f"--config {shlex.quote(str(folder / FILE))}"


def command(start: str, base: Config) -> str:
    """Return the command that trains with these flags on the texts of the experiment."""
    flags = [start]
    for s in declared(ALL["data"]):
        value = getattr(base.data, s.key)
        if s.flag and value != s.default:
            flags += [f"--{s.flag} {shlex.quote(one)}" for one in ([value] if isinstance(value, str) else value)]
    return f"helios-train {' '.join(flags)}"
