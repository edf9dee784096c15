"""What a search concludes: planted truths are found, noise is not taken for one."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios.model.activations import TABLE
from helios.train.config import SearchConfig
from helios.train.search.births import Candidate, Replicate
from helios.train.search.evolution import score
from helios.train.search.ranking import aggregate, rank, reused, summary

from .runs import first_generation, next_generation

DEFAULT, UNPAIRED = SearchConfig(), SearchConfig(shared_init=False)
POOL = tuple(TABLE)[:6]


def replicate(seed: int, val_loss: float | None, **more: Any) -> Replicate:
    values = {"best_val_loss": val_loss, "train_loss": 5.0, "fitness": None if val_loss is None else -val_loss,
              "steps": 100, "tokens": 1000, "evaluations": [[100, val_loss]], "spikes": 0, "skipped": 0,
              "clip_rate": 0.0, "max_grad_norm": 1.0, "tokens_per_sec_mean": 10.0, "cusum_alerts": 0, "seconds": 2.0}
    return Replicate(**values | {"seed": seed, "val_loss": val_loss} | more)


def candidates(*losses: list[float], names: tuple[str, ...] = POOL) -> list[Candidate]:
    """One for each list, with one replicate for each loss."""
    cfg = SearchConfig(activation_pool=",".join(names), population_size=len(losses))
    return [aggregate(c, [replicate(seed, x) for seed, x in enumerate(of)])
            for c, of in zip(first_generation(cfg, 1, 0), losses, strict=True)]


def concluded(found: list[Candidate], cfg: SearchConfig = DEFAULT, status: str = "complete") -> dict[str, Any]:
    result = summary(cfg, found, {"n_layer": 1}, "cpu", status)
    json.dumps(result, allow_nan=False)
    return result


# -- from replicates to a candidate -----------------------------------------------------------------------------------
def test_aggregate() -> None:
    (plain,) = first_generation(SearchConfig(population_size=1), 1, 0)
    both = [replicate(0, 5.0, best_val_loss=4.5, train_loss=4.0, fitness=0.1, steps=100, tokens=1001, spikes=1,
                      skipped=2, clip_rate=0.5, max_grad_norm=3.0, tokens_per_sec_mean=10.0, cusum_alerts=4),
            replicate(1, 5.5, best_val_loss=4.75, train_loss=4.5, fitness=0.3, steps=300, tokens=2002, spikes=0,
                      skipped=1, clip_rate=0.1, max_grad_norm=2.0, tokens_per_sec_mean=20.0, cusum_alerts=1)]
    c = aggregate(plain, both)
    assert c.status == "complete" and c.replicates == both and c.id == plain.id
    assert (c.val_loss_mean, c.train_loss, c.best_val_loss) == (5.25, 4.25, 4.5)
    assert c.val_loss_se == pytest.approx(0.25)  # sd 0.5/√2, over √2
    assert (c.fitness, c.tokens_per_sec_mean, c.clip_rate) == pytest.approx((0.2, 15.0, 0.2))
    assert (c.steps, c.tokens, c.spikes, c.skipped, c.max_grad_norm, c.cusum_alerts) == (200, 1502, 1, 3, 3.0, 5)
    assert aggregate(plain, both, "stopped").status == "stopped"
    one = aggregate(plain, both[:1])
    assert one.val_loss_mean == 5.0 and one.val_loss_se is None


@given(st.lists(st.floats(1, 20), min_size=2, max_size=6))
def test_standard_error_is_that_of_numpy(losses: list[float]) -> None:
    (c,) = candidates(losses)
    assert c.val_loss_mean == pytest.approx(np.mean(losses))
    assert c.val_loss_se == pytest.approx(np.std(losses, ddof=1) / np.sqrt(len(losses)), abs=1e-12)


@pytest.mark.parametrize("lost", [math.nan, math.inf, None])
@pytest.mark.parametrize("status", ["complete", "stopped"])
def test_one_lost_replicate_is_a_diverged_candidate(lost: float | None, status: str) -> None:
    (plain,) = first_generation(SearchConfig(population_size=1), 1, 0)
    c = aggregate(plain, [replicate(0, 5.0), replicate(1, lost, train_loss=math.nan, max_grad_norm=math.inf)], status)
    assert c.status == "diverged" and c.val_loss_mean is None is c.val_loss_se and c.fitness is None is c.train_loss
    assert c.best_val_loss == 5.0 and c.max_grad_norm == 1.0
    everything = aggregate(plain, [replicate(0, lost)])
    assert everything.status == "diverged" and everything.best_val_loss is None


def test_reused_carries_results_but_not_an_identity() -> None:
    first, second, other = first_generation(SearchConfig(activation_pool="gelu,silu", population_size=4), 1, 0)[:3]
    done = replace(aggregate(first, [replicate(0, 5.0), replicate(1, 6.0)]), parameters=7)
    copy = reused(other, done)
    assert copy == replace(done, id=other.id, name=other.name, status="reused") and score(copy, SearchConfig()) == 5.5
    assert reused(replace(other, id="gen1_gelu_9"), copy).val_loss_mean == 5.5
    stopped = aggregate(first, [replicate(0, 4.0)], "stopped")
    assert score(reused(other, stopped), SearchConfig()) == math.inf
    with pytest.raises(ValueError, match="gen0_silu_2 is silu, and gen0_gelu_1 is gelu"):
        reused(second, done)


# -- the order --------------------------------------------------------------------------------------------------------
@given(st.lists(st.tuples(st.sampled_from([4.0, 5.0, 5.5]),
                          st.sampled_from(["complete", "stopped", "diverged", "none"])), max_size=8),
       st.sampled_from(["val_loss", "fitness"]))
def test_rank_by_brute_force(measured: list[tuple[float, str]], rank_by: str) -> None:
    cfg = SearchConfig(rank_by=rank_by)
    found = []
    for plain, (loss, status) in zip(first_generation(SearchConfig(population_size=8), 1, 0), measured, strict=False):
        lost = [replicate(1, math.nan)] if status == "diverged" else []
        found.append(plain if status == "none" else aggregate(
            plain, [replicate(0, loss), *lost], "stopped" if status == "stopped" else "complete"))
    got = [found.index(c) for c in rank(found, cfg)]
    fine = [i for i, (_, status) in enumerate(measured) if status == "complete"]
    by_hand = []
    for loss in (4.0, 5.0, 5.5):
        by_hand += [i for i in fine if measured[i][0] == loss]
    assert got == by_hand + [i for i in range(len(measured)) if i not in fine]


def test_a_better_fitness_wins_by_fitness_and_the_bonus_never_counts() -> None:
    a, b = candidates([5.0, 5.0], [6.0, 6.0])
    b = replace(b, fitness=1.0, bonus=99.0, replicates=[replace(r, fitness=1.0) for r in b.replicates])
    assert rank([a, b], SearchConfig()) == [a, b]
    assert rank([a, b], SearchConfig(rank_by="fitness")) == [b, a]
    result = concluded([a, b], SearchConfig(rank_by="fitness"))
    assert result["winner"] == b.id and result["ranking"][1]["difference"] == 6.0 and result["separated"] is True
    assert result["ranking"][0]["score"] == -1.0
    assert result["reasons"][0].startswith("S-Beta (silu) fitness 1.0000 ± 0.0 and G-Alpha (gelu) fitness -5.0000 ")
    # without a fitness a candidate is not ranked, whatever its loss
    lost = replace(a, fitness=None)
    result = concluded([lost, b], SearchConfig(rank_by="fitness"))
    assert result["winner"] == b.id and result["ranking"][1]["score"] is None
    assert "Not ranked, since their quality fitness could not be computed: G-Alpha (gelu)." in result["reasons"]


# -- differences ------------------------------------------------------------------------------------------------------
def test_the_noise_is_that_of_the_settings() -> None:
    """Only what shares initial values and batches is compared seed by seed."""
    shared, own = [0.0, 0.4, -0.3, 0.2], [0.01, -0.01, 0.01, -0.01]
    a, b = candidates([5.0 + n for n in shared], [5.1 + n + d for n, d in zip(shared, own, strict=True)])
    entry = concluded([a, b])["ranking"][1]
    assert entry["difference"] == pytest.approx(0.1) and entry["separated"] is True
    assert entry["difference_se"] == pytest.approx(statistics.stdev(own) / 2)
    # by seed, not by position
    assert concluded([a, replace(b, replicates=b.replicates[::-1])])["ranking"][1] == entry
    for cfg in (UNPAIRED, SearchConfig(shared_batches=False)):
        entry = concluded([a, b], cfg)["ranking"][1]
        assert entry["separated"] is False
        assert entry["difference_se"] == pytest.approx(math.hypot(a.val_loss_se or 0, b.val_loss_se or 0))
    assert concluded([a, b], SearchConfig(rank_by="fitness"))["ranking"][1]["difference"] == pytest.approx(0.1)


@settings(deadline=None)  # a quantile of the studentized range takes a while, the first time
@given(st.lists(st.floats(1, 20), min_size=1, max_size=5), st.booleans())
def test_identical_candidates_are_never_separated(losses: list[float], shared: bool) -> None:
    cfg = SearchConfig(shared_init=shared)
    result = concluded(candidates(losses, losses, losses), cfg)
    assert result["separated"] is False and [row["separated"] for row in result["ranking"]] == [None, False, False]
    assert [row["difference"] for row in result["ranking"]] == [None, 0.0, 0.0]
    assert result["winner"] == "gen0_gelu_1"  # the first of equals


def test_the_limit_itself_is_not_enough() -> None:
    """Differences of 1 and 3: with two seeds the limit is 15.894 standard errors, of 1 each."""
    apart = lambda by: [by - 1.0, by + 1.0]
    assert concluded(candidates([0.0, 0.0], apart(15.89)))["separated"] is False
    assert concluded(candidates([0.0, 0.0], apart(15.90)))["separated"] is True


def test_a_genome_is_compared_by_its_first_measurement() -> None:
    """silu measured twice with very different results: gelu in between, as measured first, is what decides."""
    found = candidates([5.0, 5.001], [4.0, 4.001], [6.0, 6.001], [9.0, 9.001], names=("gelu", "silu"))
    result = concluded(found)
    assert [(row["activation"], row["separated"]) for row in result["ranking"]] == [
        ("silu", None), ("gelu", True), ("gelu", None), ("silu", None)]
    assert result["ranking"][3]["difference"] == pytest.approx(5.0) and result["ranking"][3]["difference_se"] is None
    # silu's second measurement wins, and its first, which does not differ from gelu's, is what is compared
    found = candidates([5.0, 5.01], [5.02, 5.0], [6.0, 6.0], [4.0, 4.01], names=("gelu", "silu"))
    result = concluded([found[0], found[1], found[3]])
    assert result["winner"] == found[3].id and result["separated"] is False
    assert result["reasons"][0].startswith(f"{found[1].name} (silu) 5.0100 ± 0.010 and {found[0].name} (gelu) 5.0050")
    alone = concluded(candidates([4.0, 4.1], [9.0, 9.1], names=("gelu",)))
    assert alone["winner"] == "gen0_gelu_1" and alone["separated"] is False
    assert alone["reasons"][0] == ("G-Alpha (gelu) 4.0500 ± 0.050 is the only genome with a result: "
                                   "there is nothing to compare it with.")


# -- planted truths with noise ----------------------------------------------------------------------------------------
def noisy(seed: int, truths: list[float], replicates: int, own: float = 0.01, shared: float = 0.05) -> list[Candidate]:
    """Losses around the truths: noise that a seed brings to all candidates, and each training's own."""
    draw = np.random.Generator(np.random.Philox(key=np.array([seed, 1], np.uint64)))
    common = shared * draw.standard_normal(replicates)
    return candidates(*[list(t + common + own * draw.standard_normal(replicates)) for t in truths])


