"""What an experiment does next: a pure function of what was asked and of its journal."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from helios.train.config import Config
from helios.train.evolve.config import Asked
from helios.train.evolve.journal import VERSION
from helios.train.evolve.space import configured, described, given
from helios.train.evolve.state import BORN, MEASURES, State
from helios.train.search import births, operators, selection, statistics
from helios.train.search.births import Candidate
from helios.train.search.operators import Genome, Space

SPEED_STEPS = 12  # of the training that tells how many steps a budget of seconds is
FRESH = 1_000_000  # distance of the seeds of a validation from those of the search
RANDOM_STREAM = 10_000_000  # added to the position of a random candidate's draws, apart from children's
Entry = Mapping[str, Any]


class Job(NamedTuple):
    """A training to make. name: of its run directory. share: of its steps, to which it is to be trained. about: what
    config.json says of its descent."""

    name: str
    config: Config
    about: Mapping[str, Any]
    share: float
    id: str
    replicate: int
    phase: str  # search, validation or speed


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What was asked for, and what follows from it. score: the value of a candidate by its measurements, more being
    better, where a fitness is asked for."""

    asked: Asked
    space: Space
    id: str
    score: Callable[[Mapping[str, float | None]], float | None] | None = None

    @property
    def seed(self) -> int:
        return self.asked.base.train.seed

    @property
    def objectives(self) -> tuple[str, ...]:
        """Return the names of what candidates are chosen by."""
        return ("fitness",) if self.score else selection.parse_objectives(self.asked.evolve.objectives)

    def values(self, measured: Sequence[Mapping[str, float | None]], statuses: Sequence[str | None]) -> np.ndarray:
        """Return what candidates are chosen by [N, M], lower being better, NaN where they are out of the running."""
        if not self.score:
            return selection.objective_values(measured, statuses, self.objectives)
        given = [self.score(m) if status in selection.MEASURED else None
                 for m, status in zip(measured, statuses, strict=True)]
        return np.array([[math.nan if x is None or not math.isfinite(x) else -x] for x in given])

    def of(self, state: State, ids: Sequence[str]) -> np.ndarray:
        """Return the same of the candidates with these ids."""
        return self.values([state.measured(id) for id in ids], [state.candidate(id).status for id in ids])

    def replicates(self, state: State, id: str, phase: str = "search") -> list[float | None]:
        """Return the first objective, lower being better, of each training of a candidate."""
        found = state.of(state.reused.get(id, id) if phase == "search" else id, phase)
        rows = [{name: measure(r) for name, measure in MEASURES.items()} for r in found]
        values = self.values(rows, [r.status for r in found])[:, 0] if found else []
        return [None if math.isnan(x) else float(x) for x in values]


def next_move(experiment: Experiment, state: State) -> list[Entry] | list[Job]:
    """Return lines to write to the journal, or else trainings to make; neither where the experiment is over."""
    evolve = experiment.asked.evolve
    if state.experiment is None:
        return [first_line(experiment)]
    if state.verdict is not None:
        return []
    if not state.generations:
        return first_generation(experiment)
    if moves := _trainings(experiment, state):
        return moves
    if len(state.generations) < evolve.generations and (lines := following_generation(experiment, state)):
        return lines
    if not state.finalists and (roles := finalists(experiment, state)):
        return [{"kind": "finalists", "roles": roles}]
    if jobs := _validations(experiment, state):
        return jobs
    return [{"kind": "end", "verdict": verdict(experiment, state)}]


def first_line(experiment: Experiment) -> Entry:
    """Return the line that says what the journal is of."""
    return {"kind": "experiment", "version": VERSION, "id": experiment.id, "seed": experiment.seed,
            **experiment.asked.to_dict(), "genes": [described(one) for one in experiment.space.genes],
            "objectives": list(experiment.objectives)}


# -- births -----------------------------------------------------------------------------------------------------------

