"""The three gates of a study of activations: planted candidates, on both sides of every line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios.train.gates.judge import (
    Verdict,
    at,
    baseline_seconds,
    best_two,
    compare,
    loss_at,
    per_block_justified,
    separation_of,
    survives_equal_time,
    variants,
    worth_it,
)
from helios.train.search.births import Candidate, Replicate
from helios.train.search.ranking import aggregate
from helios.train.search.separation import RATE

STEPS, TOKENS = 100, 6400  # of a training
SHARED = (0.0, 0.3, -0.2)  # what a seed brings to all candidates; far more than they differ by
GELU = [5.0 + x for x in SHARED]


def below(by: float, *own: float) -> list[float]:
    """Losses that much below gelu's, each with noise of its own."""
    return [g - by + x for g, x in zip(GELU, own or (0.0, 0.01, -0.01), strict=True)]


def replicate(seed: int, val_loss: float | None, **more: Any) -> Replicate:
    """Evaluated every tenth of its steps, on a line from one nat above its end."""
    losses = [(10 * i, None if val_loss is None else val_loss + (10 - i) / 10) for i in range(1, 11)]
    return Replicate(**{
        "seed": seed, "val_loss": val_loss, "best_val_loss": val_loss, "train_loss": 5.0, "fitness": 0.0,
        "steps": STEPS, "tokens": TOKENS, "evaluations": losses, "spikes": 0, "skipped": 0, "clip_rate": 0.0,
        "max_grad_norm": 1.0, "tokens_per_sec_mean": 100.0, "cusum_alerts": 0, "seconds": 64.0} | more)


def candidate(activation: str, losses: Sequence[float | None], **more: Any) -> Candidate:
    plain = Candidate(f"gen0_{activation}", activation, activation, 0, 0)
    return aggregate(plain, [replicate(seed, x, **more) for seed, x in enumerate(losses)])


def gelu(**more: Any) -> Candidate:
    return candidate("gelu", GELU, **more)


def judged(*others: Candidate, base: Candidate | None = None, blocks: Sequence[Candidate] | None = None
           ) -> tuple[Verdict, Verdict, Verdict]:
    candidates = [base or gelu(), *others]
    first = worth_it(candidates)
    return first, survives_equal_time(candidates, first), per_block_justified(candidates, blocks, first)


def passed(*others: Candidate, **more: Any) -> list[bool]:
    return [v.passed for v in judged(*others, **more)]


# -- gate 1 ------------------------------------------------------------------------------------------------------------
def test_a_better_activation_passes_and_is_named() -> None:
    first, *_ = judged(candidate("relu", below(-0.5)), candidate("silu", below(0.05)), candidate("swiglu", below(0.02)))
    assert first.passed and first.gate == 1 and first.chosen is not None
    assert first.chosen.activation == "silu" and first.chosen.difference == pytest.approx(-0.05)
    assert first.chosen.error == pytest.approx(math.sqrt(2 / 3) * 0.005) and first.chosen.seeds == 3
    assert [r.activation for r in first.rows] == ["relu", "silu", "swiglu"]
    assert [r.better for r in first.rows] == [False, True, True]
    assert first.sentence == ("silu is 0.05 nats below gelu, more than equals come to lie apart in 4 % of studies "
                              "(0.0149), at 1.00 times its speed.")


def test_nothing_better_fails() -> None:
    first, *_ = judged(candidate("silu", below(0.01)), candidate("relu", below(-0.5)))
    assert not first.passed and first.sentence == (
        "No activation is better or steadier than gelu: silu is 0.01 nats below gelu, not more than equals come to "
        "lie apart in 4 % of studies (0.018).")
    assert "relu is 0.5 nats above gelu, more than equals" in judged(candidate("relu", below(-0.5)))[0].sentence


def test_the_limit_itself_is_not_enough() -> None:
    """Differences of -1 and -3 with some more on top: with two seeds the limit is 15.894 standard errors, of 1 each."""
    base = candidate("gelu", [8.0, 8.0])
    for by, passes in ((15.89, False), (15.90, True)):
        assert passed(candidate("silu", [9.0 - by, 7.0 - by]), base=base)[0] is passes


def test_it_is_judged_seed_by_seed() -> None:
    """The same losses with the seeds exchanged differ by the seeds' noise, and are not better."""
    silu = candidate("silu", below(0.05))
    assert passed(silu)[0]
    first, second, third = silu.replicates
    exchanged = replace(silu, replicates=[replace(first, seed=1), replace(second, seed=0), third])
    assert not passed(exchanged)[0]
    assert passed(replace(silu, replicates=silu.replicates[::-1]))[0]


