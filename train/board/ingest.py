"""What is written to the board's database, each within a transaction of the store's."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from helios.train.board import series
from helios.train.board.schema import LINES, parse, text
from helios.train.records.layout import REPLACED
from helios.train.records.overview import Overview

SEGMENTS = ("symbio_candidate_id", "symbio_candidate_activation", "symbio_generation", "symbio_phase")
LOGS = ("metrics", "events", "samples")  # kinds of rows that are only added, until they are cut
MESSAGE = 500  # rows at most in a message of the stream
HIGHEST = 2**53  # steps beyond it are no steps
Row = tuple[str, dict[str, Any]]  # its text and what it says


class Gap(Exception):
    """Rows between those that are there and those given are missing, or others are there than those given."""

    def __init__(self, kind: str, wanted: int, given: int) -> None:
        super().__init__(f"the next row of {kind} is {wanted}, not {given}" if given > wanted else
                         f"row {wanted} of {kind} is there, and is another; have it cut first")
        self.wanted = wanted


def put(db: sqlite3.Connection, run_id: str, kind: str, start: int, rows: Sequence[Row], now: float) -> int:
    """Add rows of a run, of which the first has the number `start`, and return how many there are.

    Rows that are there already stay; those of REPLACED are replaced. Raises Gap where rows before them are missing,
    or others are in their place.
    """
    have = count(db, run_id, kind)
    if start > have:
        raise Gap(kind, have, start)
    if kind in REPLACED:
        old, new = _lines(db, run_id, kind, start), [line for line, _ in rows]
        same = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
        if same == len(old) == len(rows):
            return have
        db.execute(f"DELETE FROM {kind}_lines WHERE run_id = ? AND n >= ?", (run_id, start + same))
        rows, have = rows[same:], start + same
        _announce(db, run_id, kind, have, have)
        if not rows:
            change(db, run_id, kind, have, have)
    else:
        there = [line for line, in db.execute(f"SELECT line FROM {kind}_lines WHERE run_id = ? AND n >= ? AND n < ? "
                                              "ORDER BY n", (run_id, start, start + len(rows)))]
        for i, (line, (given, value)) in enumerate(zip(there, rows, strict=False)):
            if line != given and parse(line) != value:  # two sent different rows, one what is no longer in the file
                raise Gap(kind, start + i, start)
        rows = rows[have - start:]
        if not rows:
            return have
    overview = _overview(db, run_id)
    row = db.execute(f"SELECT step FROM {kind}_lines WHERE run_id = ? AND n = ?", (run_id, have - 1)).fetchone()
    last, steps = row[0] if row else None, []
    for _, value in rows:
        step = value.get("step")
        if type(step) is not int or abs(step) > HIGHEST:
            step = last or 0
        if kind == "metrics":
            step = step if last is None else max(step, last)
        last = step
        steps.append(step)
    db.executemany(f"INSERT INTO {kind}_lines (run_id, n, step, line) VALUES (?, ?, ?, ?)",
                   [(run_id, n, step, line) for n, (step, (line, _)) in enumerate(zip(steps, rows, strict=True), have)])
    if kind == "metrics":
        _segments(db, run_id, have, steps, rows)
        for n, (_, value) in enumerate(rows, have + 1):
            overview.metrics(value)
            block, rest = divmod(n, series.BLOCK)
            if rest == 0:
                series.seal(db, run_id, block - 1)
                db.execute("INSERT INTO states VALUES (?, ?, ?)", (run_id, block - 1, text(overview.state())))
    elif kind == "events":
        for _, value in rows:
            overview.event(value)
    end = have + len(rows)
    for a in range(have, end, MESSAGE):
        change(db, run_id, kind, a, min(a + MESSAGE, end))
    _keep(db, run_id, overview, now)
    return end


def cut(db: sqlite3.Connection, run_id: str, step: int, now: float) -> None:
    """Remove the rows of metrics, events and samples of steps after `step`."""
    firsts = {kind: first for kind in LOGS if (first := _first(db, run_id, kind, step)) is not None}
    if not firsts:
        return
    told = level(db, run_id, step)
    change(db, run_id, "cut", told)
    for kind in LOGS:
        if (again := _first(db, run_id, kind, told)) is None:
            continue
        if (first := firsts.get(kind)) is not None:
            kept = db.execute(f"SELECT step, line FROM {kind}_lines WHERE run_id = ? AND n >= ? AND step <= ? "
                              f"ORDER BY n", (run_id, first, step)).fetchall()
            db.execute(f"DELETE FROM {kind}_lines WHERE run_id = ? AND n >= ?", (run_id, first))
            db.executemany(f"INSERT INTO {kind}_lines (run_id, n, step, line) VALUES (?, ?, ?, ?)",
                           [(run_id, n, *row) for n, row in enumerate(kept, first)])
        _announce(db, run_id, kind, again, count(db, run_id, kind))
    if (first := firsts.get("metrics")) is not None:
        for table in ("blocks", "buckets", "states"):
            db.execute(f"DELETE FROM {table} WHERE run_id = ? AND block >= ?", (run_id, first // series.BLOCK))
        db.execute("DELETE FROM segments WHERE run_id = ? AND n >= ?", (run_id, first))
    _keep(db, run_id, _again(db, run_id), now)


def level(db: sqlite3.Connection, run_id: str, step: int) -> int:
    """Return the highest step up to `step` for which the rows up to it come before all others: `step` itself where
    steps never decrease."""
    while True:
        lowest = min((lowest_step(db, run_id, kind, first) for kind in LOGS
                      if (first := _first(db, run_id, kind, step)) is not None), default=step + 1)
        if lowest > step:
            return step
        step = lowest - 1


def lowest_step(db: sqlite3.Connection, run_id: str, kind: str, first: int) -> int:
    """Return the lowest step of the rows from the number `first` on."""
    return db.execute(f"SELECT min(step) FROM {kind}_lines WHERE run_id = ? AND n >= ?", (run_id, first)).fetchone()[0]


def about(db: sqlite3.Connection, run_id: str, config: Mapping[str, Any] | None, summary: Mapping[str, Any] | None,
          checkpoints: Sequence[Mapping[str, Any]], now: float) -> None:
    """Set what is known of a run besides its rows. checkpoints: each with a step, and perhaps val_loss and bytes."""
    new = (text(config) if config is not None else None, text(summary) if summary is not None else None)
    listed = sorted({c["step"]: (c["step"], c.get("val_loss"), c.get("bytes")) for c in checkpoints}.values())
    old = db.execute("SELECT config, summary, updated FROM runs WHERE run_id = ?", (run_id,)).fetchone()
    there = db.execute("SELECT step, val_loss, bytes FROM checkpoints WHERE run_id = ? ORDER BY step", (run_id,)
                       ).fetchall()
    if old and new == old[:2] and listed == there and now <= old[2]:  # else it is news at least that the run lives
        return
    overview = _overview(db, run_id)
    overview.config(config or {})
    _keep(db, run_id, overview, now)
    db.execute("UPDATE runs SET config = ?, summary = ? WHERE run_id = ?", (*new, run_id))
    db.execute("DELETE FROM checkpoints WHERE run_id = ?", (run_id,))
    db.executemany("INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?, ?)", [(run_id, *row) for row in listed])


def change(db: sqlite3.Connection, run_id: str, kind: str, a: int | None = None, b: int | None = None) -> None:
    """Note for the stream that something changed: rows of a kind from `a` to `b`, a cut at the step `a`, or the run."""
    db.execute("INSERT INTO changes (run_id, kind, a, b) VALUES (?, ?, ?, ?)", (run_id, kind, a, b))


def _announce(db: sqlite3.Connection, run_id: str, kind: str, a: int, b: int) -> None:
    """Note that the rows from `a` to `b` are new, and that any others that had these numbers, or later ones, are gone:
    who hears late of those must not take the new ones for them."""
    db.execute("UPDATE changes SET b = max(a, ?) WHERE run_id = ? AND kind = ? AND b > ?", (a, run_id, kind, a))
    for start in range(a, b, MESSAGE):
        change(db, run_id, kind, start, min(start + MESSAGE, b))


def _first(db: sqlite3.Connection, run_id: str, kind: str, step: int) -> int | None:
    """Return the number of the first row of a later step than `step`."""
    return db.execute(f"SELECT min(n) FROM {kind}_lines WHERE run_id = ? AND step > ?", (run_id, step)).fetchone()[0]


def count(db: sqlite3.Connection, run_id: str, kind: str) -> int:
    """Return how many rows of a kind a run has."""
    return db.execute(f"SELECT coalesce(max(n) + 1, 0) FROM {kind}_lines WHERE run_id = ?", (run_id,)).fetchone()[0]


def counts(db: sqlite3.Connection, run_id: str) -> dict[str, int]:
    """Return how many rows of each kind a run has."""
    return {kind: count(db, run_id, kind) for kind in LINES}


def _segments(db: sqlite3.Connection, run_id: str, start: int, steps: Sequence[int], rows: Sequence[Row]) -> None:
    for key in SEGMENTS:
        found = db.execute("SELECT value FROM segments WHERE run_id = ? AND key = ? ORDER BY n DESC LIMIT 1",
                           (run_id, key)).fetchone()
        last = parse(found[0]) if found else None
        for i, (_, row) in enumerate(rows):
            if (value := row.get(key)) is not last and (said := text(value)) != text(last):
                db.execute("INSERT INTO segments VALUES (?, ?, ?, ?, ?)", (run_id, key, start + i, steps[i], said))
                last = value


def _overview(db: sqlite3.Connection, run_id: str) -> Overview:
    row = db.execute("SELECT overview FROM runs WHERE run_id = ?", (run_id,)).fetchone()
    return Overview(parse(row[0]) if row else None)


def _again(db: sqlite3.Connection, run_id: str) -> Overview:
    """Return the overview put together from the rows that are there."""
    block, state = db.execute("SELECT max(block), overview FROM states WHERE run_id = ?", (run_id,)).fetchone()
    config = db.execute("SELECT config FROM runs WHERE run_id = ?", (run_id,)).fetchone()[0]
    fresh = Overview().state()
    overview = Overview(parse(state) | {key: fresh[key] for key in ("life", "begun")} if state else None)
    overview.config(parse(config) if config else {})
    for line in _lines(db, run_id, "metrics", 0 if block is None else (block + 1) * series.BLOCK):
        overview.metrics(parse(line))
    for line in _lines(db, run_id, "events", 0):
        overview.event(parse(line))
    return overview


def _keep(db: sqlite3.Connection, run_id: str, overview: Overview, now: float) -> None:
    db.execute("INSERT INTO runs (run_id, overview, updated) VALUES (?, ?, ?) ON CONFLICT (run_id) DO UPDATE SET "
               "overview = excluded.overview, updated = max(updated, excluded.updated)",
               (run_id, text(overview.state()), now))
    change(db, run_id, "run")


def _lines(db: sqlite3.Connection, run_id: str, kind: str, start: int) -> list[str]:
    return [line for line, in db.execute(f"SELECT line FROM {kind}_lines WHERE run_id = ? AND n >= ? ORDER BY n",
                                         (run_id, start))]
