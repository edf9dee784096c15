"""What an experiment has come to, in figures: what summary.json holds, and the page and the plots are made of."""

from __future__ import annotations

import math
import statistics as numbers
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from helios.model.genes import Gene
from helios.train.evolve import cost, plan, warm
from helios.train.evolve.experiment import Experiment
from helios.train.evolve.space import plain
from helios.train.evolve.state import State, mean
from helios.train.records.journal import MEASURES, more
from helios.train.search import selection
from helios.train.search.statistics import holm

VERSION = 1
ARMS = ("evolved", "random", "preset")
NO_LOSS = "no finite validation loss at the end"
PAIRS = 8  # that a correlation is told of


class Measured(TypedDict):
    """A measurement over a candidate's trainings."""

    mean: float | None  # None: a training lacks it
    error: float | None  # standard error of the mean; None of one training


class Entry(TypedDict):
    """A candidate that was measured. Its figures are of the search; they are optimistic of who came first."""

    rank: int | None  # from 1 on; None: out of the running
    id: str
    name: str
    arm: str  # evolved, random or preset
    generation: int
    operator: str | None
    parents: list[str]  # ids
    difference: dict[str, list[Any]]  # from the preset: by setting, the preset's value and its own
    activation: str
    status: str  # complete, stopped, diverged or failed
    why: str | None  # of any but complete
    trainings: int
    inherited: int  # tokens that had been read, in a replicate, by those whose weights it began with; 0: none
    measured: dict[str, Measured]  # by name, "fitness" among them where candidates are chosen by one
    front: bool  # nobody measured is better in one objective and as good in the others


class Generation(TypedDict):
    """A generation. Values are of the first objective."""

    generation: int
    size: int
    why: str  # it has that size
    best: dict[str, float | None]  # by arm, of those born in it
    median: dict[str, float | None]
    hypervolume: float | None  # of all evolved so far, as a share of the box of the first generation's values


class Operator(TypedDict):
    """What came of an operator among the evolved."""

    born: int
    reused: int  # of them, those of a genome that was measured before
    compared: int  # of them, those that have parents, and figures of their own and of all parents
    better: int  # of these, those better than all parents in the first objective, in the search


class GeneFound(TypedDict):
    """A gene beside the first objective, over evolved and random candidates. Places: in the gene's own scale; the
    correlation is Spearman's, None where the gene has no order or too little was measured."""

    preset: Any
    leader: Any
    n: int
    correlation: float | None  # above 0: the higher the gene, the higher the objective
    p: float | None  # of none, corrected for the number of genes; too small, since kin are not independent
    random_n: int
    random_correlation: float | None  # of random candidates alone, which are independent
    random_p: float | None


class Spent(TypedDict):
    """What trainings have used."""

    trainings: int
    tokens: int
    seconds: float


class Lost(TypedDict):
    """A training or a candidate that came to no figure to be chosen by."""

    id: str
    name: str
    status: str  # dropped, stopped, diverged or failed
    phase: str  # search or validation
    run: str | None  # name of the directory
    why: str


class Weights(TypedDict):
    """The training with the lowest validation loss at its end, of all that are complete."""

    run: str  # name of its directory
    val_loss: float
    tokens: int  # read, those of whose weights it began with included


class Warm(TypedDict):
    """Of an experiment whose children begin with their parents' weights."""

    mode: str
    begun: int  # trained children that did
    fresh: dict[str, list[str]]  # ids of those that did not, by the reason
    tokens: int  # that each arm had used at least; both had when `best` is told
    best: dict[str, float | None]  # by arm, of the first objective, with no more than these tokens
    weights: Weights | None


