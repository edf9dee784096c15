"""Sending a file to a board that is a process of its own, and that dies on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helios.errors import UserError
from helios.train import export
from helios.train.export import PART
from helios.train.records.client import Client

from ..boards import TOKEN, Board

pytest.importorskip("uvicorn", reason="the board's packages are not installed (an extra)")
ABOUT = {"run_id": "a_run", "model": {}, "train": {"steps": 9}, "data": {}}


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    with Board(tmp_path) as found:
        yield found


class Watched(Client):
    """Keeps which requests the board has answered."""

    def __init__(self, url: str, token: str = TOKEN) -> None:
        super().__init__(url, token)
        self.answered: list[tuple[str, str]] = []

    def request(self, method: str, path: str, *args: Any, **more: Any) -> Any:
        answer = super().request(method, path, *args, **more)
        self.answered.append((method, path.rpartition("/")[2]))
        return answer

    def parts(self) -> list[str]:
        return [name for method, name in self.answered if method == "PUT"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of three and a half parts."""
    path = tmp_path / "model.helios"
    path.write_bytes(os.urandom(3 * PART + PART // 2))
    return path


def served(client: Client, path: Path, step: int) -> None:
    """The board lists the file and serves its bytes."""
    (row,) = client.get("/api/runs/a_run/checkpoints")["rows"]
    (listed,) = row["files"]
    assert row["step"] == step and listed["name"] == path.name and listed["bytes"] == path.stat().st_size
    got = client.pool.request("GET", client.url + listed["href"], headers=client.headers)
    assert got.status == 200 and got.data == path.read_bytes()


def test_a_board_that_dies_and_comes_back(board: Board, file: Path) -> None:
    client, told, starting = Watched(board.url), [], threading.Thread(target=board.start)

    def progress(size: int) -> None:
        told.append(size)
        if len(told) == 2:
            board.kill()
            starting.start()

    try:
        export.upload(client, file, ABOUT, 7, progress)
    finally:
        starting.join()
    assert sum(told) == file.stat().st_size and client.parts() == ["0", "1", "2", "3"]
    served(client, file, 7)
    export.upload(client, file, ABOUT, 7)  # once more changes nothing
    served(client, file, 7)


def test_an_upload_goes_on_where_another_ended(board: Board, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "PATIENCE", 0.0)
    told: list[int] = []

    def dying(size: int) -> None:
        told.append(size)
        if len(told) == 2:
            board.kill()

    with pytest.raises(UserError, match=r"does not answer: .*; the same command goes on where this one ended"):
        export.upload(Watched(board.url), file, ABOUT, 7, dying)
    board.start()
    client = Watched(board.url)
    export.upload(client, file, ABOUT, 7)
    assert client.parts() == ["2", "3"]
    served(client, file, 7)


def test_a_run_that_the_board_knows_stays_as_it_is(board: Board, file: Path) -> None:
    client = Watched(board.url)
    summary = {"winner": "gelu"}
    client.post("/api/ingest", {"run_id": "a_run", "kind": "run", "rows": [
        {"config": ABOUT, "summary": summary, "checkpoints": []}]})
    export.upload(client, file, ABOUT | {"model": {"other": 1}}, 7)
    found = client.get("/api/runs/a_run")
    assert found["summary"] == summary and found["config"]["model"] == {}
    with pytest.raises(UserError, match=r"answers 401: .*; set HELIOS_TOKEN to its token"):
        export.upload(Client(board.url, "another"), file, ABOUT, 7)


def test_the_command_sends_what_it_wrote(board: Board, tmp_path: Path) -> None:
    environment = os.environ | {"HELIOS_TOKEN": TOKEN}

    def helios(command: str, *args: object) -> str:
        result = subprocess.run([sys.executable, "-m", f"helios.cli.{command}", *map(str, args)], env=environment,
                                capture_output=True, text=True, check=True)
        return result.stdout

    helios("train", "--preset", "tiny", "--backend", "cpu_ref", "--steps", "2", "--run-dir", tmp_path / "run")
    out = tmp_path / "tiny.zst"
    said = helios("export", tmp_path / "run", "--out", out, "--zstd", "--upload", board.url)
    run_id = json.loads((tmp_path / "run" / "config.json").read_text())["run_id"]
    address = f"{board.url}/api/runs/{run_id}/files/tiny.zst"
    client = Client(board.url, TOKEN)
    assert said.splitlines()[-1] == address
    assert client.pool.request("GET", address, headers=client.headers).data == out.read_bytes()
    assert client.get(f"/api/runs/{run_id}")["overview"]["parameters"] == 44_608
