"""Children that begin with the last weights of their parents: which do, and how much has been read before them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from helios.errors import UserError
from helios.train import morph
from helios.train.checkpoint import path_of
from helios.train.evolve.experiment import Experiment
from helios.train.evolve.space import ACTIVATION, configured
from helios.train.evolve.state import State
from helios.train.records.journal import RUNS
from helios.train.search.births import Candidate

FRESH = "fresh"  # what begins with new weights


class Origin(NamedTuple):
    """What a training begins with. place: a checkpoint's, in the experiment's directory. tokens, batches: that were
    read before it by those whose weights it inherits, each once."""

    of: str  # id of the candidate
    place: str
    tokens: int
    batches: int


def start(experiment: Experiment, state: State, child: Candidate) -> dict[str, Any] | None:
    """Return what the birth of a candidate says of how its trainings in the search begin: `how`, `of`, the id of whose
    weights it has, and where it has none, `why`; None where nothing else than new weights is asked for."""
    how, base = experiment.asked.evolve.warm_start, experiment.asked.base
    if how == FRESH or child.parent_id is None:
        return None
    of = state.reused.get(child.parent_id, child.parent_id)
    fresh = lambda why: {"how": FRESH, "of": None, "why": why}
    if state.status(of) != "complete":
        return fresh(f"{of} came to no result")
    was, now = (configured(base, c.genome).model for c in (state.born[of], child))
    try:
        morph.check(was, now, how)
    except UserError as error:
        return fresh(str(error).removeprefix(f"--morph {how}: ").partition("; ")[0])
    return {"how": how, "of": of, "why": None}


def told(experiment: Experiment) -> Iterator[str]:
    """Yield in words with which weights children begin, where that is with other than new ones."""
    how, base, space = experiment.asked.evolve.warm_start, experiment.asked.base, experiment.space
    if how == FRESH:
        return

    def refused(text: str, **settings: Any) -> bool:
        try:
            morph.check(base.model, configured(base, space.genome(text, {**space.own, **settings})).model, how)
        except UserError:
            return True
        return False

    names = [one.name for one in space.genes
             if any(refused(space.activation, **dict(zip(one.settings, value, strict=True)))
                    for value in ((one.at(0.0), one.at(1.0)) if one.numeric else one.values))]
    names += [ACTIVATION] * any(refused(text) for text in space.pool)
    fresh = f"; those of other shapes, by {' or '.join(names)}, with new ones" if names else ""
    yield f"children begin with the weights of their parents, --warm-start {how}{fresh}"


def origin(experiment: Experiment, state: State, id: str, replicate: int) -> Origin | None:
    """Return what that training of a candidate in the search begins with; None: new weights."""
    if (of := state.start_of(id)) is None:
        return None
    last = state.results[of, "search", replicate]
    place = str(path_of(Path(RUNS, last.run), last.steps))
    tokens = batches = 0
    at: str | None = of
    while at is not None:
        result = state.results[at, "search", replicate]
        tokens += result.tokens
        batches += result.steps * state.born[at].settings.get("accum", experiment.asked.base.train.accum)
        at = state.start_of(at)
    return Origin(of, place, tokens, batches)


def read_before(experiment: Experiment, state: State, id: str) -> int:
    """Return the tokens that were read by those whose weights a candidate inherits, in a replicate; 0: it has none."""
    whose = state.reused.get(id, id)
    found = origin(experiment, state, whose, 0)
    return found.tokens if found else 0
