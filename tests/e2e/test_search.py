"""A search from the command line, as a user starts it: what it leaves, and that a kill changes nothing.

HELIOS_TEST_KILLS says how often; CI kills it less often than is worth doing by hand.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helios.backends.backend import Backend
from helios.train import checkpoint

KILLS = int(os.environ.get("HELIOS_TEST_KILLS", "2"))
SEARCH = """
activation_pool = ["gelu", "relu", "silu"]
population_size = 3
replicates = 2
steps_per_candidate = 8
candidate_eval_interval = 4
"""


def command(backend: Backend, *args: str | Path) -> list[str]:
    return [sys.executable, "-m", "helios.cli.train", "--backend", backend.name, *map(str, args)]


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=300)


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "search.toml"
    path.write_text(SEARCH)
    return path


def result(path: Path) -> tuple:
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    found = [json.loads(line) for line in (path / "search" / "candidates.jsonl").read_text().splitlines()]
    last = checkpoint.directories(path)[-1]
    return ([(r["step"], r["loss"], r["val_loss"], r["lr"]) for r in rows],
            [(c["id"], c["status"], c["val_loss_mean"], c["mutation"]) for c in found],
            (last / checkpoint.MODEL).read_bytes(), (last / checkpoint.OPTIMIZER).read_bytes())


def test_it_is_found_trained_and_reported(tmp_path: Path, backend: Backend, settings: Path) -> None:
    done = run(command(backend, "--preset", "tiny", "--search-config", settings, "--run-dir", tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "search" / "summary.json").read_text())
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["search"]["replicates"] == 2 and config["symbio_winner"] == summary["winner_activation"]
    assert "gen 0 S-Gamma (silu) seed 2/2: step 8/8" in done.stdout
    assert f"winner {summary['winner_name']} ({summary['winner_activation']})" in done.stdout.splitlines()[-1]
    page = (tmp_path / "run" / "search" / "report.md").read_text()
    assert summary["winner_name"] in page
    for name in ("loss", "speed", "lineage", "activations"):
        assert (tmp_path / "run" / "search" / f"{name}.png").read_bytes()[:4] == b"\x89PNG" and f"{name}.png" in page
    sampled = run([sys.executable, "-m", "helios.cli.sample", "--run", str(tmp_path / "run"), "--prompt", "Hi",
                   "--tokens", "4", "--backend", backend.name])
    assert sampled.returncode == 0, sampled.stderr


def test_killed_and_resumed_it_is_the_same(tmp_path: Path, backend: Backend, settings: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    words = command(backend, "--preset", "tiny", "--search-config", settings, "--checkpoint-interval", "3", "--quiet",
                    "--keep", "0")
    assert run([*words, "--run-dir", str(whole)]).returncode == 0
    draw, kills, resume = random.Random(5), 0, ["--run-dir", str(killed)]
    while True:
        before = len(checkpoint.directories(killed))
        process = subprocess.Popen([*words, *resume], stdout=subprocess.DEVNULL)
        while process.poll() is None and (kills >= KILLS or len(checkpoint.directories(killed)) < before + 2):
            time.sleep(0.02)
        time.sleep(draw.uniform(0.0, 0.2))
        if process.poll() is not None:
            assert process.returncode == 0
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        words, resume = command(backend, "--checkpoint-interval", "3", "--quiet"), ["--resume", str(killed)]
    assert kills >= min(2, KILLS)
    assert result(whole) == result(killed)


def test_what_cannot_be_is_refused_in_one_line(tmp_path: Path, backend: Backend, settings: Path) -> None:
    for more, message in ((["--set", "activation_pool="], "activation_pool"), (["--set", "selection=best"], "topk"),
                          (["--set", "population_size=0"], "at least 1"), (["--max-cost", "100"], "--max-cost 100"),
                          (["--search", "everything"], "ffn-activation"), (["--eval-interval", "0"], "evaluations")):
        refused = run(command(backend, "--preset", "tiny", "--search-config", settings, "--run-dir", tmp_path / "no",
                              *more))
        assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1 and message in refused.stderr
        assert not (tmp_path / "no").exists()
    assert run(command(backend, "--preset", "tiny", "--steps", "2", "--run-dir", tmp_path / "plain")).returncode == 0
    refused = run(command(backend, "--resume", tmp_path / "plain", "--search-config", settings, "--steps", "4"))
    assert refused.returncode == 2 and "without a search" in refused.stderr


def test_the_conditions_of_a_search_cannot_change_under_way(tmp_path: Path, backend: Backend, settings: Path) -> None:
    path = tmp_path / "run"
    process = subprocess.Popen(command(backend, "--preset", "tiny", "--search-config", settings, "--run-dir", path,
                                       "--checkpoint-interval", "1", "--quiet", "--set", "steps_per_candidate=200"))
    while not checkpoint.directories(path):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 130
    for more, key in ((["--lr", "0.5"], "lr"), (["--eval-iters", "1"], "eval_iters"), (["--batch", "2"], "batch_size"),
                      (["--set", "replicates=5"], "replicates")):
        refused = run(command(backend, "--resume", path, *more))
        assert refused.returncode == 2
        assert f"{key} was" in refused.stderr and "before the search is over" in refused.stderr
