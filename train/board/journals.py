"""Experiments on the board: their journals are read as they grow into the database, as the rows of runs are, so that
an experiment stays when its directory goes, and the stream has cursors of one kind."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from helios.errors import UserError
from helios.train.board import ingest, tail
from helios.train.board.guard import ID
from helios.train.board.schema import parse, strict, text
from helios.train.board.store import Store
from helios.train.records import overview
from helios.train.records.journal import EXPERIMENT, JOURNAL, Glance
from helios.train.records.layout import Signature, signature


class Reader:
    """Reads the journal in an experiment's directory.

    claim(id, path): called with the experiment's id as soon as that is known; raises UserError where another directory
    has it.
    """

    def __init__(self, path: str, claim: Callable[[str, str], None], warn: Callable[[str], object]) -> None:
        self.path, self.claim, self.warn = path, claim, warn
        self.seen: Signature = None
        self._begin()

    def _begin(self) -> None:
        self.id: str | None = None
        self.place: tail.Place | None = None
        self.glance, self.whole = Glance(), False  # whole: read to the end since it was begun

    def look(self, store: Store) -> None:
        """Take in what is new. A last line without an end is left for later; a journal that was cut or replaced is read
        from its beginning, and lines that are in the store already stay there. Raises UserError where it is none."""
        now = signature(self.path, JOURNAL)
        if now is None or now == self.seen:
            return
        try:
            self._read(store, now[2] / 1e9)
        except UserError:  # it will be no other until it changes
            self.seen = now
            raise
        except Exception:
            self._begin()
            raise
        self.seen, self.whole = now, True

    def _read(self, store: Store, updated: float) -> None:
        name = os.fsencode(os.path.basename(os.path.abspath(self.path))).decode(errors="replace")
        while True:
            part = tail.read(f"{self.path}/{JOURNAL}", self.place, self.warn)
            if part is None:
                self._begin()
                continue
            rows, place = part
            if not rows:
                break
            self.id = self.id or self._named(rows[0][1])
            for _, row in rows:
                self.glance.take(row)
            store.write(partial(put, key=self.id, name=name, rows=rows, start=self.place.rows if self.place else 0,
                                glance=self.glance, updated=updated))
            self.place = place
        if self.id and self.place and not self.whole:
            store.write(partial(cut, key=self.id, start=self.place.rows))

    def _named(self, first: dict[str, Any]) -> str:
        id_ = first.get("id")
        if first.get("kind") != EXPERIMENT or not isinstance(id_, str) or not ID.fullmatch(id_):
            raise UserError(f"{self.path} is left out: the first line of {JOURNAL} names no experiment with an id of "
                            "letters, digits, _ . and -")
        self.claim(id_, self.path)
        return id_


def put(db: sqlite3.Connection, key: str, name: str, start: int, rows: Sequence[ingest.Row], glance: Glance,
        updated: float) -> None:
    """Set the lines of an experiment's journal from the number `start` on. Those that are there already stay; where
    others are, these go with all that follow them. glance: with these lines; updated: seconds since the epoch."""
    there = [line for line, in db.execute("SELECT line FROM journal_lines WHERE run_id = ? AND n >= ? AND n < ? "
                                          "ORDER BY n", (key, start, start + len(rows)))]
    same = next((i for i, (a, (b, _)) in enumerate(zip(there, rows, strict=False)) if a != b), len(there))
    if same < len(there):
        cut(db, key, start + same)
    first, end = start + same, start + len(rows)
    db.executemany("INSERT INTO journal_lines VALUES (?, ?, ?)",
                   [(key, n, line) for n, (line, _) in enumerate(rows[same:], first)])
    for a in range(first, end, ingest.MESSAGE):
        ingest.change(db, key, "journal", a, min(a + ingest.MESSAGE, end))
    entry = (name, text(glance.entry()), updated)
    if entry != db.execute("SELECT name, entry, updated FROM experiments WHERE id = ?", (key,)).fetchone():
        db.execute("INSERT OR REPLACE INTO experiments VALUES (?, ?, ?, ?)", (key, *entry))
        ingest.change(db, key, "experiment")


def cut(db: sqlite3.Connection, key: str, start: int) -> None:
    """Remove the lines from the number `start` on, if there are any, and have who follows the journal begin anew."""
    if db.execute("DELETE FROM journal_lines WHERE run_id = ? AND n >= ?", (key, start)).rowcount:
        db.execute("UPDATE changes SET b = a WHERE run_id = ? AND kind = 'journal'", (key,))
        ingest.change(db, key, "journal", 0, 0)


def entries(db: sqlite3.Connection, key: str | None = None) -> list[dict[str, Any]]:
    """Return what is known at a glance of all experiments, the latest news first, or of one."""
    where = "" if key is None else "WHERE id = ?"
    rows = db.execute(f"SELECT id, name, entry, updated FROM experiments {where} ORDER BY updated DESC",
                      () if key is None else (key,))
    return [parse(strict(entry)) | {"experiment": id_, "name": name, "updated": overview.utc(updated)}
            for id_, name, entry, updated in rows]
