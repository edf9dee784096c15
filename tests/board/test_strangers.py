"""What strangers send: any bytes at any address, floods, bombs and paths. A board answers with one line, and lives."""

from __future__ import annotations

import gzip
import hashlib
import json
import signal
import socket
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helios.train.board import guard, serve

from .boards import CONFIG, Board, board, row

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ODD = st.one_of(st.none(), st.booleans(), st.integers(-2, 3), st.integers(), st.floats(), st.text(max_size=8),
                st.sampled_from([2**53, 2**63, 2**64, -2**63, 10**400, "\ud800", "\0", "a,b", "a.b", "run_start",
                                 "'; DROP"]))
JSON = st.recursive(ODD, lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=8)
NAMES = ["step", "loss", "val_loss", "kind", "message", "time", "symbio_phase", "symbio_candidate_id", "tokens_per_sec",
         "config", "summary", "checkpoints", "bytes", "model", "train", "search", "run_id", "chat", "device"]
OBJECT = st.dictionaries(st.sampled_from(NAMES), JSON | st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4),
                         max_size=5)
KINDS = ["run", "metrics", "events", "samples", "candidates", "windows"]
PATHS = ["runs/x", *(f"runs/x/{what}" for what in (
    "series", "rows", "events", "samples", "candidates", "windows", "checkpoints", "files/y", "files/y/parts",
    "files/y/parts/0")), "runs", "health", "ingest", "stream"]


def well(answer: httpx.Response) -> Any:
    """The answer is no error of the board's, is JSON in one line and tells nothing of the inside."""
    assert answer.status_code < 500, (answer.status_code, answer.text)
    assert "Traceback" not in answer.text and ".py" not in answer.text
    if "json" in answer.headers.get("content-type", ""):
        found = json.loads(answer.content)
        if answer.status_code >= 400:
            assert set(found) <= {"error", "next"} and found["error"] and "\n" not in found["error"]
        return found
    return None


@FEW
@given(st.fixed_dictionaries({}, optional={
    "run_id": st.sampled_from(["x", "y"]) | JSON, "kind": st.sampled_from(KINDS) | JSON,
    "from": st.integers(0, 2) | JSON, "cut": st.integers(-1, 3) | JSON,
    "rows": st.lists(OBJECT, max_size=3) | JSON, "more": JSON}) | JSON)
def test_any_post(shared: Board, body: Any) -> None:
    found = well(shared.client.post("/api/ingest", content=json.dumps(body).encode("utf-8", "surrogatepass")))
    assert set(found) in ({"next"}, {"error"}, {"next", "error"})


@FEW
@given(st.sampled_from(KINDS), OBJECT)
def test_any_row(shared: Board, kind: str, value: dict[str, Any]) -> None:
    """Whatever it holds, it is kept, and all answers go on."""
    digest = hashlib.sha256(json.dumps([kind, value]).encode()).hexdigest()
    answer = shared.client.post("/api/ingest", content=json.dumps(
        {"run_id": digest, "kind": kind, "from": 0, "rows": [value]}).encode())
    well(answer)
    if answer.status_code == 200:
        if kind == "metrics":
            found = json.loads(shared.client.get(f"/api/runs/{digest}/rows").content)["rows"]
            assert json.dumps(found) == json.dumps([value])
        else:
            assert kind != "run" or well(shared.client.get(f"/api/runs/{digest}"))
        for path in ("", "/series?keys=loss,step,kind", "/events", "/samples", "/candidates", "/checkpoints"):
            answer = shared.client.get(f"/api/runs/{digest}{path}")
            well(answer)
            json.loads(answer.content, parse_constant=pytest.fail)
    assert well(shared.client.get("/api/runs", params={"q": digest})) is not None


@FEW
@given(st.binary(max_size=200), st.sampled_from(["identity", "gzip", "br", "GZIP", ""]))
def test_any_bytes(shared: Board, body: bytes, encoding: str) -> None:
    post = b'{"run_id": "x", "kind": "run", "rows": [' + body
    two = gzip.compress(b'{"run_id": "x", "kind": "run"}') + gzip.compress(b" ")
    for content in (body, gzip.compress(body), gzip.compress(body)[:-1], two, post):
        answer = shared.client.post("/api/ingest", content=content, headers={"content-encoding": encoding})
        well(answer)
        assert answer.status_code >= 400


