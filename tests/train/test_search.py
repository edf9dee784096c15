"""A search in a run: fair, bit for bit the same after a kill, and the winner is what is trained on."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from helios.backends.backend import Backend
from helios.errors import UserError
from helios.model import GPTConfig
from helios.model.config import MLPS
from helios.train import checkpoint
from helios.train.monitors import fitness
from helios.train.monitors.cusum import CLIP
from helios.train.search import report
from helios.train.search.evolution import trainings
from helios.train.search.search import CANDIDATES, SUMMARY, budget, check_cost
from helios.train.telemetry import COLUMNS, EVENTS, MORE_COLUMNS, check_new
from helios.train.trainer import Trainer

from .runs import Make, configured, final, rows

SMALL = {"activation_pool": "gelu,relu,swiglu", "population_size": "3", "generations": "2", "replicates": "2",
         "steps_per_candidate": "6", "candidate_eval_interval": "3", "steps": "8", "checkpoint_interval": "0",
         "eval_interval": "4", "cusum_window": "5"}


@pytest.fixture
def make(make: Make) -> Make:
    return lambda *args, **settings: make(*args, **SMALL | settings)


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its plots take longer than these searches; tests/cli/test_search.py has them."""
    monkeypatch.setattr(report, "write", lambda run: None)


def candidates(t: Trainer) -> list[dict[str, Any]]:
    return rows(t, f"search/{CANDIDATES}")


def summary(t: Trainer) -> dict[str, Any]:
    return json.loads((t.records.path / "search" / SUMMARY).read_text())


def test_the_winner_reported_is_the_winner_trained_on(make: Make, each_backend: Backend) -> None:
    t = make(each_backend)
    assert t.run()
    found, measured = summary(t), candidates(t)
    trained = [c for c in measured if c["status"] == "complete"]
    assert sorted(c["activation"] for c in trained) == ["gelu", "relu", "swiglu"]
    best = min(trained, key=lambda c: c["val_loss_mean"])
    assert found["status"] == "complete" and found["winner_activation"] == best["activation"]
    assert t.model.config.activation == best["activation"]
    assert json.loads((t.records.path / "config.json").read_text())["symbio_winner"] == best["activation"]
    state = checkpoint.latest(t.records.path)[0].state
    assert state["model"]["activation"] == best["activation"]
    # What follows is the run that would have been without a search.
    alone = make(each_backend, "alone", mode="none", activation=best["activation"])
    assert alone.run()
    assert final(t) == final(alone)
    after = [r for r in rows(t) if r["symbio_phase"] == "after"]
    assert [r["loss"] for r in after] == [r["loss"] for r in rows(alone)]
    assert [r["step"] for r in rows(t)] == list(range(1, 3 * 2 * 6 + 8 + 1))


def test_selection_is_by_evaluations_of_the_candidate_itself(make: Make, cpu_ref: Backend) -> None:
    t = make(cpu_ref)
    assert t.run()
    for c in candidates(t):
        own = [r for r in rows(t) if r.get("symbio_candidate_id") == c["id"]]
        if c["status"] == "reused":
            assert not own
            continue
        assert len(own) == 12 and {r["symbio_candidate_activation"] for r in own} == {c["activation"]}
        for k, replicate in enumerate(c["replicates"]):
            mine = [r for r in own if r["symbio_replicate"] == k]
            evaluated = [(i, r["val_loss"]) for i, r in enumerate(mine, 1) if r["val_loss"] is not None]
            assert evaluated == [tuple(e) for e in replicate["evaluations"]] and [i for i, _ in evaluated] == [3, 6]
            assert replicate["val_loss"] == evaluated[-1][1]
            assert replicate["train_loss"] == mine[-1]["loss"] and replicate["steps"] == 6
            assert replicate["clip_rate"] == sum(r["clip_coef"] < 1 for r in mine) / 6
        assert c["val_loss_mean"] == pytest.approx(np.mean([r["val_loss"] for r in c["replicates"]]))


