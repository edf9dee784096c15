"""What is known of a run at a glance, and how it stands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from helios.errors import UserError
from helios.train import directory
from helios.train.config import resolve
from helios.train.progress import Display
from helios.train.records import overview
from helios.train.records.layout import CONFIG, EVENTS, LOCK, METRICS, differing, find_runs, finished
from helios.train.records.overview import SILENT, STALE, Overview, status
from helios.train.run import Run

QUICK = ["backend=cpu_ref", "data=synth:200KB", "vocab_size=300", "eval_interval=4", "eval_iters=1"]


def quick(*more: str) -> Any:
    return resolve("tiny", assignments=[*QUICK, *more])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Run.create(quick("steps=10"), tmp_path_factory.mktemp("done") / "run").train(Display(True)).path


@pytest.mark.parametrize("kind, locked, age, word", [
    ("run_complete", False, 1e9, "completed"), ("run_complete", None, 0, "completed"),
    ("interrupted", False, 0, "interrupted"), ("interrupted", None, 1e9, "interrupted"),
    ("diverged", False, 0, "failed"), ("failed", None, 0, "failed"), ("device_lost", False, 0, "failed"),
    ("device_lost", True, 0, "active"), ("run_start", True, 1e9, "active"), ("resumed", True, 0, "active"),
    ("run_start", False, 1, "interrupted"), ("run_start", False, STALE + 1, "stale"), (None, None, 1, "active"),
    ("resumed", None, STALE - 1, "active"), ("resumed", None, STALE + 1, "stale")])
def test_status(kind: str | None, locked: bool | None, age: float, word: str) -> None:
    assert status(kind and {"kind": kind, "message": "why"}, locked, age).word == word


def test_reasons() -> None:
    assert status({"kind": "failed", "message": "why"}, False, 0).reason == "why"
    assert status({"kind": "run_start"}, False, 0).reason == SILENT
    assert status({"kind": "run_complete", "message": "10 steps"}, False, 0).reason == ""


def test_of_a_whole_run(done: Path) -> None:
    rows = [json.loads(line) for line in (done / METRICS).read_text().splitlines()]
    about, found = json.loads((done / CONFIG).read_text()), overview.read(done)
    best = min((row["val_loss"], row["step"]) for row in rows if row["val_loss"] is not None)
    assert found["run_id"] == about["run_id"] and found["created"] == about["created"]
    assert (found["status"], found["step"], found["steps"], found["coverage"]) == ("completed", 10, 10, 1.0)
    assert (found["best_val_loss"], found["best_val_step"]) == best and found["loss"] == rows[-1]["loss"]
    assert found["model"] == "L2 D32 H4 T16" and found["activation"] == "gelu" and not found["symbio"]
    assert about["host"]["cores"] == len(os.sched_getaffinity(0)) and about["host"]["cpu"]


def test_a_state_that_was_kept_goes_on(done: Path) -> None:
    rows = [json.loads(line) for line in (done / METRICS).read_text().splitlines()]
    whole, kept = Overview(), Overview()
    for row in rows:
        whole.metrics(row)
        kept.metrics(row)
        kept = Overview(json.loads(json.dumps(kept.state())))
    assert kept.entry(None, 0) == whole.entry(None, 0)


def test_anything_may_stand_in_a_row() -> None:
    seen = Overview()
    seen.config({"run_id": "r", "model": None, "train": [], "device": "gpu"})
    for row in ({}, {"step": "x", "loss": []}, {"step": 7, "loss": float("nan"), "val_loss": 10**400},
                {"step": True, "val_loss": True, "tokens_per_sec": float("inf")},
                {"tokens_per_sec": 10**308}, {"tokens_per_sec": 17 * 10**307}):
        seen.metrics(row)
    for event in ({"kind": []}, {"kind": "failed"}, {}):
        seen.event(event)
    found = seen.entry(None, 0)
    assert found["step"] == 7 and found["loss"] is found["best_val_loss"] is found["steps"] is found["model"] is None
    assert found["tokens_per_sec"] is None and (found["status"], found["reason"]) == ("failed", "")


def test_steps_of_a_search_are_counted_apart() -> None:
    seen = Overview()
    seen.config({"train": {"steps": 8}, "search": {"mode": "ffn-activation", "after": "restart"}})
    for step in range(1, 7):
        seen.metrics({"step": step, "val_loss": 1.0, "symbio_phase": "search" if step < 5 else "after"})
    found = seen.entry(None, 0)
    assert found["steps"] == 12 and found["best_val_step"] == 5 and found["symbio"]


def test_the_lock_is_seen_and_not_disturbed(tmp_path: Path) -> None:
    assert not overview.locked(tmp_path)
    with directory.locked(tmp_path / "run", new=True):
        assert overview.locked(tmp_path / "run")
        with pytest.raises(UserError, match="in use"), directory.locked(tmp_path / "run", new=False):
            pass
    assert not overview.locked(tmp_path / "run")
    # Held for a moment, as by someone who looks, it keeps no run from beginning.
    (tmp_path / "other").mkdir()
    code = """import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_SH)