@FEW
@given(st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"]),
       st.sampled_from(PATHS) | st.text(max_size=20),
       st.dictionaries(st.sampled_from(["keys", "from", "to", "px", "after", "limit", "size", "sha256", "status", "q"]),
                       st.text(max_size=8) | st.integers().map(str), max_size=4), st.binary(max_size=30))
def test_any_address(shared: Board, method: str, path: str, query: dict[str, str], body: bytes) -> None:
    if path.startswith("stream"):
        query |= {"cursor": "x"}
    shared.run("x")
    address = f"/api/{quote(path, safe='/%', errors='surrogatepass')}"
    with shared.client.stream(method, address, params=query, content=body) as answer:
        if answer.headers.get("content-type", "").startswith("text/event-stream"):
            return
        answer.read()
    if method != "HEAD":
        well(answer)


@pytest.mark.parametrize("name", ["..", ".", ".hidden", "a/b", "%2e%2e", "..%2f..%2fetc%2fpasswd", "a%00b", "a\\b",
                                  "-a", "ü", "a" * 129, "a b", "%0d%0aset-cookie:x", "١"])
def test_names_are_no_paths(shared: Board, name: str) -> None:
    shared.run("x")
    quoted = name if "%" in name else quote(name)
    data, digest = b"x", hashlib.sha256(b"x").hexdigest()
    for method, path in (("GET", f"runs/{quoted}"), ("GET", f"runs/{quoted}/rows"), ("GET", f"runs/x/files/{quoted}"),
                         ("POST", f"runs/x/files/{quoted}"),
                         ("PUT", f"runs/x/files/{quoted}/parts/0?size=1&sha256={digest}"),
                         ("PUT", f"runs/{quoted}/files/f/parts/0?size=1&sha256={digest}"),
                         ("PUT", f"runs/x/files/f/parts/0?size=1&sha256={quoted}")):
        answer = raw(shared, method, f"/api/{path}", data, {"x-sha256": digest})
        assert answer[0] in (400, 404, 405), (method, path, answer)
        assert b"Traceback" not in answer[1] and b"root:" not in answer[1]
    body = {"run_id": name.replace("%2e", ".").replace("%2f", "/"), "kind": "metrics", "from": 0, "rows": [row(1)]}
    assert shared.client.post("/api/ingest", json=body).status_code == 400