def test_candidates_start_alike_and_read_the_same(make: Make, cpu_ref: Backend, monkeypatch: pytest.MonkeyPatch
                                                 ) -> None:
    starts: list[dict[str, np.ndarray]] = []
    read: list[list[tuple]] = []
    real = Trainer._prepare

    def prepare(self: Trainer, **more: Any) -> None:
        real(self, **more)
        starts.append({k: v.copy() for k, v in self.model.state_dict().items()})
        inner = self.learner.submit
        read.append([])
        monkeypatch.setattr(self.learner, "submit", lambda inputs: (read[-1].append(inputs[0]), inner(inputs))[1])

    monkeypatch.setattr(Trainer, "_prepare", prepare)
    t = make(cpu_ref, replicates=1, generations=1)
    assert t.run()
    assert len(starts) == 4
    for other in starts[1:3]:
        shared = [k for k in starts[0] if k in other and starts[0][k].shape == other[k].shape]
        assert {"wte.weight", "lm_head.weight", "blocks.1.attn.out.weight"} <= set(shared)
        for name in shared:
            np.testing.assert_array_equal(starts[0][name], other[name])
    for inputs in read[1:3]:
        assert len(inputs) == 6
        for a, b in zip(read[0], inputs, strict=True):
            for x, y in zip(a, b, strict=True):  # tokens, targets, masks, rate
                np.testing.assert_array_equal(x, y)


def test_what_is_switched_off_is_off_and_said(make: Make, cpu_ref: Backend) -> None:
    t = make(cpu_ref, shared_init="false", shared_batches="false", reuse="false", replicates=1,
             candidate_schedule="run", after_schedule="run")
    assert t.run()
    assert [c["status"] for c in candidates(t)] == ["complete"] * 6  # clones are trained again
    text = " ".join(summary(t)["unfair"])
    for name in ("shared_init", "shared_batches", "candidate_schedule", "replicates", "after_schedule"):
        assert f"{name} is" in text
    log = rows(t)
    rates = [r["lr"] for r in log]
    assert rates[0] < rates[1] and all(a >= b for a, b in pairwise(rates[2:]))
    first = [r["loss"] for r in log if r.get("symbio_candidate_activation") == "gelu"][::6]
    assert len(set(first)) == len(first)


class Stopped(BaseException):
    pass


@pytest.mark.parametrize("settings", [{}, {"after": "continue"}, {"genome": "per_block", "selection": "tournament",
                                                                 "generations": 3, "population_size": 4}])
def test_killed_and_resumed_it_chooses_the_same(make: Make, each_backend: Backend, monkeypatch: pytest.MonkeyPatch,
                                               settings: dict[str, Any]) -> None:
    settings = settings | {"checkpoint_interval": 5}
    whole = make(each_backend, "whole", **settings)
    assert whole.run()
    count, real = 0, Trainer._look
    moments = iter([3, 9, 11, 17, 18, 24, 31, 37, 41, 10**9])
    moment = next(moments)

    def dies(self: Trainer, row: dict[str, Any]) -> dict[str, Any] | None:
        nonlocal count, moment
        count = self.step
        found = real(self, row)
        if count >= moment:
            moment = next(moments)
            raise Stopped
        return found

    monkeypatch.setattr(Trainer, "_look", dies)
    kills = 0
    t = make(each_backend, "killed", **settings)
    while True:
        try:
            assert t.run()
            break
        except Stopped:
            kills += 1
            t = make(each_backend, "killed", **settings)
    assert kills >= 7
    assert final(t) == final(whole)
    timeless = lambda c: {k: v for k, v in c.items() if k not in ("tokens_per_sec_mean", "replicates", "cusum_alerts",
                                                                 "fitness")}
    assert [timeless(c) for c in candidates(t)] == [timeless(c) for c in candidates(whole)]
    same = ("step", "loss", "val_loss", "lr", "symbio_candidate_id", "symbio_phase")
    assert [[r.get(k) for k in same] for r in rows(t)] == [[r.get(k) for k in same] for r in rows(whole)]