def first_generation(experiment: Experiment) -> list[Entry]:
    """Return the lines of generation 0: the untouched preset, population_size founders, and as many random candidates.
    Founders are the preset with the other activations of the pool, then, in turn, the preset mutated and random ones.
    """
    space, seed, size = experiment.space, experiment.seed, experiment.asked.evolve.population_size
    own = Genome(space.activation)
    found = [dataclasses.replace(births.founder(own, 0, 0, seed), arm="preset", operator="preset")]
    known = [*given(experiment.asked, space), *(Genome(text) for text in space.pool)]
    unlike = {operators.key(genome): genome for genome in known}
    unlike.pop(operators.key(own), None)
    first = list(unlike.values())[:size]
    for i in range(size):
        numbers, mutation = births.draws(seed, 0, i), None
        if i < len(first):
            genome, operator = first[i], "given"
        elif (i - len(first)) % 2:
            genome, operator = operators.drawn(space, numbers), "random"
        else:
            genome, words, _ = operators.mutated(space, own, numbers)
            operator, mutation = "mutation", "; ".join(words)
        found.append(dataclasses.replace(births.founder(genome, len(found), 0, seed, operator), mutation=mutation))
    return _generation(experiment, found, 0, size, "as asked")


def following_generation(experiment: Experiment, state: State) -> list[Entry]:
    """Return the lines of the next generation; none where the budget does not suffice for it."""
    evolve, space, seed = experiment.asked.evolve, experiment.space, experiment.seed
    number = len(state.generations)
    size = _size(experiment, state)
    if not _affordable(experiment, state, size.size):
        return []
    ids = [id for generation in state.generations[-2:] for id in generation if state.born[id].arm != "random"]
    ids = [*_parents_before(state), *(id for id in ids if id in state.generations[-1])]
    ids = list(dict.fromkeys(ids if evolve.elitism else ids[-len(state.generations[-1]):]))
    values = experiment.of(state, ids)
    order = selection.best_first(values, [state.born[id].bonus for id in ids])
    best_first = [state.candidate(ids[i]) for i in order if np.isfinite(values[i]).all()] or [
        state.candidate(ids[i]) for i in order]
    count = min(math.ceil(size.size / 2), len(best_first))
    parents = best_first[:count] if evolve.selection == "topk" else births.tournaments(
        best_first, count, evolve.tournament_size, number, seed)
    living = [state.born[id] for id in ids]
    breed = births.bred(space, evolve)
    made = births.children(parents, living, size.size, len(state.born), number, seed, 0.0, lambda parent, others, taken, i:
                           breed(parent, others, taken, births.draws(seed, number, i)))
    decayed = evolve.diversity_bonus * births.DECAYS[evolve.diversity_decay](number / evolve.generations)
    novel = selection.novelty([_places(space, c) for c in made], [_places(space, c) for c in living], _genes(space))
    made = [dataclasses.replace(c, bonus=round(decayed * float(x), 6)) for c, x in zip(made, novel, strict=True)]
    return _generation(experiment, made, number, size.size, size.why, state)


def _generation(experiment: Experiment, found: list[Candidate], number: int, size: int, why: str,
                state: State | None = None) -> list[Entry]:
    """Return the lines of a generation with these candidates, and as many random ones."""
    seed, before = experiment.seed, len(state.born) if state else 0
    if experiment.asked.evolve.random_control:
        for i in range(size):
            genome = operators.drawn(experiment.space, births.draws(seed, number, RANDOM_STREAM + i))
            found.append(dataclasses.replace(births.founder(genome, before + len(found), number, seed, "random"),
                                             arm="random"))
    lines: list[Entry] = [{"kind": "generation", "generation": number, "size": size, "why": why,
                           "hypervolume": state and _history(experiment, state)[-1][1]}]
    known = {births.genome_key(c): id for id, c in (state.born if state else {}).items() if id not in state.reused} \
        if state else {}
    for c in found:
        parent = state.born[c.parent_id] if state and c.parent_id else None
        before_ = parent.genome if parent else Genome(experiment.space.activation)
        lines.append({"kind": "birth", **{name: getattr(c, name) for name in BORN},
                      "difference": _difference(experiment.space, before_, c.genome)})
        if (key := births.genome_key(c)) in known:
            lines.append({"kind": "reused", "id": c.id, "of": known[key]})
        else:
            known[key] = c.id
    return lines


def _difference(space: Space, before: Genome, now: Genome) -> dict[str, list[Any]]:
    """Return what differs from a genome, by setting: its value there and here."""
    both = [{"activation": genome.activation, **space.values(genome)} for genome in (before, now)]
    return {key: [was, both[1][key]] for key, was in both[0].items() if was != both[1][key]}


def _parents_before(state: State) -> list[str]:
    """Return the ids of the parents of the last generation."""
    return [parent for id in state.generations[-1] if (parent := state.born[id].parent_id)]


class _Placed(NamedTuple):
    name: str
    part: str
    place: Callable[[Any], float | None]


