"""The result of a search: the ranking, whether differences are more than noise, and what was not fair."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from helios.model.activations import short_name, split
from helios.train.config import SearchConfig
from helios.train.search.births import Candidate, Replicate, genome_key
from helios.train.search.evolution import score
from helios.train.search.mutations import REACH
from helios.train.search.separation import PERCENT, Separation, separation

ENOUGH = 5  # replicates that are recommended
LISTED = 8  # most names in a sentence
# What summary() calls unfair: a setting, the value that makes a search unfair, and why.
UNFAIR = (
    ("shared_init", False, "the candidates started from different initial values, so luck with these is in the "
                           "comparison"),
    ("shared_batches", False, "the candidates saw different batches, so luck with these is in the comparison"),
    ("candidate_schedule", "run", "the candidates trained at different learning rates, each where the run's schedule "
                                  "had come to"),
    ("replicates", 1, "one seed a candidate, so the noise between seeds is unknown"),
    ("after_schedule", "run", "the training after the search has only the rest of the run's schedule, lower learning "
                              "rates than a run without a search would have"),
)
# The fields, other than the status, that aggregate() fills.
MEASURED = ("steps", "tokens", "train_loss", "best_val_loss", "val_loss_mean", "val_loss_se", "fitness", "spikes",
             "skipped", "clip_rate", "max_grad_norm", "tokens_per_sec_mean", "cusum_alerts", "trouble", "replicates")


class Entry(TypedDict):
    """A candidate's entry in the ranking; None where something is not known."""

    rank: int  # from 1 on
    id: str
    name: str
    activation: str
    settings: NotRequired[dict[str, Any]]  # of the model, those that are not as the run has them; old searches had none
    score: float | None  # what the search ranks by, lower being better
    val_loss_mean: float | None
    val_loss_se: float | None
    fitness: float | None
    difference: float | None  # in what the search ranks by, to the first measurement of the winner's genome
    difference_se: float | None
    separated: bool | None  # from the winner; None: not compared


class Summary(TypedDict):
    """What summary.json holds."""

    status: str  # running or complete
    config: dict[str, Any]  # the search's settings
    base: dict[str, Any]  # the model's settings
    ranking: list[Entry]
    winner: str | None  # its id
    winner_name: str | None
    winner_activation: str | None
    winner_settings: NotRequired[dict[str, Any]]  # of the model, as in Entry
    separated: bool  # whether the winner is, from the best candidate of another genome
    reasons: list[str]
    unfair: list[str]
    cost: dict[str, float]  # trainings, steps, tokens, seconds
    refused: NotRequired[int]  # formulas, since they explode; old searches had none
    device: str


def aggregate(candidate: Candidate, replicates: Sequence[Replicate], status: str = "complete") -> Candidate:
    """Return the candidate with the measurements of its K replicates, at least one. status: complete or stopped.

    Fields are means, rounded for steps and tokens, but: the lowest best_val_loss, the largest max_grad_norm, the sums
    of spikes, skipped, cusum_alerts and trouble, the clip_rate over all steps, and val_loss_se, the sample deviation
    over √K, None for one. A mean is None where a value is missing; if it is that of the last validation losses, the
    status is "diverged".
    """
    def values(name: str) -> list[Any]:
        return [getattr(r, name) for r in replicates]

    def of_known(pick: Callable[[list[float]], float], name: str) -> float | None:
        return pick(known) if (known := [x for x in values(name) if x is not None]) else None

    steps = sum(values("steps"))
    mean, error = _estimate(values("val_loss"))
    return dataclasses.replace(
        candidate, status="diverged" if mean is None else status, replicates=list(replicates),
        steps=round(steps / len(replicates)), tokens=round(sum(values("tokens")) / len(replicates)),
        train_loss=_estimate(values("train_loss"))[0], best_val_loss=of_known(min, "best_val_loss"),
        val_loss_mean=mean, val_loss_se=error, fitness=_estimate(values("fitness"))[0],
        spikes=sum(values("spikes")), skipped=sum(values("skipped")), cusum_alerts=sum(values("cusum_alerts")),
        trouble=sum(values("trouble")),
        clip_rate=sum(r.clip_rate * r.steps for r in replicates) / steps if steps else 0.0,
        max_grad_norm=of_known(max, "max_grad_norm"),
        tokens_per_sec_mean=of_known(statistics.fmean, "tokens_per_sec_mean"))


def reused(candidate: Candidate, earlier: Candidate) -> Candidate:
    """Return the candidate with the results of an earlier one of the same genome; without a score if that has none."""
    if genome_key(candidate) != genome_key(earlier):
        raise ValueError(", and ".join(f"{c.id} is {c.named(c.activation)}" for c in (candidate, earlier)))
    copied = {name: getattr(earlier, name) for name in MEASURED}
    if earlier.status not in ("complete", "reused"):
        copied |= {"val_loss_mean": None, "val_loss_se": None, "fitness": None}
    return dataclasses.replace(candidate, status="reused", parameters=earlier.parameters, **copied)


