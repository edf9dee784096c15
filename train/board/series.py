"""Series: a numeric column of a run's metrics, in blocks and buckets, so that any range of any length is read fast.

Rows are sealed by number in blocks of BLOCK: for each column one blob of values (NaN: missing or not finite) and one of
buckets of UNIT rows each. What follows the last whole block is read from the rows' text.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from helios.train.board.schema import parse

BLOCK, UNIT = 1024, 64
STEP = ""  # the column of steps as `metrics.step` has them, which never decrease
DEPTH, COLUMNS = 8, 4096  # at most: nested objects in a row, columns in a block
FIRST, MIN, MAX, LAST, MISSING = range(5)  # rows of an array of buckets, (5, buckets)


def numbers(row: Mapping[str, Any], prefix: str = "", depth: int = DEPTH) -> Iterator[tuple[str, float]]:
    """Yield the numeric columns of a row, nested ones with dots between the names; a boolean counts as 0 or 1."""
    for key, value in row.items():
        if isinstance(value, int | float):
            if prefix + key != STEP:
                yield prefix + key, _float(value)
        elif isinstance(value, dict) and depth > 1:
            yield from numbers(value, f"{prefix}{key}.", depth - 1)


def seal(db: sqlite3.Connection, run_id: str, block: int) -> None:
    """Write the block of that number, whose rows are all there."""
    start = block * BLOCK
    found: dict[str, list[float]] = {STEP: []}
    for i, (step, line) in enumerate(_tail(db, run_id, start, start + BLOCK)):
        found[STEP].append(step)
        for key, value in numbers(parse(line)):
            if key not in found:
                if len(found) > COLUMNS:
                    continue
                found[key] = [np.nan] * BLOCK
            found[key][i] = value
    for key, values in found.items():
        array = _finite(values)
        same = bool((array == array[0]).all() or np.isnan(array).all())
        db.execute("INSERT INTO blocks VALUES (?, ?, ?, ?)", (run_id, key, block, (array[:1] if same else array).tobytes()))
        buckets = group(single(array), np.arange(0, BLOCK, UNIT))
        db.execute("INSERT INTO buckets VALUES (?, ?, ?, ?)", (run_id, key, block, buckets.tobytes()))


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
    found, key = set(), STEP
    while row := db.execute("SELECT min(key) FROM blocks WHERE run_id = ? AND key > ?", (run_id, key)).fetchone():
        if row[0] is None:
            break
        key = row[0]
        found.add(key)
    count = _count(db, run_id)
    for _, line in _tail(db, run_id, count - count % BLOCK, count):
        found.update(key for key, _ in numbers(parse(line)))
    return sorted(found)


def series(db: sqlite3.Connection, run_id: str, wanted: Sequence[str], first: int | None, last: int | None, px: int,
           ) -> dict[str, dict[str, list[Any]]]:
    """Return at most `px` buckets of each of the columns, over the rows of the steps from `first` to `last`, each
    included; None: the run's own. Their values are None where nothing in them is finite; a column that does not occur
    in the run has none."""
    count = _count(db, run_id)
    step = lambda n: db.execute("SELECT step FROM metrics WHERE run_id = ? AND n = ?", (run_id, n)).fetchone()[0]
    a = 0 if first is None else bisect_left(range(count), first, key=step)
    b = count if last is None else bisect_right(range(count), last, key=step)
    tail, steps, found = _Tail(db, run_id, count), [], {}
    if a < b:
        steps = _Column(db, run_id, STEP, tail).buckets(a, b, px)[FIRST].astype(np.int64).tolist()
        columns = {key: _Column(db, run_id, key, tail) for key in wanted if key != STEP}
        found = {key: column.buckets(a, b, px) for key, column in columns.items() if column.occurs}
    return {key: _plain(steps, found[key]) if key in found else _plain([], np.empty((5, 0))) for key in wanted}


class _Tail:
    """The rows of a run after its last whole block."""

    def __init__(self, db: sqlite3.Connection, run_id: str, count: int) -> None:
        self.start = count - count % BLOCK
        lines = _tail(db, run_id, self.start, count)
        self.steps, self.rows = [step for step, _ in lines], [parse(line) for _, line in lines]

    @cached_property
    def nested(self) -> list[dict[str, float]]:
        return [dict(numbers(row)) for row in self.rows]

    def column(self, key: str) -> list[float | None]:
        """Return the numbers in a column, with None where there is none."""
        if key == STEP:
            return self.steps
        if "." in key:
            return [row.get(key) for row in self.nested]
        values = (row.get(key) for row in self.rows)
        return [_float(value) if isinstance(value, int | float) else None for value in values]


class _Column:
    """A column of a run."""

    def __init__(self, db: sqlite3.Connection, run_id: str, key: str, tail: _Tail) -> None:
        self.db, self.of, self.sealed = db, (run_id, key), tail.start
        rest = tail.column(key)
        self.occurs = any(value is not None for value in rest) or db.execute(
            "SELECT 1 FROM blocks WHERE run_id = ? AND key = ? LIMIT 1", self.of).fetchone() is not None
        self.rest = _finite([np.nan if value is None else value for value in rest])

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


def _float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer beyond every float
        return np.inf


def _finite(values: Sequence[float]) -> np.ndarray:
    array = np.array(values, np.float64)
    array[~np.isfinite(array)] = np.nan
    return array


def _plain(steps: list[int], buckets: np.ndarray) -> dict[str, list[Any]]:
    numbers = {name: [None if x != x else x for x in buckets[i].tolist()]
               for name, i in (("first", FIRST), ("min", MIN), ("max", MAX), ("last", LAST))}
    return {"step": steps, **numbers, "missing": buckets[MISSING].astype(np.int64).tolist()}


def _count(db: sqlite3.Connection, run_id: str) -> int:
    return db.execute("SELECT coalesce(max(n) + 1, 0) FROM metrics WHERE run_id = ?", (run_id,)).fetchone()[0]


def _tail(db: sqlite3.Connection, run_id: str, a: int, b: int) -> list[tuple[int, str]]:
    return db.execute("SELECT step, line FROM metrics WHERE run_id = ? AND n >= ? AND n < ? ORDER BY n", (run_id, a, b)
                      ).fetchall()
