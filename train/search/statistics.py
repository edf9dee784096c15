"""What an experiment may claim of its finalists, and which candidates a generation may stop early.

All values are lower for what is better: losses, or a fitness with its sign changed. Replicate r of every candidate has
the same seed, so differences are taken seed by seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

RATE = 0.05  # share of experiments over equal candidates that claim anything; that stop their eventual winner
CONTROLS = {"preset": "the preset", "random": "the best of random search"}  # by role
ENOUGH = 4  # candidates that show what seeds or the rest of the tokens change, before any is stopped
KEEP = 2  # candidates of a generation that are never stopped
ROUNDING = 4 * np.finfo(np.float64).eps  # of a difference, in parts of the values

Values = Sequence[float | None]


class Difference(NamedTuple):
    """The difference of two candidates' means."""

    difference: float
    error: float  # its standard error
    p: float  # of no difference, two-sided
    n: int  # replicates of each; the fewer


@dataclass(frozen=True)
class Comparison:
    """The evolved finalist beside a control; None where they could not be compared."""

    control: str  # its role
    same: bool  # they are the same genome
    difference: float | None  # evolved − control: below 0 is better
    error: float | None  # None, as p, where nothing is left to chance
    p: float | None  # corrected for the number of comparisons
    n: int
    separated: bool
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """What the validation says."""

    better: bool  # than the preset, and separated from it: only then may the winner be called better
    comparisons: list[Comparison]


class Rung(NamedTuple):
    """A point at which a generation's candidates are compared."""

    replicates: int  # so far; the last of them trains
    share: float  # of its tokens, to here


def compare(a: Values, b: Values, paired: bool = True) -> Difference | None:
    """Return how a differs from b by Student's paired t-test, or Welch's where not paired; None where there are fewer
    than two values or one is missing.

    Pair wherever replicate r of both had the same seed, also where shapes and so initial values differ: the test holds
    as long as the pairs are independent of each other, and the noise of the batches goes. The price is in degrees of
    freedom: at 5 % a difference of 4.3 standard errors is needed with 3 replicates and of 2.8 with 5, not paired of 2.8
    and 2.3. Welch's is for what has nothing in common, or not as many replicates.

    Where the noise is nil to rounding, p is 1 for equal means. For others the t-test would say 0, but it knows only
    noise that is never nil, and so few numbers do not show that there is none. p is then the chance that all signs
    agree (not paired: that all of a lie on one side of b), whatever the noise: 5 % takes 6 pairs."""
    from scipy import stats

    x, y = np.array(a, np.float64), np.array(b, np.float64)  # None becomes nan
    if paired and len(x) != len(y):
        raise ValueError(f"{len(x)} and {len(y)} values cannot be paired; give as many of both, or paired=False")
    if min(len(x), len(y)) < 2 or not np.isfinite([*x, *y]).all():
        return None
    difference, n = float(x.mean() - y.mean()), min(len(x), len(y))
    error = math.sqrt(sum(v.var(ddof=1) / len(v) for v in ([x - y] if paired else [x, y])))
    nil = ROUNDING * np.abs([*x, *y]).max()
    if error <= nil:
        chance = 2.0 ** (1 - n) if paired else 2 / math.comb(len(x) + len(y), n)
        return Difference(difference, 0.0, 1.0 if abs(difference) <= nil else chance, n)
    test = stats.ttest_rel(x, y) if paired else stats.ttest_ind(x, y, equal_var=False)
    return Difference(difference, error, float(test.pvalue), n)