def rank(candidates: Sequence[Candidate], cfg: SearchConfig) -> list[Candidate]:
    """Return the candidates, the best first and those without a score last; equals keep their order."""
    return sorted(candidates, key=lambda c: score(c, cfg))


def compared(candidates: Sequence[Candidate], cfg: SearchConfig) -> Separation | None:
    """Return the test of differences among the genomes that have a score; None where there cannot be one.
    A genome counts once, by the first candidate that measured it."""
    found = [measurements(c, cfg) for c in _first(candidates, cfg).values()]
    return separation(found, _paired(cfg)) if len({len(x) for x in found}) == 1 else None


def _first(candidates: Sequence[Candidate], cfg: SearchConfig) -> dict[str, Candidate]:
    """Return the first candidate of each genome that has a score. Later measurements of a genome are in no comparison:
    the best of several would lie apart from others by chance too often."""
    genomes: dict[str, Candidate] = {}
    for c in candidates:
        if math.isfinite(score(c, cfg)):
            genomes.setdefault(genome_key(c), c)
    return genomes


def measurements(candidate: Candidate, cfg: SearchConfig) -> list[float]:
    """Return what the search ranks by of each replicate that has it, in the order of seeds."""
    values = [(r.seed, r.val_loss if cfg.rank_by == "val_loss" else r.fitness) for r in candidate.replicates]
    return [x for _, x in sorted(values) if x is not None]


def labels(candidates: Iterable[Candidate]) -> dict[str, str]:
    """Return names by id; where several candidates share a name, as siblings can, the id's number follows it."""
    candidates = list(candidates)
    often = Counter(c.name for c in candidates)
    return {c.id: c.name if often[c.name] == 1 else f"{c.name} #{c.id.rpartition('_')[2]}" for c in candidates}


def summary(cfg: SearchConfig, candidates: Sequence[Candidate], base: Mapping[str, Any], device: str, status: str
            ) -> Summary:
    """Return the search's result so far. candidates: all, in order of creation. base: the model's settings. status:
    running or complete. Two candidates are separated as separation.py says; those of equal genomes are not compared."""
    ranked = rank([c for c in candidates if c.status is not None], cfg)
    winner = next((c for c in ranked if math.isfinite(score(c, cfg))), None)
    test, first = compared(candidates, cfg), _first(candidates, cfg)
    reference = first[genome_key(winner)] if winner else None
    names = labels(candidates)
    told = {c.id: dataclasses.replace(c, name=names[c.id]) for c in candidates}
    tested = lambda c: c.status == "reused" or c in first.values()
    entries = [_entry(i, c, reference, tested(c), test, cfg) for i, c in enumerate(ranked, 1)]
    others = [(c, entry) for c, entry in zip(ranked, entries, strict=True)
              if c in first.values() and genome_key(c) != genome_key(reference)] if reference else []
    if reference is None:
        reasons = ["No candidate has a result yet." if status == "running" else
                   "No candidate has a result to rank by: there is no winner."]
    else:
        reasons = _comparison(told[reference.id], [(told[c.id], entry) for c, entry in others], test, cfg)
    trained = [r for c in candidates if c.status != "reused" for r in c.replicates]
    return {
        "status": status, "config": dataclasses.asdict(cfg), "base": dict(base), "ranking": entries,
        "winner": winner.id if winner else None, "winner_name": winner.name if winner else None,
        "winner_activation": winner.activation if winner else None,
        "winner_settings": winner.settings if winner else {},
        "separated": bool(others) and bool(others[0][1]["separated"]),
        "reasons": reasons + _spelt(winner and told[winner.id]) + _unranked([*told.values()], cfg),
        "unfair": _unfair(cfg, candidates),
        "cost": {"trainings": len(trained), "steps": sum(r.steps for r in trained),
                 "tokens": sum(r.tokens for r in trained), "seconds": sum(r.seconds for r in trained)},
        "refused": sum(c.refused for c in candidates), "device": device,
    }


