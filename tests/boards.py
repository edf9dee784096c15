"""A board as a process of its own, which can be killed and started again, and what it holds."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

from helios.train.records.layout import REPLACED
from helios.train.records.push import LOGS
from helios.train.records.rows import lines

TOKEN = "a-token-of-the-tests"


class Board:
    """folder: where its database is. command: put before its own, for limits."""

    def __init__(self, folder: Path, *command: str) -> None:
        self.db, self.command = folder / "board.sqlite", command
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Board:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it and wait until it says that it is ready."""
        self.process = subprocess.Popen(
            [*self.command, sys.executable, "-m", "helios.cli.board", "--runs", str(self.db.parent / "runs"), "--db",
             str(self.db), "--port", str(self.port)],
            stdout=subprocess.PIPE, text=True, env=os.environ | {"HELIOS_TOKEN": TOKEN})
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert str(self.port) in said, said

    def kill(self) -> None:
        """End it at once, as a power cut does."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def lines(self, run_id: str, kind: str) -> list[str]:
        """The texts of a run's rows."""
        with sqlite3.connect(f"file:{self.db}?mode=ro", uri=True) as db:
            return [line for line, in db.execute(f"SELECT line FROM {kind} WHERE run_id = ? ORDER BY n", (run_id,))]


def assert_holds(board: Board, run_id: str, path: Path) -> None:
    """The board has each row of the run directory `path` once, as it is, and no other."""
    for kind, name in (LOGS | REPLACED).items():
        ours = [line.decode().rstrip("\n") for line, _ in lines(path / name)]
        theirs = board.lines(run_id, kind)
        wrong = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if len(set(pair)) > 1), None)
        assert (len(theirs), wrong) == (len(ours), None), f"{kind} of {run_id}"
