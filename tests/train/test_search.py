"""A search in a run: fair, bit for bit the same after a kill, and the winner is what is trained on."""

from __future__ import annotations

import gc
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helios.backends.backend import Backend
from helios.errors import UserError
from helios.model import GPTConfig
from helios.model.activations import TABLE
from helios.train import checkpoint, fitness
from helios.train.directory import check_new
from helios.train.loop import Loop
from helios.train.monitors.cusum import CLIP
from helios.train.records.layout import EVENTS
from helios.train.records.records import COLUMNS, MORE_COLUMNS
from helios.train.search import report
from helios.train.stage import Stage

from .runs import Make, candidates, final, rows, summary


def test_the_winner_reported_is_the_winner_trained_on(search: Make, each_backend: Backend) -> None:
    t = search(each_backend)
    assert t.run()
    found, measured = summary(t), candidates(t)
    trained = [c for c in measured if c["status"] == "complete"]
    assert sorted(c["activation"] for c in trained) == ["gelu", "relu", "swiglu"]
    best = min(trained, key=lambda c: c["val_loss_mean"])
    assert found["status"] == "complete" and found["winner_activation"] == best["activation"]
    assert t.state.model.config.activation == best["activation"]
    assert json.loads((t.records.path / "config.json").read_text())["symbio_winner"] == best["activation"]
    state = checkpoint.latest(t.records.path)[0].state
    assert state["model"]["activation"] == best["activation"]
    # What follows is the run that would have been without a search.
    alone = search(each_backend, "alone", mode="none", activation=best["activation"])
    assert alone.run()
    assert final(t) == final(alone)
    after = [r for r in rows(t) if r["symbio_phase"] == "after"]
    assert [r["loss"] for r in after] == [r["loss"] for r in rows(alone)]
    assert [r["step"] for r in rows(t)] == list(range(1, 3 * 2 * 6 + 8 + 1))


def test_selection_is_by_evaluations_of_the_candidate_itself(search: Make, cpu_ref: Backend) -> None:
    t = search(cpu_ref)
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


def test_candidates_start_alike_and_read_the_same(search: Make, cpu_ref: Backend, monkeypatch: pytest.MonkeyPatch
                                                 ) -> None:
    starts: list[dict[str, np.ndarray]] = []
    read: list[list[tuple]] = []
    real = Loop._prepare

    def prepare(self: Loop, **more: Any) -> None:
        real(self, **more)
        starts.append({k: v.copy() for k, v in self.state.model.state_dict().items()})
        inner = self.state.submit
        read.append([])
        monkeypatch.setattr(self.state, "submit",
                            lambda inputs, stop: (read[-1].append(inputs[0]), inner(inputs, stop))[1])

    monkeypatch.setattr(Loop, "_prepare", prepare)
    t = search(cpu_ref, replicates=1, generations=1)
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


def test_what_is_switched_off_is_off_and_said(search: Make, cpu_ref: Backend) -> None:
    t = search(cpu_ref, shared_init="false", shared_batches="false", reuse="false", replicates=1,
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
                                                                 "generations": 3, "population_size": 4},
                                      {"genome": "formula", "generations": 4, "mutation_rate": 0.8, "replicates": 1},
                                      {"genome": "operators", "population_size": 5, "mutation_rate": 0.8,
                                       "replicates": 1, "seed": 3, "after": "continue"}])
def test_killed_and_resumed_it_chooses_the_same(search: Make, each_backend: Backend, monkeypatch: pytest.MonkeyPatch,
                                               settings: dict[str, Any]) -> None:
    settings = settings | {"checkpoint_interval": 5}
    whole = search(each_backend, "whole", **settings)
    assert whole.run()
    count, real = 0, Loop._after_step
    moments = iter([3, 9, 11, 17, 18, 24, 31, 37, 41, 10**9])
    moment = next(moments)

    def dies(self: Loop, stage: Stage, row: dict[str, Any]) -> dict[str, Any] | None:
        nonlocal count, moment
        count = self.step
        found = real(self, stage, row)
        if count >= moment:
            moment = next(moments)
            raise Stopped
        return found

    monkeypatch.setattr(Loop, "_after_step", dies)
    kills = 0
    t = search(each_backend, "killed", **settings)
    while True:
        try:
            assert t.run()
            break
        except Stopped:
            kills += 1
            t = search(each_backend, "killed", **settings)
    assert kills >= 7
    assert final(t) == final(whole)
    timeless = lambda c: {k: v for k, v in c.items() if k not in ("tokens_per_sec_mean", "replicates", "cusum_alerts",
                                                                 "fitness")}
    assert [timeless(c) for c in candidates(t)] == [timeless(c) for c in candidates(whole)]
    same = ("step", "loss", "val_loss", "lr", "symbio_candidate_id", "symbio_phase")
    assert [[r.get(k) for k in same] for r in rows(t)] == [[r.get(k) for k in same] for r in rows(whole)]


