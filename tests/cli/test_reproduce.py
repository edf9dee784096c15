"""helios-reproduce from the outside: tiny models on cpu_ref, through to the page; refusals; going on."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from helios.bench.reproduce import Plan
from helios.cli import reproduce
from helios.train import checkpoint, directory
from helios.train.loop import Loop
from helios.train.records.layout import EVENTS
from helios.train.run import Run
from helios.train.search import report

from ..commands import invoke, refused

run = partial(invoke, reproduce.main)

# Models and budgets of seconds, above the settings of the historic runs.
MODEL = ("vocab_size=300", "block_size=16", "n_layer=2", "n_embd=32", "n_head=4", "batch_size=4", "eval_iters=1",
         "warmup=2", "checkpoint_interval=5", "metrics_interval=0")
OF: dict[str, tuple[str, ...]] = {
    "5ke3": ("steps=6", "steps_per_candidate=2", "eval_interval=3", "checkpoint_interval=0"),
    "4kwo": ("sample_interval=5",),
    "2ao8": ("batch_min=4", "batch_max=8", "tokens_per_candidate=128", "eval_interval=3", "sample_interval=0"),
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    def plans(run: str, *args: Any, **kwargs: Any) -> list[Plan]:
        return made(run, *args, more=MODEL + OF[run], **kwargs)

    made = reproduce.plans
    monkeypatch.setattr(reproduce, "plans", plans)
    monkeypatch.setattr(report, "write", lambda run: None)  # its plots take longer than these searches


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """--data and --val-data."""
    folder = tmp_path_factory.mktemp("texts")
    for name, count in (("talk", 300), ("val", 40)):
        (folder / f"{name}.txt").write_text("".join(
            f"<|user|> Who are you? <|assistant|> I am number {7 * i}. <|end_of_text|>\n" for i in range(count)))
    return ["--data", str(folder / "talk.txt"), "--val-data", str(folder / "val.txt")]


def again(texts: list[str], name: str, folder: Path, *more: object) -> Result:
    return run(name, *texts, "--backend", "cpu_ref", "--run-dir", folder, *more)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_5ke3(texts: list[str], tmp_path: Path) -> None:
    folder, page = tmp_path / "runs", tmp_path / "page.md"
    result = again(texts, "5ke3", folder, "--fair", "--page", page, "--quiet")
    assert result.exit_code == 0, result.output
    assert [p.name for p in folder.iterdir()] == ["fair"] and "**Faithful**" not in page.read_text()
    before = (folder / "fair" / "metrics.jsonl").read_bytes()
    # Neither flag means both, and what has ended is not run again.
    result = again(texts, "5ke3", folder)
    assert result.exit_code == 0 and result.stdout.count("done:") == 1, result.output
    assert {p.name for p in tmp_path.iterdir()} == {"runs", "page.md"}
    assert {p.name for p in folder.iterdir()} == {"faithful", "fair", "5ke3.md"}
    assert (folder / "fair" / "metrics.jsonl").read_bytes() == before
    assert result.stdout.splitlines()[-1] == str(folder / "5ke3.md")
    text = (folder / "5ke3.md").read_text()
    for name, seeds in (("faithful", 1), ("fair", 2)):
        found = rows(folder / name)
        assert [r["step"] for r in found] == list(range(1, 8 * 2 + 6 + 1))
        assert [r["symbio_phase"] for r in found] == ["search"] * 16 + ["after"] * 6
        assert {r.get("symbio_replicate") for r in found[:16]} == set(range(seeds))
        assert f"{found[-1]['loss']:.3f}" in text and f"| {name}" in text
    # The faithful one's rate goes on through all trainings; the fair one's begins anew with each.
    faithful, fair = ([r["lr"] for r in rows(folder / name)] for name in ("faithful", "fair"))
    assert faithful[2:] == sorted(faithful[2:], reverse=True) and len(set(faithful[2:])) == 20
    assert fair[:2] * 8 == fair[:16]


def test_4kwo(texts: list[str], tmp_path: Path) -> None:
    result = again(texts, "4kwo", tmp_path / "runs", "--steps", 12)
    assert result.exit_code == 0, result.output
    found = rows(tmp_path / "runs" / "again")
    text = (tmp_path / "runs" / "4kwo.md").read_text()
    assert len(found) == 12 and text.startswith("# Run 4kwo, and 12 steps of Helios")
    assert f"{found[9]['loss']:.3f}" in text and f"{found[-1]['val_loss']:.3f}" in text


def test_2ao8(texts: list[str], tmp_path: Path) -> None:
    """Its search, then steps of another model than that of the settings."""
    result = again(texts, "2ao8", tmp_path / "runs", "--steps", 20)
    assert result.exit_code == 0, result.output
    found = rows(tmp_path / "runs" / "again")
    assert [r["step"] for r in found] == list(range(1, 21))
    assert {r["symbio_phase"] for r in found} == {"search", "after"}
    text = (tmp_path / "runs" / "2ao8.md").read_text()
    assert text.startswith("# Run 2ao8, and 20 steps of Helios") and "27.6 % of the GPU" in text


@pytest.mark.parametrize(("name", "first"), [("4kwo", 7), ("2ao8", 9), ("2ao8", 18)])
def test_more_steps_later_are_those_of_a_run_that_made_them_at_once(name: str, first: int, texts: list[str],
                                                                    tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert again(texts, name, whole, "--steps", 22).exit_code == 0
    assert again(texts, name, parts, "--steps", first).exit_code == 0
    assert len(rows(parts / "again")) == first
    assert again(texts, name, parts, "--steps", 22).exit_code == 0
    drop = {"elapsed_ms", "ms_per_iter", "tokens_per_sec", "val_loss"}
    same = lambda path: [{key: value for key, value in row.items() if key not in drop and not key.startswith("timing")}
                         for row in rows(path / "again")]
    assert same(parts) == same(whole)
    model = Path("again", "checkpoints", "step-000022", checkpoint.MODEL)
    assert (parts / model).read_bytes() == (whole / model).read_bytes()


def test_interrupted_and_gone_on_with(texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert again(texts, "4kwo", whole, "--steps", 12).exit_code == 0
    record = Loop._record

    def stopping(self: Loop, row: dict[str, Any]) -> None:
        record(self, row)
        if row["step"] == 7:
            self.signal = 15  # as SIGTERM sets it

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_record", stopping)
        result = again(texts, "4kwo", parts, "--steps", 12, "--quiet")
    assert result.exit_code == 130 and not (parts / "4kwo.md").exists()
    assert result.stdout.splitlines()[-1] == f"go on with the same command and --run-dir {parts}"
    assert 7 <= len(rows(parts / "again")) < 12
    assert again(texts, "4kwo", parts, "--steps", 12).exit_code == 0
    assert [r["loss"] for r in rows(parts / "again")] == [r["loss"] for r in rows(whole / "again")]
    model = Path("again", "checkpoints", "step-000012", checkpoint.MODEL)
    assert (parts / model).read_bytes() == (whole / model).read_bytes()
    # Killed before its first checkpoint, it begins anew.
    shutil.rmtree(parts / "again" / "checkpoints")
    (parts / "again" / EVENTS).unlink()
    result = again(texts, "4kwo", parts, "--steps", 12)
    assert result.exit_code == 0 and "step 1/50000 " in result.stdout
    assert [r["loss"] for r in rows(parts / "again")] == [r["loss"] for r in rows(whole / "again")]


def test_a_finished_run_is_not_run_again(texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert again(texts, "4kwo", tmp_path, "--steps", 2).exit_code == 0
    page = (tmp_path / "4kwo.md").read_text()
    (tmp_path / "4kwo.md").unlink()
    monkeypatch.setattr(Run, "_train", lambda *args: pytest.fail("trained again"))
    assert again(texts, "4kwo", tmp_path, "--steps", 2).exit_code == 0
    assert (tmp_path / "4kwo.md").read_text() == page
    refused(again(["--data", texts[3], *texts[2:]], "4kwo", tmp_path, "--steps", 2), "data is", "talk.txt there and")
    with directory.locked(tmp_path / "again", new=False):
        refused(again(texts, "4kwo", tmp_path, "--steps", 2), "in use by another process")


def test_user_errors_are_one_line(texts: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    refused(again(texts, "5ke4", folder), "5ke4")
    refused(run(), "command")
    refused(run("5ke3"), "--data")
    refused(run("5ke3", *texts[:2]), "--val-data")
    refused(again(["--data", str(tmp_path / "no.txt"), *texts[2:]], "5ke3", folder), "no.txt", "does not exist")
    refused(again(["--data", str(tmp_path), *texts[2:]], "4kwo", folder), "is a directory")
    refused(again(texts, "4kwo", folder, "--steps", 50_001), "--steps: expected from 1 to 50,000")
    refused(again(texts, "4kwo", folder, "--fair"), "--fair")
    refused(again(texts, "5ke3", folder, "--page", tmp_path / "no" / "page.md"), "cannot write", "no folder")
    refused(run("4kwo", *texts, "--run-dir", folder, "--backend", "cuda"), "one of auto, vulkan, cpu_ref")
    assert not folder.exists()
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "mine.txt").touch()
    refused(again(texts, "4kwo", tmp_path), "not empty")


def test_the_folder_where_none_is_given(texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("4kwo", *texts, "--backend", "cpu_ref", "--steps", 2).exit_code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("reproduce-4kwo-2") and (folder / "4kwo.md").exists()