def test_six_sigma_are_always_found() -> None:
    for seed in range(200):
        result = concluded(noisy(seed, [5.06, 5.12, 5.0, 5.18], 5))
        assert result["winner_activation"] == "relu" and result["separated"] is True, seed


def test_a_crippled_activation_never_wins_and_the_truth_does() -> None:
    """Under every strategy, with noise: relu, which is first in the pool, is 50 sigma worse and swiglu 10 better."""
    truth = {"relu": 5.5, "gelu": 5.1, "silu": 5.1, "swiglu": 5.0}
    for seed in range(12):
        for selection, genome, elitism in (("topk", "global", True), ("topk", "per_block", False), (
                "tournament", "global", False), ("tournament", "per_block", True), ("exhaustive", "per_block", True)):
            cfg = SearchConfig(activation_pool="relu,gelu,silu,swiglu", population_size=4, generations=3,
                               selection=selection, genome=genome, elitism=elitism)
            draw = np.random.Generator(np.random.Philox(key=np.array([seed, 2], np.uint64)))
            found: list[Candidate] = []
            for g in range(3):
                for c in next_generation(cfg, 2, found, g, seed) if g else first_generation(cfg, 2, seed):
                    loss = statistics.fmean(truth[name] for name in c.activation.split(","))
                    found.append(aggregate(c, [replicate(k, loss + 0.01 * draw.standard_normal()) for k in range(3)]))
            assert any("relu" in c.activation for c in found)
            assert concluded(found, cfg)["winner_activation"] == "swiglu"


