"""Runs with challengers, really trained."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from helios.backends.backend import Backend
from helios.cli import export, sample
from helios.errors import UserError
from helios.model import GPT
from helios.model.gpt import initial_state
from helios.train import checkpoint
from helios.train.challenge import journal
from helios.train.challenge.training import settled, started
from helios.train.config import resolve
from helios.train.loop import Loop
from helios.train.plans import planned
from helios.train.progress import Display
from helios.train.records import overview
from helios.train.records.layout import METRICS, read_config
from helios.train.records.rows import rows
from helios.train.resume import Initialised
from helios.train.run import Run
from helios.train.stage import training

from ...commands import invoke
from .runs import QUIET, SLOW, config_of, events, log, trained, weights


def tokens_read(parent: Path) -> int | None:
    """What config.json of a run that begins with the weights of that one says they were trained on."""
    start = Initialised(resolve(flags={"init_from": str(parent)}))
    assert start.tokenizer and start.prepare(start.tokenizer) and start.init
    return start.init["tokens"]


def test_without_a_switch_the_bits_are_those_of_a_run_without_challengers(tmp_path: Path, each_backend: Backend
                                                                          ) -> None:
    common: dict[str, Any] = {"backend": each_backend.name, "plateau_evals": 1, "plateau_delta": 9}
    config = config_of(challenge_error=1e-9, **common)
    run = trained(config, tmp_path / "challenged")
    plain = Run.create(resolve("tiny", assignments=[f"{k}={v}" for k, v in (
        {"steps": 24, "keep": 0, "eval_interval": 6, "dropout": 0.1} | common).items()]), tmp_path / "plain")
    plain.train(QUIET)
    assert weights(run.path) == weights(plain.path) and log(run.path) == log(plain.path)
    assert [line["verdict"] for line in journal.read(run.path)] == ["kept"] * 3
    assert "champion" not in read_config(run.path)
    for kind in ("alert", "plateau"):
        assert [e["step"] for e in events(run.path, kind)] == [e["step"] for e in events(plain.path, kind)]


RULES = "cusum_grad: lr*0.5 for 5, batch+1; cusum_clip: clip*0.5; cusum_val: guard*50"


@pytest.mark.parametrize("settings", [{"accum": 2}, {"actions": RULES},
                                      {"adaptive_batch": True, "dynamic_lr": "cusum"}])
def test_replicate_0_is_the_run_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: dict[int, int],
                                       settings: dict[str, Any]) -> None:
    """A training beside the model with nothing changed comes to its very weights: start, batches, masks and rates, also
    where alerts change them, before the window and in it."""
    from helios.train.challenge import plan

    if "accum" not in settings:
        planted |= {4: 1, 8: 1, 9: 2, 14: 3, 20: 1}  # grad and clip
    config = config_of(challenge_error=1e-9, challenge_genes="lr", **settings)
    monkeypatch.setattr(plan, "CONTROLS", plan.PARTS)
    same = lambda config, space, champion, tried, window, before: [
        plan.replace(champion, id=f"same{window}", parent_id=champion.id, mutation="nothing")]
    monkeypatch.setattr(plan, "born", same)
    monkeypatch.setattr(journal, "remove_checkpoints", lambda *_: None)
    run = trained(config, tmp_path / "run")
    for line in journal.read(run.path):
        (c,) = line["challengers"]
        assert c["losses"][0] == line["losses"][0] and c["losses"][1] == line["losses"][1] != line["losses"][0]
        there = run.path / "search" / f"w{line['window']}" / f"{c['id']}.r0"
        assert weights(there) == weights(run.path, line["closed"])
        ours = {row["step"]: row for row in rows(run.path / METRICS)}
        assert [row["step"] for row in rows(there / METRICS)] == list(range(line["opened"] + 1, line["closed"] + 1))
        assert all(row[key] == ours[row["step"]][key] for row in rows(there / METRICS) for key in (
            "loss", "lr", "grad_norm", "grad_clip", "adaptive_batch_size") if key in row)


def test_a_better_one_takes_over(tmp_path: Path, each_backend: Backend) -> None:
    run = trained(config_of(**SLOW, backend=each_backend.name), tmp_path / "run")
    first, *rest = journal.read(run.path)
    (c,) = first["challengers"]
    assert (first["verdict"], first["winner"], c["settings"]) == ("switch", c["id"], {"lr": 1e-2})
    assert c["difference"] < 0 and c["p"] <= 0.05 and [line["verdict"] for line in rest] == ["kept"] * 2
    assert rest[0]["champion"] == c["id"] and rest[0]["challengers"][0]["settings"] == {}
    (opened, *_), (switch,) = events(run.path, "challenge"), events(run.path, "switch")
    assert (opened["step"], switch["step"], switch["winner"]) == (6, 10, c["id"])
    assert "every 6 steps" in opened["message"] and "lr 0.0001→0.01" in switch["message"] and "p " in switch["message"]
    found = rows(run.path / METRICS)
    assert [row["symbio_candidate_id"] for row in found] == ["gen0_gelu_1"] * 10 + [c["id"]] * 14
    assert found[9]["lr"] < 1e-4 < found[10]["lr"] and [row["step"] for row in found] == list(range(1, 25))
    champion = read_config(run.path)["champion"]
    assert (champion["id"], champion["settings"], champion["lineage"], champion["since"]) == (
        c["id"], {"lr": 1e-2}, ["gen0_gelu_1"], 10)
    assert read_config(run.path)["train"]["lr"] == 1e-4
    assert tokens_read(run.path) == 24 * 4 * 16
    theirs = run.path / "search" / "w1" / f"{c['id']}.r0" / METRICS
    theirs.write_text("".join(json.dumps(row | {"tokens_per_sec": 2 * row["tokens_per_sec"]}) + "\n"
                              for row in rows(theirs)))
    assert tokens_read(run.path) == 28 * 4 * 16  # as if its batch had been twice as large in the window


def test_noise_alone_seldom_takes_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The champion's own settings, on other batches and masks in every replicate: nothing but noise."""
    from helios.train.challenge import plan, training

    real = plan.stage_of
    monkeypatch.setattr(plan, "born", lambda config, space, champion, tried, window, before: [
        plan.replace(champion, id=f"same{window}", mutation="nothing")])
    monkeypatch.setattr(plan, "stage_of", lambda *args: plan.replace(
        real(*args), offset=real(*args).offset + 32 * training.APART * (plan.CONTROLS in args)))
    run = trained(config_of(challenge_replicates=4), tmp_path / "run")
    for line in journal.read(run.path):
        assert line["verdict"] == "kept" and line["challengers"][0]["error"] > 0


