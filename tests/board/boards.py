"""What the tests of the board share: real boards, in processes of their own, and rows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from helios.train.records.layout import REPLACED

TOKEN = "a token of the tests"
CONFIG = {"run_id": "one", "created": "2026-11-30T04:15:35Z", "chat": True, "parameters": 1000, "train": {"steps": 10},
          "data": {}, "model": {"n_layer": 2, "n_embd": 32, "n_head": 2, "block_size": 16, "activation": "gelu"},
          "device": {"name": "a device"}}


class Board:
    """A board in a process of its own. folder: of --runs."""

    def __init__(self, folder: Path, *args: object, token: str | None = TOKEN) -> None:
        command = [sys.executable, "-m", "helios.cli.board", "--runs", folder, "--port", 0, *args]
        env = {key: value for key, value in os.environ.items() if key != "HELIOS_TOKEN"}
        if token is not None:
            env["HELIOS_TOKEN"] = token
        self.process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True,
                                        stderr=subprocess.PIPE, env=env)
        assert self.process.stdout and self.process.stderr
        self.said = self.process.stdout.readline()
        assert self.said.startswith("board of "), self.process.stderr.read()
        self.url = self.said.split()[-1]
        self.errors: list[str] = []
        self.listener = threading.Thread(target=lambda: self.errors.extend(self.process.stderr or ()))
        self.listener.start()
        self.client = httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {token}"}, timeout=60,
                                   verify=False)  # reading certificates takes long

    def get(self, path: str, **query: object) -> Any:
        answer = self.client.get(f"/api/{path}", params={k: str(v) for k, v in query.items()})
        assert answer.status_code == 200, answer.text
        return json.loads(answer.content)

    def post(self, run_id: str, kind: str, start: int, rows: Sequence[Any]) -> Any:
        return self.ingest({"run_id": run_id, "kind": kind, "from": start, "rows": rows})["next"]

    def run(self, run_id: str, **more: Any) -> Any:
        row = {"config": CONFIG | {"run_id": run_id}, "summary": None, "checkpoints": []} | more
        return self.ingest({"run_id": run_id, "kind": "run", "rows": [row]})["next"]

    def cut(self, run_id: str, step: int) -> Any:
        return self.ingest({"run_id": run_id, "kind": "run", "cut": step})["next"]

    def ingest(self, body: Any) -> Any:
        answer = self.client.post("/api/ingest", content=json.dumps(body).encode())
        assert answer.status_code == 200, answer.text
        return answer.json()

    def rows(self, run_id: str, kind: str = "metrics") -> list[Any]:
        if kind != "metrics":
            return self.get(f"runs/{run_id}/{kind}")["rows"]
        rows, after = [], 0
        while after is not None:
            page = self.get(f"runs/{run_id}/rows", after=after)
            rows, after = rows + page["rows"], page["next"]
        return rows

    def entries(self) -> list[dict[str, Any]]:
        """What the list says of all runs but the historic ones."""
        return [entry for entry in self.get("runs")["runs"] if not entry["historic"]]

    def entry(self, run_id: str) -> dict[str, Any]:
        return self.get(f"runs/{run_id}")["overview"]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it, and return its exit code."""
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            self.process.wait()
            self.listener.join()


@contextmanager
def board(folder: Path, *args: object, token: str | None = TOKEN) -> Iterator[Board]:
    started = Board(folder, *args, token=token)
    try:
        yield started
    finally:
        started.stop()
        assert not any("Traceback" in line for line in started.errors), "".join(started.errors)


def row(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "loss": 10 / step, "val_loss": None, "tokens_per_sec": 100.0 + step} | more


def event(step: int, kind: str, message: str = "", **more: Any) -> dict[str, Any]:
    return {"step": step, "time": "2026-11-30T04:15:35Z", "kind": kind, "message": message} | more


def lines(rows: Sequence[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def until(true: Callable[[], Any], seconds: float = 60) -> Any:
    """Wait until something is true, and return it."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)
    return found


class Stream:
    """A board's stream, and what a page that follows it holds: its rows of each run and kind.

    since: a cursor to go on from; else the stream begins now, and first all that is there is read.
    """

    def __init__(self, of: Board, *runs: str, since: int | None = None, holds: Mirror | None = None) -> None:
        self.of, self.runs = of, runs
        self.events: list[tuple[int, str, Any]] = []
        self.holds = holds if holds is not None else {run: {kind: [] for kind in KINDS} for run in runs}
        headers = {"Last-Event-ID": str(since)} if since is not None else {}
        request = of.client.build_request("GET", f"{of.url}/api/stream", params=[("run", run) for run in runs],
                                          headers=headers, timeout=None)
        self.response = of.client.send(request, stream=True)
        assert self.response.status_code == 200
        self.parts = self._parts()
        if since is None:
            assert self.next()[1] == "hello"
            self.fetch()

    def fetch(self) -> None:
        for run in self.runs:
            for kind in KINDS:
                known = self.of.client.get(f"/api/runs/{run}").status_code == 200
                self.holds[run][kind] = self.of.rows(run, kind) if known else []

    def _parts(self) -> Iterator[tuple[int, str, Any]]:
        found: dict[str, str] = {}
        for line in self.response.iter_lines():
            if not line and "event" in found:
                yield int(found["id"]), found["event"], json.loads(found["data"])
                found = {}
            name, _, value = line.partition(":")
            if name:
                assert name not in found
                found[name] = value.strip()

    def next(self) -> tuple[int, str, Any]:
        id, event, data = next(self.parts)
        assert not self.events or id >= self.events[-1][0]
        self.events.append((id, event, data))
        if event == "reset":
            self.fetch()
        elif event in ("cut", *KINDS):
            follow(self.holds[data["run_id"]], event, data)
        return self.events[-1]

    @property
    def cursor(self) -> int:
        return self.events[-1][0]

    def close(self) -> None:
        self.response.close()


def follow(holds: dict[str, list[Any]], event: str, data: Any) -> None:
    """Do to what a page holds of a run what a message of the stream says."""
    if event == "cut":
        for kind in ("metrics", "events", "samples"):
            holds[kind] = [r for r in holds[kind] if r["step"] <= data["step"]]
    elif event in REPLACED:
        holds[event][data["from"]:] = data["rows"]
    else:
        assert data["from"] <= len(holds[event]), "rows were lost"
        holds[event] += data["rows"][len(holds[event]) - data["from"]:]


KINDS = ("metrics", "events", "samples", *REPLACED)
Mirror = dict[str, dict[str, list[Any]]]
