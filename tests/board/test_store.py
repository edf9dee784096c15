"""What is acknowledged is kept, through kills and full disks; a database of another's is left alone."""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from helios.errors import UserError
from helios.train.board import ingest, queries, schema
from helios.train.board.store import Store
from helios.train.records.overview import Overview

from .boards import CONFIG, Board, board, event, row


def put(store: Store, run_id: str, kind: str, start: int, rows: list[Any]) -> int:
    return store.write(lambda db: ingest.put(db, run_id, kind, start, [(json.dumps(r), r) for r in rows], 1.0))


def held(store: Store, run_id: str, kind: str = "metrics") -> list[Any]:
    with store.reading() as db:
        return [json.loads(line) for line in queries.rows(db, run_id, kind)[0]]


def test_rows_are_counted(store: Store) -> None:
    rows = [row(i + 1) for i in range(5)]
    with pytest.raises(ingest.Gap) as gap:
        put(store, "r", "metrics", 2, rows)
    assert gap.value.wanted == 0
    assert put(store, "r", "metrics", 0, rows[:3]) == 3
    assert put(store, "r", "metrics", 1, rows[1:]) == 5
    with pytest.raises(ingest.Gap) as gap:
        put(store, "r", "metrics", 0, [rows[0], row(2, other=1), *rows[2:]])
    assert gap.value.wanted == 1
    assert put(store, "r", "metrics", 0, rows[:1]) == 5
    assert held(store, "r") == rows


def test_candidates_are_replaced(store: Store) -> None:
    named = lambda text: [{"id": c} for c in text]
    for start, given, wanted in ((0, "abc", "abc"), (1, "xyz", "axyz"), (0, "axyz", "axyz"), (2, "q", "axq"),
                                 (0, "", "")):
        put(store, "r", "candidates", start, named(given))
        assert held(store, "r", "candidates") == named(wanted)


def test_a_cut_leaves_what_was_never_more(store: Store, tmp_path: Path) -> None:
    """Overview, segments, keys: all as if the rows that go had never come."""
    ids = lambda n: {"symbio_candidate_id": f"c{n // 700}", "symbio_phase": "search"} if n < 2100 else {}
    rows = [row(n, val_loss=1 / n if n % 9 == 0 else None, **ids(n)) for n in range(1, 2500)]
    events = [event(0, "run_start"), event(900, "resumed"), event(880, "alert"), event(2499, "run_complete")]
    other = Store(tmp_path / "other")
    for one, last in ((store, 2500), (other, 890)):
        one.write(lambda db: ingest.about(db, "r", CONFIG, None, [], 1.0))
        put(one, "r", "metrics", 0, [r for r in rows if r["step"] <= last] + [row(3000, late=1)] * (last == 2500))
        put(one, "r", "events", 0, [e for e in events if e["step"] <= last])
    store.write(lambda db: ingest.cut(db, "r", 890, 1.0))
    found = []
    for one in (store, other):
        with one.reading() as db:
            found.append((queries.run(db, {}, "r"), db.execute("SELECT * FROM buckets").fetchall(),
                          db.execute("SELECT run_id, n, step, line FROM metrics_lines").fetchall()))
    assert found[0] == found[1] and len(found[0][2]) == 890
    assert found[0][0] and found[0][0]["overview"]["best_val_step"] is None
    assert found[0][0]["segments"]["symbio_candidate_id"] == [[1, "c0"], [700, "c1"]]
    other.close()


def test_the_columns_can_be_asked_for_in_sql(store: Store) -> None:
    config = CONFIG | {"search": {"mode": "ffn-activation"}, "symbio_winner": "c1"}
    store.write(lambda db: ingest.about(db, "r", config, None, [{"step": 2, "val_loss": 3.5, "bytes": 9}], 1.0))
    put(store, "r", "metrics", 0, [row(1, per_layer_grad_norms={"blocks.0": 2.0}), row(2, loss=float("nan"))])
    with store.reading() as db:
        assert db.execute("SELECT n, step, loss, per_layer_grad_norms FROM metrics").fetchall() == [
            (0, 1, 10, '{"blocks.0":2.0}'), (1, 2, None, None)]
        assert db.execute("SELECT symbio, symbio_mode, symbio_winner, ffn_activation, domain FROM runs").fetchall() == [
            (1, "ffn-activation", "c1", "gelu", "chat")]
        assert db.execute("SELECT * FROM checkpoints").fetchall() == [("r", 2, 3.5, 9)]
        assert db.execute("SELECT * FROM domains").fetchall() == [("chat", 1)]


def test_an_overview_is_that_of_the_rows(store: Store) -> None:
    rows = [row(i + 1, val_loss=2.5) for i in range(40)]
    events = [event(0, "run_start"), event(40, "diverged", "all is NaN")]
    overview = Overview()
    overview.config(CONFIG)
    for r in rows:
        overview.metrics(r)
    for e in events:
        overview.event(e)
    store.write(lambda db: ingest.about(db, "r", CONFIG, None, [], 1.0))
    for i in range(0, 40, 7):
        put(store, "r", "metrics", i, rows[i:i + 7])
    put(store, "r", "events", 0, events)
    with store.reading() as db:
        assert queries.entries(db, {})[0] == overview.entry(None, 1.0) | {"run_id": "r"}
        assert queries.entries(db, {})[0]["reason"] == "all is NaN"


