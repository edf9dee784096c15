"""A board holds what the runs' files hold, however often it and the trainings are killed.

HELIOS_TEST_KILLS (default 6) is how many kills there are, HELIOS_TEST_ABSENCE (default 3) for how many seconds the
board is away afterwards, and HELIOS_TEST_SEED (default 0) draws whom they meet, and when.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helios.train import checkpoint
from helios.train.config import resolve
from helios.train.progress import Display
from helios.train.records import reporter
from helios.train.records.layout import read_config
from helios.train.run import Run

from ..boards import TOKEN, Board, assert_holds

KILLS, ABSENCE, SEED = (int(os.environ.get(f"HELIOS_TEST_{name}", default))
                        for name, default in (("KILLS", 6), ("ABSENCE", 3), ("SEED", 0)))
ENDLESS = ("--steps", "1000000", "--max-cost", "1e12", "--checkpoint-interval", "150", "--eval-interval", "7",
           "--sample-interval", "150", "--keep", "2")
SEARCH = ("--search", "ffn-activation", "--set", "population_size=4", "--set", "generations=50", "--set",
          "replicates=1", "--set", "steps_per_candidate=15", "--set", "reuse=false")


class Training:
    """A training as a process, which is resumed when it was killed."""

    def __init__(self, path: Path, url: str, *more: str) -> None:
        self.path, self.url = path, url
        self.log = open(f"{path}.log", "w")  # noqa: SIM115 (closed with the process)
        self.start("--preset", "tiny", "--backend", "cpu_ref", "--report", url, "--run-dir", str(path), *more)

    def start(self, *args: str) -> None:
        self.process = subprocess.Popen([sys.executable, "-m", "helios.cli.train", "--quiet", *args], stdout=self.log,
                                        stderr=self.log, env=os.environ | {"HELIOS_TOKEN": TOKEN})

    def ready(self) -> None:
        """Wait for a checkpoint, without which it cannot be resumed."""
        end = time.monotonic() + 120
        while not checkpoint.directories(self.path):
            assert self.process.poll() is None and time.monotonic() < end, self.said()
            time.sleep(0.05)

    def kill(self) -> None:
        self.ready()
        assert self.process.poll() is None, self.said()
        self.process.kill()
        self.process.wait()

    def end(self, number: int, code: int) -> None:
        self.process.send_signal(number)
        assert self.process.wait(60) == code, self.said()
        self.log.close()

    def said(self) -> str:
        return Path(f"{self.path}.log").read_text()

    @property
    def run_id(self) -> str:
        return json.loads((self.path / "config.json").read_text())["run_id"]


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELIOS_TOKEN", TOKEN)


def pushed(path: Path, board: Board, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "helios.cli.report", "push", str(path), "--to", board.url, *more],
                          capture_output=True, text=True, timeout=120)


def test_kills_of_the_board_and_of_trainings(tmp_path: Path) -> None:
    draw = random.Random(SEED)
    with Board(tmp_path) as board:
        trainings = [Training(tmp_path / name, board.url, *ENDLESS, *more)
                     for name, more in (("a", ()), ("b", ("--seed", "1")), ("c", SEARCH))]
        try:
            for t in trainings:
                t.ready()
            for _ in range(KILLS):
                time.sleep(draw.uniform(0, 1))
                if (who := draw.randrange(4)) >= len(trainings):
                    board.kill()
                    time.sleep(draw.choice([0, 1]))
                    board.start()
                else:
                    trainings[who].kill()
                    time.sleep(draw.choice([0, 1]))
                    trainings[who].start("--resume", str(trainings[who].path))
            board.kill()
            time.sleep(ABSENCE)
            board.start()
            for t in trainings:
                t.end(signal.SIGTERM, 130)
        finally:
            for t in trainings:
                t.process.kill()
        for t in trainings:
            if "still to be sent" in t.said():  # for which a busy machine had too little time
                assert pushed(t.path, board).returncode == 0
            assert_holds(board, t.run_id, t.path)
            assert pushed(t.path, board).stdout == f"{t.path}: 0 rows sent\n"
        assert board.lines(trainings[2].run_id, "candidates")


def test_a_board_that_hangs(tmp_path: Path) -> None:
    """It takes connections and never answers: the training goes on, and a second Ctrl-C ends the wait for the board."""
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        t = Training(tmp_path / "run", f"http://127.0.0.1:{hanging.getsockname()[1]}", *ENDLESS)
        try:
            t.ready()
            t.process.send_signal(signal.SIGINT)
            end = time.monotonic() + 60
            while "interrupted" not in t.said():  # the last line, before which the run is complete as it is
                assert t.process.poll() is None and time.monotonic() < end, t.said()
                time.sleep(0.05)
            t.end(signal.SIGINT, 130)
        finally:
            t.process.kill()
        assert f"still to be sent to {t.url}: helios-report push {t.path} --to {t.url}" in t.said()


def test_the_boards_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file of its grows beyond 500 KiB, as on a disk that is full."""
    long, run, said = tmp_path / "long", tmp_path / "run", []
    long.mkdir()
    (long / "config.json").write_text('{"run_id": "long", "model": {}, "train": {}, "data": {}}')
    (long / "metrics.jsonl").write_text("".join(f'{{"step": {i}, "x": "{i:300}"}}\n' for i in range(1, 4000)))
    display = Display(quiet=True)
    monkeypatch.setattr(display, "warn", said.append)
    monkeypatch.setattr(reporter, "LAST", 1.0)
    with Board(tmp_path, "bash", "-c", 'ulimit -f 500 && exec "$0" "$@"') as board:
        done = pushed(long, board, "--wait", "1")
        assert done.returncode == 2 and "answers 503" in done.stderr and done.stderr.count("\n") == 1, done.stderr
        assert 0 < len(board.lines("long", "metrics")) < 3999
        result = Run.create(resolve("tiny", flags={"backend": "cpu_ref", "report": board.url}), run).train(display)
        assert result.finished
        assert "answers 503" in said[0] and f"helios-report push {run} --to {board.url}" in said[1]
        board.kill()
        board.command = ()
        board.start()
        for path in (long, run):
            assert pushed(path, board).returncode == 0
            assert_holds(board, read_config(path)["run_id"], path)