def _estimate(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Return the mean and its standard error, which is None for one value; both are None where a value is missing."""
    known = [x for x in values if x is not None]
    if not known or len(known) < len(values):
        return None, None
    return statistics.fmean(known), statistics.stdev(known) / math.sqrt(len(known)) if len(known) > 1 else None


def _paired(cfg: SearchConfig) -> bool:
    return cfg.shared_init and cfg.shared_batches


def _entry(position: int, candidate: Candidate, reference: Candidate | None, tested: bool, test: Separation | None,
           cfg: SearchConfig) -> Entry:
    """Return a candidate's entry. reference: the first measurement of the winner's genome. tested: whether the
    candidate has the first measurement of its own."""
    c, value = candidate, score(candidate, cfg)
    entry: Entry = {
        "rank": position, "id": c.id, "name": c.name, "activation": c.activation, "settings": c.settings,
        "score": value if math.isfinite(value) else None, "val_loss_mean": c.val_loss_mean,
        "val_loss_se": c.val_loss_se, "fitness": c.fitness, "difference": None, "difference_se": None,
        "separated": None}
    if reference is None or c is reference or not math.isfinite(value):
        return entry
    apart = value - score(reference, cfg)
    entry["difference"] = apart
    if tested and genome_key(c) != genome_key(reference):
        entry["difference_se"] = test and test.error
        entry["separated"] = test is not None and apart > test.limit
    return entry


def _comparison(winner: Candidate, others: Sequence[tuple[Candidate, Entry]], test: Separation | None,
                cfg: SearchConfig) -> list[str]:
    """Return sentences on the winner, the best of another genome, and what else is not separated from the winner.
    winner: the first measurement of its genome. others: those of the other genomes, by rank."""
    if not others:
        return [f"{_told(winner, cfg)} is the only genome with a result: there is nothing to compare it with."]
    runner_up, entry = others[0]
    assert entry["difference"] is not None
    pair = f"{_told(winner, cfg)} and {_told(runner_up, cfg)} differ by {abs(entry['difference']):.3g}"
    if test is None:
        return [f"{pair} with one replicate each: the noise between seeds is unknown, so nothing is separated; "
                f"set replicates to {ENOUGH} or more."]
    relation, verdict, also = (("more", "separated", "") if entry["separated"] else
                               ("not more", "not separated", " either"))
    how = ", seed by seed" if _paired(cfg) else ""
    sentences = [f"{pair}, {relation} than the {test.limit:.3g} that {test.candidates} equal genomes come to lie apart "
                 f"in {PERCENT} of searches{how}: {verdict} by {len(winner.replicates)} seeds."]
    if near := [_brief(c) for c, other in others[1:] if not other["separated"]]:
        sentences.append(f"{winner.name} is not separated from {_listed(near)}{also}.")
    return sentences


def _spelt(winner: Candidate | None) -> list[str]:
    """Return a sentence with the winner's formula, if there was but a part of it."""
    if winner is None or len(split(winner.activation)) > 1 or short_name(winner.activation) == winner.activation:
        return []
    return [f"The formula of {winner.name} is {winner.activation}."]


def _unranked(candidates: Sequence[Candidate], cfg: SearchConfig) -> list[str]:
    """Return sentences on what was not trained, and why trained candidates have no score."""
    lost = [f"{_who(c)} in {sum(r.val_loss is None for r in c.replicates)} of {len(c.replicates)} replicates"
            for c in candidates if c.status == "diverged"]
    stopped = [f"{_who(c)} after {c.steps} steps" for c in candidates if c.status == "stopped"]
    unknown = [_who(c) for c in candidates if c.status == "complete" and not math.isfinite(score(c, cfg))]
    n = sum(c.refused for c in candidates)
    exploding = [f"{n} formula{'s' * (n > 1)}"] * (n > 0)
    told = (
        (f"Refused before training, since values or slopes explode on [-{REACH:g}, {REACH:g}]", exploding),
        ("Diverged, without a finite validation loss at the end (a lower candidate_lr may help)", lost),
        ("Stopped, since they could not win any more", stopped),
        (f"Not ranked, since their {cfg.fitness} fitness could not be computed", unknown),
    )
    return [f"{what}: {_listed(names)}." for what, names in told if names]


def _unfair(cfg: SearchConfig, candidates: Sequence[Candidate]) -> list[str]:
    sentences = [f"{key} is {str(value).lower()}: {why}." for key, value, why in UNFAIR if getattr(cfg, key) == value]
    sizes = [c.parameters for c in candidates if c.parameters]
    if cfg.match == "rule" and sizes and max(sizes) > min(sizes):
        sentences.append(f"match is rule: the candidates' parameter counts differ by "
                         f"{100 * (max(sizes) / min(sizes) - 1):.2g} % ({min(sizes):,} to {max(sizes):,}).")
    return sentences


def _who(candidate: Candidate) -> str:
    return f"{candidate.name} ({candidate.named(_activation(candidate))})"


def _brief(candidate: Candidate) -> str:
    return f"{candidate.name} ({_activation(candidate)})"


def _activation(candidate: Candidate) -> str:
    text = candidate.activation
    return text if len(split(text)) > 1 else short_name(text)


def _told(candidate: Candidate, cfg: SearchConfig) -> str:
    mean, error = _estimate(measurements(candidate, cfg))
    what = "fitness " if cfg.rank_by == "fitness" else ""
    return f"{_who(candidate)} {what}{_digits(mean, 5)}" + (f" ± {_digits(error, 2)}" if error is not None else "")


def _digits(value: float | None, count: int) -> str:
    return f"{value:#.{count}g}".rstrip(".")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
