"""Series: a numeric column of a run's metrics, in blocks and buckets, so that any range of any length is read fast.

Rows are sealed by number in blocks of BLOCK: for each column one blob of values (NaN: missing or not finite) and one of
buckets of UNIT rows each. What follows the last whole block is read from the rows' text.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np

from helios.train.board.schema import parse, storable

BLOCK, UNIT = 1024, 64
STEP = ""  # the column of steps as `metrics.step` has them, which never decrease
DEPTH, COLUMNS = 8, 4096  # at most: nested objects in a row, columns in a block
FIRST, MIN, MAX, LAST, MISSING = range(5)  # rows of an array of buckets, (5, buckets)


def columns(rows: Sequence[Any], wanted: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Return the numeric columns that occur in rows, by name in alphabetical order: (rows,), NaN where a row has no
    finite number. Nested ones have dots between the names; a boolean counts as 0 or 1.

    wanted: the names of those to return; None: all.
    """
    found: dict[str, np.ndarray] = {}
    for name, values in _columns(rows, "", wanted, DEPTH):  # the name of a nested one may also be another's
        found[name] = np.where(np.isnan(values), found[name], values) if name in found else values
    return dict(sorted(found.items()))


def _columns(rows: Sequence[Any], prefix: str, wanted: Collection[str] | None, depth: int,
             ) -> Iterator[tuple[str, np.ndarray]]:
    for key in sorted(dict.fromkeys(chain.from_iterable(rows))):
        name = prefix + key
        if name == STEP or not storable(key):
            continue
        if wanted is not None and not any(f"{w}.".startswith(f"{name}.") for w in wanted):
            continue
        values = [row.get(key) for row in rows]
        kinds = set(map(type, values))
        if dict in kinds and depth > 1:
            yield from _columns([value if type(value) is dict else {} for value in values], f"{name}.", wanted,
                                depth - 1)
        if kinds & {int, float, bool}:
            yield name, _finite(values)


def seal(db: sqlite3.Connection, run_id: str, block: int) -> None:
    """Write the block of that number, whose rows are all there."""
    steps, lines = zip(*_lines(db, run_id, block * BLOCK, (block + 1) * BLOCK), strict=True)
    found = {STEP: _finite(steps), **columns([parse(line) for line in lines])}
    for key, values in islice(found.items(), COLUMNS):
        same = (values == values[0]).all() or np.isnan(values).all()
        buckets = group(single(values), np.arange(0, BLOCK, UNIT))
        for table, array in (("blocks", values[:1] if same else values), ("buckets", buckets)):
            db.execute(f"INSERT INTO {table} VALUES (?, ?, ?, ?)", (run_id, key, block, array.tobytes()))


def single(values: np.ndarray) -> np.ndarray:
    """Return buckets of one row each. values: (rows,), NaN where missing."""
    return np.stack([values, values, values, values, np.isnan(values)])