# -- what is told -----------------------------------------------------------------------------------------------------
def test_summary_is_as_the_format_says() -> None:
    found = candidates([5.5, 5.6, 5.7], [5.0, 5.1, 5.2], [math.nan])
    copy = reused(replace(found[0], id="gen1_gelu_4", name="G-Alpha.1", generation=1), found[0])
    waiting = replace(first_generation(SearchConfig(population_size=1), 1, 0)[0], id="gen1_gelu_5")
    result = summary(SearchConfig(), [*found, copy, waiting], {"n_layer": 2}, "a device", "running")
    assert list(result) == ["status", "config", "base", "ranking", "winner", "winner_name", "winner_activation",
                            "winner_settings", "separated", "reasons", "unfair", "cost", "refused", "device"]
    assert result["status"] == "running" and result["base"] == {"n_layer": 2} and result["device"] == "a device"
    assert result["config"] == dataclasses.asdict(SearchConfig())
    assert (result["winner"], result["winner_name"], result["winner_activation"]) == ("gen0_silu_2", "S-Beta", "silu")
    assert result["cost"] == {"trainings": 7, "steps": 700, "tokens": 7000, "seconds": 14.0}  # the copy cost nothing
    rows = result["ranking"]
    assert [(r["rank"], r["id"]) for r in rows] == [
        (1, "gen0_silu_2"), (2, "gen0_gelu_1"), (3, "gen1_gelu_4"), (4, "gen0_relu_3")]
    assert list(rows[0]) == ["rank", "id", "name", "activation", "settings", "score", "val_loss_mean", "val_loss_se",
                             "fitness", "difference", "difference_se", "separated"]
    assert rows[0]["difference"] is rows[0]["separated"] is rows[3]["score"] is rows[3]["separated"] is None
    assert rows[1]["difference"] == pytest.approx(0.5) and rows[1]["separated"] is True


