"""helios-search gates from the outside: tiny models through to the page; going on; refusals."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from helios.backends.backend import Backend
from helios.cli.search import main
from helios.train import directory
from helios.train.config import Config
from helios.train.gates import judge, study
from helios.train.loop import Loop
from helios.train.run import Run
from helios.train.search import report

from ..commands import invoke, refused

# Above the settings of the presets; the names of the models stay.
TINY = ("vocab_size=300", "block_size=16", "n_layer=2", "n_embd=32", "n_head=4", "batch_size=4", "eval_iters=1",
        "warmup=2", "metrics_interval=0", "dropout=0")
STEP = 64  # tokens
LEARNING = ("lr=1e-2", "lr_min=1e-3")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    def configured(*args: Any, more: Iterable[str] = ()) -> Config:
        return made(*args, more=(*TINY, *LEARNING, *more))

    made = study.configured
    monkeypatch.setattr(study, "configured", configured)
    monkeypatch.setattr(report, "write", lambda run: None)  # its plots take longer than these searches


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "talk.txt"
    path.write_text("".join(f"<|user|> Who are you? <|assistant|> I am number {7 * i}. <|end_of_text|>\n"
                            for i in range(400)))
    return path


def run(text: Path, folder: Path, *more: object, steps: int = 4, backend: str = "cpu_ref") -> Result:
    return invoke(main, "gates", "--data", text, "--run-dir", folder, "--backend", backend, "--tokens", steps * STEP,
                  *more)


def found(folder: Path) -> dict[str, Any]:
    def never(name: str) -> None:
        pytest.fail(f"{name} in gates.json")

    return json.loads((folder / "gates.json").read_text(), parse_constant=never)


def measured(folder: Path) -> list[tuple]:
    """What does not depend on the clock."""
    return [(c["id"], c["activation"], c["val_loss_mean"], c["val_loss_se"], c["tokens"])
            for line in (folder / "search" / "candidates.jsonl").read_text().splitlines() for c in [json.loads(line)]]


def check(folder: Path, models: list[str], blocks: bool, steps: int) -> None:
    """What a study must have left, whatever its gates say."""
    page, result = (folder / "gates.md").read_text(), found(folder)
    assert list(result["models"]) == models
    for name, judged in result["models"].items():
        one, two, three = judged["gates"]
        singles = measured(folder / name)
        assert [c[1] for c in singles] == ["gelu", "silu", "relu", "swiglu"]
        assert all(c[-1] == steps * STEP == judged["tokens"] for c in singles)
        loss = {activation: mean for _, activation, mean, *_ in singles}
        assert [r["activation"] for r in one["rows"]] == [r["activation"] for r in two["rows"]] == ["silu", "relu",
                                                                                                     "swiglu"]
        for row in one["rows"]:
            assert row["difference"] == pytest.approx(loss[row["activation"]] - loss["gelu"]) and row["seeds"] == 3
            assert row["better"] == (row["difference"] < -row["limit"])
        assert judged["gelu_seconds"] > 0
        for row, at_end in zip(two["rows"], one["rows"], strict=True):
            reached = min(1.0, at_end["speed"]) * steps * STEP
            assert row["tokens"] == pytest.approx(reached, abs=1)
            assert row["val_loss"] is not None or reached < 2 * STEP  # before the first evaluation
        a, b = sorted(loss, key=lambda name: loss[name])[:2]
        if blocks:
            mixed = measured(folder / f"{name}-blocks")
            assert [c[1] for c in mixed] == [f"{a},{b}", f"{b},{a}"] and all(c[-1] == steps * STEP for c in mixed)
            for row, c in zip(three["rows"], mixed, strict=True):
                assert row["against"] == a and row["difference"] == pytest.approx(c[2] - loss[a])
        else:
            assert three["sentence"] == "Not run: gate 1 did not pass." and not (folder / f"{name}-blocks").exists()
        assert one["passed"] or not (two["passed"] or three["passed"])
        for verdict in (one, two, three):
            assert verdict["sentence"] in page
        assert not (folder / name / "checkpoints").exists()
        rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        for c in judged["candidates"][:4]:
            own = [r["grad_norm"] for i, r in enumerate(rows) if i % steps and r["symbio_candidate_id"] == c["id"]]
            assert len(own) == 3 * (steps - 1) and c["medians"]["grad_norm"] == pytest.approx(statistics.median(own))
            assert c["medians"]["ms_per_iter"] > 0
            told = f"| {c['activation']} | {c['best_val_loss']:.3f} | {c['val_loss_mean']:.3f} |"
            assert told in re.sub(" +", " ", page)
    assert "come to lie apart in 4 % of studies; so nothing passes gate 1" in page


def test_both_models_and_all_gates(text: Path, tmp_path: Path) -> None:
    result = run(text, tmp_path / "new" / "study", "--all-gates", "--quiet")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "new" / "study"
    check(folder, ["small", "6l"], blocks=True, steps=4)
    lines = result.stdout.splitlines()
    table = [line for line in lines if line.startswith(("small ", "6l "))]
    verdicts = [v for judged in found(folder)["models"].values() for v in judged["gates"]]
    assert len(table) == len(verdicts) == 6
    for line, verdict in zip(table, verdicts, strict=True):
        assert line.rstrip().endswith(verdict["sentence"])
        assert f" {'pass' if verdict['passed'] else 'fail'} " in line
    assert lines[-1] == str(folder / "gates.md")
    assert not any(line.startswith("gen 0") for line in lines)
    # Both have the same settings here but for the learning rate's end, so the presets must not be mixed up.
    configs = [json.loads((folder / name / "config.json").read_text()) for name in ("small", "6l")]
    assert [c["model"]["dropout"] for c in configs] == [0, 0]
    assert [c["train"]["spike_threshold"] for c in configs] == [0, 10]


def test_on_the_device_under_test(text: Path, tmp_path: Path, backend: Backend) -> None:
    result = run(text, tmp_path, "--all-gates", "--model", "small", steps=12, backend=backend.name)
    assert result.exit_code == 0, result.output
    check(tmp_path, ["small"], blocks=True, steps=12)
    assert found(tmp_path)["models"]["small"]["device"] == backend.device_name
    assert "S-Beta" in result.stdout


def test_gate_3_waits_for_gate_1(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a loss that no activation changes gate 1 fails; with one that silu lowers it passes."""
    planted = {"gelu": 5.0, "silu": 5.0, "relu": 5.5, "swiglu": 5.5}
    monkeypatch.setattr(Loop, "evaluate", lambda self: sum(
        planted[act.text] for act in self.state.model.config.activations) / 2 + 0.01 * self.stage.init_seed)
    monkeypatch.setattr(judge, "ACCEPTABLE_SPEED", 0.0)  # of trainings that take no time
    assert run(text, tmp_path / "equal", "--model", "6l").exit_code == 0
    check(tmp_path / "equal", ["6l"], blocks=False, steps=4)
    assert [" not run " in line for line in (tmp_path / "equal" / "gates.md").read_text().splitlines()
            if line.startswith("| 6l ")] == [False, False, True]
    # A later command may still ask for it, and keeps what was measured.
    before = (tmp_path / "equal" / "6l" / "metrics.jsonl").read_bytes()
    assert run(text, tmp_path / "equal", "--model", "6l", "--all-gates").exit_code == 0
    check(tmp_path / "equal", ["6l"], blocks=True, steps=4)
    assert (tmp_path / "equal" / "6l" / "metrics.jsonl").read_bytes() == before
    planted["silu"] = 4.0
    assert run(text, tmp_path / "lower", "--model", "6l").exit_code == 0
    check(tmp_path / "lower", ["6l"], blocks=True, steps=4)
    one, _, three = found(tmp_path / "lower")["models"]["6l"]["gates"]
    assert one["passed"] and one["chosen"]["activation"] == "silu" and one["chosen"]["difference"] == pytest.approx(-1)
    assert not three["passed"] and [r["difference"] for r in three["rows"]] == pytest.approx([0.5, 0.5])
    assert "# 6l: gate" in (tmp_path / "lower" / "gates.md").read_text()


