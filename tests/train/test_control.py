"""Online control in real runs: every action in its effect, and the same after a kill."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helios.backends.backend import Backend
from helios.errors import UserError
from helios.train import checkpoint, data
from helios.train.config import resolve
from helios.train.loop import Loop
from helios.train.monitors.cusum import CLIP, GRAD, MEMORY, TPS, VAL, Monitor
from helios.train.monitors.monitors import Monitors
from helios.train.progress import Display
from helios.train.records.layout import EVENTS
from helios.train.records.rows import rows as rows_of
from helios.train.run import Run
from helios.train.schedule import learning_rate
from helios.train.state import Stopped

from .runs import SMALL, Make, configured, final, rows

QUIET = Display(quiet=True)


def said(t: Loop) -> list[tuple[int, str]]:
    return [(row["step"], row["action_reason"]) for row in rows(t) if row.get("action_reason")]


# -- effects ----------------------------------------------------------------------------------------------------------
def test_the_rate(make: Make, each_backend: Backend, planted: dict[int, int]) -> None:
    planted |= {3: GRAD, 4: GRAD}
    t = make(each_backend, actions="cusum_grad: lr*0.5 for 3")
    assert t.run()
    factors = [r["lr"] / learning_rate(i, steps=12, warmup=2, lr=1e-2, lr_min=1e-3) for i, r in enumerate(rows(t))]
    assert factors == pytest.approx([1, 1, 1, 1 / 2, 1 / 2, 1 / 2, 1 / 2, 1, 1, 1, 1, 1])
    text = "cusum_grad: lr*0.5 for 3: factor on the rate"
    assert said(t) == [(3, f"{text} 1 to 0.5 (planted)"), (7, f"{text} 0.5 to 1 (3 calm steps)")]
    assert [{key: e[key] for key in ("step", "message", "alert", "action", "reason")}
            for e in rows(t, EVENTS) if e["kind"] == "action"] == [
        {"step": step, "message": message, "alert": "cusum_grad", "action": "lr*0.5 for 3", "reason": reason}
        for (step, message), reason in zip(said(t), ("planted", "3 calm steps"), strict=True)]


def test_the_clip(make: Make, each_backend: Backend, planted: dict[int, int]) -> None:
    planted |= {3: GRAD}
    t = make(each_backend, actions="cusum_grad: clip*0.25 for 3", grad_clip=0.5)
    assert t.run()
    for row in rows(t):
        clip = 0.125 if 4 <= row["step"] <= 6 else 0.5
        assert row.get("grad_clip", 0.5) == clip and ("grad_clip" in row) == (clip != 0.5)
        assert row["clip_coef"] == pytest.approx(min(1, clip / row["grad_norm"])) and row["clip_coef"] < 1


def test_the_guard(make: Make, each_backend: Backend, planted: dict[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    planted |= {3: GRAD}
    monkeypatch.setattr(Monitor, "usual_norm", lambda self: 1e-3)
    t = make(each_backend, actions="cusum_grad: guard*2 for 3", metrics_interval=1)
    assert t.run()
    log = rows(t)
    assert [r.get("spike_threshold") for r in log] == [None] * 3 + [2e-3] * 3 + [None] * 6
    assert [r.get("skip_reason") for r in log] == [None] * 3 + ["spike"] * 3 + [None] * 6
    entropies = [r["weight_entropy"] for r in log]
    assert len(set(entropies[2:6])) == 1 and len(set(entropies)) == 9  # weights that a skipped step leaves


def test_the_batch(make: Make, each_backend: Backend, planted: dict[int, int]) -> None:
    planted |= {2: CLIP, 4: TPS, 5: TPS}
    t = make(each_backend, actions="cusum_clip: batch+4 for 6; cusum_tps: batch-3 for 2", batch_max=6)
    assert t.run()
    log, expected = rows(t), [4, 4, 6, 6, 5, 5, 5, 6, 4, 4, 4, 4]
    assert [round(r["tokens_per_sec"] * r["ms_per_iter"] / 16000) for r in log] == expected
    assert [r["adaptive_batch_size"] for r in log] == expected
    assert [step for step, _ in said(t)] == [2, 4, 7, 8] and len(t.state.last.programs) <= 2


def test_a_batch_without_room_stays(make: Make, cpu_ref: Backend, planted: dict[int, int],
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    planted |= {2: MEMORY}
    monkeypatch.setattr(Loop, "fits", lambda self, size: False)
    t = make(cpu_ref, actions="cusum_memory: batch+4")
    assert t.run()
    assert said(t) == [(2, "cusum_memory: batch+4: no memory for a batch of 8 (planted)")]
    assert {r["adaptive_batch_size"] for r in rows(t)} == {4}


def test_a_rule_that_never_acts_changes_no_bit(make: Make, each_backend: Backend) -> None:
    with_rules = make(each_backend, "with", actions="cusum_grad: clip*0.5, lr*0.5, guard*2; cusum_clip: batch+2")
    without = make(each_backend, "without")
    assert with_rules.run() and without.run()
    assert final(with_rules) == final(without)


def test_a_loss_scale_that_is_found_is_no_alert(make: Make, each_mixed: Backend) -> None:
    t = make(each_mixed, precision="mixed", actions="cusum_grad: stop", lr=1.0, grad_clip=0, warmup=0)
    assert t.run() and not t.monitors.stopped


# -- the end, and a branch --------------------------------------------------------------------------------------------
def run_of(backend: Backend, path: Path, **settings: Any) -> Run:
    return Run.create(resolve("tiny", assignments=[f"{k}={v}" for k, v in settings.items()],
                              flags={"backend": backend.name}), path)


def test_stop(tmp_path: Path, each_backend: Backend, planted: dict[int, int], capsys: pytest.CaptureFixture[str]
              ) -> None:
    planted |= {5: VAL}
    run = run_of(each_backend, tmp_path / "run", actions="cusum_val: stop")
    result = run.train(QUIET)
    assert (result.finished, result.step, result.trouble) == (True, 5, "") and run.finished
    assert result.summary.startswith("done: step 5 of 12, cusum_val: stop (planted), loss ")
    event = rows_of(run.path / EVENTS)[-1]
    assert (event["kind"], event["step"], event["message"], event["reason"]) == (
        "stopped", 5, "cusum_val: stop (planted)", "actions")
    assert [checkpoint.step_of(path) for path in checkpoint.directories(run.path)] == [5]
    assert [s["step"] for s in rows_of(run.path / "samples.jsonl")][:1] == [5]
    assert Run.resume(run.path, run.config.replaced("train", steps=15)).train(QUIET).step == 5  # it stays so
    assert "steps 12 → 15; cusum_val: stop (planted) ended it, so change that rule\n" in capsys.readouterr().err
    on = Run.resume(run.path, run.config.replaced("monitor", actions="")).train(QUIET)
    assert (on.step, on.finished) == (12, True) and rows_of(run.path / EVENTS)[-1]["kind"] == "run_complete"


def cut_short(t: Loop, at: int) -> None:
    """Run until a signal comes during the evaluation after a step."""
    def evaluate(self: Loop) -> float:
        if self.done == at:
            self.signal = 15
            raise Stopped
        return real(self)

    real = Loop.evaluate
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Loop, "evaluate", evaluate)
        assert not t.run() and t.pending is not None and t.done == at


def test_a_stopped_run_has_a_validation_loss(make: Make, each_backend: Backend, planted: dict[int, int]) -> None:
    """Also between evaluations, and where a signal comes during that one."""
    planted |= {5: GRAD, 6: GRAD}
    settings = {"actions": "cusum_grad: stop", "eval_interval": 4, "cusum_window": 9}
    whole, cut = (make(each_backend, name, **settings) for name in ("whole", "cut"))
    assert whole.run() and whole.step == 5
    cut_short(cut, 5)
    assert not actions_told(cut)
    again = make(each_backend, "cut", **settings)
    assert again.pending is not None and again.run() and again.step == 5
    for t in (whole, again):
        assert [row["step"] for row in rows(t) if row["val_loss"] is not None] == [4, 5]
        assert t.best == {"step": 5, "loss": rows(t)[-1]["val_loss"]}
    assert final(again) == final(whole) and log(again) == log(whole) and actions_told(again) == actions_told(whole)
    ours, theirs = (checkpoint.states(t.records.path)[-1] for t in (whole, again))
    assert ours["val_loss"] == theirs["val_loss"] == whole.best["loss"]
    assert ours["monitors"]["cusum"]["cusum_grad"] == theirs["monitors"]["cusum"]["cusum_grad"]
    assert ours["monitors"]["actions"] == theirs["monitors"]["actions"]


def test_a_stop_by_the_clock_outlives_its_evaluation(make: Make, each_backend: Backend, slow: set[int]) -> None:
    """However often a signal cuts that short, and with all that was measured at the step."""
    slow |= set(range(6, 12))
    settings = {"actions": "cusum_tps: stop", "eval_interval": 5, "cusum_window": 3, "cusum_grace": 0,
                "cusum_sensitivity": 3, "metrics_interval": 1, "track_mi_profiles": True}
    whole, cut = (make(each_backend, name, **settings) for name in ("whole", "cut"))
    assert whole.run() and 5 < whole.done < 10
    end = whole.done
    cut_short(cut, end)
    cut_short(make(each_backend, "cut", **settings), end)
    again = make(each_backend, "cut", **settings)
    assert again.run() and again.done == end
    for name in ("per_layer_grad_norms", "mi_compression", "cusum_alerts", "cusum_alert_reason"):
        assert rows(again)[-1][name] == rows(whole)[-1][name]
    assert final(again) == final(whole) and log(again) == log(whole) and actions_told(again) == actions_told(whole)
    ours, theirs = (checkpoint.states(t.records.path)[-1] for t in (whole, again))
    assert "pending" not in theirs and ours["val_loss"] == theirs["val_loss"] == rows(again)[-1]["val_loss"]
    assert ours["monitors"]["actions"] == theirs["monitors"]["actions"]


def test_at_the_last_step_there_is_nothing_to_stop(tmp_path: Path, cpu_ref: Backend, planted: dict[int, int]) -> None:
    planted |= {12: VAL}
    run = run_of(cpu_ref, tmp_path / "run", actions="cusum_val: stop")
    run.train(QUIET)
    assert rows_of(run.path / EVENTS)[-1]["kind"] == "run_complete"


def test_a_branch_is_asked_for(make: Make, cpu_ref: Backend, planted: dict[int, int], monkeypatch: pytest.MonkeyPatch
                               ) -> None:
    planted |= {3: GRAD}
    wanted, observe = [], Monitors.observe
    monkeypatch.setattr(Monitors, "observe", lambda self, *args: (observe(self, *args), wanted.append(self.wanted))[0])
    t = make(cpu_ref, actions="cusum_grad: branch lr*0.5", challenge_steps=10)  # too many for a window at step 3
    assert t.run()
    assert wanted == [None, None, "lr*0.5"] + [None] * 9
    assert said(t) == [(3, "cusum_grad: branch lr*0.5: a branch is asked for (planted)")]


@pytest.mark.parametrize(("settings", "words"), [
    ({"actions": "cusum_grad: branch lr*0.5", "challenge_steps": 2}, "nothing that trains a branch; leave it out"),
    (SMALL | {"actions": "plateau: stop"}, "actions: stop: a search has many trainings"),
    (SMALL | {"actions": "plateau: batch+1"}, "batch in actions makes steps of different sizes: set budget = tokens"),
])
def test_what_a_run_cannot_do(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Run.create(configured(**settings), tmp_path / "run")


# -- regimes in data --------------------------------------------------------------------------------------------------
SHIFT, LONG = 150, {"steps": 400, "lr": 3e-3, "lr_min": 3e-3, "eval_interval": 10, "checkpoint_interval": 0,
                    "dropout": 0.0}


def test_another_kind_of_text_makes_each_action_act_once(make: Make, cpu_ref: Backend, monkeypatch: pytest.MonkeyPatch
                                                         ) -> None:
    """From a step on the batches' tokens are shuffled over the vocabulary."""
    real, order = data.batch, np.random.Generator(np.random.Philox(5)).permutation(300).astype(np.int32)

    def batch(tokens: Any, position: int, *args: Any) -> tuple[np.ndarray, ...]:
        found = real(tokens, position, *args)
        return tuple(order[x] for x in found) if position >= SHIFT and len(args) and args[-1] == data.TRAIN else found

    monkeypatch.setattr(data, "batch", batch)
    t = make(cpu_ref, actions="cusum_grad: lr*0.5 for 100, clip*0.5; cusum_clip: guard*20 for 100", **LONG)
    assert t.run()
    steps = [(step, text.partition(" for")[0].partition(": factor")[0]) for step, text in said(t)]
    assert steps and all(step > SHIFT for step, _ in steps), said(t)
    once = [one for step, text in said(t) for one in text.split("; ") if "calm steps" not in one]
    assert len(once) == len({one.split(": ")[1] for one in once}), said(t)
    undone = [one for step, text in said(t) for one in text.split("; ") if "calm steps" in one]
    assert len(undone) == sum(" for 100" in one for one in once) > 0, said(t)


