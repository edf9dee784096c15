"""Experiments from what they were asked for, or from their directories."""

from __future__ import annotations

from pathlib import Path

from helios.errors import UserError
from helios.model.settings import declared
from helios.train.config import Config
from helios.train.evolve import cost, trainings
from helios.train.evolve.config import Asked
from helios.train.evolve.experiment import Experiment
from helios.train.evolve.journal import Journal
from helios.train.evolve.space import given, space_of
from helios.train.evolve.state import State
from helios.train.evolve.warm import FRESH
from helios.train.fitness import formula
from helios.train.records.journal import JOURNAL, MEASURES
from helios.train.rules import rules


def experiment_of(asked: Asked, id: str, texts: str = "") -> Experiment:
    """Return what was asked for, checked. Raises UserError."""
    evolve = asked.evolve
    if asked.base.train.seed >= 2**63 - trainings.SEEDS:
        raise UserError(f"--seed {asked.base.train.seed}: an experiment's trainings have the seeds after it, too; give "
                        f"one below 2⁶³ - {trainings.SEEDS:,}")
    if asked.base.train.init_from:
        raise UserError("init_from: an experiment's first candidates begin with new weights, and children with those "
                        "that --warm-start says; leave init_from out")
    if named := _searching(asked.base):
        raise UserError(f"an experiment's runs do not search themselves; leave {', '.join(named)} out")
    for key, acts in (("adaptive_batch", asked.base.monitor.adaptive_batch),
                      ("a batch in actions", any(rule.what == "batch" for rule in rules(asked.base.monitor.actions)))):
        if acts:
            raise UserError(f"{key} makes steps of different sizes, and budgets with them; leave it out")
    if evolve.fitness and (lacking := [name for name in formula(evolve.fitness).needs if name not in MEASURES]):
        raise UserError(f"--fitness {evolve.fitness} needs {lacking[0]}, which is not measured in an experiment; there "
                        f"are {', '.join(MEASURES)}")
    found = Experiment(asked, space_of(asked), id, texts)
    if len(given(asked, found.space)) > evolve.population_size:
        raise UserError(f"--seed-from was given {len(asked.given)} times, and a generation has "
                        f"{evolve.population_size}; raise --population, or leave some out")
    for name in (*found.objectives, *(formula(evolve.fitness).needs if evolve.fitness else ())):
        if name == "memory_mb" and asked.base.train.backend == "cpu_ref":
            raise UserError("memory_mb is not measured on cpu_ref, whose arrays are numpy's; leave it out")
        if name == "alerts" and not asked.base.monitor.cusum:
            raise UserError("alerts are not raised with cusum = false; leave them out, or set cusum = true")
        if name in ("alerts", "instability"):
            for one in found.space.genes:
                if one.name.startswith("cusum"):
                    raise UserError(f"gene {one.name}: it says what an alert is, and candidates are chosen by {name}, "
                                    "which counts them; leave one of them out")
    if evolve.budget == "tokens" and evolve.per_candidate < (step := cost.steps(found)[1]):
        raise UserError(f"--per-candidate {evolve.per_candidate:,.10g} tokens are less than a step of the largest "
                        f"batch that may be tried, {step:,}; give more, or a narrower gene")
    if evolve.halving and len(found.objectives) > 1:
        raise UserError("--halving stops those that are behind in one objective; give a single one, or a --fitness")
    if evolve.halving and evolve.warm_start != FRESH:
        raise UserError(f"--halving goes by how much trainings that begin alike come to differ, and with --warm-start "
                        f"{evolve.warm_start} they do not begin alike; leave one of both out")
    unit = evolve.budget
    if evolve.total is not None and (least := cost.most(found, 1)) > evolve.total:
        raise UserError(f"--total {evolve.total:,.10g} {unit} do not suffice for one generation and the trainings at "
                        f"the end, {least:,.10g}; give more, or a lower --per-candidate")
    if (most := cost.at_most(found)) > evolve.max_cost:
        raise UserError(f"the experiment may come to {most:,.10g} {unit}, more than --max-cost {evolve.max_cost:,.10g}"
                        "; lower --generations, --population, --replicates or --per-candidate, or raise --max-cost")
    if asked.base.data.val_data is None:
        raise UserError("an experiment chooses by validation loss; give a text with --val-data")
    return found


def _searching(base: Config) -> list[str]:
    """Return the settings by which runs would search, none where they would not."""
    if not (base.search or base.challenged):
        return []
    branches = ["branch in actions"] * base.monitor.branches
    given = [s.key for part in (base.search, base.challenge) for s in declared(type(part))
             if s.key != "mode" and getattr(part, s.key) != s.default]
    return branches + given or [f"search = {base.search.mode}"]


def opened(folder: Path) -> tuple[Experiment, State]:
    """Return the experiment in a directory, and how it stands. Raises UserError where there is none, or its journal is
    damaged."""
    state = State()
    state.take(Journal(folder / JOURNAL).read())
    if state.experiment is None:
        raise UserError(f"{folder} holds no experiment; give the directory of one, as helios-evolve made it")
    try:
        first = state.experiment
        return experiment_of(Asked.from_dict(first), first["id"], first.get("texts", "")), state
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"the journal in {folder} is damaged: its first line is not what an experiment is asked for"
                        ) from error
