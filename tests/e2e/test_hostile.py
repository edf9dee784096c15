"""Hostile and clumsy use: each case of the table, and what needs more than a command line."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from helios.cli import data, train
from helios.train import checkpoint, directory
from helios.train.progress import Display
from helios.train.state import TrainState

from ..commands import invoke, refused
from .hostile import CASES, TINY


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("done") / "run"
    assert invoke(train.main, *TINY, "--run-dir", path).exit_code == 0
    return path


def files(folder: Path) -> dict[str, bytes | str]:
    """Content of all files below a folder, but for locks."""
    found = (p for p in folder.rglob("*") if p.name != directory.LOCK)
    return {str(p): os.readlink(p) if p.is_symlink() else p.read_bytes() for p in found
            if p.is_symlink() or p.is_file()}


@pytest.mark.parametrize("name", CASES)
def test_hostile(name: str, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    monkeypatch.chdir(tmp_path)
    if case.run:
        shutil.copytree(done, tmp_path / "run")
    case.prepare(tmp_path)
    before = files(tmp_path)
    result = invoke(case.command, *(arg.replace("{tmp}", str(tmp_path)) for arg in case.args))
    words = (case.words,) if isinstance(case.words, str) else case.words
    if case.exit == 2:
        refused(result, *words)
        assert files(tmp_path) == before
    else:
        assert result.exit_code == case.exit and isinstance(result.exception, SystemExit), result.output
        assert all(word in result.output for word in words), result.output


def test_a_run_in_use(done: Path, tmp_path: Path) -> None:
    path = shutil.copytree(done, tmp_path / "run")
    with directory.locked(path, new=False):
        refused(invoke(train.main, "--resume", path, "--steps", "14"), "in use by another process")


def test_a_run_directory_removed_while_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Display.row

    def row(self: Display, values: Any) -> None:
        real(self, values)
        if values["step"] == 3:
            shutil.rmtree(tmp_path / "run")

    monkeypatch.setattr(Display, "row", row)
    refused(invoke(train.main, *TINY, "--run-dir", tmp_path / "run"), "was removed or replaced", stdout=None)
    assert not (tmp_path / "run").exists()


def test_a_full_disk_before_any_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, raw: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write", write)
    result = invoke(train.main, *TINY, "--run-dir", tmp_path / "run")
    refused(result, "No space left on device; there is no checkpoint yet", stdout=None)
    assert "earlier" not in result.stderr


def test_out_that_is_no_file(tmp_path: Path) -> None:
    """A pipe is written into, and a link leads where it led."""
    (tmp_path / "link").symlink_to("target")
    os.mkfifo(tmp_path / "pipe")
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_bytes()), daemon=True)
    reader.start()
    for name in ("link", "pipe"):
        assert invoke(data.main, "synth", "--size", "1KB", "--out", tmp_path / name).exit_code == 0
    reader.join(10)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "pipe").is_fifo()
    assert got == [(tmp_path / "target").read_bytes()] and len(got[0]) > 500


def test_a_dry_run_opens_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("helios.train.run.open_backend", None)
    result = invoke(train.main, *TINY, "--dry-run", "--search", "ffn-activation")
    assert result.exit_code == 0, result.output
    for words in ("44,608 parameters: 2 blocks", "about 1 MiB of memory", "search: at most 36 trainings", "runs/"):
        assert words in result.stdout
    assert not files(tmp_path)


# -- signals ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("part", ["micro", "evaluation"])
def test_a_signal_within_a_step(part: str, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is heard between two micro-steps or evaluation batches; what was given up is done when the run is resumed."""
    settings = (*TINY, "--accum", "3", "--eval-iters", "4", "--eval-interval", "2")
    assert invoke(train.main, *settings, "--run-dir", tmp_path / "whole").exit_code == 0
    calls, init = [0], TrainState.__init__

    def patched(self: TrainState, *args: Any) -> None:
        init(self, *args)
        capture = getattr(self, part)
        submit = capture.submit

        def counted(*inputs: Any) -> Any:
            calls[0] += 1
            if calls[0] == 7:  # the first micro-step of step 4, the third batch of its evaluation
                os.kill(os.getpid(), signal.SIGINT)
            return submit(*inputs)

        capture.submit = counted

    with monkeypatch.context() as patch:
        patch.setattr(TrainState, "__init__", patched)
        result = invoke(train.main, *settings, "--run-dir", tmp_path / "run")
    steps = {"micro": 3, "evaluation": 4}[part]
    assert result.exit_code == 130 and f"interrupted: step {steps} of 12" in result.output and calls[0] == 7
    assert os.listdir(tmp_path / "run" / "checkpoints") == [f"step-{steps:06d}"]
    assert invoke(train.main, "--resume", tmp_path / "run").exit_code == 0
    last = Path("checkpoints", "step-000012", checkpoint.MODEL)
    assert (tmp_path / "run" / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()
    both = [[{key: row[key] for key in ("step", "loss", "val_loss", "clip_pct")} for row in map(
        json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())] for name in ("run", "whole")]
    assert both[0] == both[1]


def test_a_signal_within_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submit = TrainState.submit

    def interrupted(self: TrainState, *args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return submit(self, *args)

    args = (*TINY, "--accum", "2", "--run-dir", tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(TrainState, "submit", interrupted)
        result = invoke(train.main, *args)
    assert result.exit_code == 130 and "no step was made; start again with --run-dir" in result.output
    assert invoke(train.main, *args, "--steps", "1").exit_code == 0


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    args = (*TINY, "--accum", "1000000", "--run-dir", str(tmp_path / "run"))
    process = subprocess.Popen([sys.executable, "-m", "helios.cli.train", *args],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline().startswith("run ")
    process.send_signal(signal.SIGINT)
    time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    try:
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode in (130, -signal.SIGINT) and "Traceback" not in errors  # a shell shows 130 for both


def test_a_signal_while_modules_are_loaded(tmp_path: Path) -> None:
    code = "import os, signal, helios.cli; os.kill(os.getpid(), signal.SIGINT); import helios.cli.train"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == -signal.SIGINT and found.stderr == ""


def test_full_standard_output() -> None:
    with open("/dev/full", "w") as full:
        found = subprocess.run([sys.executable, "-m", "helios.cli.data", "stats", "synth:2KB"], stdout=full,
                               stderr=subprocess.PIPE, text=True)
    assert found.returncode == 2 and re.fullmatch(r"error: .*No space left on device\n", found.stderr)