def raw(of: Board, method: str, target: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    """Send a request as it is: a client would tidy its path."""
    host, port = of.url.removeprefix("http://").split(":")
    headers = {"Host": "localhost", "Content-Length": str(len(body)), "Connection": "close",
               "Authorization": of.client.headers["authorization"]} | headers
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    with socket.create_connection((host, int(port)), 30) as connection:
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        found = b""
        while part := connection.recv(65536):
            found += part
    return int(found.split()[1]), found


def memory(of: Board) -> int:
    """MiB that the board holds."""
    return next(int(line.split()[1]) // 1024 for line in Path(f"/proc/{of.process.pid}/status").read_text().splitlines()
                if line.startswith("VmHWM"))


def test_bodies_that_are_too_long(tmp_path: Path) -> None:
    with board(tmp_path / "runs") as b:
        b.run("x")
        before = memory(b)
        bomb = zlib.compressobj(9, wbits=31)
        packed = b"".join([*(bomb.compress(bytes(2**20)) for _ in range(1000)), bomb.flush()])
        assert len(packed) < 2**20 * 2
        answer = b.client.post("/api/ingest", content=packed, headers={"content-encoding": "gzip"})
        assert answer.status_code == 413 and "error" in answer.json()
        nested = gzip.compress(b"[" * 8_000_000)
        assert b.client.post("/api/ingest", content=nested, headers={"content-encoding": "gzip"}).status_code == 400
        for depth in (*range(150, 1100, 30), 10**6):
            for end in (b"1", b"NaN"):
                value = b'{"a": [' * (depth // 2) + end + b"]}" * (depth // 2)
                run = b"x%d%s" % (depth, end)
                body = b'{"run_id": "' + run + b'", "kind": "%s", "from": 0, "rows": [{"config": ' + value + b"}]}"
                for kind in (b"metrics", b"run", b"candidates"):
                    status = b.client.post("/api/ingest", content=body.replace(b"%s", kind)).status_code
                    assert status == (200 if depth < 190 else 400), depth
                if depth < 1000:
                    for path in ("", "/candidates", "/rows", "/series?keys=a"):
                        well(b.client.get(f"/api/runs/{run.decode()}{path}"))

        def endless(size: int) -> Any:
            for _ in range(size):
                yield bytes(2**20)

        for path in ("/api/ingest", "/api/runs/x/files/y", f"/api/runs/x/files/y/parts/0?size=1&sha256={'0' * 64}"):
            method = "PUT" if "parts" in path else "POST"
            with suppress(httpx.TransportError):  # it is not read to its end, which a client may notice first
                assert b.client.request(method, path, content=endless(100)).status_code == 413
            assert raw(b, method, path, b"", {"Content-Length": str(10**8)})[0] == 413
        assert b.get("health")["ok"]
        assert memory(b) < before + 100


def test_slow_and_idle_connections_hinder_nobody(shared: Board) -> None:
    host, port = shared.url.removeprefix("http://").split(":")
    beginnings = (b"", b"G", b"GET /api/runs HTTP/1.1\r\nHost: localhost\r\n",
                  b"POST /api/ingest HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\nAuthorization: "
                  + shared.client.headers["authorization"].encode() + b"\r\n\r\n{",
                  b"GET /api/stream?run=x HTTP/1.1\r\nHost: localhost\r\n\r\n")
    slow = [socket.create_connection((host, int(port)), 30) for _ in range(200)]
    for i, connection in enumerate(slow):
        connection.sendall(beginnings[i % len(beginnings)])
    began = time.monotonic()
    for i in range(20):
        assert shared.post("busy", "metrics", i, [row(i + 1)]) == i + 1
        assert shared.get("runs/busy")["rows"]["metrics"] == i + 1
    assert time.monotonic() - began < 20
    for connection in slow:
        connection.close()


def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, since 30 s are too long for a test."""
    monkeypatch.setattr(guard, "PATIENCE", 0.5)
    said: list[str] = []
    found: list[bytes] = []

    def knock() -> None:
        while not said:
            time.sleep(0.01)
        host, port = said[0].split()[-1].removeprefix("http://").split(":")
        post = b"POST /api/ingest HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer t\r\nContent-Length: 9\r\n\r\n{"
        for text in (post, b"GET / HTT", b""):
            with socket.create_connection((host, int(port)), 30) as connection:
                connection.sendall(text)
                answer = b""
                while part := connection.recv(65536):  # until the board ends it
                    answer += part
                found.append(answer)
        signal.raise_signal(signal.SIGTERM)

    thread = threading.Thread(target=knock)
    thread.start()
    serve.serve(tmp_path / "runs", tmp_path / "db", "127.0.0.1", 0, "t", said.append)
    thread.join()
    assert found[0].startswith(b"HTTP/1.1 408 ") and found[1:] == [b"", b""]


def test_scripts_stay_text(shared: Board) -> None:
    script = "<script>alert(1)</script>"
    shared.run("script", config=CONFIG | {"run_id": script, "device": {"name": script}})
    shared.post("script", "samples", 0, [{"step": 1, "text": script}])
    for path in ("/api/runs", "/api/runs/script", "/api/runs/script/samples", f"/api/runs/{quote(script)}"):
        answer = shared.client.get(path)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert shared.entry("script")["run_id"] == "script"
    data = b"<html><script>alert(1)</script>"
    about = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    path = "/api/runs/script/files/x.html"
    shared.client.put(f"{path}/parts/0", params=about, content=data, headers={"x-sha256": str(about["sha256"])})
    assert shared.client.post(path, json=about).status_code == 200
    headers = shared.client.get(path).headers
    assert headers["content-type"] == "application/octet-stream" and headers["x-content-type-options"] == "nosniff"
    assert headers["content-disposition"] == 'attachment; filename="x.html"'


def test_many_at_once(shared: Board) -> None:
    def work(i: int) -> None:
        with httpx.Client(base_url=shared.url, headers=shared.client.headers, timeout=60, verify=False) as client:
            for n in range(5):
                body = {"run_id": f"at_once_{i % 3}", "kind": "metrics", "from": n, "rows": [row(n + 1)]}
                assert client.post("/api/ingest", json=body).status_code in (200, 409)
                assert client.get("/api/runs").status_code == 200

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    for i in range(3):
        assert shared.rows(f"at_once_{i}") == [row(n + 1) for n in range(5)]
