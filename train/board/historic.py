"""The runs of the system that Helios replaces, as the board shows them: what is known of them."""

from __future__ import annotations

import sqlite3

from helios.train import history
from helios.train.board import ingest
from helios.train.board.schema import LINES, text
from helios.train.records import overview


def put(db: sqlite3.Connection) -> None:
    """Write what is known of them, in place of what was, where that is something else."""
    for run in map(history.read, history.names()):
        entry, when = text(run.entry()), overview.seconds(run.ended or run.begun)
        rows = dict(zip(LINES, (run.rows(), run.events(), run.said(), run.searched(), []), strict=True))
        found = db.execute("SELECT historic FROM runs WHERE run_id = ?", (run.run_id,)).fetchone()
        if found == (entry,) and ingest.counts(db, run.run_id) == {kind: len(rows[kind]) for kind in LINES}:
            continue
        ingest.cut(db, run.run_id, -ingest.HIGHEST - 1, when)
        ingest.about(db, run.run_id, run.about(), run.summary(), run.saved(), when)
        for kind in LINES:
            ingest.put(db, run.run_id, kind, 0, [(text(row), row) for row in rows[kind]], when)
        db.execute("UPDATE runs SET historic = ? WHERE run_id = ?", (entry, run.run_id))