def test_it_continues_from_the_winners_own_weights(make: Make, each_backend: Backend) -> None:
    t = make(each_backend, after="continue", warmup=4)
    assert t.run()
    log = rows(t)
    best = next(c for c in candidates(t) if c["id"] == summary(t)["winner"])
    after = [r for r in log if r["symbio_phase"] == "after"]
    its = [r for r in log if r.get("symbio_candidate_id") == best["id"] and r["symbio_replicate"] == 0]
    assert after[0]["loss"] < its[0]["loss"] - 0.1
    assert [r["lr"] for r in after[:4]] == pytest.approx([1e-3 + 9e-3 * n / 4 for n in (1, 2, 3, 4)])
    names = [p.name for p in checkpoint.steps(t.records.path / "search")]
    assert len(names) == 1
    assert checkpoint.load(t.records.path / "search" / "checkpoints" / names[0]).state["model"]["activation"] \
        == best["activation"]


@pytest.fixture
def crippled(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """relu learns next to nothing: its gradients are nearly all clipped away."""
    init = Trainer._prepare

    def prepare(self: Trainer, **more: Any) -> None:
        init(self, **more)
        if "relu" in self.model.config.activations:
            rate = self.leg.rate
            object.__setattr__(self.leg, "rate", lambda step: 1e-3 * rate(step))

    monkeypatch.setattr(Trainer, "_prepare", prepare)
    yield "relu"


@pytest.mark.parametrize("selection", ["topk", "tournament", "exhaustive"])
def test_a_crippled_activation_never_wins(make: Make, cpu_ref: Backend, crippled: str, selection: str) -> None:
    t = make(cpu_ref, selection=selection, steps_per_candidate=12, candidate_lr="1e-2")
    assert t.run()
    found = summary(t)
    assert found["winner_activation"] != crippled
    last = [r for r in found["ranking"] if r["activation"] == crippled]
    assert last and all(r["separated"] for r in last)


def test_the_hopeless_are_stopped_and_the_winner_is_the_same(make: Make, cpu_ref: Backend, crippled: str) -> None:
    settings = {"activation_pool": "gelu,silu,relu", "replicates": 1, "steps_per_candidate": 60, "generations": 1,
                "candidate_eval_interval": 5, "candidate_warmup": 5}
    free, bounded = make(cpu_ref, "free", **settings), make(cpu_ref, "bounded", early_stop="true", **settings)
    assert free.run() and bounded.run()
    assert summary(free)["winner"] == summary(bounded)["winner"]
    (stopped,) = [c for c in candidates(bounded) if c["activation"] == "relu"]
    assert stopped["status"] == "stopped" and stopped["steps"] < 60
    assert bounded.step < free.step


def test_stopped_is_what_cannot_win(make: Make, cpu_ref: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which three evaluations after the warm-up tell; seeds to come count as a loss of zero, those before as theirs."""
    losses = {"gelu": 1.0, "relu": 2.5, "swiglu": 5.0, "silu": 1.1}  # silu falls too steeply to be sure of
    monkeypatch.setattr(Trainer, "evaluate", lambda self: (
        6.0 if self.model.config.activation == "silu" and self.done <= 4 else losses[self.model.config.activation]))
    t = make(cpu_ref, activation_pool=",".join(losses), population_size=4, generations=1, replicates=3, after="none",
             steps_per_candidate=12, candidate_eval_interval=2, candidate_warmup=4, early_stop="true")
    assert t.run()
    assert [(c["activation"], c["status"], [r["steps"] for r in c["replicates"]]) for c in candidates(t)] == [
        ("gelu", "complete", [12, 12, 12]), ("relu", "stopped", [12, 8]), ("swiglu", "stopped", [8]),
        ("silu", "complete", [12, 12, 12])]


def test_a_budget_in_tokens_and_one_in_seconds(make: Make, cpu_ref: Backend, slow: set[int]) -> None:
    t = make(cpu_ref, "tokens", budget="tokens", tokens_per_candidate=4 * 16 * 5 - 1, generations=1)
    assert t.run()
    assert [c["steps"] for c in candidates(t)] == [5, 5, 5]
    t = make(cpu_ref, "seconds", budget="seconds", seconds_per_candidate=3, generations=1, replicates=1,
             max_cost=10_000)
    assert t.run()
    for c in candidates(t):
        (r,) = c["replicates"]
        assert r["seconds"] == 3 and r["evaluations"][-1][0] == r["steps"] == c["steps"] == 4


def test_the_speed_is_that_of_steps_that_do_not_record(make: Make, cpu_ref: Backend, planted: dict[int, int],
                                                       slow: set[int]) -> None:
    planted |= {3: CLIP}
    slow |= {4}
    t = make(cpu_ref, adaptive_batch="true", batch_max=6, batch_step=2, budget="tokens",
             tokens_per_candidate=16 * (3 * 4 + 3 * 6), generations=1)
    assert t.run()
    for c in candidates(t):
        for r in c["replicates"]:
            assert (r["steps"], r["seconds"], r["tokens_per_sec_mean"]) == (6, 4, 16 * (2 * 4 + 2 * 6) / 4)


def test_nothing_finite_is_no_winner(make: Make, cpu_ref: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "evaluate", lambda self: math.nan)
    t = make(cpu_ref, generations=1)
    with pytest.raises(UserError, match="the search has no winner: No candidate has a result to rank by"):
        t.run()
    assert {c["status"] for c in candidates(t)} == {"diverged"} and summary(t)["winner"] is None


def test_parameters_are_matched(make: Make, cpu_ref: Backend) -> None:
    for d in (128, 256, 384, 768):
        counts = [GPTConfig(n_embd=d, n_head=4, activation=name, ffn_dim="matched").parameters() for name in MLPS]
        assert max(counts) / min(counts) < 1.01
    t = make(cpu_ref, match="params", activation_pool="gelu,swiglu,kan_spline", generations=1, replicates=1)
    assert t.run()
    counts = [c["parameters"] for c in candidates(t)]
    assert max(counts) / min(counts) < 1.01 and not any("match is" in s for s in summary(t)["unfair"])


@pytest.mark.parametrize("name", ["quality", "inverse"])
def test_ranking_by_fitness(make: Make, cpu_ref: Backend, name: str) -> None:
    t = make(cpu_ref, rank_by="fitness", fitness=name, generations=1)
    assert t.run()
    best = max(candidates(t), key=lambda c: c["fitness"])
    assert summary(t)["winner"] == best["id"]
    if name == "inverse":
        scores = [r["fitness_score"] for r in rows(t)[5:36:6]]  # of the last step's loss, here the last tenth
        assert [r["fitness"] for c in candidates(t) for r in c["replicates"]] == pytest.approx(scores, rel=1e-12)


@pytest.mark.parametrize(("settings", "message"), [
    ({"activation_pool": ""}, "activation_pool"),
    ({"activation_pool": "gelu,gelu"}, "names an activation twice"),
    ({"activation_pool": "gelu,tanh"}, "activation_pool: given 'tanh'"),
    ({"population_size": 0}, "population_size: expected at least 1"),
    ({"selection": "best"}, "expected one of topk, tournament, exhaustive"),
    ({"steps_per_candidate": 0}, "steps_per_candidate: expected at least 1"),
    ({"mode": "lr"}, "expected one of none, ffn-activation"),
    ({"mutation_rate": 1.5}, "from 0 to 1"),
    ({"fitness_coefficients": "volume=1"}, "fitness quality has no coefficient 'volume'"),
    ({"eval_interval": 0}, "ranks by evaluations"),
    ({"ffn_dim": 64, "match": "params"}, "leave --ffn-dim out"),
    ({"early_stop": "true", "rank_by": "fitness"}, "rank_by = val_loss"),
    ({"early_stop": "true", "dynamic_lr": "cusum"}, "constant rate and batch"),
    ({"adaptive_batch": "true"}, "set budget = tokens"),
    ({"dynamic_lr": "entropy"}, "set reuse = false"),
    ({"after_schedule": "run"}, "must know the search's length"),
    ({"genomes": "gelu; relu,gelu"}, "set genome = per_block"),
    ({"candidate_lr": "1e-4"}, "candidate_lr 0.0001 is below --lr-min 0.001"),
    ({"budget": "seconds", "population_size": 100_000}, "400,000 trainings of 60 seconds"),
    ({"population_size": 100_000, "generations": 50, "steps_per_candidate": 5000},
     r"10,000,000 trainings of 5,000 steps, 3.2e\+12 tokens in all, more than --max-cost 1e\+09"),
])
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_cost(configured(**SMALL | settings))


def test_the_estimate_is_an_upper_bound(make: Make, cpu_ref: Backend) -> None:
    t = make(cpu_ref)
    assert t.run()
    steps, tokens = budget(t.config)
    cost, most = summary(t)["cost"], trainings(t.config.search, 2)
    assert cost["steps"] == 36 <= most * steps and cost["tokens"] == 36 * 64 <= most * tokens
    assert [e["kind"] for e in rows(t, EVENTS)].count("search_complete") == 1


def test_a_search_alone_is_kept_and_not_run_again(make: Make, cpu_ref: Backend) -> None:
    t = make(cpu_ref, after="none")
    assert t.run() and t.step == 36
    before = rows(t)
    assert {r["symbio_phase"] for r in before} == {"search"} and all("weight_entropy" in r for r in before[5::6])
    again = make(cpu_ref, after="none")
    assert again.run() and rows(again) == before
    with pytest.raises(UserError, match="holds a run already"):
        (t.records.path / "config.json").write_text('{"model": {}, "train": {}, "data": {}, "run_id": "r"}')
        check_new(t.records.path)


def test_memory_stays_level_with_accumulation(make: Make, backend: Backend) -> None:
    if backend.name != "vulkan":
        pytest.skip(f"{backend.name} keeps no memory of its own")
    used = []
    for name, generations in (("few", 1), ("many", 4)):
        t = make(backend, name, accum=2, generations=generations, population_size=2, activation_pool="gelu,swiglu",
                 reuse="false", replicates=1, steps_per_candidate=4)
        assert t.run()
        del t
        gc.collect()
        used.append(backend.memory()["used"])
    assert used[0] == used[1]


def test_seconds_end_at_the_highest_cost(make: Make, cpu_ref: Backend, slow: set[int]) -> None:
    """In every training alike, of 4 steps each; what is reused costs nothing."""
    settings = {"budget": "seconds", "seconds_per_candidate": 3, "genomes": "gelu;gelu;relu", "generations": 1,
                "after": "none"}
    for steps in (3, 5, 9, 15):
        t = make(cpu_ref, str(steps), max_cost=64 * steps, **settings)
        with pytest.raises(UserError, match="has come to --max-cost"):
            t.run()
        assert t.step == steps + 1
    t = make(cpu_ref, "whole", max_cost=64 * 16, **settings)
    assert t.run() and t.step == 16


def test_columns_are_those_of_the_interface(make: Make, cpu_ref: Backend, planted: dict[int, int]) -> None:
    planted |= {14: CLIP}
    t = make(cpu_ref, adaptive_batch="true", dynamic_lr="entropy", reuse="false", track_mi_profiles="true",
             metrics_interval=5, candidate_eval_interval=1, cusum_grace=5, budget="tokens", tokens_per_candidate=1000,
             generations=1, replicates=1)
    assert t.run()
    written = set().union(*rows(t))
    assert written <= {*COLUMNS, *MORE_COLUMNS}
    assert {*COLUMNS, *MORE_COLUMNS} - written == {  # what faults, longer runs or mixed precision bring
        "skipped", "skip_reason", "loss_scale", "plateau", "heat_capacity"}


def test_rows_say_which_candidate_they_are_of(make: Make, cpu_ref: Backend) -> None:
    t = make(cpu_ref, reuse="false", replicates=1, steps_per_candidate=2)
    assert t.run()
    measured = candidates(t)
    assert any(c["mutation"] and c["parent_id"] for c in measured)
    for i, c in enumerate(measured):
        population = [x["activation"] for x in measured if x["generation"] == c["generation"]]
        expected = {"phase": "search", "candidate_id": c["id"], "replicate": 0, "generation": c["generation"],
                    "mutation_applied": c["mutation"], "candidate_parent_id": c["parent_id"],
                    "candidate_name": c["name"], "candidate_parent_name": c["parent_name"],
                    "candidate_activation": c["activation"]}
        for r in rows(t)[2 * i:2 * i + 2]:
            assert {k.removeprefix("symbio_"): v for k, v in r.items() if k.startswith("symbio_")} == expected
            assert r["population_entropy"] == fitness.population_entropy(population)
            assert r["architecture_diversity"] == fitness.architecture_diversity(population)
            assert r["activation_distribution"] == fitness.activation_distribution(population)
