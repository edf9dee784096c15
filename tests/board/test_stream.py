"""Who follows the stream, with any interruptions, holds what the board holds: nothing is lost, nothing told twice."""

from __future__ import annotations

import json
import random
import tempfile
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios.train.board import ingest, queries
from helios.train.board import store as stores
from helios.train.board.store import Store
from helios.train.records.layout import REPLACED

from .boards import KINDS, Board, Stream, event, follow, row, until


def whole(of: Board, run_id: str) -> dict[str, list[Any]]:
    return {kind: of.rows(run_id, kind) for kind in KINDS}


def scribble(of: Board, run_id: str, rng: random.Random, posts: int) -> None:
    """Post at random: rows, repeated rows, cuts, candidates and windows; and at last, an end."""
    own = Board.__new__(Board)
    own.client, own.url = httpx.Client(base_url=of.url, headers=of.client.headers, timeout=60, verify=False), of.url
    step = n = events = 0
    own.run(run_id)
    for _ in range(posts):
        kind = rng.random()
        if kind < 0.6:
            rows = [row(step + i + 1, tag=rng.random()) for i in range(rng.choice([1, 3, 700]))]
            assert own.post(run_id, "metrics", n, rows) == n + len(rows)
            own.post(run_id, "metrics", n, rows)
            n, step = n + len(rows), step + len(rows)
        elif kind < 0.8:
            own.post(run_id, "events", events, [event(step, "alert", str(rng.random()))])
            events += 1
        elif kind < 0.9:
            step = rng.randint(0, step)
            counts = own.cut(run_id, step)
            n, events = counts["metrics"], counts["events"]
        else:
            own.post(run_id, rng.choice([*REPLACED]), 0,
                     [{"id": str(i), "loss": rng.random()} for i in range(rng.randint(0, 5))])
    own.post(run_id, "events", events, [event(step, "run_complete")])
    own.client.close()


def test_reconnects_during_rows_and_cuts(shared: Board) -> None:
    rng = random.Random(0)
    writers = [threading.Thread(target=scribble, args=(shared, run, random.Random(run), 60)) for run in ("s1", "s2")]
    stream = Stream(shared, "s1", "s2")
    for writer in writers:
        writer.start()
    ids: list[int] = []
    done: set[str] = set()
    while len(done) < 2:
        if rng.random() < 0.15:
            stream.close()
            stream = Stream(shared, "s1", "s2", since=stream.cursor, holds=stream.holds)
        id, kind, data = stream.next()
        ids.append(id)
        assert kind != "reset"
        if kind == "run" and data["status"] == "completed":
            done.add(data["run_id"])
    for writer in writers:
        writer.join()
    stream.close()
    assert ids == sorted(set(ids))
    for run in ("s1", "s2"):
        assert {k: len(v) for k, v in stream.holds[run].items()} == {k: len(v) for k, v in whole(shared, run).items()}
        assert stream.holds[run] == whole(shared, run)


def test_without_a_name_there_are_entries_alone(shared: Board) -> None:
    stream, other = Stream(shared), Stream(shared, "named")
    shared.run("named")
    shared.post("named", "metrics", 0, [row(1)])
    assert stream.next()[1] == "run"
    shared.post("named", "events", 0, [event(1, "run_complete")])
    while (found := stream.next())[2]["status"] != "completed":
        assert found[1] == "run"
    assert found[2] == shared.entry("named")
    while other.next()[1:] != ("run", found[2]):
        pass
    assert [kind for _, kind, _ in other.events if kind != "run"] == ["hello", "metrics", "events"]
    for one in (stream, other):
        one.close()


@pytest.mark.parametrize("since", [0, 5, 2**50])
def test_a_cursor_that_is_too_old_or_anothers(shared: Board, since: int) -> None:
    stream = Stream(shared, since=since)
    assert stream.next()[1:] == ("reset", {})
    shared.run("after")
    while (found := stream.next())[1] != "run":
        pass
    assert found[2]["run_id"] == "after"
    stream.close()


