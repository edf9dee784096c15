"""The board's database: its tables, and how one is opened."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from helios.errors import UserError
from helios.train.records.records import COLUMNS, MORE_COLUMNS
from helios.train.records.rows import finite

DEEPEST = 200  # objects and lists within each other
APPLICATION = 0x48454C42  # "HELB"

# Null in a whole row with a NaN, which is no JSON.
_VALUE = "CASE WHEN json_valid({0}) THEN json_extract({0}, '$.{1}') END"
# Column → its path in config.json.
_OF_CONFIG = {"created": "created", "ffn_activation": "model.activation", "symbio_mode": "search.mode",
              "symbio_config": "search", "symbio_winner": "symbio_winner"}
# View → the columns that it shows of its rows.
_OF_LINES = {"metrics": [name for name in (*COLUMNS, *MORE_COLUMNS) if name != "step"],
             "events": ["time", "kind", "message"], "samples": ["time", "prompt", "text"],
             "candidates": ["id", "name", "activation", "parent_id", "generation"],
             "windows": ["window", "opened", "closed", "reason", "champion", "verdict", "winner"]}
LINES = tuple(_OF_LINES)  # kinds of rows

# n counts a run's rows from 0 on; `line` is a row as it was written. A step of metrics never decreases: it is the
# row's, or that of the row before where that has none, or a lower one. runs.historic: what a list has of a run that is
# known from its history alone.
_VIEWS = {kind: f"""
CREATE VIEW {kind} AS SELECT run_id, n, step,
    {", ".join(f'{_VALUE.format("line", name)} AS "{name}"' for name in names)}, line FROM {kind}_lines;"""
          for kind, names in _OF_LINES.items()}
_ROWS = {kind: f"""
CREATE TABLE {kind}_lines (run_id TEXT, n INTEGER, step INTEGER NOT NULL, line TEXT NOT NULL, PRIMARY KEY (run_id, n))
    WITHOUT ROWID;{_VIEWS[kind]}""" for kind in LINES}
TABLES = "".join(_ROWS[kind] for kind in LINES if kind != "windows") + f"""
CREATE TABLE runs (run_id TEXT PRIMARY KEY, config TEXT, summary TEXT, overview TEXT NOT NULL, updated REAL NOT NULL,
    historic TEXT,
    {", ".join(f'{name} AS ({_VALUE.format("config", path)})' for name, path in _OF_CONFIG.items())},
    domain AS (CASE {_VALUE.format("config", "chat")} WHEN 0 THEN 'text' ELSE 'chat' END),
    symbio AS (coalesce(symbio_mode, 'none') != 'none')) WITHOUT ROWID;
CREATE INDEX runs_updated ON runs (updated);
CREATE TABLE checkpoints (run_id TEXT, step INTEGER, val_loss REAL, bytes INTEGER, PRIMARY KEY (run_id, step))
    WITHOUT ROWID;
CREATE TABLE files (run_id TEXT, name TEXT, step INTEGER, size INTEGER NOT NULL, sha256 TEXT NOT NULL,
    PRIMARY KEY (run_id, name)) WITHOUT ROWID;
CREATE TABLE segments (run_id TEXT, key TEXT, n INTEGER, step INTEGER NOT NULL, value TEXT NOT NULL,
    PRIMARY KEY (run_id, key, n)) WITHOUT ROWID;
CREATE TABLE blocks (run_id TEXT, key TEXT, block INTEGER, data BLOB NOT NULL, PRIMARY KEY (run_id, key, block))
    WITHOUT ROWID;
CREATE TABLE buckets (run_id TEXT, key TEXT, block INTEGER, data BLOB NOT NULL, PRIMARY KEY (run_id, key, block))
    WITHOUT ROWID;
CREATE TABLE states (run_id TEXT, block INTEGER, overview TEXT NOT NULL, PRIMARY KEY (run_id, block)) WITHOUT ROWID;
CREATE TABLE sources (run_id TEXT, kind TEXT, inode INTEGER, offset INTEGER, n INTEGER, mark BLOB,
    PRIMARY KEY (run_id, kind)) WITHOUT ROWID;
CREATE TABLE changes (id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL, kind TEXT NOT NULL, a INTEGER,
    b INTEGER);