print("held", flush=True)
time.sleep(0.1)"""
    args = [sys.executable, "-c", code, str(tmp_path / "other" / LOCK)]
    with subprocess.Popen(args, stdout=subprocess.PIPE) as looks:
        assert looks.stdout is not None and looks.stdout.readline()
        with directory.locked(tmp_path / "other", new=True):
            pass


def test_active_then_killed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    args = [a for s in [*QUICK, "steps=100000"] for a in ("--set", s)]
    with subprocess.Popen([sys.executable, "-m", "helios.cli.train", "--preset", "tiny", *args, "--run-dir", str(run),
                           "--quiet"]) as process:
        while not (run / METRICS).exists() or not (run / METRICS).read_bytes():
            assert process.poll() is None
            time.sleep(0.05)
        assert overview.read(run)["status"] == "active"
        process.send_signal(signal.SIGKILL)
    found = overview.read(run)
    assert (found["status"], found["reason"]) == ("interrupted", SILENT)
    for name in (CONFIG, METRICS, EVENTS, "samples.jsonl"):
        os.utime(run / name, (1e9, 1e9))
    assert overview.read(run)["status"] == "stale"


def test_an_exception_is_an_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a\nbug")

    monkeypatch.setattr("helios.train.loop.Loop.evaluate", broken)
    with pytest.raises(RuntimeError):
        Run.create(quick("steps=10"), tmp_path / "run").train(Display(True))
    found = overview.read(tmp_path / "run")
    assert (found["status"], found["reason"]) == ("failed", "RuntimeError: a bug")
    assert not finished(tmp_path / "run")


def test_a_second_interrupt_is_an_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("helios.train.loop.Loop.evaluate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Run.create(quick("steps=10"), tmp_path / "run").train(Display(True))
    assert overview.read(tmp_path / "run")["status"] == "interrupted"


def test_what_comes_after_the_end_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("helios.train.run._summary", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Run.create(quick("steps=2"), tmp_path / "run").train(Display(True))
    assert overview.read(tmp_path / "run")["status"] == "completed" and finished(tmp_path / "run")


def test_the_time_of_its_creation_stays(tmp_path: Path) -> None:
    path = Run.create(quick("steps=4"), tmp_path / "run").train(Display(True)).path
    about = json.loads((path / CONFIG).read_text())
    (path / CONFIG).write_text(json.dumps(about | {"created": "2026-01-02T03:04:05Z"}))
    Run.resume(path, quick("steps=6")).train(Display(True))
    assert overview.read(path)["created"] == "2026-01-02T03:04:05Z"
    del about["created"]  # as of an older version, whose first event tells
    (path / CONFIG).write_text(json.dumps(about))
    events = [json.loads(line) for line in (path / EVENTS).read_text().splitlines()]
    events[0]["time"] = "2025-01-02T03:04:05Z"
    (path / EVENTS).write_text("".join(json.dumps(event) + "\n" for event in events))
    Run.resume(path, quick("steps=8")).train(Display(True))
    assert overview.read(path)["created"] == "2025-01-02T03:04:05Z"


def test_runs_are_found(tmp_path: Path, done: Path) -> None:
    for place in ("b", "a/deep", "a/b/deeper", "a/b/c/too-deep"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / CONFIG).write_text("{}")
    (tmp_path / "b/checkpoints/x").mkdir(parents=True)
    (tmp_path / "b/checkpoints/x" / CONFIG).write_text("{}")
    assert [str(p.relative_to(tmp_path)) for p in find_runs(tmp_path)] == ["a/b/deeper", "a/deep", "b"]
    with pytest.raises(UserError, match="cannot read the folder"):
        list(find_runs(tmp_path / "none"))


def test_what_differs() -> None:
    one = {"run_id": "a", "model": {"n_layer": 2, "n_embd": 32}, "parameters": 5}
    other = {"run_id": "b", "model": {"n_layer": 4, "n_embd": 32, "qk": 1}, "parameters": 6}
    assert list(differing(one, other)) == [("model.n_layer", 2, 4), ("model.qk", None, 1), ("parameters", 5, 6)]
    assert not list(differing(one, one))


def test_a_lock_file_alone_is_no_lock(tmp_path: Path) -> None:
    FileLock(tmp_path / LOCK).acquire().lock.release()
    assert (tmp_path / LOCK).exists() and not overview.locked(tmp_path)
