"""The trainings that an experiment asks for: which, how long, and who is not trained any further."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple

from helios.train.config import Config
from helios.train.evolve import warm
from helios.train.evolve.experiment import Experiment
from helios.train.evolve.journal import Entry
from helios.train.evolve.space import configured
from helios.train.evolve.state import Result, State
from helios.train.evolve.stops import StopsConfig
from helios.train.search import statistics
from helios.train.search.births import Candidate

SPEED_STEPS = 12  # of the training that tells how many steps a budget of seconds is
FRESH = 1_000_000  # distance of the seeds of a validation from those of the search
SEEDS = 2 * FRESH  # those of an experiment, from its own on


class Job(NamedTuple):
    """A training to make. name: of its run directory. share: of its steps, to which it is to be trained. about: what
    config.json says of its descent. inherited, batches: tokens and batches that were read before by those whose weights
    it begins with; config.train.init_from is their checkpoint, which the driver makes an absolute path."""

    name: str
    config: Config
    about: Mapping[str, Any]
    share: float
    id: str
    replicate: int
    phase: str  # search, validation or speed
    stops: StopsConfig
    inherited: int = 0
    batches: int = 0


Results = Generator[tuple[int, Result], None, None]  # of jobs, each with its position, in any order


def rounds(experiment: Experiment) -> list[statistics.Rung]:
    """Return in what steps the candidates of a generation are trained."""
    evolve = experiment.asked.evolve
    if evolve.halving:
        return list(statistics.rungs(replicates=evolve.replicates))
    return [statistics.Rung(r + 1, 1.0) for r in range(evolve.replicates)]


def due(experiment: Experiment, state: State) -> list[Entry] | list[Job]:
    """Return the trainings of the present generation's next round, or who is dropped after one."""
    ids = [id for id in state.generations[-1] if id not in state.reused]
    if experiment.asked.evolve.budget == "seconds" and (new := [id for id in ids if id not in state.steps]):
        return [job(experiment, state, id, 0, 1.0, "speed") for id in new]
    plan = rounds(experiment)
    for i, rung in enumerate(plan):
        waiting = [id for id in ids if _due(state, id, rung)]
        if waiting:
            return [job(experiment, state, id, rung.replicates - 1, rung.share, "search") for id in waiting]
        if experiment.asked.evolve.halving and i + 1 < len(plan) and (lines := _dropped(experiment, state, plan, i)):
            return lines
    return []


def _due(state: State, id: str, rung: statistics.Rung) -> bool:
    """Return whether a candidate is still to be trained up to a rung."""
    if id in state.dropped:
        return False
    found = state.of(id)
    if any(r.status != "complete" for r in found):
        return False
    if len(found) < rung.replicates:
        return True
    result = found[rung.replicates - 1]
    return result.share < rung.share


def _dropped(experiment: Experiment, state: State, plan: Sequence[statistics.Rung], at: int) -> list[Entry]:
    """Return who is dropped after a rung, of those that were not yet. Evolved and random candidates are judged among
    themselves, so that each arm has a best one, and the preset is never dropped, for all is compared with it."""
    evolve, last = experiment.asked.evolve, len(state.generations) - 1
    random = lambda id: state.born[id].arm == "random"
    row = lambda id, until: _row(experiment, state, id, plan[:until])
    earlier = [row(id, len(plan)) for ids in state.generations[:last] for id in ids if id not in state.reused]
    lines = list[Entry]()
    for control in (False, True):
        ids = [id for id in state.generations[-1] if id not in state.reused and random(id) == control]
        found = statistics.drop([row(id, at + 1) for id in ids], earlier, plan, evolve.generations, evolve.halving,
                                among="random one " if control else "evolved one ")
        lines += [{"kind": "dropped", "id": ids[i], "generation": last, "why": why} for i, why in sorted(found.items())
                  if ids[i] not in state.dropped and state.born[ids[i]].arm != "preset"]
    return lines


def _row(experiment: Experiment, state: State, id: str, plan: Sequence[statistics.Rung]) -> list[float | None]:
    """Return a candidate's first objective at each rung that it came to."""
    row: list[float | None] = []
    for rung in plan:
        result = state.rungs.get((id, rung.replicates - 1, rung.share))
        if result is None:
            break
        row.append(experiment.value(result))
    return row


def steps_of(experiment: Experiment, state: State, id: str, factor: float = 1.0) -> int:
    """Return how many whole steps are in a candidate's budget, at least one."""
    evolve, base = experiment.asked.evolve, experiment.asked.base
    if evolve.budget == "seconds":
        return max(1, int(state.steps[id] * factor))
    own = state.born[id].settings
    step = math.prod(own.get(key, getattr(section, key)) for section, key in (
        (base.train, "batch_size"), (base.train, "accum"), (base.model, "block_size")))
    return max(1, int(evolve.per_candidate * factor / step))


def _evaluations(experiment: Experiment, candidate: Candidate, steps: int, phase: str) -> dict[str, int]:
    """Return the settings of a training's evaluations: as many of them, and of the same texts, whatever its batch; with
    another block_size, of as much text."""
    base, evolve = experiment.asked.base, experiment.asked.evolve
    length = candidate.settings.get("block_size", base.model.block_size)
    return {"eval_batch": base.eval_batch,
            "eval_iters": math.ceil(base.train.eval_iters * base.model.block_size / length),
            "eval_interval": steps if phase == "speed" else math.ceil(steps / evolve.evaluations)}


def job(experiment: Experiment, state: State, id: str, replicate: int, share: float, phase: str) -> Job:
    """Return a training of a candidate."""
    evolve, c = experiment.asked.evolve, state.born[id]
    seed = experiment.seed + replicate + (FRESH if phase == "validation" else 0)
    steps = SPEED_STEPS if phase == "speed" else steps_of(
        experiment, state, id, evolve.validation_factor if phase == "validation" else 1.0)
    origin = warm.origin(experiment, state, id, replicate) if phase == "search" else None
    config = configured(experiment.asked.base, c.genome, seed=seed, steps=steps,
                        **_evaluations(experiment, c, steps, phase),
                        **({"init_from": origin.place, "morph": evolve.warm_start} if origin else {}))
    name = f"{id}.{'speed' if phase == 'speed' else f'{phase[0]}{replicate}'}"
    about = {"experiment": experiment.id, "id": id, "name": c.name, "arm": c.arm, "generation": c.generation,
             "parents": c.parents, "operator": c.operator, "mutation": c.mutation, "replicate": replicate,
             "phase": phase, "warm_start": evolve.warm_start if origin else warm.FRESH}
    if origin:
        about["init"] = origin._asdict()
    elif phase == "search" and id in state.starts:
        about["init"] = dict(state.starts[id])
    return Job(name, config, about, share, id, replicate, phase, experiment.asked.stops,
               *((origin.tokens, origin.batches) if origin else ()))