def test_nothing_is_done_in_a_calm_run(make: Make, cpu_ref: Backend) -> None:
    t = make(cpu_ref, actions="cusum_grad: stop; cusum_clip: lr*0.5; cusum_val: clip*0.5; cusum_memory: batch-1",
             **LONG | {"lr": 3e-4, "lr_min": 3e-4, "steps": 300})  # at a higher one it learns the text by heart
    assert t.run() and t.done == 300 and said(t) == []


# -- killed and resumed -----------------------------------------------------------------------------------------------
NERVOUS = {"actions": "cusum_grad: lr*0.5 for 3, clip*0.3 for 2, guard*1.2 for 2; cusum_clip: batch+2 for 2; "
                      "cusum_val: lr*0.9, batch-1; plateau: clip*0.5 for 4", "plateau_evals": 1, "plateau_delta": 0.5,
           "eval_interval": 2, "cusum_window": 2, "cusum_grace": 0, "steps": 24, "checkpoint_interval": 1,
           "calm_steps_before_restore": 3, "grad_clip": 0.7}
ALARMS = {3: GRAD, 5: GRAD, 6: CLIP, 9: GRAD | CLIP, 10: VAL, 14: VAL | CLIP, 15: GRAD, 20: GRAD}
SAME = ("step", "loss", "val_loss", "lr", "grad_norm", "clip_coef", "grad_clip", "spike_threshold", "skip_reason",
        "adaptive_batch_size", "action_reason", "plateau")


