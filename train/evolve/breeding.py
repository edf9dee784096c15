"""The generations of an experiment: who has children, and who is born."""

from __future__ import annotations

import dataclasses
import math
from collections import ChainMap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from helios.train.evolve import cost, warm
from helios.train.evolve.experiment import Experiment
from helios.train.evolve.journal import Entry
from helios.train.evolve.space import given
from helios.train.evolve.state import BORN, State, key
from helios.train.search import births, operators, selection
from helios.train.search.births import Candidate
from helios.train.search.operators import Genome, Space

RANDOM = 10_000_000  # added to the position of a random candidate's draws, apart from those of children


def first_generation(experiment: Experiment, state: State) -> list[Entry]:
    """Return the lines of generation 0: the untouched preset, population_size founders, and as many random candidates.
    Founders are the preset with the other activations of the pool, then, in turn, the preset mutated and random ones.
    """
    space, seed, size = experiment.space, experiment.seed, experiment.asked.evolve.population_size
    own = Genome(space.activation)
    found = [births.founder(own, 0, 0, seed, "preset", arm="preset")]
    known = [*given(experiment.asked, space), *(Genome(text) for text in space.pool)]
    unlike = {operators.key(genome): genome for genome in known}
    unlike.pop(operators.key(own), None)
    first = list(unlike.values())[:size]
    for i in range(size):
        numbers, mutation = births.draws(seed, 0, i), None
        if i < len(first):
            genome, operator = first[i], "given"
        elif (i - len(first)) % 2:
            genome, operator = operators.drawn(space, numbers), "drawn"
        else:
            genome, words, _ = operators.mutated(space, own, numbers)
            operator, mutation = "mutation", "; ".join(words)
        found.append(births.founder(genome, len(found), 0, seed, operator, mutation=mutation))
    return _generation(experiment, state, found, size, "as asked")


def following_generation(experiment: Experiment, state: State) -> list[Entry]:
    """Return the lines of the next generation; none where the budget does not suffice for it."""
    evolve, space, seed = experiment.asked.evolve, experiment.space, experiment.seed
    number = len(state.generations)
    so_far = history(experiment, state)
    size = _size(experiment, so_far)
    if not cost.affordable(experiment, state, size.size):
        return []
    last = [id for id in state.generations[-1] if state.born[id].arm != "random"]
    parents_before = [parent for id in last if (parent := state.born[id].parent_id)]
    ids = list(dict.fromkeys([*parents_before, *last] if evolve.elitism else last))
    if not np.isfinite(values := experiment.of(state, ids)).all(axis=1).any():  # then of all generations
        ids = [id for id, c in state.born.items() if c.arm != "random"]
        values = experiment.of(state, ids)
    order = selection.best_first(values, [state.born[id].bonus for id in ids])
    best_first = [state.born[ids[i]] for i in order if np.isfinite(values[i]).all()]
    if not best_first:
        genomes = [operators.drawn(space, births.draws(seed, number, i)) for i in range(size.size)]
        made = [births.founder(genome, len(state.born) + i, number, seed, "drawn") for i, genome in enumerate(genomes)]
        return _generation(experiment, state, made, size.size, size.why, so_far[-1][1])
    count = min(math.ceil(size.size / 2), len(best_first))
    parents = best_first[:count] if evolve.selection == "topk" else births.tournaments(
        best_first, count, evolve.tournament_size, number, seed)
    living = [state.born[id] for id in ids]
    breed = births.bred(space, evolve)
    made = births.children(parents, living, size.size, len(state.born), number, seed, 0.0,
                           lambda parent, others, taken, i: breed(
                               parent, others, taken, births.draws(seed, number, i)))
    decayed = evolve.diversity_bonus * births.DECAYS[evolve.diversity_decay](number / evolve.generations)
    if decayed:
        novel = selection.novelty([_places(space, c) for c in made], [_places(space, c) for c in living], _genes(space))
        made = [dataclasses.replace(c, bonus=round(decayed * float(x), 6)) for c, x in zip(made, novel, strict=True)]
    return _generation(experiment, state, made, size.size, size.why, so_far[-1][1])


def _generation(experiment: Experiment, state: State, found: list[Candidate], size: int, why: str,
                hypervolume: float | None = None) -> list[Entry]:
    """Return the lines of the next generation with these candidates, and as many random ones. hypervolume: before it.
    """
    seed, number, before = experiment.seed, len(state.generations), len(state.born)
    if experiment.asked.evolve.random_control:
        for i in range(size):
            genome = operators.drawn(experiment.space, births.draws(seed, number, RANDOM + i))
            found.append(births.founder(genome, before + len(found), number, seed, "random", arm="random"))
    lines = list[Entry]()
    known = ChainMap[str, str]({}, state.known)
    for c in found:
        origin = state.born[c.parent_id].genome if c.parent_id else Genome(experiment.space.activation)
        start = warm.start(experiment, state, c)
        begins = {"start": start} if start else {}
        lines.append({"kind": "birth", **{name: getattr(c, name) for name in BORN},
                      "difference": _difference(experiment.space, origin, c.genome), **begins})
        if (same := key(c, start["of"] if start else None)) in known:
            lines.append({"kind": "reused", "id": c.id, "of": known[same]})
        else:
            known[same] = c.id
    return [{"kind": "generation", "generation": number, "size": size, "why": why, "lines": len(lines),
             "hypervolume": hypervolume}, *lines]


def _difference(space: Space, before: Genome, now: Genome) -> dict[str, list[Any]]:
    """Return what differs from a genome, by setting: its value there and here."""
    both = [{"activation": genome.activation, **space.values(genome)} for genome in (before, now)]
    return {key: [was, both[1][key]] for key, was in both[0].items() if was != both[1][key]}


class _Placed(NamedTuple):
    name: str
    part: str
    place: Callable[[Any], float | None]


def _genes(space: Space) -> list[_Placed]:
    found = [_Placed(one.name, one.part, one.place) for one in space.genes]
    return [*found, *[_Placed("activation", "architecture", lambda value: None)][:len(space.pool)]]


def _places(space: Space, candidate: Candidate) -> dict[str, Any]:
    values = space.values(candidate.genome)
    return {"activation": operators.key(Genome(candidate.activation))} | {
        one.name: one.of(values) for one in space.genes}


def history(experiment: Experiment, state: State) -> list[tuple[int, float | None]]:
    """Return for each generation its size, and what is to grow: the hypervolume of all evolved so far."""
    for ids in state.generations[state.past:]:
        values = experiment.of(state, [id for id in ids if state.born[id].arm != "random"])
        state.within = state.within or selection.box(values)
        state.front = values if state.front is None else np.concatenate([state.front, values])
        state.front = selection.front(state.front)
        state.past += 1
    now = state.within and selection.hypervolume(state.front, state.within)
    before = [about["hypervolume"] for about in state.about[1:]]  # as each found it
    return [(about["size"], value) for about, value in zip(state.about, [*before, now], strict=True)]


def _size(experiment: Experiment, history: Sequence[tuple[int, float | None]]) -> selection.Size:
    least, most = experiment.asked.evolve.bounds
    if least == most:
        return selection.Size(least, "as asked")
    return selection.next_size(history, least, most)
