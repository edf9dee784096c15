"""What is read of the board's database, as JSON texts where rows are in them."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from helios.train.board import ingest, journals, series
from helios.train.board.schema import LINES, parse, strict, text
from helios.train.records.layout import REPLACED
from helios.train.records.overview import Overview

PAGE = 8 * 2**20  # characters after which an answer with rows ends


class Message(NamedTuple):
    """A message of the stream."""

    id: int
    event: str
    data: str


def entries(db: sqlite3.Connection, locks: Mapping[str, bool], run_id: str | None = None) -> list[dict[str, Any]]:
    """Return what is known at a glance of all runs, the latest news first, or of one."""
    now, where = time.time(), "" if run_id is None else "WHERE run_id = ?"
    rows = db.execute(f"SELECT run_id, overview, updated, historic FROM runs {where} ORDER BY updated DESC",
                      () if run_id is None else (run_id,))
    entry = lambda name, state, updated: Overview(parse(state)).entry(locks.get(name), updated, now) | {"run_id": name}
    return [parse(historic) if historic else entry(*row) for *row, historic in rows]


def run(db: sqlite3.Connection, locks: Mapping[str, bool], run_id: str) -> dict[str, Any] | None:
    """Return what is known of a run, None where there is none of that id."""
    found = entries(db, locks, run_id)
    if not found:
        return None
    config, summary = db.execute("SELECT config, summary FROM runs WHERE run_id = ?", (run_id,)).fetchone()
    segments: dict[str, list[Any]] = {key: [] for key in ingest.SEGMENTS}
    for key, step, value in db.execute("SELECT key, step, value FROM segments WHERE run_id = ? ORDER BY n", (run_id,)):
        segments[key].append([step, parse(strict(value))])
    return {
        "run_id": run_id, "overview": found[0], "config": parse(strict(config or "null")),
        "summary": parse(strict(summary or "null")),
        "rows": {**ingest.counts(db, run_id), "checkpoints": len(checkpoints(db, run_id))},
        "keys": series.keys(db, run_id), "segments": segments}


def rows(db: sqlite3.Connection, run_id: str, kind: str, start: int = 0, end: int | None = None,
         limit: int | None = None) -> tuple[list[str], int | None]:
    """Return texts of a run's rows of a kind from the number `start` to `end` (excluded; None: all), at most `limit`,
    and the number of the row that follows them; None: none does."""
    found: list[str] = []
    size, end = 0, ingest.count(db, run_id, kind) if end is None else end
    for n, line in db.execute(f"SELECT n, line FROM {kind}_lines WHERE run_id = ? AND n >= ? AND n < ? ORDER BY n",
                              (run_id, start, end)):
        if limit is not None and (len(found) == limit or size > PAGE):
            return found, n
        found.append(line)
        size += len(line)
    return found, None


def checkpoints(db: sqlite3.Connection, run_id: str) -> list[dict[str, Any]]:
    """Return a run's checkpoints: those in its directory, and those sent here, with their files."""
    found: dict[int | None, dict[str, Any]] = {
        step: {"step": step, "val_loss": loss, "bytes": size, "files": []} for step, loss, size in
        db.execute("SELECT step, val_loss, bytes FROM checkpoints WHERE run_id = ? ORDER BY step", (run_id,))}
    for step, name, size, sha256 in db.execute(
            "SELECT step, name, size, sha256 FROM files WHERE run_id = ? ORDER BY name", (run_id,)):
        entry = found.setdefault(step, {"step": step, "val_loss": None, "bytes": size, "files": []})
        href = f"/api/runs/{run_id}/files/{name}"
        entry["files"].append({"name": name, "bytes": size, "sha256": sha256, "href": href})
    return sorted(found.values(), key=lambda c: (c["step"] is None, c["step"]))


def cursor(db: sqlite3.Connection) -> int:
    """Return the number of the latest change."""
    return db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'changes'").fetchone()[0]


def changes(db: sqlite3.Connection, locks: Mapping[str, bool], since: int, runs: Collection[str],
            experiments: Collection[str] = (), limit: int = 200) -> tuple[list[Message], int]:
    """Return the messages of the changes after the number `since`, rows and cuts of `runs` and lines of the journals of
    `experiments` alone, and the number up to which that goes. A run or an experiment that changed several times is told
    once, as it is now."""
    latest = cursor(db)
    oldest = db.execute("SELECT min(id) FROM changes").fetchone()[0] or latest + 1
    if since > latest or since < oldest - 1:
        return [Message(latest, "reset", "{}")], latest
    found = db.execute("SELECT id, run_id, kind, a, b FROM changes WHERE id > ? ORDER BY id LIMIT ?", (since, limit)
                       ).fetchall()
    told = {(kind, run_id): id for id, run_id, kind, _, _ in found if kind in ("run", "experiment")}
    messages: list[Message] = []
    size = 0
    for id, run_id, kind, a, b in found:
        if size > PAGE:
            return messages, messages[-1].id
        if told.get((kind, run_id), id) != id:
            continue
        if kind == "run":
            messages += [Message(id, kind, text(entry)) for entry in entries(db, locks, run_id)]  # none: it never came
        elif kind == "experiment":
            messages += [Message(id, kind, text(entry)) for entry in journals.entries(db, run_id)]
        elif kind == "journal" and run_id in experiments and (a < b or b == 0):
            lines = [strict(line) for line in rows(db, run_id, kind, a, b)[0]]
            messages.append(Message(id, kind, f'{{"experiment":{text(run_id)},"from":{a},"rows":[{",".join(lines)}]}}'))
        elif kind == "cut" and run_id in runs:
            messages.append(Message(id, kind, text({"run_id": run_id, "step": a})))
        elif kind in LINES and run_id in runs and (a < b or kind in REPLACED):
            lines = [strict(line) for line, in db.execute(
                f"SELECT line FROM {kind}_lines WHERE run_id = ? AND n >= ? AND n < ? ORDER BY n", (run_id, a, b))]
            messages.append(Message(id, kind, f'{{"run_id":{text(run_id)},"from":{a},"rows":[{",".join(lines)}]}}'))
        size += len(messages[-1].data) if messages else 0
    return messages, found[-1][0] if found else since