@pytest.mark.parametrize(("speed", "passes"), [(200.0, True), (50.0, True), (49.9, False), (None, False)])
def test_the_speed_that_is_acceptable(speed: float | None, passes: bool) -> None:
    first, *_ = judged(candidate("silu", below(0.05), tokens_per_sec_mean=speed))
    assert first.passed is passes
    assert first.sentence.endswith(f"at {speed / 100:.2f} times its speed." if passes and speed else
                                   "times its speed, and at least 0.5 times is asked." if speed else
                                   "but at an unknown speed, and at least 0.5 times is asked.")


def test_one_that_is_fast_enough_is_preferred() -> None:
    slow, fast = candidate("swiglu", below(0.5), tokens_per_sec_mean=40.0), candidate("silu", below(0.05))
    first, *_ = judged(slow, fast)
    assert first.passed and first.chosen and first.chosen.activation == "silu"


@pytest.mark.parametrize(("trouble", "passes"), [(0, True), (2, True), (3, False), (7, False)])
def test_a_steadier_one_passes(trouble: int, passes: bool) -> None:
    """gelu has trouble in 0.03 of its steps; 0.02 is a hundredth less, also as floating-point numbers say it."""
    base = gelu(trouble=3)
    same = candidate("silu", below(0.0), trouble=trouble)
    first, second, _ = judged(same, base=base)
    assert first.passed is passes and not second.passed
    if passes:
        assert first.sentence.startswith("silu is steadier than gelu, with trouble in ") and "3.0 %" in first.sentence
    # Not where its loss is worse, nor where the noise is unknown; nor where it is slow.
    calm = {"trouble": 0}
    assert not passed(candidate("silu", below(-0.05), **calm), base=base)[0]
    assert not passed(candidate("silu", below(0.0), tokens_per_sec_mean=40.0, **calm), base=base)[0]
    one = candidate("gelu", GELU[:1], trouble=3)
    assert not passed(candidate("silu", GELU[:1]), base=one)[0]


def test_a_better_one_is_preferred_to_a_steadier() -> None:
    base = gelu(trouble=3)
    relu, silu = candidate("relu", below(0.02, -0.02, 0.02, 0.0)), candidate("silu", below(0.3), trouble=3)
    first, *_ = judged(relu, silu, base=base)
    assert first.rows[0].steadier and not first.rows[0].better and first.passed
    assert first.chosen and first.chosen.activation == "silu"


def test_one_seed_tells_nothing() -> None:
    first, second, third = judged(candidate("silu", [4.0]), base=candidate("gelu", [5.0]))
    assert not (first.passed or second.passed or third.passed)
    assert "with one seed, so that the noise is unknown" in first.sentence


# -- what did not come to a loss ---------------------------------------------------------------------------------------
def test_a_diverged_activation_is_not_compared() -> None:
    lost = candidate("silu", [4.0, None, 4.0])
    assert lost.status == "diverged"
    first, second, _ = judged(lost, candidate("relu", below(0.05)))
    assert first.passed and first.chosen and first.chosen.activation == "relu"
    assert first.rows[0].difference is None is first.rows[0].val_loss and not first.rows[0].better
    assert second.passed and second.rows[0].difference is None
    first, second, third = judged(lost)
    assert (first.passed, first.chosen, second.passed, third.passed) == (False, None, False, False)
    assert first.sentence.startswith("Nothing to judge by") and second.sentence.startswith("Nothing to judge by")


@pytest.mark.parametrize("who", ["gelu", "silu"])
def test_one_missing_replicate(who: str) -> None:
    """Nobody passes by the seeds that others had to train with as well."""
    given = {"gelu": gelu(), "silu": candidate("silu", below(0.05))}
    assert passed(given["silu"], base=given["gelu"])[0]
    given[who] = aggregate(given[who], given[who].replicates[:2])
    first, second, third = judged(given["silu"], base=given["gelu"])
    assert (first.passed, second.passed, third.passed) == (False, False, False) and first.chosen is None
    assert first.rows[0].difference is None


def test_a_diverged_gelu_is_nothing_to_compare_with() -> None:
    first, *_ = judged(candidate("silu", below(1.0)), base=candidate("gelu", [5.0, None, 5.0]))
    assert not first.passed and "gelu, or all others, lack a finite validation loss" in first.sentence
    with pytest.raises(ValueError, match="compare with gelu, once; got silu"):
        worth_it([candidate("silu", GELU)])


def test_a_stopped_one_is_not_compared() -> None:
    assert not passed(replace(candidate("silu", below(1.0)), status="stopped"))[0]


