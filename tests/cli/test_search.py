"""helios-search from the outside: output, exit codes, one line for an error."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from helios.cli.search import main
from helios.train.config import SearchConfig
from helios.train.search import ranking
from helios.train.search.births import Candidate, Replicate

from ..commands import invoke, refused

run = partial(invoke, main)
LOSSES = {"gelu": (3.40, 3.41), "relu": (3.30, 3.31)}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Of a search whose two candidates differ by far more than their replicates."""
    candidates = [
        ranking.aggregate(Candidate(f"gen0_{name}_{i}", f"{name}-candidate", name, 0, 0, parameters=1000), [
            Replicate(seed, x, x, x, 1 / x, 10, 5120, [[10, x]], 0, 0, 0.1, 2.0, 1000.0, 0, 1.0)
            for seed, x in enumerate(losses)]) for i, (name, losses) in enumerate(LOSSES.items(), 1)]
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "candidates.jsonl").write_text("".join(json.dumps(c.to_json()) + "\n" for c in candidates))
    config = SearchConfig("ffn-activation", replicates=2)
    summary = ranking.summary(config, candidates, {"n_layer": 2}, "cpu", "complete")
    (tmp_path / "search" / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({
        "step": i + 1, "loss": 4.0 - i / 100, "val_loss": None, "tokens_per_sec": 1000.0,
        "symbio_candidate_id": "gen0_gelu_1", "symbio_replicate": 0}) + "\n" for i in range(10)))
    return tmp_path


def test_report(run_dir: Path) -> None:
    result = run("report", run_dir)
    lines = result.stdout.splitlines()
    assert result.exit_code == 0, result.output
    assert lines[0] == "relu (relu-candidate) won, separated from every other genome."
    assert "2 seeds" in lines[1]  # the reasons
    table = [line.split() for line in lines if "-candidate " in line and "±" in line and "complete" in line]
    assert [row[:3] for row in table] == [["1", "relu-candidate", "relu"], ["2", "gelu-candidate", "gelu"]]
    assert "3.3050 ± 0.0050" in result.stdout and "1,000" in result.stdout  # no cell is cut
    assert lines[-1] == str(run_dir / "search" / "report.md")
    assert (run_dir / "search" / "report.md").read_text().startswith(f"# {lines[0]}\n")
    assert (run_dir / "search" / "loss.png").stat().st_size > 10_000


def test_the_search_folder_will_do_and_no_plots(run_dir: Path) -> None:
    result = run("report", run_dir / "search", "--no-plots")
    assert result.exit_code == 0 and result.stdout.splitlines()[0].startswith("relu (relu-candidate) won")
    assert not list((run_dir / "search").glob("*.png")) and (run_dir / "search" / "report.md").exists()


def test_again(run_dir: Path) -> None:
    assert run("report", run_dir).stdout == run("report", run_dir).stdout


@pytest.mark.parametrize("status", ["running", None])
def test_in_progress(run_dir: Path, status: str | None) -> None:
    path = run_dir / "search" / "summary.json"
    if status is None:
        path.unlink()
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"status": status}))
    result = run("report", run_dir)
    assert result.exit_code == 0
    assert result.stdout.startswith("The search is in progress: 2 candidates measured")
    assert "gelu-candidate" in result.stdout


def test_user_errors_are_one_line(run_dir: Path) -> None:
    refused(run("report", run_dir / "nowhere"), "nowhere", "holds no search")
    refused(run("report", run_dir / "metrics.jsonl"), "holds no search")
    refused(run("report"), "DIR")
    refused(run("rapport"), "rapport")
    refused(run(), "command")
    with open(run_dir / "search" / "candidates.jsonl", "a") as file:
        file.write('{"id": \n')
    refused(run("report", run_dir), "candidates.jsonl", "line 3", "damaged")