class Summary(TypedDict):
    """What summary.json holds."""

    version: int
    id: str
    status: str  # complete, or unfinished
    objectives: list[str]  # names; the first is what finalists are chosen by
    better: dict[str, str]  # by objective, "more" or "less"
    leader: str | None  # id of the winner, or of who leads so far
    verdict: Mapping[str, Any] | None  # as in the journal; None: not yet
    unit: str  # of the budget: tokens or seconds
    spent: float  # in it, so far
    most: float  # in it, at most
    cost: dict[str, Spent]  # by arm, and "validation"
    counts: dict[str, int]  # candidates by status, also "reused" and "waiting", for a first result
    refused: int  # formulas, since they explode
    ranking: list[Entry]  # of all that were measured, but for those of a genome that was before; the best first
    front: list[str]  # ids, where there are several objectives
    generations: list[Generation]
    operators: dict[str, Operator]
    genes: dict[str, GeneFound]
    lost: list[Lost]
    warm: Warm | None  # None: all began with new weights


def summary(experiment: Experiment, state: State) -> Summary:
    """Return what an experiment has come to so far."""
    entries = _ranking(experiment, state)
    ids = [e["id"] for e in entries]
    values = {id: float(x) for id, x in zip(ids, experiment.of(state, ids)[:, 0] if ids else [], strict=True)
              if math.isfinite(x)}  # of the first objective, lower being better
    leader = state.verdict["winner"] if state.verdict else plan.finalists(experiment, state).get("evolved")
    status = {**Counter(e["status"] for e in entries), "reused": len(state.reused),
              "waiting": len(state.born) - len(state.reused) - len(entries)}
    return {
        "version": VERSION, "id": experiment.id, "status": "complete" if state.verdict else "unfinished",
        "objectives": list(experiment.objectives),
        "better": {name: "more" if sign(name) < 0 else "less" for name in experiment.objectives}, "leader": leader,
        "verdict": state.verdict, "unit": experiment.asked.evolve.budget, "spent": cost.spent(experiment, state),
        "most": cost.at_most(experiment), "cost": _cost(state),
        "counts": {word: n for word, n in sorted(status.items()) if n},
        "refused": sum(c.refused for c in state.born.values()), "ranking": entries,
        "front": [e["id"] for e in entries if e["front"]] if len(experiment.objectives) > 1 else [],
        "generations": _generations(experiment, state, values), "operators": _operators(state, values),
        "genes": _genes(experiment, state, values, leader), "lost": list(_lost(state)),
        "warm": _warm(experiment, state, values) if experiment.asked.evolve.warm_start != warm.FRESH else None}


def sign(objective: str) -> int:
    """Return what an objective is multiplied by so that lower is better."""
    return -1 if more(objective) else 1


def measured(experiment: Experiment, state: State, id: str, name: str, phase: str = "search") -> Measured:
    """Return a measurement of a candidate, or its fitness, over its trainings. In the search, candidates are chosen by
    the fitness of the means, which is what this gives then."""
    if name == "fitness":
        values = [x if x is None else -x for x in experiment.replicates(state, id, phase)]
    else:
        values = state.values(id, name, phase)
    centre = mean(values)
    if name == "fitness" and phase == "search":
        x = -experiment.of(state, [id])[0, 0]
        centre = float(x) if math.isfinite(x) else None
    known = [x for x in values if x is not None and math.isfinite(x)]
    error = numbers.stdev(known) / math.sqrt(len(known)) if len(known) == len(values) > 1 else None
    return {"mean": centre, "error": error}


def difference(experiment: Experiment, state: State, id: str) -> dict[str, list[Any]]:
    """Return what a candidate's config has other than the preset's: by setting, the value there and here."""
    space, c = experiment.space, state.born[id]
    other = {"activation": [space.activation, c.activation]} if c.activation != space.activation else {}
    return other | {key: [space.own[key], value] for key, value in c.settings.items()}


def spearman(x: Sequence[float], y: Sequence[float]) -> tuple[float, float] | None:
    """Return the rank correlation and its p, by Student's t, but no lower than that of the rarest order; None of fewer
    than PAIRS, for which t is none, and where one is all the same."""
    from scipy import stats

    if len(x) < PAIRS or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    found = stats.spearmanr(x, y)
    return float(found.statistic), max(float(found.pvalue), 2 / math.gamma(min(len(x), 100) + 1))


