"""helios-evolve as a user meets it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from helios.cli.evolve import main
from helios.cli.report import main as report
from helios.cli.train import main as train
from helios.train.records.layout import read_config

from ..commands import invoke, refused

ASKED = ("--preset", "tiny", "--genes", "lr,beta2,n_layer=1..2", "--val-data", "synth:64KB:1", "--backend", "cpu_ref",
         "--per-candidate", "256", "--population", "2", "--generations", "2", "--replicates", "2",
         "--set", "validation_replicates=2")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment that is over."""
    folder = tmp_path_factory.mktemp("evolved") / "x"
    result = invoke(main, *ASKED, "--dir", folder)
    assert result.exit_code == 0, result.output
    return folder


def test_what_there_is_afterwards(done: Path) -> None:
    there = {path.name for path in done.iterdir()}
    assert {"journal.jsonl", "runs", "report.md", "summary.json", "winner.toml"} <= there
    lines = [json.loads(line) for line in (done / "journal.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "result":
            about = read_config(done / "runs" / line["run"])
            assert about["evolve"]["id"] == line["id"] and about["evolve"]["experiment"] == lines[0]["id"]
            assert about["train"]["steps"] * 64 == line["tokens"]
    assert lines[-1]["kind"] == "end"
    page = (done / "report.md").read_text()
    assert all(sentence in page for sentence in lines[-1]["verdict"]["sentences"])


def test_the_winner_is_a_preset(done: Path, tmp_path: Path) -> None:
    result = invoke(train, "--config", done / "winner.toml", "--steps", "2", "--run-dir", tmp_path / "run", "--quiet")
    assert result.exit_code == 0, result.output
    winner = json.loads((done / "journal.jsonl").read_text().splitlines()[-1])["verdict"]["winner"]
    of_search, here = (read_config(path) for path in (done / "runs" / f"{winner}.s0", tmp_path / "run"))
    assert here["model"] == of_search["model"]
    assert all(here["train"][key] == of_search["train"][key] for key in ("lr", "beta2", "lr_min", "batch_size"))


def test_an_ended_experiment_does_nothing_more(done: Path) -> None:
    before = (done / "journal.jsonl").read_bytes()
    resumed = invoke(main, "--resume", done)
    assert resumed.exit_code == 0 and "it is finished after" in resumed.output
    result = invoke(main, "report", done)
    assert result.exit_code == 0 and (done / "journal.jsonl").read_bytes() == before


def test_a_training_keeps_its_last_checkpoint_and_the_best(done: Path) -> None:
    for run in (done / "runs").iterdir():
        assert read_config(run)["train"]["keep"] == 1 and 1 <= len(list((run / "checkpoints").iterdir())) <= 2


def test_what_other_numbers_of_checkpoints_keep(tmp_path: Path) -> None:
    """One that is asked for, and that of a training which an older version began."""
    once = ("--generations", "1", "--set", "validation_replicates=0")
    assert invoke(main, *ASKED, *once, "--set", "keep=5", "--dir", tmp_path / "x").exit_code == 0
    config = next((tmp_path / "x" / "runs").iterdir()) / "config.json"
    assert read_config(config.parent)["train"]["keep"] == 5
    folder = tmp_path / "y"
    assert invoke(main, *ASKED, *once, "--dir", folder).exit_code == 0
    for config in (folder / "runs").glob("*/config.json"):
        config.write_text(config.read_text().replace('"keep": 1,', '"keep": 3,'))
    lines = (folder / "journal.jsonl").read_text().splitlines(keepends=True)
    (folder / "journal.jsonl").write_text("".join(line for line in lines if '"result"' not in line
                                                  and '"end"' not in line and '"finalists"' not in line))
    assert invoke(main, "--resume", folder).exit_code == 0


def test_help_tells_of_the_report_and_what_is_needed() -> None:
    said = " ".join(invoke(main, "--help").output.split())
    assert "helios-evolve report DIR writes" in said and "by which candidates are chosen; to be given" in said
    assert "a tenth of the documents" not in said and "run [OPTIONS]" not in said


def test_an_experiments_directory_is_no_runs(done: Path, tmp_path: Path) -> None:
    told = (f"{done} is an experiment's: helios-evolve report {done} tells of it", str(done / "runs"))
    refused(invoke(report, done), *told)
    refused(invoke(main, *ASKED, "--seed-from", done, "--dir", tmp_path / "x"), *told)


def test_one_that_comes_to_nothing(tmp_path: Path) -> None:
    nothing = ("--set", "stop_loss=0.1", "--set", "stop_loss_after=1", "--per-candidate", "1024")
    result = invoke(main, *ASKED, *nothing, "--dir", tmp_path / "x")
    assert result.exit_code == 1 and "\nall 5 candidates were stopped: after step 1 the loss was above" in result.output
    assert "fresh seed" not in (tmp_path / "x" / "report.md").read_text().split("## What was asked")[0]
    assert invoke(main, "--resume", tmp_path / "x").exit_code == 1


def test_dry_run(tmp_path: Path) -> None:
    result = invoke(main, *ASKED, "--dir", tmp_path / "x", "--dry-run")
    assert result.exit_code == 0 and "tokens in all" in result.output and not (tmp_path / "x").exists()


@pytest.mark.parametrize(("more", "words"), [
    (("--genes", "lrr"), ("unknown gene 'lrr'", "did you mean lr?")), (("--genes", "beta2=0.9..1.5"), ("gene beta2",)),
    (("--objectives", "val_loss,memory_mb"), ("memory_mb is not measured on cpu_ref",)),
    (("--objectives", "vall_loss"), ("unknown objective",)), (("--population", "1"), ("population", "at least 2")),
    (("--per-candidate", "0"), ("per_candidate", "greater than 0")), (("--total", "10"), ("--total 10",)),
    (("--fitness", "-val_loss + import"), ("formula", "column 13")),
    (("--budget", "steps"), ("budget", "tokens, seconds")),
    (("--executor", "cluster"), ("unknown executor 'cluster'",)),
    (("--executor", "processes://here"), ("only ray has an address",)),
    (("--genes", "lr,simd_width"), ("simd_width is a gene", "--executor processes")),
    (("--workers", "2"), ("--workers is of processes and ray",)),
    (("--warm-start", "warmly"), ("warm_start", "project")),
    (("--warm-start", "exact", "--halving", "0.05"), ("--halving goes by", "leave one of both out")),
    (("--experiment", "stability"), ("unknown experiment", "stability-9")),
    (("--preset", "tinny"), ("unknown preset",)),
    (("--config", "nowhere.toml"), ("nowhere.toml",)), (("--seed-from", "nowhere"), ("nowhere",)),
    (("--data", "nowhere.txt"), ("nowhere.txt",)), (("--max-cost", "100"), ("--max-cost 100",)),
    (("--set", "stop_spikes=2"), ("stop_spikes", "from 0 to 1")), (("--set", "lrr=2"), ("unknown key 'lrr'",)),
    (("--set", "morph=project"), ("morph project: --warm-start says", "leave morph out"))])
def test_bad_input_is_one_line(tmp_path: Path, more: tuple[str, ...], words: tuple[str, ...]) -> None:
    refused(invoke(main, *ASKED, "--dir", tmp_path / "x", *more), *words)
    assert not (tmp_path / "x").exists()


def test_resume_takes_nothing_else_and_only_an_experiment(done: Path, tmp_path: Path) -> None:
    refused(invoke(main, "--resume", done, "--genes", "lr"), "--genes cannot be given with --resume")
    refused(invoke(main, "--resume", done, "--population", "3"), "cannot be given with --resume")
    refused(invoke(main, "--resume", tmp_path), "holds no experiment")
    refused(invoke(main, "report", tmp_path), "holds no experiment")


def test_a_journal_that_is_damaged_or_of_another_experiment(done: Path, tmp_path: Path) -> None:
    lines = (done / "journal.jsonl").read_bytes().splitlines(keepends=True)
    copied = tmp_path / "x"
    shutil.copytree(done, copied)
    (copied / "journal.jsonl").write_bytes(b"".join([*lines[:4], lines[4][:30] + b"\n", *lines[5:]]))
    refused(invoke(main, "--resume", copied), "journal.jsonl, line 5, is damaged")
    other = json.loads(lines[0]) | {"id": "0badf00d"}
    (copied / "journal.jsonl").write_bytes(b"".join([json.dumps(other).encode() + b"\n", *lines[1:10]]))
    refused(invoke(main, "--resume", copied, "--quiet"), "is of another experiment", stdout=None)


def test_without_validation_data(tmp_path: Path) -> None:
    refused(invoke(main, "--preset", "tiny", "--genes", "lr", "--dir", tmp_path / "x"), "--val-data")
