"""The runs of the system that Helios replaces, as the board shows them: what is known of them."""

from __future__ import annotations

import sqlite3
from functools import cache
from typing import Any

from helios.train import history
from helios.train.board import ingest
from helios.train.board.schema import text
from helios.train.records import overview


@cache
def entries() -> dict[str, dict[str, Any]]:
    """Return what a list of runs has of each, by run id."""
    return {run.run_id: run.entry() for run in map(history.read, history.names())}


def put(db: sqlite3.Connection) -> None:
    """Write what is known of them, in place of what was."""
    for run in map(history.read, history.names()):
        when = overview.seconds(run.ended or run.begun)
        ingest.cut(db, run.run_id, -1, when)
        ingest.about(db, run.run_id, run.about(), run.summary(), run.saved(), when)
        for kind, rows in {"metrics": run.rows(), "events": run.events(), "samples": run.said(),
                           "candidates": run.searched()}.items():
            ingest.put(db, run.run_id, kind, 0, [(text(row), row) for row in rows], when)
