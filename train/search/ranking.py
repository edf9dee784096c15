"""What the measurements of a search say: who is best, whether it is more than noise, and whether it was fair."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from helios.train.config import SearchConfig
from helios.train.search.evolution import Candidate, Replicate, genome_key, score

# How often two candidates that do not differ come out more than two standard errors apart, in percent, by seeds: the
# tail of Student's t beyond 2, for a standard error from few seeds is itself rough. 5 with many.
BY_CHANCE = {2: 30, 3: 18, 4: 14, 5: 12, 6: 10, 7: 9, 8: 9}
ENOUGH = 5  # replicates to recommend
LISTED = 8  # names in a sentence
# What summary() calls unfair, by setting: the value that makes it so, and why.
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
# The fields that aggregate() fills, but for the status.
MEASURED = ("steps", "tokens", "train_loss", "best_val_loss", "val_loss_mean", "val_loss_se", "fitness", "spikes",
             "skipped", "clip_rate", "max_grad_norm", "tokens_per_sec_mean", "cusum_alerts", "replicates")


def aggregate(candidate: Candidate, replicates: Sequence[Replicate], status: str = "complete") -> Candidate:
    """The candidate with what its replicates measured, at least one. status: complete or stopped.

    Means over replicates, for steps and tokens rounded; the best and largest of best_val_loss and max_grad_norm; sums
    of spikes, skipped and cusum_alerts; clip_rate over all steps; val_loss_se the sample deviation over √K, None for
    one. A mean is None where a value is missing; with a missing last validation loss the status is "diverged".
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
        clip_rate=sum(r.clip_rate * r.steps for r in replicates) / steps if steps else 0.0,
        max_grad_norm=of_known(max, "max_grad_norm"),
        tokens_per_sec_mean=of_known(statistics.fmean, "tokens_per_sec_mean"))


def reused(candidate: Candidate, earlier: Candidate) -> Candidate:
    """The candidate with the results of an earlier one of the same genome; it can win only where that one could."""
    if genome_key(candidate) != genome_key(earlier):
        raise ValueError(f"{candidate.id} is {candidate.activation}, and {earlier.id} is {earlier.activation}")
    copied = {name: getattr(earlier, name) for name in MEASURED}
    if earlier.status not in ("complete", "reused"):
        copied |= {"val_loss_mean": None, "val_loss_se": None, "fitness": None}
    return dataclasses.replace(candidate, status="reused", parameters=earlier.parameters, **copied)


def rank(candidates: Sequence[Candidate], cfg: SearchConfig) -> list[Candidate]:
    """The best first; of equal ones, and of those without a score, which are last, the first of `candidates` first."""
    return sorted(candidates, key=lambda c: score(c, cfg))


def difference(a: Candidate, b: Candidate, paired: bool, rank_by: str = "val_loss") -> tuple[float, float | None]:
    """(mean of b - a, its standard error) of validation loss or fitness; None where one replicate tells no error.

    paired: replicates of equal seeds had equal initial values and batches. Then the error is that of the mean of their
    differences, from which the seeds' common noise is gone; else √(error of a² + error of b²).
    Raises ValueError where one of them was not measured.
    """
    of_a, of_b = _by_seed(a, rank_by), _by_seed(b, rank_by)
    if paired:
        mean, error = _estimate([of_b[seed] - of_a[seed] for seed in of_a if seed in of_b])
    else:
        (mean_a, error_a), (mean_b, error_b) = _estimate(list(of_a.values())), _estimate(list(of_b.values()))
        mean = None if mean_a is None or mean_b is None else mean_b - mean_a
        error = None if error_a is None or error_b is None else math.hypot(error_a, error_b)
    if mean is None:
        raise ValueError(f"{a.id} and {b.id} have no replicates in common that measured {rank_by}")
    return mean, error


def summary(cfg: SearchConfig, candidates: Sequence[Candidate], base: Mapping[str, Any], device: str, status: str
            ) -> dict[str, Any]:
    """What summary.json holds. candidates: all of the search, in order of creation; base: the table of the model;
    status: running or complete.

    Two candidates are separated if their difference is above two standard errors; those of equal genomes are not
    compared. The search as a whole is, if its winner is separated from the best candidate of another genome.
    """
    ranked = rank([c for c in candidates if c.status is not None], cfg)
    measured = [c for c in ranked if math.isfinite(score(c, cfg))]
    winner = measured[0] if measured else None
    rows = [_row(i, c, winner, cfg) for i, c in enumerate(ranked, 1)]
    # The genomes but the winner's, each by its best candidate.
    rivals = {genome_key(c): (c, row) for c, row in reversed(list(zip(ranked, rows, strict=True)))
              if row["separated"] is not None}
    others = sorted(rivals.values(), key=lambda pair: pair[1]["rank"])
    if winner is None:
        reasons = ["No candidate has a result yet." if status == "running" else
                   "No candidate has a result to rank by: there is no winner."]
    else:
        reasons = _comparison(winner, others, cfg)
    trained = [r for c in candidates if c.status != "reused" for r in c.replicates]
    return {
        "status": status, "config": dataclasses.asdict(cfg), "base": dict(base), "ranking": rows,
        "winner": winner and winner.id, "winner_name": winner and winner.name,
        "winner_activation": winner and winner.activation,
        "separated": bool(others) and others[0][1]["separated"],
        "reasons": reasons + _unranked(candidates, cfg), "unfair": _unfair(cfg, candidates),
        "cost": {"trainings": len(trained), "steps": sum(r.steps for r in trained),
                 "tokens": sum(r.tokens for r in trained), "seconds": sum(r.seconds for r in trained)},
        "device": device,
    }