def test_interrupted_and_gone_on_with(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    words = ("--all-gates", "--model", "6l", "--quiet")
    assert run(text, whole, *words).exit_code == 0
    record = Loop._record
    stops = iter([("6l", 2), ("6l", 41), ("6l-blocks", 9), (None, 0)])
    stop = next(stops)

    def stopping(self: Loop, row: dict[str, Any]) -> None:
        nonlocal stop
        record(self, row)
        if (self.records.path.name, row["step"]) == stop:
            stop = next(stops)
            self.signal = 15  # as SIGTERM sets it

    monkeypatch.setattr(Loop, "_record", stopping)
    for _ in range(3):
        result = run(text, parts, *words)
        assert result.exit_code == 130 and not (parts / "gates.json").exists(), result.output
        assert result.stdout.splitlines()[-1] == f"go on with the same command and --run-dir {parts}"
    assert run(text, parts, *words).exit_code == 0
    for name in ("6l", "6l-blocks"):
        assert measured(parts / name) == measured(whole / name)
    # What is over is read, not run again.
    page = (parts / "gates.md").read_text()
    (parts / "gates.md").unlink()
    monkeypatch.setattr(Run, "_train", lambda *args: pytest.fail("trained again"))
    assert run(text, parts, *words).exit_code == 0
    assert (parts / "gates.md").read_text() == page


def test_killed_and_gone_on_with(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first checkpoint, which is at the end of the first training, and after it."""
    class Killed(BaseException):
        pass

    def killing(self: Loop, row: dict[str, Any]) -> None:
        if row["step"] == moments[-1]:
            moments.pop()
            raise Killed
        record(self, row)

    whole, killed, record, moments = tmp_path / "whole", tmp_path / "killed", Loop._record, [30, 7, 3]
    assert run(text, whole, "--model", "small").exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_record", killing)
        while moments:
            with pytest.raises(Killed):
                run(text, killed, "--model", "small")
    assert run(text, killed, "--model", "small").exit_code == 0
    assert measured(killed / "small") == measured(whole / "small")


def test_the_budget_of_the_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the true models
    for model, step, n_layer in (("small", 16 * 128, 4), ("6l", 8 * 256, 6)):
        c = study.configured(model, {"data": "synth:64KB", "backend": None}, 4, None)
        s = c.search
        assert c.model.n_layer == n_layer and s.tokens_per_candidate == 200 * step and s.budget == "tokens"
        assert (s.candidate_eval_interval, c.train.checkpoint_interval, s.replicates) == (25, 200, 4)
        assert (s.after, s.selection, s.genome, s.shared_init, s.shared_batches) == (
            "none", "exhaustive", "global", True, True)
        genome = ",".join(["gelu", "relu"] * (n_layer // 2))
        c = study.configured(model, {"data": "synth:64KB"}, 3, 10 * step + 1, [genome])
        assert math.ceil(c.search.tokens_per_candidate / step) == 11 == c.train.checkpoint_interval
        assert c.search.candidate_eval_interval == 1 and c.search.genome == "per_block" and c.search.genomes == genome


def test_user_errors_are_one_line(text: Path, tmp_path: Path) -> None:
    refused(invoke(main, "gates"), "--data")
    refused(run(tmp_path / "no.txt", tmp_path / "a"), "no.txt")
    refused(run(text, tmp_path / "a", "--seeds", 2), "--seeds: expected at least 3, got '2'")
    refused(run(text, tmp_path / "a", "--model", "large"), "large", "small")
    refused(run(text, tmp_path / "a", "--tokens", 0), "--tokens: expected at least 1")
    refused(run(text, tmp_path / "a", backend="cuda"), "one of auto, vulkan, cpu_ref")
    refused(run(text, text), "is a file")
    (tmp_path / "b" / "small").mkdir(parents=True)
    (tmp_path / "b" / "small" / "mine.txt").touch()
    refused(run(text, tmp_path / "b"), "not empty")
    assert not (tmp_path / "b" / "gates.json").exists()
    assert run(text, tmp_path / "c", "--model", "small").exit_code == 0
    refused(run(text, tmp_path / "c", "--model", "small", "--seeds", 4), "replicates is 3 there and 4 here")
    refused(run(text, tmp_path / "c", steps=5), "tokens_per_candidate is 256 there and 320 here")
    refused(run(text, tmp_path / "c", "--val-data", text), "val_data is None there")
    with directory.locked(tmp_path / "c" / "small", new=False):
        refused(run(text, tmp_path / "c"), "in use by another process")
    (tmp_path / "c" / "small" / "search" / "candidates.jsonl").write_text("{")
    refused(run(text, tmp_path / "c"), "candidates.jsonl", "damaged")