def test_it_continues_from_the_winners_own_weights(search: Make, each_backend: Backend) -> None:
    t = search(each_backend, after="continue", warmup=4)
    assert t.run()
    log = rows(t)
    best = next(c for c in candidates(t) if c["id"] == summary(t)["winner"])
    after = [r for r in log if r["symbio_phase"] == "after"]
    its = [r for r in log if r.get("symbio_candidate_id") == best["id"] and r["symbio_replicate"] == 0]
    assert after[0]["loss"] < its[0]["loss"] - 0.1
    assert [r["lr"] for r in after[:4]] == pytest.approx([1e-3 + 9e-3 * n / 4 for n in (1, 2, 3, 4)])
    names = [p.name for p in checkpoint.directories(t.records.path / "search")]
    assert len(names) == 1
    assert checkpoint.load(t.records.path / "search" / "checkpoints" / names[0]).state["model"]["activation"] \
        == best["activation"]


@pytest.mark.parametrize("selection", ["topk", "tournament", "exhaustive"])
def test_a_crippled_activation_never_wins(search: Make, cpu_ref: Backend, crippled: str, selection: str) -> None:
    t = search(cpu_ref, selection=selection, steps_per_candidate=12, candidate_lr="1e-2")
    assert t.run()
    found = summary(t)
    assert found["winner_activation"] != crippled
    last = [r for r in found["ranking"] if r["activation"] == crippled]
    assert last and all(r["separated"] for r in last)


def test_nothing_finite_is_no_winner(search: Make, cpu_ref: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loop, "evaluate", lambda self: math.nan)
    t = search(cpu_ref, generations=1)
    with pytest.raises(UserError, match="the search has no winner: No candidate has a result to rank by"):
        t.run()
    assert {c["status"] for c in candidates(t)} == {"diverged"} and summary(t)["winner"] is None


def test_parameters_are_matched(search: Make, cpu_ref: Backend) -> None:
    for d in (128, 256, 384, 768):
        counts = [GPTConfig(n_embd=d, n_head=4, activation=name, ffn_dim="matched").parameters() for name in TABLE]
        assert max(counts) / min(counts) < 1.01
    t = search(cpu_ref, match="params", activation_pool="gelu,swiglu,kan_spline", generations=1, replicates=1)
    assert t.run()
    counts = [c["parameters"] for c in candidates(t)]
    assert max(counts) / min(counts) < 1.01 and not any("match is" in s for s in summary(t)["unfair"])


@pytest.mark.parametrize("name", ["quality", "inverse"])
def test_ranking_by_fitness(search: Make, cpu_ref: Backend, name: str) -> None:
    t = search(cpu_ref, rank_by="fitness", fitness=name, generations=1)
    assert t.run()
    best = max(candidates(t), key=lambda c: c["fitness"])
    assert summary(t)["winner"] == best["id"]
    if name == "inverse":
        scores = [r["fitness_score"] for r in rows(t)[5:36:6]]  # of the last step's loss, here the last tenth
        assert [r["fitness"] for c in candidates(t) for r in c["replicates"]] == pytest.approx(scores, rel=1e-12)