def log(t: Loop) -> list[list[Any]]:
    return [[row.get(name) for name in SAME] for row in rows(t)]


def actions_told(t: Loop) -> list[tuple[int, str]]:
    return [(e["step"], e["message"]) for e in rows(t, EVENTS) if e["kind"] == "action"]


def test_a_resumed_run_decides_the_same(make: Make, each_backend: Backend, planted: dict[int, int], tmp_path: Path
                                        ) -> None:
    planted |= ALARMS
    whole = make(each_backend, "whole", **NERVOUS)
    assert whole.run() and len(said(whole)) > 8
    for at in (3, 5, 9, 15, 16):
        shutil.copytree(whole.records.path, tmp_path / f"at{at}")
        for path in checkpoint.directories(tmp_path / f"at{at}")[at:]:
            shutil.rmtree(path)
        again = make(each_backend, f"at{at}", **NERVOUS)
        assert again.step == at and again.run()
        assert final(again) == final(whole) and log(again) == log(whole) and actions_told(again) == actions_told(whole)


def test_an_interrupted_evaluation_decides_the_same(make: Make, each_backend: Backend, planted: dict[int, int]
                                                    ) -> None:
    planted |= {9: GRAD, 10: VAL}
    whole, cut = make(each_backend, "whole", **NERVOUS), make(each_backend, "cut", **NERVOUS)
    assert whole.run()
    cut_short(cut, 10)
    again = make(each_backend, "cut", **NERVOUS)
    assert again.pending is not None and again.run()
    assert final(again) == final(whole) and log(again) == log(whole) and actions_told(again) == actions_told(whole)