# -- gate 2 ------------------------------------------------------------------------------------------------------------
def test_slower_but_better_passes_gate_1_and_fails_gate_2() -> None:
    """At 0.8 times the speed it has read 0.8 of its tokens, where its loss is 0.2 above its end: more than it gains."""
    first, second, _ = judged(candidate("silu", below(0.15), tokens_per_sec_mean=80.0))
    assert first.passed and not second.passed and second.chosen is not None
    assert second.chosen.tokens == 5120 and second.chosen.difference == pytest.approx(0.05)
    assert second.sentence == ("In gelu's 64.0 s silu reads 5,120 of 6,400 tokens; there silu is 0.05 nats above gelu, "
                               "more than equals come to lie apart in 4 % of studies (0.028).")
    # With more to gain it survives.
    first, second, _ = judged(candidate("silu", below(0.25), tokens_per_sec_mean=80.0))
    assert first.passed and second.passed and "0.05 nats below gelu, more than equals" in second.sentence


def test_the_limit_at_equal_time() -> None:
    """-0.2 of its loss for the time, and 15.894 thousandths."""
    base = candidate("gelu", [5.0, 5.0])
    for by, passes in ((0.21589, False), (0.21590, True)):
        silu = candidate("silu", [5.001 - by, 4.999 - by], tokens_per_sec_mean=80.0)
        assert passed(silu, base=base)[1] is passes


def test_a_faster_one_counts_as_it_ended() -> None:
    second = judged(candidate("silu", below(0.05), tokens_per_sec_mean=300.0))[1]
    assert second.passed and second.chosen and second.chosen.tokens == TOKENS
    assert second.chosen.difference == pytest.approx(-0.05) and "all its tokens" in second.sentence
    # As fast is the same.
    assert judged(candidate("silu", below(0.05)))[1] == second._replace(
        chosen=second.chosen._replace(tokens_per_sec=100.0, speed=1.0),
        rows=(second.rows[0]._replace(tokens_per_sec=100.0, speed=1.0),))


def test_gate_2_is_about_the_activation_of_gate_1() -> None:
    """swiglu is best and does not survive; silu, which would, is shown beside it."""
    swiglu = candidate("swiglu", below(0.15), tokens_per_sec_mean=60.0)
    first, second, _ = judged(candidate("silu", below(0.05)), swiglu)
    assert first.passed and not second.passed and second.chosen and second.chosen.activation == "swiglu"
    assert [r.better for r in second.rows] == [True, False]


def test_gate_2_does_not_pass_without_gate_1() -> None:
    """Slower than acceptable, but with all to gain at the end."""
    late = candidate("silu", below(3.0), tokens_per_sec_mean=45.0)
    first, second, _ = judged(late)
    assert not first.passed and not second.passed and second.chosen and second.chosen.better
    assert second.sentence.endswith(" But gate 1 did not pass.")


def test_gate_2_needs_a_speed_and_a_loss_at_that_time() -> None:
    for silu, base in ((candidate("silu", below(0.05), tokens_per_sec_mean=None), gelu()),
                       (candidate("silu", below(0.05)), gelu(tokens_per_sec_mean=None)),
                       (candidate("silu", below(0.05), tokens_per_sec_mean=9.0), gelu())):  # before an evaluation
        second = judged(silu, base=base)[1]
        assert not second.passed and second.sentence.startswith("Nothing to judge by")
    assert baseline_seconds([gelu()]) == 64.0 and baseline_seconds([gelu(tokens_per_sec_mean=None)]) is None


# -- interpolation -----------------------------------------------------------------------------------------------------
def test_loss_on_the_way() -> None:
    r = replicate(0, 4.0, evaluations=[[25, 7.0], [50, 5.0], [75, None], [100, 4.0]])
    known = {0: None, 1599: None, 1600: 7.0, 2000: 6.5, 2400: 6.0, 3200: 5.0, 3201: None, 4000: None, 5000: None,
             6400: 4.0, 9999: 4.0}
    for tokens, loss in known.items():
        assert loss_at(r, tokens) == (None if loss is None else pytest.approx(loss)), tokens
    assert loss_at(replace(r, evaluations=[]), 100.0) is None


@given(st.floats(0.11, 1.5))
def test_a_candidate_on_the_way(share: float) -> None:
    silu = candidate("silu", below(0.05))
    then = at(silu, share * TOKENS)
    assert then.val_loss_mean == pytest.approx((silu.val_loss_mean or 0) + max(0.0, 1 - share))
    assert then.val_loss_se == pytest.approx(silu.val_loss_se) and then.tokens == round(min(1.0, share) * TOKENS)
    assert separation_of([gelu(), then]) == pytest.approx(separation_of([gelu(), silu]))