def test_a_search_alone_is_kept_and_not_run_again(search: Make, cpu_ref: Backend) -> None:
    t = search(cpu_ref, after="none")
    assert t.run() and t.step == 36
    before = rows(t)
    assert {r["symbio_phase"] for r in before} == {"search"} and all("weight_entropy" in r for r in before[5::6])
    again = search(cpu_ref, after="none")
    assert again.run() and rows(again) == before
    with pytest.raises(UserError, match="holds a run already"):
        (t.records.path / "config.json").write_text('{"model": {}, "train": {}, "data": {}, "run_id": "r"}')
        check_new(t.records.path)


def test_memory_stays_level_with_accumulation(search: Make, backend: Backend) -> None:
    if backend.name == "cpu_ref":
        pytest.skip(f"{backend.name} keeps no memory of its own")
    used = []
    for name, generations in (("few", 1), ("many", 4)):
        t = search(backend, name, accum=2, generations=generations, population_size=2, activation_pool="gelu,swiglu",
                 reuse="false", replicates=1, steps_per_candidate=4)
        assert t.run()
        del t
        gc.collect()
        backend.arena.fit()  # type: ignore[attr-defined]
        assert not backend.arena.needs  # type: ignore[attr-defined]
        used.append(backend.memory()["used"])
    assert used[0] == used[1]


def test_a_report_that_fails_does_not_keep_the_winner_from_training(search: Make, cpu_ref: Backend,
                                                                    monkeypatch: pytest.MonkeyPatch,
                                                                    capsys: pytest.CaptureFixture[str]) -> None:
    def broken(run: Path) -> None:
        raise ZeroDivisionError("of the plotting library")

    monkeypatch.setattr(report, "write", broken)
    t = search(cpu_ref, generations=1)
    assert t.run() and t.step == 3 * 2 * 6 + 8
    (event,) = [e for e in rows(t, EVENTS) if e["kind"] == "report_failed"]
    assert "ZeroDivisionError: of the plotting library; helios-search report" in event["message"]
    assert capsys.readouterr().err == f"warning: {event['message']}\n"


def test_what_an_older_checkpoint_goes_on_from_is_kept(search: Make, cpu_ref: Backend) -> None:
    """Where the newest one turns out damaged, the weights that the one before names must still be there."""
    settings = {"after": "continue", "checkpoint_interval": 3, "keep": 2, "activation_pool": "gelu,silu,relu"}
    whole = search(cpu_ref, "whole", **settings)
    assert whole.run()
    t, folders = search(cpu_ref, **settings), set[str]()

    def named() -> set[str]:
        states = [found["search"] for found in checkpoint.states(t.records.path)]
        return {state[key] for state in states for key in ("start", "pending")} - {None}

    prune = t.plan.saved

    def pruned() -> None:
        prune()
        there = {path.name for path in checkpoint.directories(t.records.path / "search")}
        folders.update(there)
        assert named() <= there and len(there) <= 4

    t.plan.saved = pruned  # type: ignore[method-assign]
    assert t.run() and len(folders) == 3
    # The best candidate was found, and its rivals' weights dropped, between the two newest checkpoints.
    newest = checkpoint.directories(t.records.path)[-1]
    (newest / checkpoint.STATE).write_text("damaged")
    again = search(cpu_ref, **settings)
    assert again.step < t.step and again.run()
    assert final(again) == final(whole)


def test_columns_are_those_of_the_interface(search: Make, cpu_ref: Backend, planted: dict[int, int]) -> None:
    planted |= {14: CLIP}
    t = search(cpu_ref, adaptive_batch="true", dynamic_lr="entropy", reuse="false", track_mi_profiles="true",
             metrics_interval=5, candidate_eval_interval=1, cusum_grace=5, budget="tokens", tokens_per_candidate=1000,
             generations=1, replicates=1, actions="cusum_clip: clip*0.5")
    assert t.run()
    written = set().union(*rows(t))
    assert written <= {*COLUMNS, *MORE_COLUMNS}
    assert {*COLUMNS, *MORE_COLUMNS} - written == {  # what faults, longer runs, devices or mixed precision bring
        "skipped", "skip_reason", "loss_scale", "plateau", "heat_capacity", "cusum_memory", "spike_threshold"}


def test_rows_say_which_candidate_they_are_of(search: Make, cpu_ref: Backend) -> None:
    t = search(cpu_ref, reuse="false", replicates=1, steps_per_candidate=2)
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
