"""The plan of a run is for its settings, and a run that pauses is the run that never did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helios.backends.backend import Backend
from helios.errors import UserError
from helios.train import checkpoint
from helios.train.config import Config, resolve
from helios.train.plans import planned
from helios.train.progress import Display
from helios.train.records import layout
from helios.train.records.layout import EVENTS, METRICS
from helios.train.records.rows import rows
from helios.train.run import Planner, Run
from helios.train.search import report
from helios.train.search.search import Search
from helios.train.stage import Plan

from .runs import SMALL, configured

QUIET = Display(quiet=True)


@pytest.mark.parametrize(("plan", "settings", "message"), [
    (Plan, SMALL, r"ask for a search \(mode = ffn-activation\), and this run has no plan of one; make it with plan="),
    (Search, {}, "for settings without one; set mode"),
    (planned, SMALL | {"max_cost": 10}, "more than --max-cost 10"),
])
def test_a_plan_for_other_settings_is_refused(tmp_path: Path, plan: Planner, settings: dict[str, Any], message: str
                                              ) -> None:
    with pytest.raises(UserError, match=message):
        Run.create(configured(**settings), tmp_path, plan=plan)


def on(backend: Backend, **settings: Any) -> Config:
    return resolve("tiny", assignments=[f"{k}={v}" for k, v in settings.items()], flags={"backend": backend.name})


def final(path: Path) -> bytes:
    last = checkpoint.directories(path)[-1]
    return (last / checkpoint.MODEL).read_bytes() + (last / checkpoint.OPTIMIZER).read_bytes()


def columns(path: Path, *without: str) -> list[dict[str, Any]]:
    """The rows without what the clock tells and these columns."""
    timed = ("elapsed", "ms_per", "timing", "tokens_per", "cusum_tps", "cusum_flush", "cusum_memory",
             "cusum_alert", "gpu_")
    return [{k: v for k, v in row.items() if not k.startswith((*timed, *without))} for row in rows(path / METRICS)]


def test_a_run_that_pauses_is_the_run_that_never_did(tmp_path: Path, each_backend: Backend) -> None:
    """Also where monitors act, which must not see the evaluation of a pause."""
    config = on(each_backend, eval_interval=2, plateau_evals=1, cusum_window=5, cusum_grace=1, cusum_sensitivity=0.1)
    whole, path = Run.create(config, tmp_path / "whole"), tmp_path / "run"
    assert whole.train(QUIET).finished
    for until, step, words in ((5, 5, "paused: step 5 of 12"), (3, 5, "paused: step 5 of 12"), (9, 9, "paused: step 9"),
                               (99, 12, "done: step 12 of 12")):
        run = Run.open(config, path)
        result = run.train(QUIET, until=until)
        assert (result.step, result.finished, run.finished) == (step, step == 12, step == 12)
        assert result.summary.startswith(words) and ("--resume" in result.summary) == (step < 12)
        assert checkpoint.step_of(checkpoint.directories(path)[-1]) == step
        event = rows(path / EVENTS)[-1]
        assert (event["kind"], event["step"]) == ("run_complete" if step == 12 else "paused", step)
    assert [e["message"] for e in rows(path / EVENTS) if e["kind"] == "paused"] == [
        "at step 5, asked to go to 5", "at step 5, asked to go to 3", "at step 9, asked to go to 9"]
    assert final(path) == final(whole.path)
    assert columns(path, "val_loss") == columns(whole.path, "val_loss")
    evaluated = lambda path: {row["step"]: row["val_loss"] for row in rows(path / METRICS) if row["val_loss"]}
    paused = evaluated(path)
    assert paused.keys() == {2, 4, 5, 6, 8, 9, 10, 12}
    assert {step: loss for step, loss in paused.items() if step not in (5, 9)} == evaluated(whole.path)


def test_a_search_that_pauses_chooses_the_same(tmp_path: Path, cpu_ref: Backend, monkeypatch: pytest.MonkeyPatch
                                               ) -> None:
    monkeypatch.setattr(report, "write", lambda run: None)
    config = on(cpu_ref, **SMALL | {"generations": 1})
    whole, path = Run.create(config, tmp_path / "whole", plan=Search), tmp_path / "run"
    assert whole.train(QUIET).finished
    steps = [Run.open(config, path, plan=planned).train(QUIET, until=until).step for until in (4, 12, 36, 39, None)]
    assert steps == [4, 12, 36, 39, 44] and final(path) == final(whole.path)
    assert columns(path, "val_loss") == columns(whole.path, "val_loss")
    said = [(path / "search" / "candidates.jsonl") for path in (path, whole.path)]
    assert len({tuple((c["id"], c["val_loss_mean"]) for c in rows(file)) for file in said}) == 1


def test_what_is_said_of_a_run_stays(tmp_path: Path, cpu_ref: Backend) -> None:
    config, path, told = on(cpu_ref), tmp_path / "run", {"evolve": {"id": "gen0_gelu_1", "parents": []}, "more": [1]}
    Run.open(config, path, about=told).train(QUIET, until=2)
    own = layout.read_config(path)
    assert {key: own.pop(key) for key in told} == told
    for given in (None, {"more": [2]}):
        Run.open(config, path, about=given).train(QUIET, until=5)
        assert layout.read_config(path) == own | told | (given or {})
    fork = Run.resume(path, path=tmp_path / "fork", about={"of": "run"})
    fork.train(QUIET)
    assert layout.read_config(fork.path).keys() == own.keys() | {"of"}
    with pytest.raises(UserError, match=r"about: model is config\.json's own"):
        Run.create(config, tmp_path / "other", about={"model": 1}).train(QUIET)


def test_a_pause_before_the_first_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="until: given 0, expected a step of the run, from 1 on"):
        Run.create(configured(), tmp_path / "run").train(QUIET, until=0)