def _estimate(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """(mean, its standard error); neither where a value is missing, no error for one value."""
    known = [x for x in values if x is not None]
    if not known or len(known) < len(values):
        return None, None
    return statistics.fmean(known), statistics.stdev(known) / math.sqrt(len(known)) if len(known) > 1 else None


def _paired(cfg: SearchConfig) -> bool:
    return cfg.shared_init and cfg.shared_batches


def _by_seed(candidate: Candidate, rank_by: str) -> dict[int, float]:
    values = {r.seed: r.val_loss if rank_by == "val_loss" else r.fitness for r in candidate.replicates}
    return {seed: value for seed, value in values.items() if value is not None}


def _row(position: int, candidate: Candidate, winner: Candidate | None, cfg: SearchConfig) -> dict[str, Any]:
    value = score(candidate, cfg)
    row: dict[str, Any] = {"rank": position} | {key: getattr(candidate, key) for key in ("id", "name", "activation")}
    row |= {"score": value if math.isfinite(value) else None}
    row |= {key: getattr(candidate, key) for key in ("val_loss_mean", "val_loss_se", "fitness")}
    row |= {"difference": None, "difference_se": None, "separated": None}
    if winner is None or candidate is winner or not math.isfinite(value):
        return row
    mean, error = difference(winner, candidate, _paired(cfg), cfg.rank_by)
    row["difference"] = abs(mean)
    if genome_key(candidate) != genome_key(winner):
        row |= {"difference_se": error, "separated": error is not None and abs(mean) > 2 * error}
    return row


def _comparison(winner: Candidate, others: Sequence[tuple[Candidate, dict[str, Any]]], cfg: SearchConfig) -> list[str]:
    """Of the winner with the best candidate of another genome, and with others that it is not separated from."""
    if not others:
        return [f"{_told(winner, cfg)} is the only genome with a result: there is nothing to compare it with."]
    runner_up, row = others[0]
    pair = f"{_told(winner, cfg)} and {_told(runner_up, cfg)} differ by {row['difference']:.3g}"
    if row["difference_se"] is None:
        return [f"{pair} with one replicate each: the noise between seeds is unknown, so nothing is separated; "
                f"set replicates to {ENOUGH} or more."]
    limit, seeds = 2 * row["difference_se"], len(winner.replicates)
    relation = "more than" if row["separated"] else "less than" if row["difference"] < limit else "exactly"
    verdict, also = ("separated", "") if row["separated"] else ("not separated", " either")
    how = ", seed by seed" if _paired(cfg) else ""
    sentences = [f"{pair}, {relation} two standard errors ({limit:.3g}{how}): {verdict} by {seeds} seeds."]
    if near := [_who(c) for c, other in others[1:] if not other["separated"]]:
        sentences.append(f"{winner.name} is not separated from {_listed(near)}{also}.")
    if seeds in BY_CHANCE:
        sentences.append(f"From {seeds} seeds a standard error is itself rough: two candidates that do not differ are "
                         f"called separated in {BY_CHANCE[seeds]} % of such comparisons.")
    return sentences


def _unranked(candidates: Sequence[Candidate], cfg: SearchConfig) -> list[str]:
    """Why candidates that were trained have no score."""
    lost = [f"{_who(c)} in {sum(r.val_loss is None for r in c.replicates)} of {len(c.replicates)} replicates"
            for c in candidates if c.status == "diverged"]
    stopped = [f"{_who(c)} after {c.steps} steps" for c in candidates if c.status == "stopped"]
    unknown = [_who(c) for c in candidates if c.status == "complete" and not math.isfinite(score(c, cfg))]
    told = (
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
    return f"{candidate.name} ({candidate.activation})"


def _told(candidate: Candidate, cfg: SearchConfig) -> str:
    mean, error = _estimate(list(_by_seed(candidate, cfg.rank_by).values()))
    what = "fitness " if cfg.rank_by == "fitness" else ""
    return f"{_who(candidate)} {what}{_digits(mean, 5)}" + (f" ± {_digits(error, 2)}" if error is not None else "")


def _digits(value: float | None, count: int) -> str:
    return f"{value:#.{count}g}".rstrip(".")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