CREATE VIEW domains AS SELECT domain, count(*) AS runs FROM runs GROUP BY domain;
INSERT INTO sqlite_sequence VALUES ('changes', CAST(strftime('%s', 'now') AS INTEGER) * 1000);
"""
# The lines of an experiment's journal, as they were written, in the place of whose run_id is the experiment's id, also
# in `changes`. name: of its directory. entry: what records/journal.py's Glance knows.
EXPERIMENTS = f"""
CREATE TABLE experiments (id TEXT PRIMARY KEY, name TEXT NOT NULL, entry TEXT NOT NULL, updated REAL NOT NULL)
    WITHOUT ROWID;
CREATE TABLE journal_lines (run_id TEXT, n INTEGER, line TEXT NOT NULL, PRIMARY KEY (run_id, n)) WITHOUT ROWID;
CREATE VIEW journal AS SELECT run_id AS experiment, n,
    {", ".join(f'{_VALUE.format("line", name)} AS "{name}"' for name in ("kind", "id", "generation"))}, line
    FROM journal_lines;
"""
# Columns that have come since.
CONTROL = f"DROP VIEW metrics;{_VIEWS['metrics']}"
# Scripts, each from the version before to its own, which PRAGMA user_version names. Cursors of the stream begin with
# the time, so that none of an earlier database of that name is one of this.
MIGRATIONS = (TABLES, EXPERIMENTS, CONTROL, _ROWS["windows"])


def connect(path: Path, write: bool = False) -> sqlite3.Connection:
    """Open the database, for reading alone or, one at a time, for writing. What is committed is on the disk."""
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode={'rwc' if write else 'ro'}", uri=True, isolation_level=None,
                         check_same_thread=False, timeout=10)
    if write:
        db.execute("PRAGMA page_size = 8192")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")  # NORMAL might lose commits in a power cut
        db.execute("PRAGMA journal_size_limit = 67108864")
    db.execute(f"PRAGMA cache_size = {-16384 if write else -2048}")  # KiB; there are many readers
    return db


def create(path: Path) -> None:
    """Make the database, or bring it to the present version. Raises UserError where it cannot be used."""
    try:
        with closing(sqlite3.connect(path, timeout=10)) as db:  # which changes nothing in another's
            application, version, tables = (db.execute(query).fetchone()[0] for query in (
                "PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_schema"))
            if application != APPLICATION and (application or tables):
                raise UserError(f"{path} is the database of another program; give another --db")
            if version > len(MIGRATIONS):
                raise UserError(f"{path} was written by a newer Helios (its version is {version}, this one's "
                                f"{len(MIGRATIONS)}); update Helios or give another --db")
        with closing(connect(path, write=True)) as db:
            for number, script in enumerate(MIGRATIONS[version:], version + 1):
                db.executescript(f"BEGIN; {script} PRAGMA application_id = {APPLICATION}; "
                                 f"PRAGMA user_version = {number}; COMMIT;")
    except (sqlite3.Error, OSError) as error:
        raise UserError(f"cannot use {path} as the board's database: {error}; give another --db") from error


def parse(line: str) -> Any:
    """Return the value of a JSON text, as Python writes it: also with NaN, Infinity and halves of surrogate pairs.
    Raises ValueError, also where it is nested more than DEEPEST times."""
    try:
        try:
            value = msgspec.json.decode(line)
        except (msgspec.MsgspecError, UnicodeError):
            value = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if line.count("[") + line.count("{") > DEEPEST:
        inner = [value]
        for _ in range(DEEPEST):
            inner = [item for outer in inner if isinstance(outer, dict | list)
                     for item in (outer.values() if isinstance(outer, dict) else outer)]
        if inner:
            raise ValueError("nested too deeply")
    return value


def text(value: Any) -> str:
    """Return the JSON text of a value, which `parse` reads and SQLite holds."""
    line = json.dumps(value, ensure_ascii=False)
    return line if storable(line) else json.dumps(value)


def storable(line: str) -> bool:
    """Return whether the text is UTF-8, which half a surrogate pair is not."""
    try:
        line.encode()
    except UnicodeEncodeError:
        return False
    return True


def strict(line: str) -> str:
    """Return the JSON text with null for NaN and Infinity, which are no JSON."""
    return text(finite(parse(line))) if "NaN" in line or "Infinity" in line else line
