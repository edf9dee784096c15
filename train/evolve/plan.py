"""What an experiment does next: a pure function of what was asked and of its journal."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np

from helios.train.evolve import breeding, trainings
from helios.train.evolve.experiment import Experiment
from helios.train.evolve.journal import VERSION, Entry
from helios.train.evolve.space import described
from helios.train.evolve.state import State, mean
from helios.train.evolve.trainings import Job
from helios.train.records.journal import MEASURES, WITH_FITNESS, more
from helios.train.search import births, statistics

ENDS = {"stopped": "were stopped", "diverged": "diverged", "failed": "failed"}  # statuses of candidates


def next_move(experiment: Experiment, state: State) -> list[Entry] | list[Job]:
    """Return lines to write to the journal, or else trainings to make; neither where the experiment is over."""
    evolve = experiment.asked.evolve
    if state.experiment is None:
        return [first_line(experiment)]
    if state.verdict is not None:
        return []
    if not state.generations:
        return breeding.first_generation(experiment, state)
    if moves := trainings.due(experiment, state):
        return moves
    going = len(state.generations) < evolve.generations and not nothing(experiment, state)
    if going and (lines := breeding.following_generation(experiment, state)):
        return lines
    if not state.finalists and (roles := finalists(experiment, state)):
        return list[Entry]([{"kind": "finalists", "roles": roles}])
    if jobs := validations(experiment, state):
        return jobs
    return list[Entry]([{"kind": "end", "verdict": verdict(experiment, state),
                         "hypervolume": breeding.history(experiment, state)[-1][1]}])


def nothing(experiment: Experiment, state: State) -> bool:
    """Return whether no candidate has a value to be chosen by."""
    return not any(np.isfinite(experiment.of(state, [id])).all() for id in state.born)


def first_line(experiment: Experiment) -> Entry:
    """Return the line that says what the journal is of."""
    return {"kind": "experiment", "version": VERSION, "id": experiment.id, "seed": experiment.seed,
            "texts": experiment.texts,
            **experiment.asked.to_dict(), "genes": [described(one) for one in experiment.space.genes],
            "objectives": list(experiment.objectives)}


def finalists(experiment: Experiment, state: State) -> dict[str, str]:
    """Return by role (evolved, random, preset) the best candidate of each arm, by the first objective."""
    found: dict[str, str] = {}
    for role in ("evolved", "random", "preset"):
        ids = [id for id, c in state.born.items() if c.arm == role or (role == "evolved" and c.arm == "preset")]
        values = experiment.of(state, ids)[:, 0] if ids else np.zeros(0)
        if len(ids) and np.isfinite(values).any():
            found[role] = state.reused.get(ids[int(np.nanargmin(values))], ids[int(np.nanargmin(values))])
    return found


def validations(experiment: Experiment, state: State) -> list[Job]:
    """Return the trainings of the finalists on fresh seeds that are still to make, each genome's once."""
    count = experiment.asked.evolve.validation_replicates
    first: dict[str, str] = {}
    for id in state.finalists.values() if "evolved" in state.finalists else ():
        first.setdefault(births.genome_key(state.born[id]), id)
    return [trainings.job(experiment, state, id, r, 1.0, "validation") for r in range(count) for id in first.values()
            if (id, "validation", r) not in state.results]


def verdict(experiment: Experiment, state: State) -> dict[str, Any]:
    """Return what the experiment has shown, as plain values; `sentences` say it."""
    roles = state.finalists
    if "evolved" not in roles:
        return {"better": False, "winner": None, "sentences": [_came_to(experiment, state)]}
    name = f"{state.born[roles['evolved']].name} ({roles['evolved']})"
    if not experiment.asked.evolve.validation_replicates:
        return {"better": False, "winner": roles["evolved"],
                "sentences": [f"{name} came first; without trainings on fresh seeds nothing is called better"]}
    values = {role: experiment.replicates(state, id, "validation") for role, id in roles.items()}
    first = experiment.objectives[0]
    found = statistics.verdict(values, {role: births.genome_key(state.born[id]) for role, id in roles.items()},
                               unit="nats" if "loss" in first else first, settled=WITH_FITNESS[first].settled)
    worse, prices = _prices(experiment, state)
    return {"better": found.better and not worse, "winner": roles["evolved"], "roles": roles, "values": values,
            "comparisons": [dataclasses.asdict(c) for c in found.comparisons],
            "sentences": [*(f"{name} is {c.sentence}" for c in found.comparisons),
                          *(f"there is nothing to say of {words}, which has no value to be chosen by"
                            for role, words in statistics.CONTROLS.items()
                            if role not in roles and (role == "preset" or experiment.asked.evolve.random_control)),
                          *prices]}


def _came_to(experiment: Experiment, state: State) -> str:
    """Return in words what all candidates came to, or all evolved ones, where none of them has a value."""
    every = nothing(experiment, state)
    ids = [id for id, c in state.born.items() if every or c.arm != "random"]
    what, ends = "candidates" if every else "evolved candidates", Counter(str(state.status(id)) for id in ids)
    how = ", ".join(f"{n} {end}" for end, n in ends.items())
    told = next((f"all {n} {what} {ENDS[end]}" for end, n in ends.items() if n == len(ids) and end in ENDS),
                f"none of {len(ids)} {what} has a value to be chosen by ({how})")
    whys = Counter(next((r.why for r in state.trained(id) if r.why), state.dropped.get(id)) for id in ids)
    del whys[None]
    shown = [str(why) for why, _ in whys.most_common(2)]
    return "; ".join([": ".join([told, *shown[:1]]), *shown[1:], *["and others"] * (len(whys) > 2)])


def _prices(experiment: Experiment, state: State) -> tuple[bool, list[str]]:
    """Return whether the best evolved candidate is worse than the preset in an objective other than the first, and how
    it stands in each of them, in words. No claim of better rests on these, so they are not corrected for their number.
    """
    worse, said = False, list[str]()
    evolved = state.finalists["evolved"]
    if (preset := state.finalists.get("preset", evolved)) == evolved:
        return worse, said
    for name in experiment.objectives[1:]:
        ours, theirs = (state.values(id, name, "validation") for id in (evolved, preset))
        if MEASURES[name].settled:
            here, there = mean(ours), mean(theirs)
            if not (here and there):
                continue
            this = here != there and (here > there) != more(name)
            said.append(f"it has as many {name} as the preset" if here == there else
                        f"it has {here:,.10g} {name}, {here / there:.3g} times the preset's")
        elif (test := statistics.compare(ours, theirs)) is None:
            continue
        else:
            this = (test.difference > 0) != more(name) and test.p <= statistics.RATE
            said.append(f"in {name} it is {test.difference:+.3g} ± {test.error:.2g} from the preset "
                        f"(p {statistics.spelt(test.p)})")
        said[-1] += ", which is worse: so it is not called better" * this
        worse |= this
    return worse, said
