"""The three gates of a study of activations, judged from the candidates of its searches.

1. The choice is worth it: some activation is better than gelu at equal tokens, or as good and steadier, and not much
   slower.
2. It survives equal time: that activation is still better than gelu when it has trained only as long as gelu.
3. Activations by block are justified: some genome of several activations is better than the best single one at equal
   tokens.

Better is a validation loss that is lower by more than chance makes among as many equal candidates (separation.py), seed
by seed: all must have the same starts and batches. Gates 2 and 3 do not pass without gate 1; so, where nothing differs,
a study passes gate 1 by the loss no more often than the stated rate, and the others no more often than that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from helios.train.config import SearchConfig
from helios.train.search.births import Candidate, Replicate
from helios.train.search.evolution import score
from helios.train.search.ranking import aggregate, measurements
from helios.train.search.separation import PERCENT, Separation, separation

BASELINE = "gelu"
ACCEPTABLE_SPEED = 0.5  # least tokens/s, as a multiple of the baseline's
MATERIAL = 0.01  # least difference between shares of steps in trouble that makes one steadier
BY_LOSS = SearchConfig()


class Comparison(NamedTuple):
    """A candidate compared with another. Losses are in nats; None: not known."""

    activation: str
    against: str
    val_loss: float | None  # mean over seeds
    val_loss_se: float | None
    against_loss: float | None
    difference: float | None  # of the losses, below 0 where the candidate's is lower; None: not comparable
    error: float | None  # standard error of that; None: one seed
    limit: float | None  # which a difference exceeds if it is more than chance
    seeds: int
    tokens_per_sec: float | None
    speed: float | None  # tokens/s over the other's
    trouble: float  # share of steps in trouble
    against_trouble: float
    tokens: int | None  # read by the candidate

    @property
    def better(self) -> bool:
        """Return whether the candidate's loss is lower by more than chance."""
        return self.difference is not None and self.limit is not None and self.difference < -self.limit

    @property
    def steadier(self) -> bool:
        """Return whether the candidate has less trouble, by MATERIAL, and a loss not higher by more than chance."""
        if self.difference is None or self.limit is None or self.difference > self.limit:
            return False
        return round(self.against_trouble - self.trouble, 9) >= MATERIAL  # rounded, so that 0.03 - 0.02 is 0.01


class Verdict(NamedTuple):
    """The verdict on a gate."""

    gate: int
    passed: bool
    sentence: str
    chosen: Comparison | None = None  # what the sentence is about
    rows: tuple[Comparison, ...] = ()  # all comparisons


# -- the gates ---------------------------------------------------------------------------------------------------------

def worth_it(candidates: Sequence[Candidate]) -> Verdict:
    """Judge gate 1. candidates: with one activation each, the baseline among them."""
    base, test = _baseline(candidates), separation_of(candidates)
    rows = tuple(compare(c, base, test) for c in candidates if c is not base)
    passing = [r for r in rows if (r.better or r.steadier) and _fast(r)]
    chosen = _best(passing) or _best([r for r in rows if r.better or r.steadier]) or _best(rows)
    if chosen is None:
        return Verdict(1, False, f"Nothing to judge by: {BASELINE}, or all others, lack a finite validation loss with "
                                 f"some seed.", None, rows)
    if not (chosen.better or chosen.steadier):
        return Verdict(1, False, f"No activation is better or steadier than {BASELINE}: {in_words(chosen)}.", chosen,
                       rows)
    merit = in_words(chosen) if chosen.better else (
        f"{chosen.activation} is steadier than {BASELINE}, with trouble in {100 * chosen.trouble:.1f} % of the steps "
        f"against {100 * chosen.against_trouble:.1f} %, and its loss is not worse")
    speed = "an unknown speed" if chosen.speed is None else f"{chosen.speed:.2f} times its speed"
    end = f"at {speed}" if passing else f"but at {speed}, and at least {ACCEPTABLE_SPEED} times is asked"
    return Verdict(1, bool(passing), f"{merit}, {end}.", chosen, rows)


def survives_equal_time(candidates: Sequence[Candidate], first: Verdict) -> Verdict:
    """Judge gate 2 for the activation that decided gate 1; the verdict's rows are of all whose speed is known."""
    base, seconds = _baseline(candidates), baseline_seconds(candidates)
    then = [at(c, c.tokens_per_sec_mean * seconds) for c in candidates
            if c is not base and c.tokens_per_sec_mean and seconds]
    test = separation_of([base, *then])
    rows = tuple(compare(c, base, test) for c in then)
    chosen = next((r for r in rows if first.chosen and r.activation == first.chosen.activation), None)
    if chosen is None or chosen.difference is None:
        return Verdict(2, False, f"Nothing to judge by: there is no loss at {BASELINE}'s time.", chosen, rows)
    part = (f"{chosen.tokens:,} of {base.tokens:,} tokens" if (chosen.tokens or 0) < (base.tokens or 0) else
            "all its tokens, so that its last loss counts")
    sentence = f"In {BASELINE}'s {seconds:,.1f} s {chosen.activation} reads {part}; there {in_words(chosen)}."
    return _after(first, Verdict(2, chosen.better, sentence, chosen, rows))


def per_block_justified(candidates: Sequence[Candidate], blocks: Sequence[Candidate] | None, first: Verdict) -> Verdict:
    """Judge gate 3. blocks: genomes of several activations, with the same tokens and seeds; None: not trained."""
    leaders = best_two(candidates)
    if blocks is None or leaders is None:
        return Verdict(3, False, "Not run: gate 1 did not pass.")
    test = separation_of([*candidates, *blocks])
    rows = tuple(compare(c, leaders[0], test) for c in blocks)
    chosen = _best(rows)
    if chosen is None:
        return Verdict(3, False, "Nothing to judge by: no genome has a finite validation loss with every seed.",
                       None, rows)
    return _after(first, Verdict(3, chosen.better, f"Beside the best single one, {in_words(chosen)}.", chosen, rows))