def test_one_that_diverges_later_is_not_better_before() -> None:
    lost = candidate("silu", below(1.0))
    last = lost.replicates[2]
    lost = aggregate(lost, [*lost.replicates[:2], replace(last, val_loss=None, evaluations=[*last.evaluations[:-1],
                                                                                           [STEPS, None]])])
    then = at(lost, 0.5 * TOKENS)
    assert then.val_loss_mean is not None and then.status == "diverged"
    assert compare(then, gelu(), None).difference is None
    waiting = Candidate("gen0_silu", "S", "silu", 0, 0)
    assert at(waiting, 100.0) is waiting


# -- gate 3 ------------------------------------------------------------------------------------------------------------
def test_a_better_genome_passes_gate_3() -> None:
    silu, relu = candidate("silu", below(0.05)), candidate("relu", below(0.02))
    mixed = [candidate(name, below(by)) for name, by in (("silu,gelu", 0.06), ("gelu,silu", 0.1), ("gelu,relu", 0.3))]
    third = judged(silu, relu, blocks=mixed[:2])[2]
    assert third.passed and third.gate == 3 and third.chosen and third.chosen.activation == "gelu,silu"
    assert third.chosen.against == "silu" and third.chosen.difference == pytest.approx(-0.05)
    assert third.sentence == ("Beside the best single one, gelu,silu is 0.05 nats below silu, more than equals come "
                              "to lie apart in 4 % of studies (0.0132).")
    test = separation_of([gelu(), silu, relu, *mixed])
    assert judged(silu, relu, blocks=mixed)[2].chosen == compare(mixed[2], silu, test)
    # Better than gelu is not enough.
    third = judged(silu, blocks=[candidate("silu,gelu", below(0.05, -0.01, 0.01, 0.0))])[2]
    assert not third.passed and third.chosen and "not more than equals" in third.sentence


def test_gate_3_does_not_pass_without_gate_1() -> None:
    silu, mixed = candidate("silu", below(-0.05)), candidate("silu,gelu", below(0.5))
    third = judged(silu, blocks=[mixed])[2]
    assert not third.passed and third.chosen and third.chosen.against == "gelu" and third.chosen.better
    assert third.sentence.endswith(" But gate 1 did not pass.")
    assert judged(silu)[2] == Verdict(3, False, "Not run: gate 1 did not pass.")


def test_gate_3_of_diverged_genomes() -> None:
    lost = candidate("silu,gelu", [4.0, None, 4.0])
    third = judged(candidate("silu", below(0.05)), blocks=[lost])[2]
    assert not third.passed and third.sentence.startswith("Nothing to judge by") and len(third.rows) == 1


def test_the_best_two() -> None:
    found = [gelu(), candidate("silu", below(0.05)), candidate("relu", below(0.1)),
             candidate("swiglu", [1.0, None, 1.0])]
    assert best_two(found) == (found[2], found[1])
    assert best_two([found[0], found[3]]) is None


@pytest.mark.parametrize(("n_layer", "genomes"), [
    (1, ["a", "b"]), (2, ["a,b", "b,a"]), (3, ["a,a,b", "b,b,a", "a,b,a"]), (4, ["a,a,b,b", "b,b,a,a", "a,b,a,b"]),
    (6, ["a,a,a,b,b,b", "b,b,b,a,a,a", "a,b,a,b,a,b"])])
def test_variants(n_layer: int, genomes: list[str]) -> None:
    assert variants("a", "b", n_layer) == genomes


# -- noise -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seeds", [3, 5])
def test_how_often_nothing_passes_gate_1(seeds: int) -> None:
    """Three activations that do not differ from gelu: fewer than two of any four would be taken for different."""
    draw = np.random.Generator(np.random.Philox(key=np.array([seeds, 9], np.uint64)))
    passes = sum(worth_it([candidate(name, list(5.0 + 0.01 * draw.standard_normal(seeds)))
                           for name in ("gelu", "silu", "relu", "swiglu")]).passed for _ in range(1000))
    assert 0 < passes / 1000 < RATE


def test_a_true_difference_passes() -> None:
    """Of twenty times the noise, in each of 200 studies; and one for the worse never."""
    draw = np.random.Generator(np.random.Philox(key=np.array([1, 9], np.uint64)))
    for _ in range(200):
        noise = [list(0.01 * draw.standard_normal(3)) for _ in range(3)]
        lower = candidate("silu", below(0.2, *noise[0]))
        assert passed(lower)[0] and not passed(candidate("silu", below(-0.2, *noise[1])))[0]