def place(gene: Gene, value: tuple[Any, ...]) -> float | None:
    """Return where a value lies in a gene's own scale; of two values without an order, the second is higher."""
    if gene.kind == "set" and len(gene.values) == 2 and value in gene.values:
        return float(gene.values.index(value))
    return gene.place(value)


def _ranking(experiment: Experiment, state: State) -> list[Entry]:
    ids = [id for id in state.born if id not in state.reused and state.of(id)]
    values = experiment.of(state, ids) if ids else np.zeros((0, len(experiment.objectives)))
    ranks = selection.ranks(values) if ids else np.zeros(0)
    names = [*MEASURES, *(["fitness"] if experiment.asked.evolve.fitness else [])]
    found: list[Entry] = []
    for position, at in enumerate(selection.best_first(values) if ids else [], 1):
        c, inside = state.born[ids[at]], bool(np.isfinite(values[at]).all())
        results = state.of(c.id)
        failed = next((r.why for r in results if r.status != "complete"), None)
        found.append({
            "rank": position if inside else None, "id": c.id, "name": c.name, "arm": c.arm, "generation": c.generation,
            "operator": c.operator, "parents": list(c.parents), "difference": difference(experiment, state, c.id),
            "activation": c.activation, "status": str(state.candidate(c.id).status),
            "why": failed or state.dropped.get(c.id), "trainings": len(results),
            "inherited": warm.read_before(experiment, state, c.id),
            "measured": {name: measured(experiment, state, c.id, name) for name in names},
            "front": inside and int(ranks[at]) == 0})
    return found


def _cost(state: State) -> dict[str, Spent]:
    found: dict[str, Spent] = {}
    for result in state.results.values():
        key = "validation" if result.phase == "validation" else state.born[result.id].arm
        spent = found.setdefault(key, {"trainings": 0, "tokens": 0, "seconds": 0.0})
        spent["trainings"] += 1
        spent["tokens"] += result.tokens
        spent["seconds"] += result.seconds
    return {key: found[key] for key in (*ARMS, "validation") if key in found}


def spending(state: State, arm: str, seconds: bool = False) -> Iterator[tuple[str, float]]:
    """Yield the ids of an arm's candidates that were trained, in order of birth, and the tokens, or seconds, that the
    search had used for the arm up to there."""
    used = 0.0
    for id, c in state.born.items():
        if c.arm == arm and id not in state.reused and state.of(id):
            used += sum(r.seconds if seconds else r.tokens for r in state.of(id))
            yield id, used


def _warm(experiment: Experiment, state: State, values: Mapping[str, float]) -> Warm:
    side, began = sign(experiment.objectives[0]), dict[str, list[str]]()
    arms = {arm: list(spending(state, arm)) for arm in ("evolved", "random")}
    both = int(min(spent[-1][1] if spent else 0 for spent in arms.values()))
    best = {arm: min((values[id] for id, used in spent if used <= both and id in values), default=None)
            for arm, spent in arms.items()}
    for id, start in state.starts.items():
        if id not in state.reused and state.of(id):
            began.setdefault(start["why"] or "", []).append(id)
    ended = [(r.val_loss, r) for r in state.results.values()
             if r.status == "complete" and r.over and r.val_loss is not None]
    weights: Weights | None = None
    if ended:
        loss, r = min(ended, key=lambda pair: pair[0])
        origin = warm.origin(experiment, state, r.id, r.replicate) if r.phase == "search" else None
        weights = {"run": r.run, "val_loss": loss, "tokens": r.tokens + (origin.tokens if origin else 0)}
    return {"mode": experiment.asked.evolve.warm_start, "begun": len(began.pop("", ())), "fresh": began, "tokens": both,
            "best": {arm: x if x is None else side * x for arm, x in best.items()}, "weights": weights}