def _genes(space: Space) -> list[_Placed]:
    found = [_Placed(one.name, one.part, one.place) for one in space.genes]
    return [*found, *[_Placed("activation", "architecture", lambda value: None)][:len(space.pool)]]


def _places(space: Space, candidate: Candidate) -> dict[str, Any]:
    values = space.values(candidate.genome)
    return {"activation": births.genome_key(dataclasses.replace(candidate, settings={}))} | {
        one.name: one.of(values) for one in space.genes}


def _history(experiment: Experiment, state: State) -> list[tuple[int, float | None]]:
    """Return for each generation its size, and what is to grow: the hypervolume of all evolved so far."""
    history: list[tuple[int, float | None]] = []
    within, ids = None, list[str]()
    for generation, about in zip(state.generations, state.about, strict=True):
        ids += [id for id in generation if state.born[id].arm != "random"]
        values = experiment.of(state, ids)
        within = within or selection.box(values)
        history.append((about["size"], within and selection.hypervolume(values, within)))
    return history


def _size(experiment: Experiment, state: State) -> selection.Size:
    least, most = experiment.asked.evolve.bounds
    if least == most:
        return selection.Size(least, "as asked")
    return selection.next_size(_history(experiment, state), least, most)


# -- trainings --------------------------------------------------------------------------------------------------------

def rounds(experiment: Experiment) -> list[statistics.Rung]:
    """Return in what steps the candidates of a generation are trained."""
    evolve = experiment.asked.evolve
    if evolve.halving:
        return list(statistics.rungs(replicates=evolve.replicates))
    return [statistics.Rung(r + 1, 1.0) for r in range(evolve.replicates)]


def _trainings(experiment: Experiment, state: State) -> list[Entry] | list[Job]:
    """Return the trainings of the present generation's next round, or who is dropped after one."""
    ids = [id for id in state.generations[-1] if id not in state.reused]
    if experiment.asked.evolve.budget == "seconds" and (new := [id for id in ids if id not in state.steps]):
        return [_job(experiment, state, id, 0, 1.0, "speed") for id in new]
    plan = rounds(experiment)
    for i, rung in enumerate(plan):
        due = [id for id in ids if _due(state, id, rung)]
        if due:
            return [_job(experiment, state, id, rung.replicates - 1, rung.share, "search") for id in due]
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
    """Return who is dropped after a rung, of those that were not yet."""
    ids = [id for id in state.generations[-1] if id not in state.reused]
    last = len(state.generations) - 1
    row = lambda id, until: _row(experiment, state, id, plan[:until])
    earlier = [row(id, len(plan)) for generation in state.generations[:last] for id in generation
               if id not in state.reused]
    evolve = experiment.asked.evolve
    found = statistics.drop([row(id, at + 1) for id in ids], earlier, plan, evolve.generations, evolve.halving)
    return [{"kind": "dropped", "id": ids[i], "generation": last, "why": why}
            for i, why in sorted(found.items()) if ids[i] not in state.dropped]


def _row(experiment: Experiment, state: State, id: str, plan: Sequence[statistics.Rung]) -> list[float | None]:
    """Return a candidate's first objective at each rung that it came to."""
    row: list[float | None] = []
    for rung in plan:
        result = state.rungs.get((id, rung.replicates - 1, rung.share))
        if result is None:
            break
        value = experiment.values([{name: measure(result) for name, measure in MEASURES.items()}], [result.status])[0, 0]
        row.append(None if math.isnan(value) else float(value))
    return row


def steps_of(experiment: Experiment, state: State, id: str, config: Config, factor: float = 1.0) -> int:
    """Return how many steps a candidate's budget comes to, at least one."""
    evolve = experiment.asked.evolve
    if evolve.budget == "seconds":
        return max(1, round(state.steps[id] * factor))
    t = config.train
    return max(1, round(evolve.per_candidate * factor / (t.batch_size * t.accum * config.model.block_size)))