def test_reasons_name_candidates_and_numbers() -> None:
    found = candidates([5.424, 5.432, 5.440], [5.437, 5.437, 5.437], [5.43, 5.45, 5.5])
    assert concluded(found)["reasons"] == [
        "G-Alpha (gelu) 5.4320 ± 0.0046 and S-Beta (silu) 5.4370 ± 0.0 differ by 0.005, not more than the 0.0594 that "
        "3 equal genomes come to lie apart in 4 % of searches, seed by seed: not separated by 3 seeds.",
        "G-Alpha is not separated from R-Gamma (relu) either."]
    assert "the 0.0566 that 3 equal genomes come to lie apart in 4 % of searches: not" in concluded(
        found, UNPAIRED)["reasons"][0]
    found = candidates([5.0, 5.01, 5.02], [6.0, 6.02, 6.01], [5.02, 5.0, 5.04])
    assert concluded(found)["reasons"] == [
        "G-Alpha (gelu) 5.0100 ± 0.0058 and R-Gamma (relu) 5.0200 ± 0.012 differ by 0.01, not more than the 0.0423 "
        "that 3 equal genomes come to lie apart in 4 % of searches, seed by seed: not separated by 3 seeds."]
    assert "differ by 1, more than the 0.028 that 2 equal" in concluded(found[:2])["reasons"][0]
    equal = concluded(candidates([5.0] * 4, [5.0] * 4))
    assert "differ by 0, not more than the 0 that 2 equal genomes" in equal["reasons"][0]


