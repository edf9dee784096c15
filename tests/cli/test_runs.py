"""helios-runs as a user meets it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helios.cli.runs import main
from helios.cli.train import main as train
from helios.train.records import overview

from ..commands import invoke, refused

QUICK = ["--preset", "tiny", "--backend", "cpu_ref", "--data", "synth:200KB", "--vocab-size", "300", "--quiet"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name, more in {"a": ["--steps", 4], "deep/b": ["--steps", 6, "--activation", "relu"]}.items():
        result = invoke(train, *QUICK, "--run-dir", folder / name, *more)
        assert result.exit_code == 0, result.output
    return folder


def test_list(runs: Path) -> None:
    output = invoke(main, runs).output
    for path in (runs / "a", runs / "deep/b"):
        entry = overview.read(path)
        (row,) = [line for line in output.splitlines() if entry["run_id"] in line]
        assert "completed" in row and f"{entry['best_val_loss']:.4f}" in row and "L2 D32 H4 T16" in row
        assert "100.0%" in row


def test_json_sort_and_where(runs: Path) -> None:
    ask = lambda *args: [json.loads(line)["step"] for line in invoke(main, runs, "--json", *args).output.splitlines()]
    assert ask("--sort", "step") == [4, 6] and ask("--sort", "-step") == [6, 4]
    assert ask("--sort", "best-val-loss", "--where", "run-id=x") == []
    assert ask("--where", "activation=relu") == [6] and ask("--where", "n_layer=3") == []
    assert ask("--where", "lr=1e-2", "--where", "status=completed", "--sort", "step") == [4, 6]
    first = json.loads(invoke(main, runs, "--json", "--sort", "step").output.splitlines()[0])
    assert {key: first[key] for key in first if key != "path"} == overview.read(runs / "a")


def test_diff(runs: Path) -> None:
    output = invoke(main, "diff", runs / "a", runs / "deep/b").output
    told = {line.split()[0]: line.split()[1:] for line in output.splitlines()[1:]}
    assert told["train.steps"] == ["4", "6"] and told["model.activation"] == ["gelu", "relu"]
    assert "model.n_layer" not in told and "device.name" not in told


def test_refused(runs: Path, tmp_path: Path) -> None:
    refused(invoke(main, tmp_path / "none"), "cannot read the folder")
    refused(invoke(main, tmp_path), "no run in")
    refused(invoke(main, runs, "--sort", "los"), "did you mean loss")
    refused(invoke(main, runs, "--where", "loss"), "expected KEY=VALUE")
    refused(invoke(main, "diff", runs / "a", tmp_path), "is no run directory")


def test_help_is_of_the_list() -> None:
    output = invoke(main, "--help").output
    assert "--where" in output and "helios-runs diff A B" in output


def test_what_is_no_run_does_not_end_the_list(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "a", tmp_path / "a")
    for name, text in {"damaged": "{", "foreign": '{"model_type": "gpt2"}', "odd": json.dumps({
            "run_id": "odd", "model": {"activation": 7}, "train": {}, "data": {}, "search": None, "monitor": [],
            "parameters": "many", "created": 2026})}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    result = invoke(main, tmp_path)
    assert result.exit_code == 0 and len(result.stdout.splitlines()) == 3, result.output
    assert [line.split(" is ")[0] for line in result.stderr.splitlines()] == [
        f"warning: {tmp_path / name / 'config.json'}" for name in ("damaged", "foreign")]
    for key in ("created", "parameters", "population_size", "metrics_interval"):
        assert invoke(main, tmp_path, "--sort", key).exit_code == 0
        assert invoke(main, tmp_path, "--json", "--where", f"{key}=null").exit_code == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user who may not look into a folder")
def test_a_folder_that_others_may_not_look_into(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "a", tmp_path / "a")
    (tmp_path / "closed" / "run").mkdir(parents=True)
    (tmp_path / "closed").chmod(0o744)
    for folder in (tmp_path, *list(tmp_path.parents)[:-2]):
        folder.chmod(0o755)
    code = "from helios.train.records.layout import *; os.setuid(65534); print(*find_runs(Path('.')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "a\n"