@pytest.mark.parametrize("seed", range(2))
def test_one_without_heavy_dropout_wins_within_three_windows(tmp_path: Path, seed: int) -> None:
    run = trained(config_of(seed=seed, dropout=0.5, challenge_genes="dropout=0|0.5", challenge_steps=10, steps=48,
                            challenge_interval=12, challenge_replicates=4, eval_iters=8), tmp_path / "run")
    won = [line["challengers"][0]["settings"] for line in journal.read(run.path)[:3] if line["verdict"] == "switch"]
    assert {"dropout": 0.0} in won


@pytest.mark.parametrize(("where", "call", "settings"), [
    ("_row", 6, SLOW), ("_save", 2, SLOW), ("_row", 7, {"challenge_genes": "lr=1e-2|3e38", "weight_decay": 100})])
def test_a_signal_in_a_window_leaves_all_for_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str,
                                                   call: int, settings: dict[str, Any]) -> None:
    """It ends the training beside the run, the second one here, and the run, though that training be at its end, or
    come to nothing; both go on to the same end."""
    config = config_of(**settings, steps=12)
    whole = trained(config, tmp_path / "whole")
    was, calls = getattr(Loop, where), [0]

    def interrupted(self: Loop, *args: Any) -> Any:
        calls[0] += "w1" in self.records.path.parts
        if calls[0] == call:
            signal.raise_signal(signal.SIGTERM)
            calls[0] += 1
        return was(self, *args)

    monkeypatch.setattr(Loop, where, interrupted)
    run = Run.open(config, tmp_path / "run", plan=planned)
    result = run.train(QUIET)
    assert (result.finished, result.step, result.signal) == (False, 10, signal.SIGTERM)
    assert events(run.path, "interrupted")[0]["message"] == "SIGTERM at step 10" and journal.read(run.path) == []
    assert len(list((run.path / "search" / "w1").glob("*.r?"))) == 2
    trained(config, run.path)
    assert weights(run.path) == weights(whole.path) and journal.read(run.path) == journal.read(whole.path)


@pytest.mark.parametrize(("genes", "start", "changes"), [
    ("activation", {"activation_pool": "gelu|relu"}, ["activation gelu → relu"]),
    ("activation", {"activation_pool": "gelu|swiglu"}, ["activation gelu → swiglu"]),
    ("n_layer=2|3", {}, []), ("n_layer=1|2", {}, ["n_layer 2 → 1"])])
