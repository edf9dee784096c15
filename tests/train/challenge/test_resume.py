"""Runs with challengers that go on: from a pause, an earlier checkpoint, with other settings, in another directory."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from helios.errors import UserError
from helios.train import checkpoint, texts
from helios.train.challenge import journal, window
from helios.train.challenge_config import ChallengeConfig
from helios.train.config import Config, resolve
from helios.train.loop import Loop
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
    with pytest.raises(UserError, match=r"grad_clip was 1\.0 when .* opened at step 6, .* with what it was$"):
        Run.resume(tmp_path / "run", changed, plan=planned).train(QUIET)
    wider = resolve(base=config.to_dict(), assignments=["challenge_genes=lr"])  # of the next windows
    Run.resume(tmp_path / "run", wider, plan=planned).train(QUIET, until=9)
    with pytest.raises(UserError, match="texts are others than when a window of challengers opened at step 6"):
        Run.resume(tmp_path / "run", resolve(base=config.to_dict(), flags={"data": "synth:90KB"}), plan=planned).train(
            QUIET)
    Run.resume(tmp_path / "run", config, plan=planned).train(QUIET, until=11)
    Run.resume(tmp_path / "run", changed, plan=planned).train(QUIET, until=12)


def test_what_changes_no_result_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a training of the window is half made: how often it writes a checkpoint, and where the text is."""
    (tmp_path / "a.txt").write_text(texts.read("synth:100KB"))
    config = config_of(**SLOW, steps=12, checkpoint_interval=2, data=tmp_path / "a.txt")
    whole = trained(config, tmp_path / "whole")
    row = Loop._row

    def interrupted(self: Loop, *args: Any) -> dict[str, Any]:
        if "w1" in self.records.path.parts and self.step == 9:
            signal.raise_signal(signal.SIGTERM)
        return row(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_row", interrupted)
        run = trained(config, tmp_path / "run")
    assert checkpoint.step_of(checkpoint.directories(run.path / "search" / "w1" / "gen0_gelu_1.r1")[-1]) == 9
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    changed = config.replaced("train", checkpoint_interval=5).replaced("data", data=str(tmp_path / "b.txt"))
    Run.resume(run.path, changed, plan=planned).train(QUIET)
    assert weights(run.path) == weights(whole.path) and journal.read(run.path) == journal.read(whole.path)


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


def test_a_run_goes_on_with_challengers(tmp_path: Path) -> None:
    run = Run.create(resolve("tiny", flags={"backend": "cpu_ref"}), tmp_path / "run", plan=planned)
    run.train(QUIET)
    Run.resume(run.path, config_of(), plan=planned).train(QUIET)
    assert [line["opened"] for line in journal.read(run.path)] == [18]
    (changed,) = events(run.path, "settings_changed")
    assert changed["message"] == ("steps 12 → 24, keep 3 → 0, mode none → continuous, challenge_interval None → 6, "
                                  "challenge_steps 50 → 4, challengers 2 → 1, challenge_replicates 4 → 2")


def without(config: Config) -> Config:
    """The settings as --search none leaves them."""
    return resolve(base=json.loads(json.dumps(config.to_dict())), flags={"mode": "none"})


def test_a_run_that_none_won_goes_on_without_challengers(tmp_path: Path) -> None:
    config = config_of(challenge_error=1e-9)
    plain = trained(without(config), tmp_path / "plain")
    run = trained(config, tmp_path / "run", 11)
    with pytest.raises(UserError, match="challenge_interval opens windows"):
        resolve(base=config.to_dict(), flags={"mode": "none", "challenge_interval": 6})
    assert Run.resume(run.path, without(config), plan=planned).train(QUIET, until=18).paused
    assert Run.resume(run.path, plan=planned).train(QUIET).finished  # it stays so
    assert weights(run.path) == weights(plain.path)
    assert [row for row in log(run.path) if row["step"] != 11] == [row for row in log(plain.path) if row["step"] != 11]
    ours, theirs = (read_config(path) | checkpoint.states(path)[-1] for path in (run.path, plain.path))
    assert ours.keys() == theirs.keys() and ours["config_hash"] == theirs["config_hash"] and ours["search"] is None
    assert events(run.path, "settings_changed")[0]["message"] == "mode continuous → none, " + ", ".join(
        f"{key} {value} → {ChallengeConfig().to_dict()[key]}" for key, value in config.challenge.to_dict().items()
        if value != ChallengeConfig().to_dict()[key])
    assert len(journal.read(run.path)) == 1 and (run.path / "search" / "w1").exists()


def test_it_takes_up_the_windows_that_it_had(tmp_path: Path) -> None:
    """Their lines stay, the next ones have later numbers, other draws and verdicts of their own."""
    config = config_of(challenge_error=1e-9, challenge_genes="lr=1e-4..1e-2")
    run = trained(config, tmp_path / "run", 11)
    (first,) = journal.read(run.path)
    Run.resume(run.path, without(config), plan=planned).train(QUIET, until=13)
    assert not list((run.path / "search").rglob("*.safetensors")) and journal.read(run.path) == [first]
    assert (run.path / "search" / "w1" / "gen1_gelu_2.r0" / "metrics.jsonl").exists()
    assert Run.resume(run.path, config, plan=planned).train(QUIET).finished
    again, second = journal.read(run.path)
    assert again == first and (second["window"], second["opened"], second["challengers"][0]["id"]) == (
        2, 18, "gen2_gelu_3")
    assert [(e["window"], e["step"]) for e in events(run.path, "kept")] == [(1, 10), (2, 22)]
    state = checkpoint.states(run.path)[-1]["search"]
    assert state and (state["over"], state["candidates"], len(state["tried"])) == (2, 3, 2)


def test_windows_of_steps_that_are_gone_are_left_behind(tmp_path: Path) -> None:
    config = config_of(challenge_error=1e-9, checkpoint_interval=11)
    run = trained(config, tmp_path / "run", 17)  # after two windows
    for path in checkpoint.directories(run.path):
        if checkpoint.step_of(path) > 11:
            checkpoint.remove(path)
    Run.resume(run.path, without(config), plan=planned).train(QUIET, until=17)
    assert len(journal.read(run.path)) == 1 and not (run.path / "search" / "w2").exists()


def test_a_verdict_that_became_another_one_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it may on another device; the same one is said once."""
    config = config_of()
    for won in (None, None, 0):
        monkeypatch.setattr(window, "judge", lambda *_, won=won: ([None], won))
        run = trained(config, tmp_path / "run", 11)
        checkpoint.remove(checkpoint.path_of(run.path, 11))
    assert [(e["window"], e["step"], e["kind"]) for e in events(run.path, "kept", "switch")] == [
        (1, 10, "kept"), (1, 10, "switch")]


def test_a_checkpoint_of_before_counts_its_windows(tmp_path: Path) -> None:
    """One that keeps the lines of all windows goes on to the same bits, lines and draws."""
    config = config_of(**SLOW)
    whole = trained(config, tmp_path / "whole")
    run = trained(config, tmp_path / "run", 19)
    now = older(run.path)
    assert now["switch"] == {"step": 10, "winner": "gen1_gelu_2"} and now["open"]["number"] == 3
    trained(config, run.path)
    assert weights(run.path) == weights(whole.path) and journal.read(run.path) == journal.read(whole.path)
    assert read_config(run.path)["champion"] == read_config(whole.path)["champion"]
    assert checkpoint.states(run.path)[-1]["search"] == checkpoint.states(whole.path)[-1]["search"]


def older(run: Path) -> dict[str, Any]:
    """Give the last checkpoint the state that it had in earlier versions; return the one that it has now."""
    path = checkpoint.directories(run)[-1]
    state = json.loads((path / checkpoint.STATE).read_bytes())
    now, _ = state["search"], state.pop("sha256")
    state["search"] = {"windows": journal.read(run, now["over"]), "open": now["open"], "champion": now["champion"]}
    (path / checkpoint.STATE).write_bytes(checkpoint._sealed(state))
    return now


def test_a_state_does_not_grow_with_its_windows(tmp_path: Path) -> None:
    """But by the key of each genome that the champion met."""
    run = trained(config_of(challenge_error=1e-9), tmp_path / "run")
    sizes = {path.name: len(json.dumps(json.loads((path / checkpoint.STATE).read_bytes())["search"]))
             for path in checkpoint.directories(run.path)}
    assert sizes["step-000018"] - sizes["step-000006"] < 100 < len(json.dumps(journal.read(run.path)[0]))


def test_a_journal_that_lacks_windows_is_refused(tmp_path: Path) -> None:
    run = trained(config_of(challenge_error=1e-9), tmp_path / "run", 17)
    path = run.path / "search" / journal.WINDOWS
    kept = path.read_bytes()
    for cut in (len(kept) - 9, 0):
        path.write_bytes(kept[:cut])
        with pytest.raises(UserError, match=rf"windows.jsonl has {int(cut > 0)} of the 2 windows that .* put the file"):
            Run.resume(run.path, plan=planned).train(QUIET)
    path.write_bytes(kept + b"\0" * 9 + b"\n" + kept[:99])  # as a power cut may leave it
    assert Run.resume(run.path, plan=planned).train(QUIET).finished and len(journal.read(run.path)) == 3
    path.unlink()
    with pytest.raises(UserError, match="has 0 of the 3 windows"):
        Run.resume(run.path, resolve(base=run.config.to_dict(), flags={"steps": 30}), plan=planned).train(QUIET)


def test_a_run_leaves_the_rules_that_branch(tmp_path: Path) -> None:
    config = config_of(mode="none", challenge_interval="auto", actions="plateau: branch lr*0.5")
    run = trained(config, tmp_path / "run", 8)
    on = Run.resume(run.path, config.replaced("monitor", actions=""), plan=planned)
    assert on.train(QUIET).finished and checkpoint.states(run.path)[-1]["search"] is None


def test_in_a_window_and_after_a_switch_it_keeps_challengers(tmp_path: Path) -> None:
    config = config_of(**SLOW, checkpoint_interval=4)
    run = trained(config, tmp_path / "run", 8)
    with pytest.raises(UserError, match=r"opened at step 6: .* without them once that is over, after step 10; leave"):
        Run.resume(run.path, without(config), plan=planned).train(QUIET)
    trained(config, run.path, 11)
    with pytest.raises(UserError, match=r"since step 10 the run trains gen1_gelu_2, a challenger, .* --init-from$"):
        Run.resume(run.path, without(config), plan=planned).train(QUIET)
    for path in checkpoint.directories(run.path)[1:]:
        checkpoint.remove(path)
    Run.resume(run.path, without(config), plan=planned).train(QUIET)  # from step 4
    plain = trained(without(config), tmp_path / "plain")
    assert weights(run.path) == weights(plain.path)
    assert read_config(run.path).keys() == read_config(plain.path).keys()


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