def _generations(experiment: Experiment, state: State, values: Mapping[str, float]) -> list[Generation]:
    side = sign(experiment.objectives[0])
    found: list[Generation] = []
    evolved, within = list[str](), None
    for number, (ids, about) in enumerate(zip(state.generations, state.about, strict=True)):
        evolved += [id for id in ids if state.born[id].arm != "random"]
        every = experiment.of(state, evolved)
        within = within or selection.box(every)
        mine = {arm: [values[whose] for id in ids if state.born[id].arm == arm
                      and (whose := state.reused.get(id, id)) in values] for arm in ARMS}
        of = lambda pick, mine=mine: {arm: side * pick(x) if x else None for arm, x in mine.items()}
        found.append({"generation": number, "size": about["size"], "why": about["why"], "best": of(min),
                      "median": of(numbers.median), "hypervolume": within and selection.hypervolume(every, within)})
    return found


def _operators(state: State, values: Mapping[str, float]) -> dict[str, Operator]:
    found: dict[str, Operator] = {}
    for id, c in state.born.items():
        if c.arm == "random":
            continue
        one = found.setdefault(c.operator or "–", {"born": 0, "reused": 0, "compared": 0, "better": 0})
        one["born"] += 1
        one["reused"] += id in state.reused
        parents = [values.get(state.reused.get(parent, parent)) for parent in c.parents]
        known = [x for x in parents if x is not None]
        if parents and len(known) == len(parents) and id in values:
            one["compared"] += 1
            one["better"] += values[id] < min(known)
    return found


def _genes(experiment: Experiment, state: State, values: Mapping[str, float], leader: str | None
           ) -> dict[str, GeneFound]:
    space, side = experiment.space, sign(experiment.objectives[0])
    arms = {arm: [id for id in values if state.born[id].arm == arm] for arm in ("evolved", "random")}
    found: dict[str, GeneFound] = {}
    tests: dict[str, dict[str, tuple[float, float]]] = {"": {}, "random_": {}}
    for gene in space.genes:
        at = {id: place(gene, gene.of(space.values(state.born[id].genome))) for id in values}
        n = {}
        for prefix, ids in (("", arms["evolved"] + arms["random"]), ("random_", arms["random"])):
            known = [(x, side * values[id]) for id in ids if (x := at[id]) is not None]
            n[prefix] = len(known)
            if known and (test := spearman(*zip(*known, strict=True))):
                tests[prefix][gene.name] = test
        own = lambda id, gene=gene: plain(gene.of(space.values(state.born[id].genome)))
        found[gene.name] = {"preset": plain(gene.of(space.own)), "leader": leader and own(leader),
                            "n": n[""], "correlation": None, "p": None,
                            "random_n": n["random_"], "random_correlation": None, "random_p": None}
    for prefix, each in tests.items():
        for (name, (r, _)), p in zip(each.items(), holm([p for _, p in each.values()]), strict=True):
            found[name] |= {f"{prefix}correlation": r, f"{prefix}p": p}  # type: ignore[misc]
    if space.pool:
        found["activation"] = {
            "preset": space.activation, "leader": leader and state.born[leader].activation, "n": 0, "correlation": None,
            "p": None, "random_n": 0, "random_correlation": None, "random_p": None}
    return found


def _lost(state: State) -> Iterator[Lost]:
    name, told = lambda id: state.born[id].name, set[str]()
    for r in state.results.values():
        if r.status != "complete" or (r.over and r.val_loss is None):
            told.add(r.id)
            yield Lost(id=r.id, name=name(r.id), status=r.status if r.status != "complete" else "diverged",
                       phase=r.phase, run=r.run, why=r.why or NO_LOSS)
    for id, why in state.dropped.items():
        if id not in told:  # and so dropped for what it came to
            yield Lost(id=id, name=name(id), status="dropped", phase="search", run=None, why=why)
