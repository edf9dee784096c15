"""What an experiment does next: that evolution finds what is planted, claims nothing of noise, and depends on its
journal alone."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from helios.bench.planted import Planted, bowl, experiment, flat, run
from helios.train.evolve import breeding, cost, journal, plan
from helios.train.evolve.driver import entry
from helios.train.evolve.experiment import Experiment
from helios.train.evolve.state import Result, State
from helios.train.evolve.summary import summary
from helios.train.evolve.trainings import SPEED_STEPS, Job, job
from helios.train.search.births import genome_key
from helios.train.search.operators import Space


def lines(found: Experiment, executor: Planted, state: State | None = None) -> list[dict[str, Any]]:
    """The journal of an experiment, as it would be read back; from a state on, the rest."""
    state, written = state or State(), []
    while moves := plan.next_move(found, state):
        if isinstance(moves[0], Job):
            moves = [entry(result, found, moves[i]) for i, result in executor(moves)]
        written += json.loads(json.dumps(moves, allow_nan=False))
        state.take(moves)
    return written


# -- what it finds ----------------------------------------------------------------------------------------------------
def test_evolution_beats_random_search_at_equal_budget() -> None:
    won = 0
    for seed in range(20):
        found = experiment(seed=seed, generations=8, validation_replicates=0)
        state = run(found, Planted(found.space, seed=seed))
        true = {role: bowl(job(found, state, id, 0, 1.0, "search"), found.space)
                for role, id in state.finalists.items()}
        won += true["evolved"] < true["random"]
        tokens = {arm: sum(r.tokens for r in state.results.values() if state.born[r.id].arm == arm)
                  for arm in ("evolved", "random")}
        assert tokens["evolved"] <= tokens["random"]  # clones are not trained again
    assert won >= 18


@pytest.mark.parametrize("settings", [{"objectives": "val_loss"}, {"fitness": "-val_loss + 0.1*log(tokens_per_sec)"},
                                      {"selection": "tournament"}])
def test_noise_is_no_winner(settings: dict[str, Any]) -> None:
    claims, count = 0, 200 if "objectives" in settings else 60
    for seed in range(count):
        found = experiment(seed=seed, population_size=4, generations=2, replicates=1, validation_replicates=4,
                           **settings)
        state = run(found, Planted(found.space, flat, seed=seed))
        assert state.verdict is not None
        claims += any(c["separated"] for c in state.verdict["comparisons"])
    assert claims <= 0.05 * count + 2 * (0.05 * 0.95 * count) ** 0.5


def test_a_crippled_value_does_not_survive() -> None:
    def crippled(job: Job, space: Space) -> float:
        return bowl(job, space) + 3.0 * (job.config.model.softcap == 5.0)

    for seed in range(10):
        found = experiment(seed=seed, generations=5)
        state = run(found, Planted(found.space, crippled, seed=seed))
        parents = {state.born[id].parent_id for ids in state.generations[2:] for id in ids}
        assert all(state.born[id].settings.get("softcap") != 5.0 for id in parents if id)
        assert state.born[state.finalists["evolved"]].settings.get("softcap") != 5.0


def test_a_gain_is_found_and_said() -> None:
    found = experiment(generations=6)
    state = run(found, Planted(found.space))
    assert state.verdict and state.verdict["better"]
    assert any("better than the preset" in sentence for sentence in state.verdict["sentences"])


@pytest.mark.parametrize("price", [0.0, 1.0])
def test_better_in_one_objective_is_no_better_where_another_pays(price: float) -> None:
    class Fast(Planted):
        def result(self, job: Job) -> Result:
            found, place = super().result(job), self.space.genes[0].place((job.config.train.lr,))
            assert place is not None
            speed = 1000 * (1 + (1 - place)) + 10 * (found.val_loss or 0)
            return replace(found, tokens_per_sec_mean=speed, val_loss=(found.val_loss or 0) + price * (1 - place))

    found = experiment("lr", objectives="tokens_per_sec,val_loss", generations=3)
    verdict = run(found, Fast(found.space, flat)).verdict
    assert verdict and verdict["comparisons"][0]["separated"] and verdict["better"] == (price == 0)
    assert ("so it is not called better" in verdict["sentences"][-1]) == (price > 0)


@pytest.mark.parametrize("seeds", [2, 5, 8])
@pytest.mark.parametrize(("objectives", "lr"), [("val_loss,parameters", True), ("parameters,val_loss", False)])
def test_what_the_settings_say_needs_no_test(objectives: str, lr: bool, seeds: int) -> None:
    """However few seeds there are, more parameters are more."""
    class Sized(Planted):
        def result(self, job: Job) -> Result:
            large = job.config.train.lr != 1e-2
            found = super().result(job)
            return replace(found, parameters=138_408 if large == lr else 44_968,
                           val_loss=(found.val_loss or 0) - 9 * large * lr)

    found = experiment("lr", objectives=objectives, generations=2, validation_replicates=seeds)
    assert found.space.own["lr"] == 1e-2
    verdict = run(found, Sized(found.space, flat)).verdict
    assert verdict and all("± 0 " not in sentence for sentence in verdict["sentences"])
    if lr:
        assert verdict["comparisons"][0]["separated"] and not verdict["better"]
        assert verdict["sentences"][-1] == ("it has 138,408 parameters, 3.08 times the preset's, which is worse: so it "
                                            "is not called better")
    else:
        assert verdict["comparisons"][0] | {"n": 0, "sentence": ""} == {
            "control": "preset", "same": False, "difference": -93_440, "error": None, "p": None, "n": 0,
            "separated": True, "sentence": ""}
        assert "93,440 parameters better than the preset" in verdict["sentences"][0] and verdict["better"]
        assert "not separated from the best of random search: it has the same parameters" in verdict["sentences"][1]


def test_a_control_without_a_value_is_told_of() -> None:
    class Without(Planted):
        def result(self, job: Job) -> Result:
            found = super().result(job)
            return replace(found, status="diverged", val_loss=None) if job.about["arm"] in arms else found

    for arms, words, objectives in (
            (("preset",), ["best of random", "say of the preset"], "val_loss"),
            (("preset",), ["best of random", "say of the preset"], "val_loss,instability"),
            (("random",), ["preset", "say of the best of random"], "val_loss"),
            (("preset", "random"), ["say of the preset", "say of the best of random"], "val_loss,instability")):
        found = experiment(generations=1, objectives=objectives)
        verdict = run(found, Without(found.space)).verdict
        assert verdict and len(verdict["sentences"]) == len(words)
        assert all(word in said for word, said in zip(words, verdict["sentences"], strict=True))
        assert not (verdict["better"] and "preset" in arms)


# -- that nothing but the journal decides -----------------------------------------------------------------------------
SETTINGS: list[dict[str, Any]] = [
    {}, {"halving": 0.05, "population_size": 6, "replicates": 3}, {"objectives": "val_loss,instability"},
    {"budget": "seconds", "per_candidate": 5}, {"population_min": 3, "population_max": 12},
    {"genes": "lr,activation,n_embd,n_head,n_layer", "activations": "per_block"}]


@pytest.mark.parametrize("settings", SETTINGS)
def test_cut_anywhere_it_goes_on_as_it_would_have(settings: dict[str, Any]) -> None:
    found = experiment(**settings)
    whole = lines(found, Planted(found.space))
    assert {line["kind"] for line in whole} >= {"experiment", "generation", "birth", "result", "end"}
    for cut in random.Random(0).sample(range(len(whole)), 12):
        state, kept = State(), list(journal.whole(whole[:cut], lambda line: line))
        state.take(kept)
        assert kept + lines(found, Planted(found.space), state) == whole


def test_the_same_in_any_order() -> None:
    """An executor may finish trainings in any order; the driver writes them in that of the births."""
    class Shuffled(Planted):
        def __call__(self, jobs: Sequence[Job]) -> Any:
            found = list(super().__call__(jobs))
            random.Random(len(jobs)).shuffle(found)
            return sorted(found, key=lambda pair: pair[0])

    found = experiment()
    assert lines(found, Shuffled(found.space)) == lines(found, Planted(found.space))


def test_no_training_is_made_twice() -> None:
    for settings in SETTINGS:
        found = experiment(**settings)
        executor = Planted(found.space)
        state = run(found, executor)
        if not settings.get("halving"):
            assert len(executor.made) == len(set(executor.made))
        keys = [genome_key(state.born[id]) for id in {name.split(".")[0] for name in executor.made}]
        assert len(keys) == len(set(keys))


@pytest.mark.parametrize("steps", [2, 8, 15, 100])
def test_evaluations_are_alike_whatever_varies(steps: int) -> None:
    """Candidates are told apart by the losses of the same texts, as often measured."""
    found = experiment("micro_batch,lr", per_candidate=steps * 64)
    state = run(found, Planted(found.space, flat))
    jobs = [job(found, state, id, 0, 1.0, "search") for id in state.born]
    assert len({j.config.train.batch_size for j in jobs}) > 1
    assert {(j.config.train.steps, j.config.eval_batch, j.config.train.eval_iters) for j in jobs} == {(steps, 4, 2)}
    assert {math.ceil(steps / j.config.train.eval_interval) for j in jobs} == {min(steps, 8)}
    assert job(found, state, "gen0_gelu_1", 0, 1.0, "speed").config.train.eval_interval == SPEED_STEPS


def test_evaluations_of_other_lengths_are_of_as_much_text() -> None:
    found = experiment("block_size=8|16|64", per_candidate=4000)
    state = run(found, Planted(found.space))
    configs = [job(found, state, id, 0, 1.0, "search").config for id in state.born]
    assert {(c.model.block_size, c.train.eval_iters) for c in configs} == {(8, 4), (16, 2), (64, 1)}


# -- what it costs ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("settings", SETTINGS[:4])
def test_it_costs_no_more_than_was_said(settings: dict[str, Any]) -> None:
    found = experiment(**settings)
    state = run(found, Planted(found.space))
    assert (0.3 if "halving" in settings else 0.8) * cost.most(found) < cost.spent(found, state) <= cost.most(found)


def test_halving_leaves_each_arm_its_best() -> None:
    for seed in range(3):
        found = experiment(seed=seed, halving=0.05, replicates=4, generations=5)
        state = run(found, Planted(found.space, seed=seed))
        assert len(state.dropped) > 10 and set(state.finalists) == {"evolved", "random", "preset"}
        for ids in state.generations:
            for arm in ("evolved", "random"):
                assert sum(state.status(id) in ("complete", "reused") for id in ids if state.born[id].arm == arm) >= 2
        assert state.verdict and state.verdict["better"]


def test_a_total_ends_it() -> None:
    whole = experiment(generations=9)
    limit = cost.most(whole, 3)
    found = experiment(generations=9, total=limit)
    state = run(found, Planted(found.space))
    assert len(state.generations) in (3, 4) and cost.spent(found, state) <= limit  # clones save a little
    assert state.verdict


def test_a_population_grows_while_something_is_gained_and_shrinks_when_not() -> None:
    found = experiment(generations=8, population_min=4, population_max=16)
    sizes = [about["size"] for about in run(found, Planted(found.space)).about]
    assert max(sizes) > 8
    still = run(found, Planted(found.space, flat, noise=0.0))
    assert [about["size"] for about in still.about][-1] < 8 and all(about["why"] for about in still.about)


# -- what goes wrong --------------------------------------------------------------------------------------------------
def test_what_diverged_or_failed_has_no_children() -> None:
    class Failing(Planted):
        def result(self, job: Job) -> Result:
            found = super().result(job)
            bad = job.config.train.lr > 2e-3 and job.phase == "search"
            return replace(found, status="diverged", why="the loss is not finite", val_loss=None) if bad else found

    found = experiment(genes="lr,beta2,weight_decay", generations=4)
    state = run(found, Failing(found.space))
    failed = {id for id in state.born if state.status(id) == "diverged"}
    assert failed and not failed & {parent for c in state.born.values() for parent in c.parents}
    assert all(len(state.of(id)) == 1 for id in failed - set(state.reused))  # no further replicate
    assert not failed & set(state.finalists.values())


@pytest.mark.parametrize("arms", [("evolved",), ("evolved", "preset")])
@pytest.mark.parametrize("generation", [0, 1])
def test_a_whole_generation_may_fail(generation: int, arms: tuple[str, ...]) -> None:
    """Those before it have children; where there are none, candidates are drawn; and what is gained counts from the
    first values on."""
    class Failing(Planted):
        def result(self, job: Job) -> Result:
            bad = job.about["arm"] in arms and job.about["generation"] == generation
            return replace(super().result(job), **{"status": "diverged", "val_loss": None} if bad else {})

    found = experiment(generations=4, elitism="false")
    state = run(found, Failing(found.space))
    parents = {parent for c in state.born.values() for parent in c.parents}
    assert parents and all(state.status(id) in ("complete", "reused") for id in parents)
    drawn = {state.born[id].operator for id in state.generations[1] if state.born[id].arm == "evolved"} == {"drawn"}
    assert drawn == (generation == 0 and "preset" in arms)
    gained = [g["hypervolume"] for g in summary(found, state)["generations"]]
    assert gained == pytest.approx([value for _, value in breeding.history(found, state)])
    assert gained[-1] is not None


def test_all_may_fail() -> None:
    class Nothing(Planted):
        def result(self, job: Job) -> Result:
            return replace(super().result(job), status="failed", why="too large", val_loss=None)

    found = experiment()
    state = run(found, Nothing(found.space))
    assert state.verdict and not state.verdict["better"] and state.verdict["winner"] is None
