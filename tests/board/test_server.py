"""A board as its users meet it: in a process of its own, over HTTP, from its start to its end."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import signal
import socket
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import httpx
import pytest

import helios
from helios.cli.board import main
from helios.train.board import ingest, serve
from helios.train.board.store import Store
from helios.train.board.uploads import Uploads

from ..commands import invoke, refused
from .boards import CONFIG, Board, Stream, board, event, row, until


def test_what_a_page_asks_for(shared: Board) -> None:
    assert shared.get("health") == {"ok": True, "version": helios.__version__}
    about = {"config": CONFIG | {"run_id": "page"}, "summary": {"winner": "c1"},
             "checkpoints": [{"step": 20, "val_loss": 1.5, "bytes": 7}]}
    zero = {"metrics": 0, "events": 0, "samples": 0, "candidates": 0, "windows": 0}
    assert shared.ingest({"run_id": "page", "kind": "run", "rows": [{"config": None}, about]})["next"] == zero
    rows = [row(i + 1, nested={"a.b": i, "flag": i > 3}, name=f"n{i}") for i in range(50)]
    assert shared.post("page", "metrics", 0, rows) == 50
    assert shared.post("page", "events", 0, [event(0, "run_start"), event(50, "run_complete")]) == 2
    assert shared.post("page", "samples", 0, [{"step": 3, "text": "<script>alert(1)</script> ü"}]) == 1
    assert shared.post("page", "candidates", 0, [{"id": "c1"}]) == 1

    found = shared.get("runs/page")
    assert found["rows"] == {"metrics": 50, "events": 2, "samples": 1, "candidates": 1, "windows": 0, "checkpoints": 1}
    assert found["keys"] == ["loss", "nested.a.b", "nested.flag", "step", "tokens_per_sec"]
    assert found["config"] == about["config"] and found["summary"] == about["summary"]
    assert found["overview"] in shared.get("runs")["runs"]
    assert found["overview"]["status"] == "completed" and found["overview"]["step"] == 50
    assert shared.get("runs", status="completed", q="page")["runs"] == [found["overview"]]
    assert shared.get("runs", status="failed")["runs"] == shared.get("runs", q="no such")["runs"] == []
    assert shared.get("runs", q="best_val_loss")["runs"] == []  # which is a key of an entry, and no value
    series = shared.get("runs/page/series", keys="nested.flag,loss,name", px=2, **{"from": 2, "to": 11})["series"]
    assert series["nested.flag"] == {"step": [2, 7], "first": [0, 1], "min": [0, 1], "max": [1, 1], "last": [1, 1],
                                     "missing": [0, 0]}
    assert series["name"]["step"] == [] and series["loss"]["max"] == [5, 10 / 7]
    page = shared.get("runs/page/rows", limit=20, **{"from": 10, "to": 40})
    assert page["rows"] == rows[9:29]
    page = shared.get("runs/page/rows", limit=20, after=page["next"], **{"from": 10, "to": 40})
    assert page == {"rows": rows[29:40], "next": None}
    assert shared.get("runs/page/samples")["rows"][0]["text"] == "<script>alert(1)</script> ü"
    assert shared.get("runs/page/checkpoints")["rows"] == [about["checkpoints"][0] | {"files": []}]


def test_rows_survive_as_they_are(shared: Board) -> None:
    raw = ('{"step": 1, "loss": NaN, "inf": -Infinity, "huge": 123456789012345678901234567890, "tiny": 1e-320, '
           '"long": 0.1000000000000000055511151231257827, "half": "\\ud800", "more": {"any": [1, {"thing": null}]}}')
    body = f'{{"run_id": "odd", "kind": "metrics", "from": 0, "rows": [{raw}]}}'
    assert shared.client.post("/api/ingest", content=body.encode()).json() == {"next": 1}
    clean = raw.replace("NaN", "2.5").replace("-Infinity", "null").replace('"\\ud800"', '"ü"')
    body = f'{{"run_id": "odd", "kind": "metrics", "from": 1, "rows": [{clean}]}}'
    assert shared.client.post("/api/ingest", content=body.encode()).json() == {"next": 2}
    answer = shared.client.get("/api/runs/odd/rows")
    found = json.loads(answer.content)["rows"]
    assert math.isnan(found[0].pop("loss")) and found[0].pop("inf") == -math.inf
    assert found[0] == {k: v for k, v in json.loads(raw).items() if k not in ("loss", "inf")}
    assert clean in answer.text  # to the last digit
    found = shared.client.get("/api/runs/odd/series?keys=loss,inf,huge").text
    assert json.loads(found, parse_constant=pytest.fail)["series"]["loss"]["first"] == [None, 2.5]
    stream = Stream(shared, "odd")
    shared.post("odd", "events", 0, [event(1, "odd", number=math.nan)])
    while stream.next()[1] != "events":
        pass
    assert stream.events[-1][2]["rows"][0]["number"] is None
    stream.close()


def test_gaps_repeats_and_cuts(shared: Board) -> None:
    rows = [row(i + 1) for i in range(20)]
    answer = shared.client.post("/api/ingest", json={"run_id": "gap", "kind": "metrics", "from": 3, "rows": rows})
    assert answer.status_code == 409 and answer.json()["next"] == 0
    assert shared.client.get("/api/runs/gap").status_code == 404
    assert shared.post("gap", "metrics", 0, rows[:10]) == 10
    packed = gzip.compress(json.dumps({"run_id": "gap", "kind": "metrics", "from": 5, "rows": rows[5:]}).encode())
    answer = shared.client.post("/api/ingest", content=packed, headers={"content-encoding": "gzip"})
    assert answer.json() == {"next": 20}
    assert shared.post("gap", "metrics", 2, rows[2:4]) == 4
    assert shared.rows("gap") == rows
    assert shared.cut("gap", 12) == {"metrics": 12, "events": 0, "samples": 0, "candidates": 0, "windows": 0}
    assert shared.cut("gap", 12)["metrics"] == 12
    assert shared.rows("gap") == rows[:12] and shared.entry("gap")["step"] == 12


def test_a_late_post_revives_nothing(shared: Board) -> None:
    shared.run("late")
    shared.post("late", "events", 0, [event(0, "run_start"), event(5, "failed", "it broke")])
    shared.post("late", "metrics", 0, [row(1)])
    shared.run("late")
    assert (shared.entry("late")["status"], shared.entry("late")["reason"]) == ("failed", "it broke")
    shared.post("late", "events", 2, [event(5, "resumed")])
    assert shared.entry("late")["status"] == "active"


def test_a_file_in_parts(shared: Board) -> None:
    shared.run("sent")
    data = bytes(range(251)) * 10_000
    whole, parts = hashlib.sha256(data).hexdigest(), [data[i:i + 2**20] for i in range(0, len(data), 2**20)]
    path, query = "/api/runs/sent/files/step-000005.safetensors", {"size": len(data), "sha256": whole}
    about = query | {"step": 5}

    def put(i: int, part: bytes, digest: str = "") -> httpx.Response:
        return shared.client.put(f"{path}/parts/{i}", params=query, content=part,
                                 headers={"x-sha256": digest or hashlib.sha256(part).hexdigest()})

    assert put(2, parts[2]).json() == {"have": [2]}
    assert put(2, parts[2]).json() == {"have": [2]}
    assert put(0, parts[0], "0" * 64).status_code == 400
    assert put(0, parts[0]).json() == {"have": [0, 2]}
    assert shared.client.post(path, json=about).status_code == 409
    assert shared.client.get(path).status_code == 404
    assert put(1, parts[0]).status_code == 200  # not the one that was to be sent
    assert shared.client.post(path, json=about).status_code == 409
    assert shared.client.get(f"{path}/parts", params=query).json() == {"have": []}
    for i, part in enumerate(parts):
        put(i, part)
    assert put(1, b"x" * (2**20 + 1)).status_code == 413 and put(9, b"x").status_code == 400
    assert shared.client.get(f"{path}/parts", params=query).json() == {"have": [0, 1, 2]}
    assert shared.client.post(path, json=about).status_code == 200
    assert shared.client.post(path, json=about).status_code == 200
    assert shared.get("runs/sent/checkpoints")["rows"] == [{"step": 5, "val_loss": None, "bytes": len(data), "files": [
        {"name": "step-000005.safetensors", "bytes": len(data), "sha256": whole, "href": path}]}]
    answer = shared.client.get(path)
    assert answer.content == data and answer.headers["content-disposition"].startswith("attachment")
    assert shared.client.get(path, headers={"range": "bytes=5-9"}).content == data[5:10]
    assert shared.client.post(path.replace("sent", "unknown"), json=about).status_code == 404
    # Another content under the same name replaces it.
    other = {"size": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    shared.client.put(f"{path}/parts/0", params=other, content=b"x", headers={"x-sha256": other["sha256"]})
    assert shared.client.post(path, json=other).status_code == 200 and shared.client.get(path).content == b"x"


def test_what_is_never_finished_goes(store: Store, tmp_path: Path) -> None:
    uploads, digest = Uploads(store), lambda data: hashlib.sha256(data).hexdigest()
    store.write(lambda db: ingest.about(db, "r", CONFIG, None, [], 1.0))
    for data, name in ((b"kept", "a"), (b"replaced", "b"), (b"new", "b"), (b"left", ""), (b"begun", "")):
        uploads.put(0, data, digest(data), len(data), digest(data))
        if name:
            uploads.finish("r", name, len(data), digest(data), None)
        if data != b"begun":
            for path in uploads.folder.glob(f"{digest(data)}*"):
                os.utime(path, (0, 0))
    uploads.tidy()
    assert {path.name for path in uploads.folder.iterdir()} == {
        digest(b"kept"), digest(b"new"), f"{digest(b'begun')}-5.parts"}


def test_the_page_and_its_headers(shared: Board) -> None:
    answer = shared.client.get("/")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    for path in ("/", "/api/runs", "/nothing", "/api/nothing", "/api/runs/nothing"):
        headers = shared.client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert ("no-store" in headers["cache-control"]) == path.startswith("/api")
    for path in ("/nothing", "/api", "/api/nothing", "/index.html/x", "/%2e%2e/server.py", "/..%2fserver.py", "/%00"):
        answer = shared.client.get(path)
        assert answer.status_code == 404 and list(answer.json()) == ["error"], path
    assert shared.client.post("/").status_code == shared.client.delete("/api/runs/x").status_code == 405


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_an_end(tmp_path: Path, number: int, code: int) -> None:
    b = Board(tmp_path / "runs")
    b.post("r", "metrics", 0, [row(1)])
    stream = Stream(b, "r")
    began = time.monotonic()
    assert b.stop(number) == code and time.monotonic() - began < 20
    stream.close()
    assert "".join(b.errors) == ("interrupted\n" if code else "")
    with board(tmp_path / "runs") as again:
        assert again.said.startswith("board of 1 run at http://127.0.0.1:") and again.rows("r") == [row(1)]


def test_who_may_read_and_write(tmp_path: Path) -> None:
    client, token = httpx.Client(verify=False), tmp_path / "token"
    token.write_text("secret of a file\n")
    with board(tmp_path / "runs", token=None) as b:
        answer = b.client.post("/api/ingest", json={})
        assert answer.status_code == 403 and "token" in answer.json()["error"]
    with board(tmp_path / "runs", "--token-file", token) as b:
        given = [("", 401), ("Bearer", 401), ("Bearer a token of the tests", 401), ("bearer secret of a file", 401),
                 ("Bearer secret of a file", 400), ("Bearer sécret", 401)]
        for value, status in given:
            answer = client.post(f"{b.url}/api/ingest", json={}, headers={"authorization": value.encode()})
            assert answer.status_code == status, value
        assert client.get(f"{b.url}/api/runs").status_code == 200
        for host, status in (("localhost", 200), ("LOCALHOST:1", 200), ("127.0.0.1:99", 200), ("[::1]:8", 200),
                             ("a.example", 400), ("127.0.0.1.a.example", 400), ("", 400), ("localhost.", 400)):
            assert client.get(f"{b.url}/api/runs", headers={"host": host}).status_code == status, host
    with board(tmp_path / "runs", "--host", "0.0.0.0") as b:
        url = b.url.replace("0.0.0.0", "127.0.0.1")
        for path in ("health", "runs", "runs/x", "stream", "runs/x/series?keys=a", "runs/x/files/y"):
            assert client.get(f"{url}/api/{path}").status_code == 401
        assert client.get(f"{url}/").status_code == 200
        assert client.get(f"{url}/api/runs", headers={**b.client.headers, "host": "a.example"}).status_code == 200


def test_what_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HELIOS_TOKEN", raising=False)
    runs = tmp_path / "runs"
    start = lambda *args: invoke(main, "--runs", runs, "--port", 0, *args)
    refused(start("--host", "0.0.0.0"), "needs a token", "HELIOS_TOKEN")
    refused(start("--host", "no.such.host.example"), "cannot listen")
    refused(start("--token-file", tmp_path / "none"), "none")
    (tmp_path / "empty").write_text("\n")
    refused(start("--token-file", tmp_path / "empty"), "is empty")
    for wrong in (b"\xff\xfe\x00", "töken".encode(), b"two\nlines"):
        (tmp_path / "wrong").write_bytes(wrong)
        refused(start("--token-file", tmp_path / "wrong"), "no token has")
    (tmp_path / "db").write_text("a text, and no database at all" * 10)
    refused(start("--db", tmp_path / "db"), "give another --db")
    refused(start("--db", tmp_path / "empty" / "db"), "give another --db")
    (tmp_path / "file").write_text("")
    refused(invoke(main, "--runs", tmp_path / "file", "--port", 0), "file")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused(invoke(main, "--runs", runs, "--port", taken.getsockname()[1]), "in use", "--port")
    with serve._listen("127.0.0.1", 0, None)[0] as taken:  # also by a board that has only begun to start
        refused(invoke(main, "--runs", runs, "--port", taken.getsockname()[1]), "in use", "--port")
    with board(runs):
        refused(start(), "in use by another board")
    with closing(sqlite3.connect(runs / "board.sqlite")) as db:
        page = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'runs'").fetchone()[0]
    with open(runs / "board.sqlite", "r+b") as file:
        file.seek(8192 * (page - 1))
        file.write(bytes(8192))
    refused(start(), "cannot use", "malformed", "give another --db")


def test_news_end_a_silence(shared: Board) -> None:
    """A post that says nothing new still says that the run lives."""
    shared.run("alive")
    first = shared.entry("alive")["updated"]
    until(lambda: (shared.run("alive"), shared.entry("alive")["updated"] != first)[1])
