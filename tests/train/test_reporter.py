"""What a board holds of a run is what the run's files hold, whatever became of either in the meantime."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from helios.cli.report import main as report
from helios.errors import UserError
from helios.files import write_atomic
from helios.train.config import resolve
from helios.train.export import upload
from helios.train.plans import planned
from helios.train.progress import Display
from helios.train.records import log as logs
from helios.train.records import push as pushing
from helios.train.records.client import Client, is_address, waits
from helios.train.records.layout import EVENTS, METRICS, REPORT, SAMPLES
from helios.train.records.log import Log
from helios.train.records.push import Push
from helios.train.records.reporter import push
from helios.train.records.rows import lines
from helios.train.run import Run

from ..boards import TOKEN, Board, assert_holds
from ..commands import invoke, refused


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    with Board(tmp_path_factory.mktemp("board")) as board:
        yield board


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELIOS_TOKEN", TOKEN)


@pytest.fixture
def made(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A run directory of 40 steps, named as the test is."""
    return write(tmp_path, request.node.name.partition("[")[0], 40)


def write(path: Path, run_id: str, steps: int, seed: int = 0) -> Path:
    draw = random.Random(seed)
    (path / "search").mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"run_id": run_id, "model": {}, "train": {"steps": 99}, "data": {}}))
    put(path / METRICS, [{"step": i, "loss": draw.random()} for i in range(1, steps + 1)])
    put(path / EVENTS, [{"step": i, "kind": "checkpoint", "message": str(draw.random())} for i in range(0, steps, 5)])
    put(path / SAMPLES, [{"step": i, "text": "<b>é</b>\u2028"} for i in range(10, steps, 10)])
    put(path / "search" / "candidates.jsonl", [{"id": f"c{i}", "status": None} for i in range(4)])
    put(path / "search" / "windows.jsonl", [{"window": i, "losses": [draw.random(), None]} for i in (1, 2)])
    return path