def test_what_rules_did_that_are_no_more_is_undone_and_told_once(make: Make, cpu_ref: Backend,
                                                                 planted: dict[int, int], tmp_path: Path) -> None:
    """However often the run is killed after that."""
    planted |= {3: GRAD | CLIP}
    kept = {"actions": "cusum_grad: lr*0.5 for 8", "checkpoint_interval": 1, "grad_clip": 0.5}
    assert make(cpu_ref, **kept | {"actions": f"{kept['actions']}; cusum_clip: batch-1, clip*0.5"}).run()
    for at in (5, 5, 7):
        for path in checkpoint.directories(tmp_path / "run")[at:]:
            shutil.rmtree(path)
        t = make(cpu_ref, **kept)
        assert t.step == at and t.run()
        (_, first), *later = said(t)
        assert first.count("planted") == 3 and later == [
            (6, "cusum_clip: batch-1: batch 4 again (the rule is no more); "
                "cusum_clip: clip*0.5: clip 0.5 again (the rule is no more)"),
            (11, "cusum_grad: lr*0.5 for 8: factor on the rate 0.5 to 1 (8 calm steps)")]
        assert [step for step, _ in actions_told(t)] == [3, 3, 3, 6, 6, 11]


def test_a_dry_run_tells_the_rules(tmp_path: Path) -> None:
    given = resolve("tiny", assignments=["actions=plateau:stop;cusum_grad: lr * .5"])
    assert "actions: cusum_grad: lr*0.5; plateau: stop" in Run.create(given, tmp_path / "x").preview().splitlines()


# -- fingerprints -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("settings", "before"), [
    ([], "38a1b6cc762c9449547ff27bd10dbbd9"), (["dynamic_lr=cusum"], "72306f63acf27cf19316be808cec4dd2"),
    (["adaptive_batch=true"], "5e6a9cddd22fd5b39f040a320c524186"),
    (["search=ffn-activation"], "8a2c3984d1dd40272af0828c8412858e"),
])
def test_fingerprints_of_before_stay(settings: list[str], before: str) -> None:
    device = {"name": "a card", "driver": "1"}
    assert resolve("tiny", assignments=settings).fingerprint(device) == before
    acting = [resolve("tiny", assignments=[*settings, f"actions=plateau: {x}"]).fingerprint(device)
              for x in ("guard*2", "guard*3")]
    assert len({before, *acting}) == 3