def group(buckets: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return fewer buckets, which begin at those of the numbers `starts`, in rising order from 0 on."""
    n = buckets.shape[1]
    number, known = np.arange(n), ~np.isnan(buckets[FIRST])
    first = np.minimum.reduceat(np.where(known, number, n), starts)
    last = np.maximum.reduceat(np.where(known, number, -1), starts)
    some = last >= 0
    return np.stack([
        np.where(some, buckets[FIRST][np.minimum(first, n - 1)], np.nan),
        np.fmin.reduceat(buckets[MIN], starts), np.fmax.reduceat(buckets[MAX], starts),
        np.where(some, buckets[LAST][last], np.nan), np.add.reduceat(buckets[MISSING], starts)])


def keys(db: sqlite3.Connection, run_id: str) -> list[str]:
    """Return the names of the numeric columns that occur in a run, in alphabetical order."""
    found, key = set(_Tail(db, run_id, None).columns), STEP
    while (key := db.execute("SELECT min(key) FROM blocks WHERE run_id = ? AND key > ?", (run_id, key)).fetchone()[0]):
        found.add(key)
    return sorted(found)


def series(db: sqlite3.Connection, run_id: str, wanted: Collection[str], first: int | None, last: int | None, px: int,
           ) -> dict[str, dict[str, list[Any]]]:
    """Return at most `px` buckets of each of the columns, over the rows of the steps from `first` to `last`, each
    included; None: the run's own. Their values are None where nothing in them is finite; a column that does not occur
    in the run has none."""
    tail, (a, b) = _Tail(db, run_id, wanted), span(db, run_id, first, last)
    steps, found = [], {}
    if a < b:
        steps = _Column(db, run_id, STEP, tail).buckets(a, b, px)[FIRST].astype(np.int64).tolist()
        of = {key: _Column(db, run_id, key, tail) for key in wanted if key != STEP}
        found = {key: column.buckets(a, b, px) for key, column in of.items() if column.occurs}
    return {key: _plain(steps, found[key]) if key in found else _plain([], np.empty((5, 0))) for key in wanted}


def span(db: sqlite3.Connection, run_id: str, first: int | None, last: int | None) -> tuple[int, int]:
    """Return the numbers of the first row of the steps from `first` to `last`, and of the one after the last."""
    count = db.execute("SELECT coalesce(max(n) + 1, 0) FROM metrics_lines WHERE run_id = ?", (run_id,)).fetchone()[0]
    step = lambda n: db.execute("SELECT step FROM metrics_lines WHERE run_id = ? AND n = ?", (run_id, n)).fetchone()[0]
    return (0 if first is None else bisect_left(range(count), first, key=step),
            count if last is None else bisect_right(range(count), last, key=step))


class _Tail:
    """The columns of the rows of a run after its last whole block. wanted: as `columns` takes it."""

    def __init__(self, db: sqlite3.Connection, run_id: str, wanted: Collection[str] | None) -> None:
        self.end = span(db, run_id, None, None)[1]
        self.start = self.end - self.end % BLOCK
        rows = _lines(db, run_id, self.start, self.end)
        self.columns = columns([parse(line) for _, line in rows], wanted)
        self.steps = _finite([step for step, _ in rows])


class _Column:
    """A column of a run."""

    def __init__(self, db: sqlite3.Connection, run_id: str, key: str, tail: _Tail) -> None:
        self.db, self.of, self.sealed = db, (run_id, key), tail.start
        rest = tail.steps if key == STEP else tail.columns.get(key)
        self.occurs = rest is not None or db.execute(
            "SELECT 1 FROM blocks WHERE run_id = ? AND key = ? LIMIT 1", self.of).fetchone() is not None
        self.rest = np.full(tail.end - tail.start, np.nan) if rest is None else rest

    def buckets(self, a: int, b: int, px: int) -> np.ndarray:
        """Return at most `px` buckets of the rows from `a` to `b` (excluded)."""
        if b - a <= UNIT * px:
            found = single(self._values(a, b))
        else:
            left = -(-a // UNIT) * UNIT
            right = max(left, min(b, self.sealed) // UNIT * UNIT)
            found = np.concatenate([self._grouped(a, left), self._units(left, right), self._grouped(right, b)], 1)
        n = found.shape[1]
        return found if n <= px else group(found, np.arange(px) * n // px)

    def _grouped(self, a: int, b: int) -> np.ndarray:
        return group(single(self._values(a, b)), np.arange(0, b - a, UNIT)) if a < b else np.empty((5, 0))

    def _units(self, a: int, b: int) -> np.ndarray:
        """Return the sealed buckets of the rows from `a` to `b`."""
        units = BLOCK // UNIT
        first, end = a // BLOCK, -(-b // BLOCK)
        found = np.full((5, end - first, units), np.nan)
        found[MISSING] = UNIT
        for block, blob in self._blobs("buckets", first, end):
            found[:, block - first] = np.frombuffer(blob).reshape(5, units)
        return found.reshape(5, -1)[:, a // UNIT - first * units:b // UNIT - first * units]

    def _values(self, a: int, b: int) -> np.ndarray:
        """Return the values of the rows from `a` to `b`."""
        first, end = a // BLOCK, -(-min(b, self.sealed) // BLOCK)
        found = np.full((max(end - first, 0), BLOCK), np.nan)
        for block, blob in self._blobs("blocks", first, end):
            found[block - first] = np.frombuffer(blob)
        start = min(first * BLOCK, self.sealed)  # of `found`
        return np.concatenate([found.reshape(-1), self.rest])[a - start:b - start]

    def _blobs(self, table: str, first: int, end: int) -> Iterator[tuple[int, bytes]]:
        return self.db.execute(f"SELECT block, data FROM {table} WHERE run_id = ? AND key = ? AND block >= ? "
                               f"AND block < ?", (*self.of, first, end))


def _finite(values: Sequence[Any]) -> np.ndarray:
    """Return the values as numbers, NaN where they are none or not finite."""
    try:
        if set(map(type, values)) - {int, float, bool, type(None)}:
            values = [value if isinstance(value, int | float) else None for value in values]
        array = np.array(values, np.float64)
    except OverflowError:  # an integer beyond every float
        array = np.array([value if isinstance(value, float) or (value is not None and abs(value) < 2**1023) else None
                          for value in values], np.float64)
    array[~np.isfinite(array)] = np.nan
    return array


def _plain(steps: list[int], buckets: np.ndarray) -> dict[str, list[Any]]:
    numbers = {name: [None if x != x else x for x in buckets[i].tolist()]
               for name, i in (("first", FIRST), ("min", MIN), ("max", MAX), ("last", LAST))}
    return {"step": steps, **numbers, "missing": buckets[MISSING].astype(np.int64).tolist()}


def _lines(db: sqlite3.Connection, run_id: str, a: int, b: int) -> list[tuple[int, str]]:
    return db.execute("SELECT step, line FROM metrics_lines WHERE run_id = ? AND n >= ? AND n < ? ORDER BY n",
                      (run_id, a, b)).fetchall()