def put(path: Path, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomic(path, lambda file: file.write(text.encode()))


def add(path: Path, *texts: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(f"{text}\n" for text in texts)


def send(path: Path, board: Board) -> int:
    """Push the run, and see that the board holds it."""
    said: list[str] = []
    sent = push(path, board.url, 10, said.append, lambda *_: None)
    assert not said
    assert_holds(board, json.loads((path / "config.json").read_text())["run_id"], path)
    return sent


def test_it_is_sent_once(made: Path, board: Board) -> None:
    assert send(made, board) == 40 + 8 + 3 + 4 + 2
    noted = json.loads((made / REPORT).read_text())[board.url]
    assert noted["metrics"] == {"rows": 40, "bytes": (made / METRICS).stat().st_size}
    assert send(made, board) == 0
    with open(made / METRICS, "a") as file:
        file.write('{"step": 41}\n{"step": 42')  # whose end is still to come
    assert send(made, board) == 1


@pytest.mark.parametrize("noted", [None, "{", "[1]", '{"URL": 3}', '{"URL": {"metrics": {"rows": 7, "bytes": 9}}}',
                                   '{"URL": {"metrics": {"rows": 39, "bytes": 99999999}, "events": 3}}', "SHIFTED"])
def test_what_was_noted_may_be_wrong(made: Path, board: Board, noted: str | None) -> None:
    send(made, board)
    if noted is None:
        os.unlink(made / REPORT)
    elif noted == "SHIFTED":
        about = json.loads((made / REPORT).read_text())
        about[board.url]["metrics"]["rows"] = 33
        (made / REPORT).write_text(json.dumps(about))
    else:
        (made / REPORT).write_text(noted.replace("URL", board.url))
    add(made / METRICS, '{"step": 41}')
    add(made / EVENTS, '{"step": 41}')
    assert send(made, board) == 2


@pytest.mark.parametrize("keep", [0, 17])
def test_rows_that_are_no_longer_in_the_files_go(made: Path, board: Board, keep: int) -> None:
    """As after --resume, with which a run goes on from a checkpoint."""
    send(made, board)
    for name in (METRICS, EVENTS, SAMPLES):
        rows = [row for _, row in lines(made / name) if row["step"] <= keep]
        put(made / name, rows + [{"step": i, "loss": -i} for i in range(keep + 1, 30)])
    put(made / "search" / "candidates.jsonl", [{"id": "c0", "status": None}, {"id": "c1", "status": "complete"}])
    put(made / "search" / "windows.jsonl", [])
    send(made, board)


def test_a_directory_that_is_being_removed_takes_nothing_from_the_board(made: Path, board: Board) -> None:
    send(made, board)
    (made / METRICS).unlink()
    (made / "search" / "candidates.jsonl").unlink()
    with pytest.raises(UserError, match=r"metrics.jsonl is gone; put it back"):
        send(made, board)
    run_id = json.loads((made / "config.json").read_text())["run_id"]
    assert [len(board.lines(run_id, kind)) for kind in ("metrics", "candidates")] == [40, 4]


@pytest.mark.parametrize("kind", ["candidates", "windows"])
def test_of_a_file_that_is_not_there_the_board_keeps_what_it_has(made: Path, board: Board, kind: str) -> None:
    send(made, board)
    run_id = json.loads((made / "config.json").read_text())["run_id"]
    before = board.lines(run_id, kind)
    (made / "search" / f"{kind}.jsonl").unlink()
    assert push(made, board.url, 10, print, lambda *_: None) == 0 and board.lines(run_id, kind) == before != []
    put(made / "search" / f"{kind}.jsonl", [{"id": "c9"}])
    assert send(made, board) == 1


def test_another_run_of_the_same_id_takes_its_place(made: Path, board: Board) -> None:
    send(made, board)
    write(made, "test_another_run_of_the_same_id_takes_its_place", 25, seed=1)
    send(made, board)


def test_the_board_may_have_lost_what_it_had(made: Path, tmp_path: Path) -> None:
    with Board(tmp_path) as board:
        send(made, board)
        board.kill()
        with sqlite3.connect(board.db) as db:  # as an older copy of the database
            db.execute("DELETE FROM metrics_lines WHERE n >= 11")
            db.execute("DELETE FROM events_lines")
        board.start()
        assert send(made, board) == 29 + 8
        board.kill()
        for path in tmp_path.glob("board.sqlite*"):
            path.unlink()
        board.start()
        assert send(made, board) == 57


def test_a_late_post_of_rows_that_are_no_longer_there(made: Path, board: Board) -> None:
    """As of a training that was killed with a post on its way, and goes on in another process."""
    client, run_id = Client(board.url), json.loads((made / "config.json").read_text())["run_id"]
    sender = Push(made, client, print)
    while sender.round():
        pass
    client.post("/api/ingest", {"run_id": run_id, "kind": "metrics", "from": 40, "rows": [{"step": 41}, {"step": 42}]})
    add(made / METRICS, *(f'{{"step": {i}, "loss": 1}}' for i in range(41, 50)))
    while sender.round():
        pass
    assert_holds(board, run_id, made)


def test_the_board_hears_that_a_run_without_news_lives(
        made: Path, board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    sender = Push(made, Client(board.url), print)
    while sender.round():
        pass
    posted = sender.posted
    assert not sender.round() and sender.posted == posted
    monkeypatch.setattr(pushing, "ALIVE", 0)
    assert not sender.round() and sender.posted > posted


def test_values_survive(made: Path, board: Board) -> None:
    rows = ['{"step": 41, "loss": NaN, "lr": Infinity, "x": -Infinity}', '{"step": 42, "loss": null, "y": {"a": [1]}}',
            f'{{"step": 43, "tokens": {10**400}, "f": 1e-320, "g": 0.1000000000000000055511151231257827, "h": -0.0}}',
            '{"step": 44, "half": "\\ud800", "text": "\\u0000</script>\\n", "loss": 1E5}',
            '{ "step":45 , "a" : "é  ü" }']
    for name in (METRICS, EVENTS, SAMPLES):
        add(made / name, *rows)
    send(made, board)
    assert send(made, board) == 0


def test_many_rows_and_long_ones(made: Path, board: Board) -> None:
    add(made / METRICS, *(f'{{"step": {i}, "x": {i}}}' for i in range(41, 1700)))
    add(made / EVENTS, *(json.dumps({"step": i, "message": "m" * 3_000_000}) for i in range(41, 44)))
    assert send(made, board) == 57 + 1659 + 3
    add(made / EVENTS, json.dumps({"step": 50, "kind": "long", "message": "m" * 9_000_000}), '{"step": 51}', "{damaged")
    said: list[str] = []
    for more in (2, 0):
        assert push(made, board.url, 10, said.append, lambda *_: None) == more
    *_, long, last = board.lines(made_id := "test_many_rows_and_long_ones", "events")
    assert json.loads(long) == {"step": 50, "kind": "long", "left_out": "a row of 9,000,043 bytes"}
    assert (json.loads(last), len(board.lines(made_id, "metrics"))) == ({"step": 51}, 1699)
    assert sorted(said) == sorted(2 * [
        f"warning: {made / EVENTS}: 1 line is too long to be sent, and only named",
        f"warning: {made / EVENTS}: 1 line is damaged, and not sent"])


def test_a_growing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "CHUNK", 16)
    path = tmp_path / "rows.jsonl"
    log = Log(path, int)
    assert (log.look(), log.count) == (False, 0)
    with open(path, "wb") as file:
        for part in (b'{"a": 1}\n{"b"', b': "' + 100 * b"x" + b'"}\n', b"3\n\n{}\n"):
            file.write(part)
            file.flush()
            assert not log.look()
        assert (log.count, log.damaged) == (3, 2)
        assert log.lines(0) == [b'{"a": 1}', b'{"b": "' + 100 * b"x" + b'"}', b"{}"]
        assert log.lines(1, 1) == [b'{"b": "' + 100 * b"x" + b'"}']
        file.truncate(9)
    assert (log.look(), log.count) == (True, 1)
    write_atomic(path, lambda file: file.write(b'{"c": 1}\n{"d": 1}\n'))
    assert (log.look(), log.lines(0)) == (True, [b'{"c": 1}', b'{"d": 1}'])


def train(path: Path, board: Board, **settings: Any) -> list[str]:
    """Train a tiny run, and return the warnings."""
    said: list[str] = []
    display = Display(quiet=True)
    display.warn = said.append  # type: ignore[method-assign]
    config = resolve("tiny", flags={"backend": "cpu_ref", "report": board.url} | settings)
    Run.create(config, path, plan=planned).train(display)
    return said


def test_a_training_reports(tmp_path: Path, board: Board) -> None:
    assert train(tmp_path / "run", board) == []
    run_id = json.loads((tmp_path / "run" / "config.json").read_text())["run_id"]
    assert_holds(board, run_id, tmp_path / "run")
    about = Client(board.url).get(f"/api/runs/{run_id}")
    assert (about["overview"]["status"], about["overview"]["step"], about["config"]["run_id"]) == (
        "completed", 12, run_id)
    assert [c["step"] for c in Client(board.url).get(f"/api/runs/{run_id}/checkpoints")["rows"]] == [6, 12]


def test_a_search_reports(tmp_path: Path, board: Board) -> None:
    path = tmp_path / "run"
    assert train(path, board, mode="ffn-activation", activation_pool="gelu,relu", population_size=2, generations=1,
                 replicates=1, steps_per_candidate=4, steps=4) == []
    run_id = json.loads((path / "config.json").read_text())["run_id"]
    assert len(board.lines(run_id, "candidates")) == 2
    assert_holds(board, run_id, path)
    about = Client(board.url).get(f"/api/runs/{run_id}")
    assert about["summary"] == json.loads((path / "search" / "summary.json").read_text())
    assert about["config"]["symbio_winner"] == about["overview"]["symbio_winner"] is not None


def test_a_training_goes_on_without_a_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from helios.train.records import reporter

    monkeypatch.setattr(reporter, "LAST", 0.5)
    board, path = Board(tmp_path), tmp_path / "run"
    first, last = train(path, board)
    assert first == (f"warning: not reported for now: {board.url} does not answer: Connection refused; the training "
                     "goes on, and this is tried again")
    assert last.startswith("warning: at least ")
    assert last.endswith(f" rows are still to be sent to {board.url}: helios-report push {path} --to {board.url}")
    with board:
        assert send(path, board) > 12
        monkeypatch.setenv("HELIOS_TOKEN", "another")
        first, last = train(tmp_path / "other", board)
        assert f"{board.url} answers 401: " in first and "helios-report push" in last


def test_what_is_refused_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("localhost:3000", "ftp://host", "http://name:password@host", "http://host?a=b", "https://"):
        assert not is_address(url)
        with pytest.raises(UserError, match=r"^--report: expected an address with http:// or https://"):
            resolve("tiny", flags={"report": url})
    monkeypatch.delenv("HELIOS_TOKEN")
    run = Run.create(resolve("tiny", flags={"report": "http://host"}), tmp_path / "run")
    for start in (run.train, run.preview):
        with pytest.raises(UserError, match=r"^HELIOS_TOKEN is not set; set it to the token of the board at http://h"):
            start()
    assert not (tmp_path / "run").exists()


def test_push_as_a_command(made: Path, board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    done = invoke(report, "push", made, "--to", board.url)
    assert (done.exit_code, done.stdout, done.stderr) == (0, f"{made}: 57 rows sent\n", "")
    add(made / METRICS, '{"step": 41}')
    absent = Board(made)
    refused(invoke(report, "push", made, "--to", absent.url, "--wait", "0.2"), "does not answer: Connection refused",
            f"58 rows of {made} are still to be sent")
    refused(invoke(report, "push", made / "search", "--to", board.url), "is no run directory")
    monkeypatch.setenv("HELIOS_TOKEN", "another")
    refused(invoke(report, "push", made, "--to", board.url), "answers 401")


def test_tries_are_spread_and_grow_no_further() -> None:
    seconds = [pause for pause, _ in zip(waits(), range(40), strict=False)]
    assert 0.25 <= seconds[0] <= 0.5 and all(7.5 <= pause <= 15 for pause in seconds[6:]) and len(set(seconds)) > 30


def test_rows_that_are_no_utf8_are_damaged(made: Path, board: Board) -> None:
    with open(made / METRICS, "ab") as file:
        file.write(b'{"step": 41, "half": "\xed\xa0\x80"}\n{"step": 42}\n')
    said: list[str] = []
    assert push(made, board.url, 10, said.append, lambda *_: None) == 58
    assert said == [f"warning: {made / METRICS}: 1 line is damaged, and not sent"]
    assert_holds(board, made_id := "test_rows_that_are_no_utf8_are_damaged", made)
    assert board.lines(made_id, "metrics")[-1] == '{"step": 42}'


@contextmanager
def answering(status: int, body: bytes, **headers: str) -> Iterator[str]:
    """A server that is no board, and answers everything alike."""
    class Answer(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = answer

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("status, body, headers, said", [
    (302, b"", {"Location": "https://other/"}, r"answers 302: Found \(to https://other/\)"),
    (200, b"{}", {}, "no answer of a board, for it has no 'next'"), (200, b"[1]", {}, "no answer of a board"),
    (200, b"<html>", {}, "is no board: it answers POST /api/ingest without JSON"),
    (403, b'{"error": "no\\ntoken"}', {}, "answers 403: no token")])
def test_what_is_no_board(made: Path, status: int, body: bytes, headers: dict[str, str], said: str) -> None:
    with answering(status, body, **headers) as url:
        with pytest.raises(UserError, match=said) as caught:
            push(made, url, 0, print, lambda *_: None)
        assert "\n" not in str(caught.value)
        (file := made / "file").write_bytes(b"x")
        with pytest.raises(UserError, match="it has no 'have'" if body == b"{}" else "answer"):
            upload(Client(url), file, {"run_id": "r", "model": {}, "train": {}, "data": {}}, 1)


def test_push_leaves_out_what_is_no_run(made: Path, board: Board) -> None:
    """runs/* has the board's own files, too."""
    foreign = made / "board.sqlite"
    foreign.touch()
    done = invoke(report, "push", foreign, made, made / "search", "--to", board.url)
    assert (done.exit_code, done.stdout) == (0, f"{made}: 57 rows sent\n")
    assert [line.split(" is no run")[0] for line in done.stderr.splitlines()] == [
        f"warning: {foreign}", f"warning: {made / 'search'}"]
    done = invoke(report, "push", foreign, made / "search", "--to", board.url)
    assert done.exit_code == 2 and done.stderr.splitlines()[1].startswith(f"error: {made / 'search'} is no run")


def test_help_is_of_the_report_and_names_push() -> None:
    said = invoke(report, "--help").output
    assert "--against" in said and "helios-report push RUN" in said
    assert "--to" in invoke(report, "push", "--help").output