def test_a_switch_of_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, genes: str, start: dict[str, Any],
                           changes: list[str]) -> None:
    """A challenger of another activation or depth is trained, taken over and trained on; the checkpoint is its model's,
    with which all that reads checkpoints works."""
    from helios.train.challenge import window

    monkeypatch.setattr(window, "judge", lambda model, challengers, rate: ([None], 0 if len(model) == 2 else None))
    run = trained(config_of(challenge_genes=genes, challenge_interval=18, **start), tmp_path / "run")
    (line,) = journal.read(run.path)
    (c,) = line["challengers"]
    found, problems = checkpoint.find(run.path)
    model = found.state["model"]
    assert not problems and (model["activation"], model["n_layer"]) == (
        c["activation"], c["settings"].get("n_layer", 2)) != ("gelu", 2)
    assert c["moments"] == (c["activation"] == "relu") and None not in c["losses"] and c["changes"] == changes
    assert read_config(run.path)["champion"]["parameters"] == sum(x.size for x in found.model.values())
    out = tmp_path / "model.safetensors"
    assert invoke(export.main, run.path, "--out", out).exit_code == 0 and GPT.load(out, "cpu_ref")
    assert invoke(sample.main, "--run", run.path, "--prompt", "Who", "--tokens", "2", "--backend", "cpu_ref"
                  ).exit_code == 0
    assert overview.read(run.path)["activation"] == c["activation"]
    longer = Run.resume(run.path, resolve(base=run.config.to_dict(), flags={"steps": 26}), plan=planned)
    assert longer.train(QUIET).step == 26


@pytest.mark.parametrize(("values", "changes"), [
    ({"n_head": 2}, ["n_head 4 → 2, of 8 → 16 channels"]), ({"softcap": 0.0}, ["softcap 30 → 0"]),
    ({"dropout": 0.5}, []), ({"activation": "mine: 2*silu(x)"}, ["activation gelu → mine"])])
def test_one_with_the_same_shapes_has_the_weights_and_its_changes(tmp_path: Path, values: dict[str, Any],
                                                                  changes: list[str]) -> None:
    model = resolve("tiny").model
    found = checkpoint.Checkpoint(tmp_path, {"model": model.to_dict()}, {}, {})  # type: ignore[typeddict-item]
    assert started(found, model.replaced(**values), tmp_path, 0) == (tmp_path, True, changes)


def test_coefficients_of_another_formula_begin_anew(tmp_path: Path) -> None:
    """Their names and shapes may be those of what the model learned, which is another function's."""
    model = resolve("tiny", flags={"activation": "a*silu(x)+b*x; a=1, b=0"}).model
    state = {"model": model.to_dict(), "step": 6}
    found = checkpoint.Checkpoint(tmp_path, state, initial_state(model, 0), {})  # type: ignore[arg-type]
    start = lambda text: started(found, model.replaced(activation=text), tmp_path / "start", 0)
    assert start("a*silu(x)+b*x; a=2, b=3") == (tmp_path, True, [])
    path, moments, changes = start("a*sin(b*x); a=1, b=1")
    made = load_file(path / checkpoint.MODEL)
    assert not moments and changes and (made["blocks.0.mlp.act.b"] == 1).all()
    assert np.array_equal(made["wte.weight"], found.model["wte.weight"])


def test_a_failing_champion_ends_the_window_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Challengers have nothing to be compared with."""
    from helios.train.challenge import plan

    real = plan.train
    monkeypatch.setattr(plan, "train", lambda config, stage, path, *args, **more: (
        (None, "out of memory") if "gen0" in path.name else real(config, stage, path, *args, **more)))
    run = trained(config_of(challenge_interval=18, challenge_replicates=3), tmp_path / "run")
    (line,) = journal.read(run.path)
    assert line["losses"][0] and line["losses"][1:] == [None] * 2 and line["why"] == "out of memory"
    (c,) = line["challengers"]
    assert c["losses"] == [None] * 3 and c["why"] == "was not trained" and line["verdict"] == "kept"
    assert [path.name for path in (run.path / "search" / "w1").iterdir()] == ["checkpoints"]
    assert "came to nothing (out of memory)" in events(run.path, "kept")[0]["message"]


def test_a_winner_whose_end_is_gone(tmp_path: Path) -> None:
    config = config_of(**SLOW)
    whole = trained(config, tmp_path / "whole", 11)
    run = trained(config, tmp_path / "run", 9)
    shutil.copytree(whole.path / "search" / "w1", run.path / "search" / "w1", dirs_exist_ok=True)
    place = run.path / "search" / "w1" / "gen1_gelu_2.r0"
    shutil.rmtree(place / "checkpoints", ignore_errors=True)
    with pytest.raises(UserError, match=r"gen1_gelu_2.r0 lacks the checkpoint of step 10, .* remove that folder"):
        trained(config, run.path, 11)
    assert journal.read(run.path) == [] and not events(run.path, "switch")
    shutil.rmtree(place)
    trained(config, run.path, 11)
    assert weights(run.path) == weights(whole.path)


def test_only_what_a_kept_checkpoint_needs_stays(tmp_path: Path) -> None:
    run = trained(config_of(**SLOW, keep=1, keep_every=6), tmp_path / "run")
    assert [line["verdict"] for line in journal.read(run.path)] == ["switch", "kept", "kept"]
    there = {str(path.parent.relative_to(run.path)) for path in run.path.rglob("model.safetensors")}
    best = f"checkpoints/step-{checkpoint.states(run.path)[-1]['best_val']['step']:06d}"
    assert there - {best} == {*(f"checkpoints/step-{step:06d}" for step in (6, 12, 18, 24)),
                              "search/w1/gen1_gelu_2.r0/checkpoints/step-000010"} - {best}
    for path in checkpoint.directories(run.path)[1:]:
        checkpoint.remove(path)
    end = weights(run.path, 6), journal.read(run.path)
    trained(run.config, run.path)
    assert (weights(run.path, 6), journal.read(run.path)) == end


@pytest.mark.parametrize("better", [True, False])
def test_after_a_switch_losses_are_of_weights_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                             better: bool) -> None:
    """The champion's of that step are not, whose loss was the lowest so far."""
    from helios.train.challenge import window

    monkeypatch.setattr(window, "judge", lambda *_: ([None], 0))
    rates = {"lr": 1e-3, "lr_min": 1e-4} if not better else {"lr": 1e-4, "lr_min": 1e-5}
    run = trained(config_of(**rates, warmup=0, challenge_genes=f"lr={rates['lr']}|{1e-2 if better else 1e-6}",
                            eval_interval=2), tmp_path / "run", 10)
    trained(run.config, run.path, 11)
    state = checkpoint.load(checkpoint.path_of(run.path, 10)).state
    own = journal.read(run.path)[0]["challengers"][0]["losses"][0]
    before = {row["val_loss"]: row["step"] for row in rows(run.path / METRICS) if row["step"] < 10 and row["val_loss"]}
    least = min([own, *before])
    assert (state["val_loss"], state["best_val"]) == (own, {"step": before.get(least, 10), "loss": least})
    assert (least == own) == better


