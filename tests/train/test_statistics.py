"""How often an experiment claims what is not so, or stops what would have won: both are promised.

python tests/train/test_statistics.py N: the rates of N experiments.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from helios.train.search.statistics import ENOUGH, RATE, Difference, Rung, compare, drop, holm, rungs, spelt, verdict


def draws(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array(key, np.uint64)))


def at_most(n: int) -> float:
    """Return what the count among n of what happens at RATE exceeds in one of 1,000 cases."""
    return float(stats.binom.ppf(0.999, n, RATE))


def test_pairs_share_their_noise() -> None:
    seeds, noise = np.array([0.0, 5.0, -3.0, 1.0]), 0.1 * draws(1, 1).standard_normal((2, 4))
    a, b = noise + seeds + [[0.0], [1.0]]
    paired, welch = compare(a, b), compare(a, b, paired=False)
    assert paired and paired.difference == pytest.approx((a - b).mean()) and paired.n == 4
    assert paired.error == pytest.approx((a - b).std(ddof=1) / 2)
    assert paired.p == pytest.approx(2 * stats.t.sf(abs(paired.difference) / paired.error, 3)) and paired.p < 0.001
    assert welch and welch.p == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue) and welch.p > 0.5
    uneven = compare(a, b[:3], paired=False)
    assert uneven and uneven.p == pytest.approx(stats.ttest_ind(a, b[:3], equal_var=False).pvalue)
    assert uneven.n == 3 and uneven.error == pytest.approx(math.hypot(
        a.std(ddof=1) / 2, b[:3].std(ddof=1) / math.sqrt(3)))


@pytest.mark.parametrize(("a", "b", "paired", "found"), [
    ([1.0, 2.0], [1.0, 2.0], True, Difference(0.0, 0.0, 1.0, 2)),
    ([0.1 + 0.2, 1.0], [0.3, 1.0], True, Difference(0.0, 0.0, 1.0, 2)),
    ([1.5, 2.5], [1.0, 2.0], True, Difference(0.5, 0.0, 0.5, 2)),
    ([1.1 + x for x in range(6)], [0.1 + x for x in range(6)], True, Difference(1.0, 0.0, 1 / 32, 6)),
    ([2.0] * 3, [1.0] * 4, False, Difference(1.0, 0.0, 2 / 35, 3)),
    ([0.0, 0.0], [0.0, 0.0], False, Difference(0.0, 0.0, 1.0, 2)),
    ([1.0], [2.0], True, None), ([1.0, None], [1.0, 2.0], True, None), ([1.0, math.inf], [1.0, 2.0], True, None),
    ([1.0, 2.0], [1.0], False, None), ([], [], True, None)])
def test_without_noise_or_values(a: list[Any], b: list[Any], paired: bool, found: Difference | None) -> None:
    assert compare(a, b, paired) == (found and pytest.approx(found, abs=1e-15))


def test_what_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="2 and 3 values cannot be paired"):
        compare([1, 2], [1, 2, 3])


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.6]) == [1.0, 1.0] and holm([]) == []


WIDE, CLOSE = [0.0, 0.3, -0.3, 0.1, -0.1], [0.01, -0.01, 0.005, -0.005, 0.0]


@pytest.mark.parametrize(("p", "words"), [(0.0501, "0.0501"), (0.0499, "0.05"), (0.048, "0.048"), (0.052, "0.052"),
                                          (0.0502, "0.0502"), (0.3, "0.3"), (0.002, "0.002"), (1.0, "1")])
def test_p_shows_its_side(p: float, words: str) -> None:
    assert spelt(p) == words


@pytest.mark.parametrize(("gains", "genomes", "better", "sentences"), [
    ({"preset": 0.031, "random": 0.004}, {}, True, [
        "0.031 ± 0.004 nats better than the preset (p 0.002 after 2 comparisons)",
        "not separated from the best of random search: 0.00 ± 0.10 nats ahead (p 1 after 2 comparisons)"]),
    ({"preset": -0.031}, {}, False, ["0.031 ± 0.004 nats worse than the preset (p 0.0009)"]),
    ({"preset": 0.0, "random": 1.0}, {"evolved": "gelu", "preset": "gelu", "random": "silu"}, False, [
        "the same genome as the preset", "1.00 ± 0.10 nats better than the best of random search (p 0.0006)"]),
    ({"preset": math.nan, "random": -0.04}, {}, False, [
        "not compared with the preset: each needs two values or more, none of them missing",
        "not separated from the best of random search: 0.04 ± 0.10 nats behind (p 1 after 2 comparisons)"]),
    ({}, {}, False, [])])
def test_sentences(gains: dict[str, float], genomes: dict[str, str], better: bool, sentences: list[str]) -> None:
    noise = {"preset": CLOSE, "random": WIDE}
    values = {"evolved": [2.0] * 5} | {role: [2.0 + gain + x for x in noise[role]] for role, gain in gains.items()}
    found = verdict(values, genomes)
    assert [c.sentence for c in found.comparisons] == sentences and found.better == better
    assert [c.separated for c in found.comparisons] == [" than " in sentence for sentence in sentences]


def test_nothing_evolved() -> None:
    assert verdict({"preset": [1.0, 2.0]}) == verdict({})


def claims(seed: int, experiments: int, seeds: int, gain: float = 0.0, fresh: bool = True) -> tuple[int, int]:
    """Return how many experiments separate the evolved finalist from any control, and how many call it better than the
    preset. It is the best of 40 by as many other seeds (by these where not fresh), as the random one is of 40 others,
    and better than both controls by `gain` standard errors."""
    noise, separated, better = draws(seed, seeds), 0, 0
    for _ in range(experiments):
        found, shared = noise.standard_normal((81, 2 * seeds)), noise.standard_normal(2 * seeds)
        found[:40] -= gain * math.sqrt(2 / seeds)
        best = [int(part[:, :seeds].mean(1).argmin()) + 40 * i for i, part in enumerate((found[:40], found[40:80]))]
        shown = (found + 3 * shared)[:, seeds:] if fresh else (found + 3 * shared)[:, :seeds]
        result = verdict(dict(zip(("evolved", "random", "preset"), shown[[*best, 80]], strict=True)))
        separated += any(c.separated for c in result.comparisons)
        better += result.better
    return separated, better


def test_what_is_claimed_of_equals() -> None:
    separated, better = claims(1, 2_000, 5)
    assert 0.02 * 2_000 < separated <= at_most(2_000) and better < separated
    assert claims(2, 500, 5, fresh=False)[1] > at_most(500)  # on the seeds that chose it


def test_a_gain_of_3_standard_errors_is_found() -> None:
    assert claims(3, 500, 8, gain=3)[1] > 250


def test_rungs() -> None:
    assert rungs(replicates=3) == [(1, 0.25), (1, 0.5), (1, 1.0), (2, 1.0), (3, 1.0)]
    assert rungs((1.0,)) == [Rung(1, 1.0)]


@pytest.mark.parametrize(("shares", "replicates"), [((0.5,), 1), ((), 1), ((0.5, 0.5, 1), 1), ((0, 1), 1), ((1,), 0)])
def test_what_are_no_rungs(shares: tuple[float, ...], replicates: int) -> None:
    with pytest.raises(ValueError, match="rungs need"):
        rungs(shares, replicates)


PLAN = rungs((0.5, 1.0), 2)
PAST = [[3.0 + 0.01 * (i % 3), 2.0 + 0.01 * (i % 2), 2.1 + 0.01 * (i % 5)] for i in range(20)]


def test_why_some_are_stopped() -> None:
    at_half = drop([[3.0], [3.01], [4.0], [5.0], [math.nan]], PAST, PLAN, 4)
    assert list(at_half) == [4, 2, 3] and at_half[4] == "its value is not finite"
    assert at_half[2].startswith("1 worse than the best at 50% of the tokens, more than chance explains at 5% an exper")
    noise = [math.sqrt(sum((x - np.mean(v)) ** 2 for x in v) / 19) for v in (
        [(c - b) / math.sqrt(2) for _, b, c in PAST], [b - a for a, b, _ in PAST])]
    limits = [math.sqrt(2) * s * stats.t.isf(RATE / 4 / 2 / 2 / n, 19) for s, n in zip(noise, (4, 20), strict=True)]
    assert at_half[2].endswith("{:.2g} by seeds and {:.2g} by the rest of the tokens".format(*limits))
    for beyond in (-0.001, 0.001):
        assert bool(drop([[1.0], [1.0], [1.0], [1.0], [1 + sum(limits) + beyond]], PAST, PLAN, 4)) == (beyond > 0)
    whole = drop([[3.0, 2.0], [3.01, 1.9], [4.0, 2.5], [5.0], [math.nan]], PAST, PLAN, 4)
    assert list(whole) == [2] and whole[2].startswith("0.6 worse than the best after 1 seed, more") and (
        whole[2].endswith(" by seeds"))


@pytest.mark.parametrize(("values", "past", "keep"), [
    ([[3.0], [4.0], [5.0]], PAST[:ENOUGH - 1], 2), ([[3.0], [4.0], [5.0]], [row[:2] for row in PAST], 2),
    ([[3.0], [4.0], [5.0]], PAST, 3), ([[3.0, 2.0, 2.0], [3.0, 3.0, 3.0]], PAST, 1), ([], PAST, 2),
    ([[3.0, 2.0], [3.0, 2.5], [3.0, 9.0]], [row[:2] for row in PAST], 2)])
def test_nothing_is_stopped(values: list[list[float]], past: list[list[float]], keep: int) -> None:
    """Too few that show the noise; no more than are kept; nothing left to train; nothing at all."""
    assert drop(values, past, PLAN, 4, keep=keep) == {}


def test_what_seeds_share_is_no_noise() -> None:
    seeds = np.array([0.0, 0.0, 7.0])
    values, past = [[3.0, 2.0], [3.0, 2.1], [4.0, 2.5]], np.array(PAST)
    assert drop(values, (past + seeds).tolist(), PLAN, 4) == drop(values, PAST, PLAN, 4) != {}


# Learning curves a + b·t^−c: n candidates' a, b and c.
World = Callable[[np.random.Generator, int], tuple[np.ndarray, ...]]
WORLDS: dict[str, World] = {
    "equal": lambda u, n: (np.full(n, 3.0), np.full(n, 0.5), np.full(n, 0.5)),
    "near": lambda u, n: (u.normal(3, 0.02, n), u.uniform(0.45, 0.55, n), u.uniform(0.45, 0.55, n)),
    "parallel": lambda u, n: (u.normal(3, 0.1, n), np.full(n, 0.5), np.full(n, 0.5)),
    "crossing": lambda u, n: (u.normal(3, 0.1, n), u.uniform(0.1, 1, n), u.uniform(0.2, 0.9, n)),
    "slow ones win": lambda u, n: (u.normal(3, 0.05, n) - (b := u.uniform(0.1, 1, n)) * 1.1, b, np.full(n, 0.6)),
    "heavy tails": lambda u, n: (u.normal(3, 0.1, n), u.lognormal(-2.3, 1, n), u.uniform(0.3, 0.8, n)),
    "some broken": lambda u, n: (u.normal(3, 0.1, n) + (u.random(n) < 0.5) * u.uniform(0, 3, n),
                                 u.uniform(0.4, 0.6, n), u.uniform(0.4, 0.6, n)),
    "a rare slow kind wins": lambda u, n: (np.where(rare := u.random(n) < 0.1, 2.2, 3.0) + u.normal(0, 0.1, n),
                                           np.where(rare, 1.0, 0.3), u.uniform(0.4, 0.6, n)),
}


def race(world: str, seed: int, experiments: int, replicates: int = 3, generations: int = 4, noise: float = 0.02,
         inherits: bool = True, rule: Callable[..., Any] = drop) -> tuple[int, int, int, int, float]:
    """Return how often the best was stopped, by true and by measured final values, of the experiment and then of any
    generation, and the share of the tokens that was saved. Generations of 16 inherit from the best 4 of the last, or
    nothing. The noise before the end is larger, and correlated with that at the end."""
    plan, stopped, saved, size = rungs(replicates=replicates), np.zeros(4, int), 0.0, 16
    cost = np.array([0.25, 0.25, 0.5] + [1.0] * (replicates - 1))
    for experiment in range(experiments):
        u = draws(seed, experiment)
        shared, history, best, genes = u.normal(0, 0.1, len(plan)), list[list[float]](), [], np.empty((3, 0))
        for _ in range(generations):
            new = np.array(WORLDS[world](u, size))
            if inherits and genes.size:
                new = np.where(u.random(new.shape) < 0.5, genes[:, u.integers(4, size=size)], new)
            end = u.normal(0, noise, (size, replicates))
            early = end[:, :1] + u.normal(0, noise, (size, 2))
            a, b, c = new[..., None]
            values = a + b * np.array([r.share for r in plan]) ** -c + np.hstack([early, end]) + shared
            rows, live = [list[float]() for _ in range(size)], set(range(size))
            for rung in range(len(plan)):
                for i in live:
                    rows[i].append(float(values[i, rung]))
                saved += cost[rung] * (size - len(live))
                live -= set(rule(rows, history, plan, generations))
            history += rows
            for final in ((a + b)[:, 0], values[:, 2:].mean(1)):
                best.append((final.min(), int(final.argmin()) not in live))
            genes = new[:, sorted(live, key=lambda i: rows[i][-1])[:4]]
            genes = genes[:, np.arange(4) % genes.shape[1]]
        stopped += [*(min(best[i::2])[1] for i in (0, 1)), *(any(lost for _, lost in best[i::2]) for i in (0, 1))]
    return *(int(n) for n in stopped), saved / (experiments * generations * size * cost.sum())


@pytest.mark.parametrize(("world", "replicates", "noise", "saves"), [
    ("equal", 3, 0.02, 0.0), ("near", 3, 0.02, 0.0), ("parallel", 3, 0.02, 0.3), ("parallel", 1, 0.02, 0.15),
    ("crossing", 3, 0.02, 0.3), ("crossing", 5, 0.1, 0.15), ("slow ones win", 3, 0.02, 0.3),
    ("heavy tails", 3, 0.02, 0.3), ("some broken", 3, 0.1, 0.15)])
def test_who_would_win_is_not_stopped(world: str, replicates: int, noise: float, saves: float) -> None:
    *stopped, saved = race(world, 1, 100, replicates, noise=noise)
    promised = stopped if replicates > 1 else stopped[1::2]  # one replicate does not show true values
    assert max(promised) <= at_most(100) and saved >= saves


def halving(values: list[list[float]], *_: Any) -> list[int]:
    """Successive halving as it is: the worse half goes."""
    rung = max(map(len, values))
    live = sorted((i for i, row in enumerate(values) if len(row) == rung), key=lambda i: values[i][-1])
    return live[max(2, len(live) // 2):]


def test_plain_halving_stops_it() -> None:
    assert race("slow ones win", 2, 40, rule=halving)[2] > 10


if __name__ == "__main__":
    n = int(sys.argv[1])
    for k in (3, 5, 8):
        false, right = claims(1, n, k)[0], claims(3, n, k, gain=3)[1]
        print(f"{k} seeds: equals separated {false / n:.2%}, a gain of 3 standard errors found {right / n:.1%}")
    for w in WORLDS:
        for settings in ({}, {"generations": 10}, {"replicates": 1}, {"replicates": 5, "noise": 0.1},
                         {"inherits": False}):
            *lost, tokens = race(w, 1, n, **settings)  # type: ignore[arg-type]
            print(w, settings, *(f"{x / n:.2%}" for x in lost), f"saved {tokens:.0%}", flush=True)
