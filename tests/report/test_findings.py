"""What to look at: each rule finds what it states, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from helios.train.report import findings, reading

from .runs import Rows, Runs, change, edit, edit_config, section, table

FOUND: dict[str, Callable[[Rows], Rows]] = {
    "The loss still fell in the last tenth": change(loss=lambda s, row: 5.7 - 0.05 * s + 0.001 * (s % 2)),
    "The loss rose in the last tenth": change(loss=lambda s, row: 3 + 0.05 * s + 0.001 * (s % 2)),
    "The validation loss rose from 3.0000 at step 10 to 4.0000 at step 60, and no checkpoint of its lowest": change(
        val_loss=lambda s, row: row["val_loss"] and (3.0 if s == 10 else 4.0)),
    "The gap of the validation loss to the training's grew": change(
        val_loss=lambda s, row: row["val_loss"] and row["loss"] + s / 10),
    "The first step's loss is 11.9700": change(loss=lambda s, row: 11.97 if s == 1 else row["loss"]),
    "It learned next to nothing": change(loss=lambda s, row: 5.9),
    "The gradient norm spiked at 2 of 60 steps (3.3 %); the highest norm is 800 at step 50": change(
        grad_norm=lambda s, row: {30: 300.0, 50: 800.0}.get(s, 1.0)),
    "Updates were skipped at 1 of 60 steps (1.7 %): 1 × spike": change(
        skipped=lambda s, row: s == 9, skip_reason=lambda s, row: "spike" if s == 9 else None),
    "The gradient was clipped at 40 of 60 steps": change(clip_coef=lambda s, row: 0.1 if s <= 40 else 1.0),
    "The monitors raised alerts: odd\\_ at steps 7 and 8": change(
        cusum_alert_reason=lambda s, row: "odd_" if s in (7, 8) else None),
    "The weights' effective rank fell from 20.0 to 5.00, by 75.0 %": change(
        effective_rank=lambda s, row: {5: 20.0, 60: 5.0}.get(s)),
    "The steps became slower: 10.0 ms in the first tenth of the training and 20.0 ms in the last": change(
        ms_per_iter=lambda s, row: 10.0 if s < 40 else 20.0),
    "in no phase on the device": change(ms_per_iter=lambda s, row: 1e4),
    "Not finite: the loss at 1 of 60 steps (1.7 %), first at step 60, and at the last one": change(
        loss=lambda s, row: None if s == 60 else row["loss"]),
    "The speed differs by activation: relu 200 tokens/s and gelu 100, a factor of 2.00": change(
        symbio_candidate_activation=lambda s, row: "relu" if s > 30 else "gelu",
        tokens_per_sec=lambda s, row: 200.0 if s > 30 else 100.0),
}


@pytest.mark.parametrize("sentence", FOUND)
def test_rules(copy: Path, sentence: str) -> None:
    calm = change(loss=lambda s, row: 5.7 if s == 1 else 4.0, val_loss=lambda s, row: row["val_loss"] and 4.0,
                  grad_norm=lambda s, row: 1.0, clip_coef=lambda s, row: 1.0, ms_per_iter=lambda s, row: 1.0,
                  **{f"timing_{name}_ms": lambda s, row: 0.245 for name in ("fwd", "bwd", "grad_norm", "optim")},
                  effective_rank=lambda s, row: None, weight_entropy=lambda s, row: None,
                  cusum_alert_reason=lambda s, row: None)
    edit(copy, calm)
    assert findings.findings(reading.read(copy)) == []
    edit(copy, FOUND[sentence])
    found = findings.findings(reading.read(copy))
    assert sum(sentence in line for line in found) == 1, found


def test_a_gap_that_grows_while_the_validation_loss_falls(copy: Path) -> None:
    edit(copy, change(loss=lambda s, row: 5.7 - 0.02 * s, val_loss=lambda s, row: row["val_loss"] and 5.7 - 0.01 * s))
    assert not [line for line in findings.findings(reading.read(copy)) if "overfitting" in line]


def test_what_healthy_runs_do_is_no_finding(copy: Path) -> None:
    edit(copy, change(clip_coef=lambda s, row: 0.4, val_loss=lambda s, row: row["val_loss"] and (
        4.1 if s == 60 else 4.0), ms_per_iter=lambda s, row: 900.0 if s % 7 == 0 else 1.0, effective_rank=lambda s, row:
        {5: 23.0, 60: 16.0}.get(s), **{f"timing_{name}_ms": lambda s, row: 0.245 for name in (
            "fwd", "bwd", "grad_norm", "optim")}))
    found = " ".join(findings.findings(reading.read(copy)))
    assert not any(word in found for word in ("clipped", "validation", "no phase", "rank"))


def test_fresh_weights_of_a_wide_model(copy: Path) -> None:
    edit(copy, change(loss=lambda s, row: 6.1 if s == 1 else row["loss"]))  # ln 300 is 5.70
    told = lambda: [line for line in findings.findings(reading.read(copy)) if "first step's loss" in line]
    assert len(told()) == 1 and "0.3898 above the 5.7102" in told()[0]
    edit_config(copy, lambda about: about["model"].update(n_embd=1600))  # logits with a variance of 0.64
    assert not told()


def test_weights_of_another_run_are_not_fresh(copy: Path) -> None:
    edit(copy, change(loss=lambda s, row: 3.0))
    edit_config(copy, lambda about: about["train"].update(init_from="runs/first"))
    assert not [line for line in findings.findings(reading.read(copy)) if "first step's loss" in line]


def test_a_run_in_its_warm_up(copy: Path) -> None:
    edit_config(copy, lambda about: about["train"].update(warmup=100))
    edit(copy, lambda kept: [row for row in kept if row["kind"] != "run_complete"], "events.jsonl")
    assert "The training is not past its warm-up: 60 of 100 steps." in findings.findings(reading.read(copy))


def test_every_rule_is_stated(runs: Runs) -> None:
    for text in map(runs.text, ("plain", "search", "killed", "empty")):
        told = table(text, "How “What to look at” is found")
        assert [row["there is a finding where"] for row in told] == [rule.condition for rule in findings.RULES]
        holds = sum(row["here"] == "yes" for row in told)
        assert holds == section(text, "What to look at").count("\n* ")