def test_reasons_tell_candidates_of_one_name_apart() -> None:
    found = candidates([5.424, 5.432, 5.440], [5.437, 5.437, 5.437], [5.43, 5.45, 5.5])
    reasons = concluded([replace(c, name="G-Alpha") for c in found])["reasons"]
    assert reasons[0].startswith("G-Alpha #1 (gelu)") and " and G-Alpha #2 (silu)" in reasons[0]
    assert reasons[1] == "G-Alpha #1 is not separated from G-Alpha #3 (relu) either."


def test_reasons_of_a_single_replicate() -> None:
    result = concluded(candidates([5.0], [9.0]), SearchConfig(replicates=1))
    assert result["separated"] is False and result["ranking"][1]["separated"] is False
    assert result["reasons"] == [
        "G-Alpha (gelu) 5.0000 and S-Beta (silu) 9.0000 differ by 4 with one replicate each: the noise between seeds "
        "is unknown, so nothing is separated; set replicates to 5 or more."]


def test_reasons_of_what_is_not_ranked() -> None:
    found = candidates([math.nan, 5.0], [5.0, 5.1], [5.0, 5.1])
    found[2] = replace(found[2], status="stopped")
    reasons = concluded(found)["reasons"]
    assert reasons[-2:] == [
        "Diverged, without a finite validation loss at the end (a lower candidate_lr may help): "
        "G-Alpha (gelu) in 1 of 2 replicates.",
        "Stopped, since they could not win any more: R-Gamma (relu) after 100 steps."]
    many = concluded([replace(c, id=str(i)) for i, c in enumerate(candidates(*[[math.nan]] * 12))])
    assert many["reasons"][-1].endswith(" and 4 more.") and many["reasons"][-1].count("(gelu)") == 2


def test_nothing_finished() -> None:
    for found, status, words in ((candidates([math.nan, 5.0]), "complete", "there is no winner"),
                                 ([], "running", "No candidate has a result yet.")):
        result = concluded(found, status=status)
        assert result["winner"] is result["winner_name"] is result["winner_activation"] is None
        assert result["separated"] is False and words in result["reasons"][0]


@pytest.mark.parametrize(("changed", "words"), [
    ({"shared_init": False}, "shared_init is false: "), ({"shared_batches": False}, "shared_batches is false: "),
    ({"candidate_schedule": "run"}, "candidate_schedule is run: "), ({"replicates": 1}, "replicates is 1: "),
    ({"after_schedule": "run"}, "after_schedule is run: ")])
def test_unfair(changed: dict[str, Any], words: str) -> None:
    found = candidates([5.0, 5.1], [5.2, 5.3])
    assert concluded(found)["unfair"] == []
    assert concluded(found, SearchConfig(reuse=False, early_stop=True))["unfair"] == []
    (sentence,) = concluded(found, replace(SearchConfig(), **changed))["unfair"]
    assert sentence.startswith(words) and sentence.endswith(".")


def test_unfair_are_unequal_parameters() -> None:
    a, b = candidates([5.0, 5.1], [5.2, 5.3])
    found = [replace(a, parameters=6_838_784), replace(b, parameters=6_937_088)]
    assert concluded(found)["unfair"] == [
        "match is rule: the candidates' parameter counts differ by 1.4 % (6,838,784 to 6,937,088)."]
    assert concluded(found, SearchConfig(match="params"))["unfair"] == []
    assert concluded([found[0], replace(b, parameters=6_838_784)])["unfair"] == []
