"""What a search may cost: its budgets, their limits, and the candidates that are stopped early."""

from __future__ import annotations

from typing import Any

import pytest

from helios.backends.backend import Backend
from helios.errors import UserError
from helios.train.loop import Loop
from helios.train.monitors.cusum import CLIP
from helios.train.records.layout import EVENTS
from helios.train.search.budget import budget, check_cost
from helios.train.search.evolution import trainings

from .runs import SMALL, Make, candidates, configured, rows, summary


def test_the_hopeless_are_stopped_and_the_winner_is_the_same(search: Make, cpu_ref: Backend, crippled: str) -> None:
    settings = {"activation_pool": "gelu,silu,relu", "replicates": 1, "steps_per_candidate": 60, "generations": 1,
                "candidate_eval_interval": 5, "candidate_warmup": 5}
    free, bounded = search(cpu_ref, "free", **settings), search(cpu_ref, "bounded", early_stop="true", **settings)
    assert free.run() and bounded.run()
    assert summary(free)["winner"] == summary(bounded)["winner"]
    (stopped,) = [c for c in candidates(bounded) if c["activation"] == "relu"]
    assert stopped["status"] == "stopped" and stopped["steps"] < 60
    assert bounded.step < free.step


def test_stopped_is_what_cannot_win(search: Make, cpu_ref: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which three evaluations after the warm-up tell; seeds to come count as a loss of zero, those before as theirs."""
    losses = {"gelu": 1.0, "relu": 2.5, "swiglu": 5.0, "silu": 1.1}  # silu falls too steeply to be sure of
    monkeypatch.setattr(Loop, "evaluate", lambda self: (
        6.0 if (name := self.state.model.config.activation) == "silu" and self.done <= 4 else losses[name]))
    t = search(cpu_ref, activation_pool=",".join(losses), population_size=4, generations=1, replicates=3, after="none",
             steps_per_candidate=12, candidate_eval_interval=2, candidate_warmup=4, early_stop="true")
    assert t.run()
    assert [(c["activation"], c["status"], [r["steps"] for r in c["replicates"]]) for c in candidates(t)] == [
        ("gelu", "complete", [12, 12, 12]), ("relu", "stopped", [12, 8]), ("swiglu", "stopped", [8]),
        ("silu", "complete", [12, 12, 12])]


def test_a_budget_in_tokens_and_one_in_seconds(search: Make, cpu_ref: Backend, slow: set[int]) -> None:
    t = search(cpu_ref, "tokens", budget="tokens", tokens_per_candidate=4 * 16 * 5 - 1, generations=1)
    assert t.run()
    assert [c["steps"] for c in candidates(t)] == [5, 5, 5]
    t = search(cpu_ref, "seconds", budget="seconds", seconds_per_candidate=3, generations=1, replicates=1,
             max_cost=10_000)
    assert t.run()
    for c in candidates(t):
        (r,) = c["replicates"]
        assert r["seconds"] == 3 and r["evaluations"][-1][0] == r["steps"] == c["steps"] == 4


def test_the_speed_is_that_of_steps_that_do_not_record(search: Make, cpu_ref: Backend, planted: dict[int, int],
                                                       slow: set[int]) -> None:
    planted |= {3: CLIP}
    slow |= {4}
    t = search(cpu_ref, adaptive_batch="true", batch_max=6, batch_step=2, budget="tokens",
             tokens_per_candidate=16 * (3 * 4 + 3 * 6), generations=1)
    assert t.run()
    for c in candidates(t):
        for r in c["replicates"]:
            assert (r["steps"], r["seconds"], r["tokens_per_sec_mean"]) == (6, 4, 16 * (2 * 4 + 2 * 6) / 4)


@pytest.mark.parametrize(("settings", "message"), [
    ({"activation_pool": ""}, "activation_pool"),
    ({"activation_pool": "gelu,gelu"}, "names an activation twice"),
    ({"activation_pool": "gelu,tanhh"}, "activation_pool: given 'tanhh'"),
    ({"activation_pool": "gelu|x*sin(y)"}, "activation_pool: formula 'x\\*sin\\(y\\)', column 7: 'y' has no value"),
    ({"activation_pool": "silu|x*sigmoid(x)"}, "names an activation twice"),
    ({"genome": "formula", "selection": "exhaustive"}, "formulas have no end"),
    ({"genome": "operators", "selection": "exhaustive"}, "formulas have no end"),
    ({"genome": "operators", "genomes": "gelu; relu,gelu"}, "set genome = per_block"),
    ({"genome": "formula", "activation_pool": "kan_bspline"}, "kan_bspline has no formula"),
    ({"genome": "formula", "genomes": "gelu; relu,gelu"}, "set genome = per_block"),
    ({"selection": "random"}, "set genome = formula"),
    ({"selection": "random", "genome": "per_block"}, "set genome = formula"),
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
     r"10,000,000 trainings of 5,000 steps, 3.20e\+12 tokens in all, more than --max-cost 1e\+09"),
])
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_cost(configured(**SMALL | settings))


def test_the_estimate_is_an_upper_bound(search: Make, cpu_ref: Backend) -> None:
    t = search(cpu_ref)
    assert t.run()
    steps, tokens = budget(t.config)
    cost, most = summary(t)["cost"], trainings(t.config.search, 2)
    assert cost["steps"] == 36 <= most * steps and cost["tokens"] == 36 * 64 <= most * tokens
    assert [e["kind"] for e in rows(t, EVENTS)].count("search_complete") == 1


def test_seconds_end_at_the_highest_cost(search: Make, cpu_ref: Backend, slow: set[int]) -> None:
    """In every training alike, of 4 steps each; what is reused costs nothing."""
    settings = {"budget": "seconds", "seconds_per_candidate": 3, "genomes": "gelu;gelu;relu", "generations": 1,
                "after": "none"}
    for steps in (3, 5, 9, 15):
        t = search(cpu_ref, str(steps), max_cost=64 * steps, **settings)
        with pytest.raises(UserError, match="has come to --max-cost"):
            t.run()
        assert t.step == steps + 1
    t = search(cpu_ref, "whole", max_cost=64 * 16, **settings)
    assert t.run() and t.step == 16