def test_writers_do_not_harm_each_other(store: Store) -> None:
    def fail(db: sqlite3.Connection) -> None:
        ingest.put(db, "bad", "metrics", 0, [(json.dumps(row(1)), row(1))], 1.0)
        raise ValueError("a bug")

    futures = [store.submit(fail) if i % 2 else store.submit(
        lambda db, i=i: ingest.put(db, f"r{i}", "metrics", 0, [(json.dumps(row(1)), row(1))], 1.0)) for i in range(40)]
    assert [type(f.exception()) for f in futures] == [type(None), ValueError] * 20
    with store.reading() as db:
        assert {e["run_id"] for e in queries.entries(db, {})} == {f"r{i}" for i in range(0, 40, 2)}


def test_who_no_longer_waits_does_not_end_the_store(store: Store) -> None:
    """As a server's end does it, to answers that take too long."""
    waiting, go_on = threading.Event(), threading.Event()
    store.submit(lambda db: (waiting.set(), go_on.wait(30)))
    assert waiting.wait(30)
    put = lambda i: store.submit(lambda db: ingest.put(db, "r", "metrics", i, [(json.dumps(row(1)), row(1))], 1.0))
    put(0).cancel()
    go_on.set()
    assert put(1).result(30) == 2


def test_readers_of_many_threads_share_connections(store: Store) -> None:
    def read() -> None:
        with store.reading() as db:
            queries.entries(db, {})

    opened = []
    for _ in range(20):
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
        opened.append(len(os.listdir("/proc/self/fd")))
    assert opened[-1] == opened[0]


@pytest.mark.parametrize("make", [lambda path: None, lambda path: sqlite3.connect(path).close(),
                                  lambda path: path.write_bytes(b"something else")])
def test_nothing_is_acknowledged_when_the_database_is_gone(store: Store, tmp_path: Path, make: Any) -> None:
    put(store, "r", "metrics", 0, [row(1)])
    (tmp_path / "board.sqlite").rename(tmp_path / "elsewhere")
    make(tmp_path / "board.sqlite")
    with pytest.raises(sqlite3.Error, match="removed or replaced"):
        put(store, "r", "metrics", 1, [row(2)])
    with pytest.raises(sqlite3.Error, match="removed or replaced"):
        held(store, "r")


def test_a_full_disk(tmp_path: Path) -> None:
    """The limit of a file's size stands for it: writes fail, nothing else does, and once there is room all goes on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with board(tmp_path / "runs") as b:
        b.run("full")
        b.post("full", "metrics", 0, [row(1)])
        size = (tmp_path / "runs" / "board.sqlite-wal").stat().st_size
        resource.prlimit(b.process.pid, resource.RLIMIT_FSIZE, (size, hard))
        body = {"run_id": "full", "kind": "metrics", "from": 1, "rows": [row(i + 2) for i in range(500)]}
        for _ in range(3):
            answer = b.client.post("/api/ingest", json=body)
            assert answer.status_code == 503 and "error" in answer.json() and answer.text.count("\n") == 0
        assert len(b.rows("full")) == 1
        resource.prlimit(b.process.pid, resource.RLIMIT_FSIZE, (soft, hard))
        assert b.ingest(body) == {"next": 501}
        assert b.rows("full") == [row(i + 1) for i in range(501)]


def test_a_kill_at_any_moment_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    rows = [row(i + 1) for i in range(40_000)]
    told = 0
    for after in (0.15, 0.4):
        b = Board(tmp_path / "runs")
        threading.Timer(after, b.process.send_signal, (signal.SIGKILL,)).start()
        try:
            while told < len(rows):
                told = b.post("r", "metrics", told, rows[told:told + 50])
        except Exception:
            assert b.process.wait(30) == -signal.SIGKILL
        b.stop()
        with board(tmp_path / "runs") as again:
            found = again.rows("r") if told else []
            assert told <= len(found) <= told + 50 and found == rows[:len(found)]
            told = len(found)
    assert told


@pytest.mark.parametrize("make", [
    lambda path: sqlite3.connect(path).executescript("CREATE TABLE other (x)").close(),
    lambda path: sqlite3.connect(path).executescript("PRAGMA application_id = 7").close(),
    lambda path: path.write_text("no database, but a text that someone wrote, longer than a header of SQLite is" * 20),
    lambda path: path.mkdir(),
    lambda path: os.symlink("/nowhere/at/all", path),
], ids=["tables", "application", "text", "folder", "link"])
def test_a_database_of_anothers_is_refused_and_left(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "db"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(UserError, match="give another --db"):
        Store(path)
    assert before is None or path.read_bytes() == before


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    Store(tmp_path / "db").close()
    with sqlite3.connect(tmp_path / "db") as db:
        db.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}")
    db.close()
    with pytest.raises(UserError, match="newer Helios"):
        Store(tmp_path / "db")


def test_two_boards_of_one_database(tmp_path: Path, store: Store) -> None:
    with pytest.raises(UserError, match="in use by another board"):
        Store(tmp_path / "board.sqlite")


def test_an_older_database_is_brought_to_the_present_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for more in ((), ("ALTER TABLE files ADD COLUMN note TEXT;", "UPDATE runs SET updated = 7;")):
        monkeypatch.setattr(schema, "MIGRATIONS", (schema.TABLES, *more))
        store = Store(tmp_path / "board.sqlite")
        put(store, "r", "metrics", 0, [row(1)])
        with store.reading() as db:
            assert db.execute("PRAGMA user_version").fetchone()[0] == 1 + len(more)
            assert db.execute("SELECT updated FROM runs").fetchone() == (7.0 if more else 1.0,)
        assert held(store, "r") == [row(1)]
        store.close()