def holm(ps: Sequence[float]) -> list[float]:
    """Return the p-values corrected for their number: those at or below a rate hold any false one at no more than that
    rate (S. Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6, 1979)."""
    p = np.array(ps, np.float64)
    order = np.argsort(p)
    p[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [float(x) for x in p]


def verdict(values: Mapping[str, Values], genomes: Mapping[str, object] | None = None, unit: str = "nats",
            paired: bool = True, rate: float = RATE, settled: bool = False) -> Verdict:
    """Return what the finalists' values on fresh seeds say of the evolved one.

    values: by role, evolved and any of CONTROLS. genomes: by role; an equal one is not compared. Equal finalists are
    separated, for better or worse, from any control in no more than `rate` of experiments, however many candidates
    they were chosen from, since none of these seeds chose them. A comparison that lacks a value counts as one.
    settled: the values follow from the genomes alone, so that any difference separates.

    Measured in 20,000 experiments (seeds 1 and 3), the best of 40 beside the best of 40 others and a preset: of equals
    5.1 ± 0.2 % separated any with 5 seeds, 4.9 % with 8; a gain over both of 3 standard errors is found in 52 and 67 %.
    """
    if "evolved" not in values:
        return Verdict(False, [])
    genomes = genomes or {}
    same = {role: role in genomes and genomes[role] == genomes.get("evolved") for role in CONTROLS if role in values}
    tests = {role: compare(values["evolved"], values[role], paired) for role in same if not same[role]}
    corrected = dict(zip(tests, holm([test.p if test else 1.0 for test in tests.values()]), strict=True))
    found = []
    for role in same:
        test, p = tests.get(role), corrected.get(role, 1.0)
        if settled and test:
            found.append(Comparison(role, False, test.difference, None, None, test.n, test.difference != 0,
                                    _settled(CONTROLS[role], test.difference, unit)))
            continue
        separated = test is not None and p <= rate
        sentence = f"the same genome as {CONTROLS[role]}" if same[role] else _sentence(
            CONTROLS[role], test, p, separated, len(tests), unit)
        found.append(Comparison(role, same[role], test and test.difference, test and test.error, p if test else None,
                                test.n if test else 0, separated, sentence))
    return Verdict(any(c.control == "preset" and c.separated and (c.difference or 0) < 0 for c in found), found)


def _sentence(control: str, test: Difference | None, p: float, separated: bool, comparisons: int, unit: str) -> str:
    if test is None:
        return f"not compared with {control}: each needs two values or more, none of them missing"
    size = abs(test.difference)
    # The error has one digit, or two that begin with 1; the difference as many places.
    places = max(0, -math.floor(math.log10((test.error or size or 1.0) / 2)))
    apart = f"{size:.{places}f} ± {test.error:.{places}f} {unit}".rstrip()
    chance = f"(p {spelt(p)}" + f" after {comparisons} comparisons" * (comparisons > 1) + ")"
    if separated:
        return f"{apart} {'better' if test.difference < 0 else 'worse'} than {control} {chance}"
    side = " ahead" if test.difference < 0 else " behind" if test.difference > 0 else ""
    return f"not separated from {control}: {apart}{side} {chance}"


def _settled(control: str, difference: float, unit: str) -> str:
    size = f"{abs(difference):,.10g} {unit}".rstrip()
    return (f"{size} {'better' if difference < 0 else 'worse'} than {control}" if difference else
            f"not separated from {control}: it has the same {unit}")


def spelt(p: float, rate: float = RATE) -> str:
    """Return p with a digit, near the rate with two, and always with as many as show on which side of it p lies."""
    digits = 1 + (rate / 5 < p < 2 * rate)
    while (float(f"{p:.{digits}g}") <= rate) != (p <= rate):
        digits += 1
    return f"{p:.{digits}g}"


def rungs(shares: Sequence[float] = (0.25, 0.5, 1.0), replicates: int = 1) -> list[Rung]:
    """Return the points, in order, at which a generation's candidates are compared: the first replicate trains to each
    of the shares of its tokens, then the others train whole, one after another."""
    if replicates < 1 or not shares or shares[-1] != 1 or any(
            a >= b for a, b in zip((0, *shares), shares, strict=False)):
        raise ValueError(f"rungs need one replicate or more and shares that rise from above 0 to 1, got {replicates} "
                         f"and {tuple(shares)}")
    return [Rung(1, share) for share in shares] + [Rung(r, 1.0) for r in range(2, replicates + 1)]


def drop(values: Sequence[Values], history: Sequence[Values], plan: Sequence[Rung], generations: int,
         rate: float = RATE, keep: int = KEEP, among: str = "") -> dict[int, str]:
    """Return the candidates of a generation to stop at its latest rung, by index, each with the reason.

    values: [candidates][rungs so far], what was measured at each rung of the plan by the replicate that trained; that
    of a candidate stopped earlier ends earlier. history: the same of the experiment's earlier candidates, stopped ones
    too. generations: the most that the experiment may have. among: in the reason, what kind of candidates these are.

    A candidate is stopped if it is worse than the best by more than chance explains. Chance is
    (a) the seeds: differences between replicates that candidates do not share, pooled over all of them;
    (b) before the end of the tokens, the rest of them: last value − value at this rung, of the first replicate, pooled
        over all candidates that came so far.
    Each has its own limit, a quantile of Student's t; their sum is exceeded no more often than either is, however they
    depend on each other. With fewer than ENOUGH candidates to show either, none is stopped.

    `rate` is shared evenly by the generations, their decisions and these two, and by pairs of candidates. For (a) the
    pairs are those with the best: luck of its first seeds does not make it the best, which is a matter of all seeds.
    For (b) they are all ordered pairs: where curves cross, the best at the end is likely one that the last tokens
    helped much, so that any pair may be the one. So the best of a generation at the end, by true values or by the
    means of all replicates, is stopped in any generation in no more than `rate` of experiments; with one replicate,
    which does not show the noise of seeds, the best by measured values alone.

    This takes both to be normal, and alike for all candidates. Measured by tests/train/test_statistics.py in 2,000
    experiments (seed 1) of each of seven kinds of curves, crossing, heavy-tailed and equal ones among them, with 3 or 5
    replicates in 4 or 10 generations of 16: the best of the experiment was stopped in 0.25 % at most, that of any
    generation in 2.2 %; 35 to 47 % of the tokens were saved where candidates differ by five times the noise of a seed.
    What no finished candidate has shown cannot be allowed for: where one candidate in ten is of a kind that starts
    slower and wins, these are 0.9 and 2.4 %, and 4.2 and 9.0 % if nothing is inherited.
    """
    rung = max(map(len, values), default=0)
    if not 0 < rung < len(plan):
        return {}
    at, first = plan[rung - 1], next(i for i, r in enumerate(plan) if r.share == 1)
    found = {i: np.array(row, np.float64) for i, row in enumerate(values) if len(row) == rung}
    gone = {i: "its value is not finite" for i, row in found.items() if not np.isfinite(row).all()}
    now = {i: float(row[min(first, rung - 1):].mean()) for i, row in found.items() if i not in gone}
    known = _table([*history, *values], len(plan))
    sources = {}
    if plan[-1].replicates > 1:
        sources["seeds"] = _seeds(known[:, first:]), math.sqrt(2 / at.replicates), len(values) - 1
    if at.share < 1:
        tokens = _pooled(known[:, first] - known[:, rung - 1])
        sources["the rest of the tokens"] = (tokens, math.sqrt(2), len(values) * (len(values) - 1))
    each = rate / (generations * (len(plan) - 1) * len(sources))
    limits = {name: _limit(noise, each / max(1, pairs)) * times for name, (noise, times, pairs) in sources.items()}
    limit, best = sum(limits.values()), min(now.values(), default=0.0)
    where = (f"at {at.share:.0%} of the tokens" if at.share < 1 else
             f"after {at.replicates} seed{'s' * (at.replicates > 1)}")
    why = " and ".join(f"{x:.2g} by {name}" for name, x in limits.items())
    behind = [i for i in sorted(now, key=now.__getitem__)[keep:] if now[i] - best > limit]
    return gone | {i: f"{now[i] - best:.3g} worse than the best {among}{where}, more than chance explains at "
                      f"{rate:.0%} an experiment: {why}" for i in behind}


class _Noise(NamedTuple):
    """A standard deviation of one measurement of a candidate, estimated."""

    deviation: float
    freedom: int
    candidates: int


def _table(rows: Sequence[Values], width: int) -> np.ndarray:
    """Return the rows with nan for what is missing or not finite."""
    table = np.full((len(rows), width), np.nan)
    for line, row in zip(table, rows, strict=True):
        line[:len(row)] = row
    return np.where(np.isfinite(table), table, np.nan)


def _pooled(*samples: np.ndarray) -> _Noise:
    """Return the deviation within samples, of the values in them that are known."""
    samples = tuple(x[~np.isnan(x)] for x in samples)
    samples = tuple(x for x in samples if len(x))
    freedom = sum(len(x) - 1 for x in samples)
    squares = sum(float(((x - x.mean()) ** 2).sum()) for x in samples)
    return _Noise(math.sqrt(squares / freedom) if freedom else math.nan, freedom, max(map(len, samples), default=0))


def _seeds(x: np.ndarray) -> _Noise:
    """Return the noise of one value [candidates][replicates] that is neither its candidate's nor its seed's.
    Helmert's contrasts: how each replicate differs from the mean of those before, scaled, has this noise and is
    independent of the other contrasts, also where later replicates are missing; its mean over candidates is the seeds'.
    """
    return _pooled(*(math.sqrt(r / (r + 1)) * (x[:, r] - x[:, :r].mean(1)) for r in range(1, x.shape[1])))


def _limit(noise: _Noise, rate: float) -> float:
    """Return what a normal value of this noise exceeds at this rate; infinity where the noise is hardly known."""
    from scipy.stats import t

    if noise.candidates < ENOUGH:
        return math.inf
    return float(t.isf(rate, noise.freedom)) * noise.deviation