# -- what they are made of ---------------------------------------------------------------------------------------------

def separation_of(candidates: Sequence[Candidate]) -> Separation | None:
    """Return the test of differences among the candidates that have a loss for each seed of the first."""
    return separation([measurements(c, BY_LOSS) for c in candidates if measured(c) and _alike(c, candidates[0])],
                      paired=True)


def compare(candidate: Candidate, against: Candidate, test: Separation | None) -> Comparison:
    """Compare a candidate with another, by the `test` of all candidates that are compared.
    Losses are comparable where both have one for each of the same seeds."""
    difference = error = limit = None
    if measured(candidate) and measured(against) and _alike(candidate, against):
        difference = score(candidate, BY_LOSS) - score(against, BY_LOSS)
        error, limit = (test.error, test.limit) if test else (None, None)
    ours, theirs = candidate.tokens_per_sec_mean, against.tokens_per_sec_mean
    return Comparison(
        candidate.activation, against.activation, candidate.val_loss_mean, candidate.val_loss_se,
        against.val_loss_mean, difference, error, limit, len(candidate.replicates), ours,
        ours / theirs if ours and theirs else None, trouble(candidate), trouble(against), candidate.tokens)


def _alike(a: Candidate, b: Candidate) -> bool:
    return {r.seed for r in a.replicates} == {r.seed for r in b.replicates}


def measured(candidate: Candidate) -> bool:
    """Return whether the candidate has a validation loss for each of its seeds."""
    return math.isfinite(score(candidate, BY_LOSS))


def trouble(candidate: Candidate) -> float:
    """Return the share of steps in trouble, over all replicates."""
    return sum(r.trouble for r in candidate.replicates) / max(1, sum(r.steps for r in candidate.replicates))


def at(candidate: Candidate, tokens: float) -> Candidate:
    """Return the candidate as it was after so many tokens, or as it ended if it read fewer."""
    if not candidate.replicates or not candidate.tokens or not candidate.status:
        return candidate
    then = [replace(r, val_loss=loss_at(r, tokens)) for r in candidate.replicates]
    return replace(aggregate(candidate, then, candidate.status), tokens=round(min(tokens, candidate.tokens)))


def loss_at(replicate: Replicate, tokens: float) -> float | None:
    """Return the validation loss after so many tokens, interpolated between the evaluations before and after.
    After the last evaluation it is that one's; it is None before the first, and where one of the two is not finite."""
    each = replicate.tokens / max(1, replicate.steps)
    read = [step * each for step, _ in replicate.evaluations]
    losses = [math.nan if loss is None else loss for _, loss in replicate.evaluations]
    found = float(np.interp(tokens, read, losses, left=math.nan)) if read else math.nan
    return found if math.isfinite(found) else None


def baseline_seconds(candidates: Sequence[Candidate]) -> float | None:
    """Return how long a training of the baseline takes at its mean speed; None where that is not known."""
    base = _baseline(candidates)
    return base.tokens / base.tokens_per_sec_mean if base.tokens and base.tokens_per_sec_mean else None


def best_two(candidates: Sequence[Candidate]) -> tuple[Candidate, Candidate] | None:
    """Return the two candidates with the lowest mean validation losses; None where fewer have one."""
    found = sorted(filter(measured, candidates), key=lambda c: score(c, BY_LOSS))
    return (found[0], found[1]) if len(found) > 1 else None


def variants(a: str, b: str, n_layer: int) -> list[str]:
    """Return the distinct genomes with a in the first half of the blocks and b in the second, the reverse, and in turn.
    The middle one of an odd number of blocks is in the first half."""
    half = (n_layer + 1) // 2
    genomes = ([a] * half + [b] * (n_layer - half), [b] * half + [a] * (n_layer - half),
               [(a, b)[i % 2] for i in range(n_layer)])
    return list(dict.fromkeys(",".join(genome) for genome in genomes))


def in_words(row: Comparison) -> str:
    """Return in words how two comparable candidates differ."""
    assert row.difference is not None
    side = "above" if row.difference > 0 else "below"
    apart = f"{row.activation} is {abs(row.difference):.3g} nats {side} {row.against}"
    if row.limit is None:
        return f"{apart}, with one seed, so that the noise is unknown"
    beyond = "more" if abs(row.difference) > row.limit else "not more"
    return f"{apart}, {beyond} than equals come to lie apart in {PERCENT} of studies ({row.limit:.3g})"


def _baseline(candidates: Sequence[Candidate]) -> Candidate:
    found = [c for c in candidates if c.activation == BASELINE]
    if len(found) != 1:
        raise ValueError(f"the gates compare with {BASELINE}, once; got {', '.join(c.activation for c in candidates)}")
    return found[0]


def _fast(row: Comparison) -> bool:
    return row.speed is not None and row.speed >= ACCEPTABLE_SPEED


def _best(rows: Sequence[Comparison]) -> Comparison | None:
    """Return the row of the lowest loss, of those that are better or else of all that are comparable."""
    known = [(not r.better, r.difference, i) for i, r in enumerate(rows) if r.difference is not None]
    return rows[min(known)[-1]] if known else None


def _after(first: Verdict, verdict: Verdict) -> Verdict:
    """Return the verdict, failed where gate 1 did not pass."""
    return verdict if first.passed else verdict._replace(
        passed=False, sentence=f"{verdict.sentence} But gate 1 did not pass.")