def _job(experiment: Experiment, state: State, id: str, replicate: int, share: float, phase: str) -> Job:
    evolve, c = experiment.asked.evolve, state.born[id]
    seed = experiment.seed + replicate + (FRESH if phase == "validation" else 0)
    config = configured(experiment.asked.base, c.genome, seed=seed)
    steps = SPEED_STEPS if phase == "speed" else steps_of(
        experiment, state, id, config, evolve.validation_factor if phase == "validation" else 1.0)
    config = config.replaced("train", steps=steps, eval_interval=max(1, steps // evolve.evaluations))
    name = f"{id}.{'speed' if phase == 'speed' else f'{phase[0]}{replicate}'}"
    about = {"experiment": experiment.id, "id": id, "name": c.name, "arm": c.arm, "generation": c.generation,
             "parents": c.parents, "operator": c.operator, "mutation": c.mutation, "replicate": replicate,
             "phase": phase, "warm_start": evolve.warm_start}
    return Job(name, config, about, share, id, replicate, phase)


# -- the end ----------------------------------------------------------------------------------------------------------

def finalists(experiment: Experiment, state: State) -> dict[str, str]:
    """Return by role (evolved, random, preset) the best candidate of each arm, by the first objective."""
    found: dict[str, str] = {}
    for role in ("evolved", "random", "preset"):
        ids = [id for id, c in state.born.items() if c.arm == role or (role == "evolved" and c.arm == "preset")]
        values = experiment.of(state, ids)[:, 0] if ids else np.zeros(0)
        if len(ids) and np.isfinite(values).any():
            found[role] = state.reused.get(ids[int(np.nanargmin(values))], ids[int(np.nanargmin(values))])
    return found


def _validations(experiment: Experiment, state: State) -> list[Job]:
    """Return the trainings of the finalists on fresh seeds that are still to make, each finalist once."""
    count = experiment.asked.evolve.validation_replicates
    ids = list(dict.fromkeys(state.finalists.values())) if "evolved" in state.finalists else []
    done = lambda id, r: (id, "validation", r) in state.results
    return [_job(experiment, state, id, r, 1.0, "validation") for r in range(count) for id in ids if not done(id, r)]


def verdict(experiment: Experiment, state: State) -> dict[str, Any]:
    """Return what the experiment has shown, as plain values; `sentences` say it."""
    roles = state.finalists
    if "evolved" not in roles:
        return {"better": False, "winner": None, "sentences": ["no candidate has a value to be chosen by"]}
    name = state.born[roles["evolved"]].name
    if not experiment.asked.evolve.validation_replicates:
        return {"better": False, "winner": roles["evolved"],
                "sentences": [f"{name} came first; without trainings on fresh seeds nothing is called better"]}
    values = {role: experiment.replicates(state, id, "validation") for role, id in roles.items()}
    found = statistics.verdict(values, {role: births.genome_key(state.born[id]) for role, id in roles.items()},
                               unit="nats" if "loss" in experiment.objectives[0] else experiment.objectives[0])
    return {"better": found.better, "winner": roles["evolved"], "roles": roles, "values": values,
            "comparisons": [dataclasses.asdict(c) for c in found.comparisons],
            "sentences": [f"{name} is {c.sentence}" for c in found.comparisons]}


# -- cost -------------------------------------------------------------------------------------------------------------

def trainings_of(experiment: Experiment, size: int) -> int:
    """Return how many trainings a generation of that size comes to at most, the controls included."""
    evolve = experiment.asked.evolve
    return size * (2 if evolve.random_control else 1) * evolve.replicates


def cost(experiment: Experiment, generations: int | None = None) -> float:
    """Return the most tokens or seconds that so many generations may use, and the trainings at the end."""
    evolve = experiment.asked.evolve
    _, most = evolve.bounds
    count = evolve.generations if generations is None else generations
    sizes = [evolve.population_size, *[most] * (count - 1)]
    searched = evolve.replicates + sum(trainings_of(experiment, size) for size in sizes)
    return evolve.per_candidate * searched + _validation_cost(experiment)


def _validation_cost(experiment: Experiment) -> float:
    evolve = experiment.asked.evolve
    roles = 3 if evolve.random_control else 2
    return evolve.per_candidate * evolve.validation_factor * evolve.validation_replicates * roles


def spent(experiment: Experiment, state: State) -> float:
    """Return the tokens or seconds that all trainings so far have used."""
    seconds = experiment.asked.evolve.budget == "seconds"
    return float(sum(r.seconds if seconds else r.tokens for r in state.results.values()))


def _affordable(experiment: Experiment, state: State, size: int) -> bool:
    """Return whether what is left of the total suffices for a generation of that size, and for the end."""
    evolve = experiment.asked.evolve
    if evolve.total is None:
        return True
    next_one = evolve.per_candidate * trainings_of(experiment, size)
    return spent(experiment, state) + next_one + _validation_cost(experiment) <= evolve.total
