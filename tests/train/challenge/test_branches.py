"""Windows that alerts and plateaus open, and branches that rules ask for, really trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helios.errors import UserError
from helios.train import checkpoint
from helios.train.challenge import journal
from helios.train.plans import planned
from helios.train.records.layout import METRICS
from helios.train.records.rows import rows
from helios.train.run import Run
from helios.train.stage import training
from helios.train.state import TrainState

from .runs import QUIET, SLOW, config_of, events, trained, weights


def test_a_window_opens_on_alerts_and_plateaus(tmp_path: Path, planted: dict[int, int]) -> None:
    planted |= {5: 1, 6: 8, 13: 4, 19: 2}  # grad, val, tps, clip
    run = trained(config_of(challenge_interval=0, challenge_on="grad,val,plateau", plateau_evals=2, plateau_delta=9,
                            challenge_genes="lr"), tmp_path / "run")
    found = [(e["step"], e["reason"]) for e in events(run.path, "challenge")]
    assert [step for step, _ in found] == [5, 18] and "grad" in found[0][1] and "validation" in found[1][1]


def test_a_run_that_a_rule_ends_opens_nothing(tmp_path: Path, planted: dict[int, int]) -> None:
    planted |= {6: 9}  # grad and val, where a window is due, too
    config = config_of(actions="cusum_grad: branch lr*0.5; cusum_val: stop")
    run = trained(config, tmp_path / "run")
    assert run.finished and checkpoint.states(run.path)[-1]["step"] == 6
    assert not events(run.path, "challenge", "no_challenge") and not (run.path / "search" / "w1").exists()
    changed = config.replaced("monitor", actions="").replaced("train", grad_clip=0.5)
    assert Run.resume(run.path, changed, plan=planned).train(QUIET).finished


@pytest.mark.parametrize(("change", "settings"), [
    ("lr*16", {"lr": 16e-4, "lr_min": 16e-5}), ("clip*0.5", {"grad_clip": 0.5}), ("batch+2", {"batch_size": 6}),
    ("guard*2", {"spike_threshold": None})])
def test_a_rule_asks_for_a_branch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: dict[int, int],
                                  change: str, settings: dict[str, Any]) -> None:
    """It is the window's one challenger, and where it wins the run goes on with its change."""
    from helios.train.challenge import window

    planted |= {12: 1}
    monkeypatch.setattr(window, "judge", lambda model, challengers, rate: ([None], 0))
    prepare, sizes = TrainState.prepare, list[int]()
    monkeypatch.setattr(TrainState, "prepare", lambda self, size, *more: (sizes.append(size),
                                                                          prepare(self, size, *more))[1])
    given = {key: SLOW[key] for key in ("lr", "lr_min", "warmup")}
    config = config_of(**given, mode="none", challenge_interval="auto", actions=f"cusum_grad: branch {change}",
                       challenge_steps=6, cusum_window=5, cusum_grace=2)
    run = trained(config, tmp_path / "run")
    (line,) = journal.read(run.path)
    (c,) = line["challengers"]
    assert (line["opened"], line["closed"], line["reason"], c["mutation"]) == (12, 18, "cusum_grad: planted", change)
    assert c["settings"].keys() == settings.keys() and all(
        value is None or c["settings"][key] == pytest.approx(value) for key, value in settings.items())
    found, ours = rows(run.path / METRICS), rows(run.path / "search" / "w1" / f"{c['id']}.r0" / METRICS)
    assert (found[18]["symbio_candidate_id"], found[17]["symbio_candidate_id"]) == (c["id"], "gen0_gelu_1")
    if change == "lr*16":
        assert found[18]["lr"] == pytest.approx(16 * training(config).rate(18)) and ours[-1]["lr"] > 5 * found[17]["lr"]
    elif change == "clip*0.5":
        assert found[18]["grad_clip"] == 0.5 and "grad_clip" not in found[17] and "grad_clip" not in ours[0]  # its own
    elif change == "batch+2":
        assert sizes[0] == 4 and sizes[-1] == 6  # all memory is taken at the switch
        assert found[18]["tokens_per_sec"] * found[18]["ms_per_iter"] == pytest.approx(6 * 16 * 1000)
    # The checkpoint of the switch is all that the run goes on from.
    again = Run.resume(checkpoint.path_of(run.path, 18), path=tmp_path / "again", plan=planned)
    again.train(QUIET)
    assert weights(again.path) == weights(run.path)


def test_of_branches_at_one_step_the_first_is_made(tmp_path: Path, planted: dict[int, int]) -> None:
    planted |= {6: 9}  # grad and val
    config = config_of(mode="none", challenge_interval="auto",
                       actions="cusum_grad: branch lr*0.5; cusum_val: branch clip*2")
    run = trained(config, tmp_path / "run", 7)
    (opened,) = events(run.path, "challenge")
    assert opened["reason"] == "cusum_grad: planted" and "(lr*0.5)" in opened["message"]
    assert [e["message"].partition(" (")[0] for e in events(run.path, "action")] == [
        "cusum_grad: branch lr*0.5: a branch is asked for",
        "cusum_val: branch clip*2: another branch is asked for at this step"]


def test_a_branch_that_cannot_be_is_said(tmp_path: Path, planted: dict[int, int]) -> None:
    planted |= {5: 1, 7: 4, 23: 8}
    config = config_of(mode="none", challenge_interval="auto", challenge_genes="lr",
                       actions="cusum_grad: branch; cusum_tps: branch lr*0.5; cusum_val: branch clip*2")
    run = trained(config, tmp_path / "run")
    assert [(line["opened"], len(line["challengers"])) for line in journal.read(run.path)] == [(5, 1)]
    said = [(e["step"], e["message"]) for e in events(run.path, "no_challenge")]
    assert [step for step, _ in said] == [7, 23] and "window 1 is open" in said[0][1] and "ends before" in said[1][1]
    with pytest.raises(UserError, match="nothing that trains a branch"):
        Run.create(config, tmp_path / "other")