def test_a_cursor_may_be_in_the_address(shared: Board) -> None:
    first = Stream(shared)
    shared.run("address")
    with httpx.stream("GET", f"{shared.url}/api/stream?cursor={first.cursor}", timeout=None) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        found = next(line for line in answer.iter_lines() if line.startswith("data:"))
        assert json.loads(found.removeprefix("data:"))["run_id"] == "address"
    first.close()


def test_many_readers_hear_the_same(shared: Board) -> None:
    streams = [Stream(shared, "many") for _ in range(10)]
    for i in range(5):
        shared.post("many", "metrics", i, [row(i + 1)])
    for stream in streams:
        until(lambda stream=stream: stream.next() and len(stream.holds["many"]["metrics"]) == 5)
        stream.close()


def test_changes_are_kept_for_a_while(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "KEPT", 50)
    with store.reading() as db:
        begin = queries.cursor(db)
    for i in range(100):
        r = row(i + 1)
        store.write(lambda db, i=i, r=r: ingest.put(db, "r", "metrics", i, [(json.dumps(r), r)], 0.0))
    with store.reading() as db:
        latest = queries.cursor(db)
        assert latest == begin + 200 and db.execute("SELECT count(*) FROM changes").fetchone()[0] == 50
        assert queries.changes(db, {}, begin, {"r"}) == ([queries.Message(latest, "reset", "{}")], latest)
        assert queries.changes(db, {}, latest - 51, {"r"})[0][0].event == "reset"
        messages, until = queries.changes(db, {}, latest - 50, {"r"})
        assert until == latest and [m.event for m in messages] == ["metrics"] * 25 + ["run"]
        assert queries.changes(db, {}, latest, {"r"}) == ([], latest)


def test_news_of_a_run_that_never_came_are_none(store: Store) -> None:
    with store.reading() as db:
        since = queries.cursor(db)
    store.write(lambda db: ingest.change(db, "never", "run"))
    with store.reading() as db:
        assert queries.changes(db, {}, since, ()) == ([], since + 1)


STEPS = st.lists(st.integers(0, 9), min_size=1, max_size=6)
DEEDS = st.lists(st.one_of(
    st.tuples(st.sampled_from(["events", "samples"]), STEPS), st.tuples(st.just("metrics"), STEPS.map(sorted)),
    st.tuples(st.just("cut"), st.integers(-1, 10)), st.tuples(st.just("candidates"), st.integers(0, 5)),
    st.tuples(st.just("read"), st.integers(1, 4))), max_size=40)


@settings(max_examples=100, deadline=None)
@given(DEEDS)
def test_who_reads_late_and_little_at_a_time_holds_the_same(deeds: list[tuple[str, Any]]) -> None:
    """Also where steps of events are in no order."""
    holds: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        store, highest = Store(Path(folder) / "db"), 0
        with store.reading() as db:
            since = queries.cursor(db)

        def read(limit: int) -> bool:
            nonlocal since
            with store.reading() as db:
                messages, until = queries.changes(db, {}, since, {"r"}, limit)
            for message in messages:
                if message.event != "run":
                    follow(holds, message.event, json.loads(message.data))
            since, more = until, until != since
            return more

        for i, (deed, value) in enumerate([*deeds, ("read", 3)]):
            if deed == "read":
                read(value)
            elif deed == "cut":
                store.write(lambda db, step=value: ingest.cut(db, "r", step, 0.0))
                highest = min(highest, max(value, 0))
            else:
                steps = [0] * value if deed == "candidates" else value
                if deed == "metrics":  # theirs never decrease
                    steps = [max(highest, step) for step in steps]
                    highest = steps[-1]
                rows = [{"step": step, "tag": f"{i} {j}"} for j, step in enumerate(steps)]
                store.write(lambda db, kind=deed, rows=rows: ingest.put(
                    db, "r", kind, 0 if kind == "candidates" else ingest.count(db, "r", kind),
                    [(json.dumps(r), r) for r in rows], 0.0))
        while read(3):
            pass
        with store.reading() as db:
            assert holds == {kind: [json.loads(line) for line in queries.rows(db, "r", kind)[0]] for kind in KINDS}
        store.close()