def test_after_a_second_switch_neither_are_those_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The champion's loss where it was replaced stays the lowest of all rows: what took over hardly learns."""
    from helios.train.challenge import window

    monkeypatch.setattr(window, "judge", lambda *_: ([None], 0))
    run = trained(config_of(lr=1e-3, lr_min=1e-4, warmup=0, challenge_genes="lr=1e-3|1e-6|1e-7", eval_interval=2,
                            steps=17), tmp_path / "run")
    assert [e["step"] for e in events(run.path, "switch")] == [10, 16]
    log = {row["step"]: row["val_loss"] for row in rows(run.path / METRICS) if row["val_loss"]}
    assert min(log, key=log.__getitem__) == 10
    state = checkpoint.load(checkpoint.path_of(run.path, 16)).state
    assert state["best_val"] == {"step": 8, "loss": log[8]}


def test_a_challenger_that_comes_to_nothing_is_kept_out(tmp_path: Path) -> None:
    run = trained(config_of(challenge_genes="lr=1e-2|1e30", challenge_interval=18), tmp_path / "run")
    (line,) = journal.read(run.path)
    (c,) = line["challengers"]
    assert line["verdict"] == "kept" and c["losses"] == [None, None] and c["why"]
    assert c["why"] in events(run.path, "kept")[0]["message"]
    assert tokens_read(run.path) == 24 * 4 * 16


def test_a_new_optimizer_warms_up() -> None:
    stage = training(config_of(warmup=8))
    assert [settled(6 + step, stage.rate, 6, 4) / stage.rate(6 + step) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]


def test_of_a_window_that_is_over_its_records_stay_alone(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(keep=1, challenge_error=1e-9, challenge_genes="n_layer=2|3", steps=14)
    run = Run.create(config, tmp_path / "run", plan=planned)
    run.train(Display(quiet=True))
    left = sorted(path.name for path in (run.path / "search" / "w1").iterdir())
    assert len(left) == 3 and not [*(run.path / "search").rglob("checkpoints")]
    assert "challengers won 0 of 1 window, " in capsys.readouterr().out


def test_a_run_that_began_with_weights_has_windows_of_its_vocabulary(tmp_path: Path) -> None:
    """Its text would make another one."""
    parent = Run.create(resolve("tiny", flags={"backend": "cpu_ref", "steps": 2}), tmp_path / "parent")
    parent.train(QUIET)
    given = {"steps": 8, "challenge_interval": 2, "challenge_steps": 4, "challenge_replicates": 2, "challengers": 1,
             "n_layer": 3, "morph": "prefix", "data": "synth:100KB", "backend": "cpu_ref", "init_from": parent.path}
    run = trained(resolve(assignments=[f"{k}={v}" for k, v in given.items()]), tmp_path / "run")
    (line,) = journal.read(run.path)
    assert None not in (*line["losses"], *line["challengers"][0]["losses"])
