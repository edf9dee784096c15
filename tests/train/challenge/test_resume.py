"""Runs with challengers that go on: from a pause, an earlier checkpoint, with other settings, in another directory."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from helios.errors import UserError
from helios.train import checkpoint
from helios.train.challenge import journal
from helios.train.config import resolve
from helios.train.plans import planned
from helios.train.records.layout import read_config
from helios.train.run import Run

from .runs import QUIET, SLOW, config_of, events, log, trained, weights


def test_paused_anywhere_it_is_the_same_run(tmp_path: Path) -> None:
    config = config_of(**SLOW)
    whole = trained(config, tmp_path / "whole")
    for step in range(1, 24):
        parts = trained(config, tmp_path / "parts", step)
    parts = trained(config, tmp_path / "parts")
    assert weights(parts.path) == weights(whole.path) and journal.read(parts.path) == journal.read(whole.path)
    assert log(parts.path)[-1] == log(whole.path)[-1]
    strip = lambda path: [(e["step"], e["message"]) for e in events(path, "challenge", "kept", "switch")]
    assert strip(parts.path) == strip(whole.path)


def test_an_earlier_checkpoint_goes_on_without_what_came_later(tmp_path: Path) -> None:
    config = config_of(**SLOW)
    whole = trained(config, tmp_path / "run")
    lines, end = journal.read(whole.path), weights(whole.path)
    for path in checkpoint.directories(whole.path):
        if checkpoint.step_of(path) > 6:
            checkpoint.remove(path)
    again = Run.resume(whole.path, plan=planned)
    again.train(QUIET, until=7)
    assert journal.read(whole.path) == [] and not (whole.path / "search" / "w2").exists()
    assert "champion" not in read_config(whole.path)
    trained(config, whole.path)
    assert journal.read(whole.path) == lines and weights(whole.path) == end


def test_settings_stay_while_a_window_is_open(tmp_path: Path) -> None:
    config = config_of(**SLOW)
    trained(config, tmp_path / "run", 8)
    changed = resolve(base=config.to_dict(), flags={"grad_clip": 0.5})
    with pytest.raises(UserError, match=r"grad_clip was 1\.0 when a window .* opened at step 6"):
        Run.resume(tmp_path / "run", changed, plan=planned).train(QUIET)
    with pytest.raises(UserError, match="texts are others than when a window of challengers opened at step 6"):
        Run.resume(tmp_path / "run", resolve(base=config.to_dict(), flags={"data": "synth:90KB"}), plan=planned).train(
            QUIET)
    trained(config, tmp_path / "run", 11)
    Run.resume(tmp_path / "run", changed, plan=planned).train(QUIET, until=12)


def test_they_are_those_of_when_it_opened(tmp_path: Path) -> None:
    """Whatever the run had later, before it goes on from a checkpoint in the window."""
    config = config_of(**SLOW)
    run = trained(config, tmp_path / "run", 8)
    trained(config, run.path)
    lines, end = journal.read(run.path), weights(run.path)
    changed = resolve(base=config.to_dict(), flags={"grad_clip": 0.5, "steps": 25})
    Run.resume(run.path, changed, plan=planned).train(QUIET)
    for path in checkpoint.directories(run.path):
        if checkpoint.step_of(path) > 8:
            checkpoint.remove(path)
    with pytest.raises(UserError, match=r"steps was 24 when .* at step 6, and is 25: .* continue with what it was"):
        Run.resume(run.path, plan=planned).train(QUIET)
    with pytest.raises(UserError, match=r"grad_clip was 1\.0 when .* opened at step 6, and is 0\.5"):
        Run.resume(run.path, changed.replaced("train", steps=24), plan=planned).train(QUIET)
    Run.resume(run.path, config, plan=planned).train(QUIET)
    assert journal.read(run.path) == lines and weights(run.path) == end


def test_a_rule_that_stopped_a_run_in_a_window_may_go(tmp_path: Path, planted: dict[int, int]) -> None:
    planted |= {8: 1}
    config = config_of(actions="cusum_grad: stop; plateau: lr*0.5", challenge_genes="lr")
    assert Run.create(config, tmp_path / "run", plan=planned).train(QUIET).step == 8
    changed = config.replaced("monitor", actions="")
    with pytest.raises(UserError, match="actions was"):  # challengers go by the other rule, too
        Run.resume(tmp_path / "run", changed, plan=planned).train(QUIET)
    changed = config.replaced("monitor", actions="plateau: lr*0.5")
    assert Run.resume(tmp_path / "run", changed, plan=planned).train(QUIET).step == 24


def test_a_run_goes_on_with_challengers_but_not_without(tmp_path: Path) -> None:
    plain = resolve("tiny", flags={"backend": "cpu_ref"})
    run = Run.create(plain, tmp_path / "run", plan=planned)
    run.train(QUIET)
    found = Run.resume(run.path, config_of(), plan=planned)
    found.train(QUIET)
    assert [line["opened"] for line in journal.read(run.path)] == [18]
    with pytest.raises(UserError, match="with challengers, which cannot change"):
        Run.resume(run.path, plain.replaced("train", steps=30), plan=planned).train(QUIET)


def test_in_another_directory_a_window_goes_on(tmp_path: Path) -> None:
    """With the checkpoint where it opened, which a run that is killed there has among its own alone."""
    config = config_of(**SLOW)
    whole = trained(config, tmp_path / "whole")
    old = trained(config, tmp_path / "old", 6)
    shutil.rmtree(old.path / "search" / "w1")
    other = Run.resume(old.path, path=tmp_path / "other", plan=planned)
    other.train(QUIET, until=8)
    trained(config, other.path)
    assert weights(other.path) == weights(whole.path) and journal.read(other.path) == journal.read(whole.path)


def test_a_window_without_its_start_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    old = trained(config_of(**SLOW), tmp_path / "old", 8)
    shutil.rmtree(old.path / "search" / "w1")
    checkpoint.remove(checkpoint.path_of(old.path, 6))
    for path in (tmp_path / "other", None):
        with pytest.raises(UserError, match=r"search/w1 lacks the checkpoint of step 6, from which .* put it back"):
            Run.resume(old.path, path=path, plan=planned).train(QUIET)
    assert not (tmp_path / "other").exists() and not events(old.path, "resumed")
