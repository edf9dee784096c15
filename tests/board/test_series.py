"""Whatever is asked of a series, it is what its rows say: no spike and no missing value is lost at any zoom."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios.train.board import ingest, series
from helios.train.board.schema import parse
from helios.train.board.series import BLOCK, UNIT
from helios.train.board.store import Store

VALUES = st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), st.integers(2**63, 2**2000),
                   st.text(max_size=3), st.lists(st.none(), max_size=1))
ROW = st.dictionaries(st.sampled_from(["a", "b", "n"]), st.one_of(VALUES, st.dictionaries(st.sampled_from(["x", "y.z"]),
                                                                                           VALUES)))


def put(store: Store, rows: list[Any], run_id: str = "r", at_once: int = 700) -> None:
    for start in range(0, len(rows), at_once):
        part = [(json.dumps(row), row) for row in rows[start:start + at_once]]
        store.write(lambda db, start=start, part=part: ingest.put(db, run_id, "metrics", start, part, 0.0))


def ask(store: Store, keys: list[str], first: int | None = None, last: int | None = None, px: int = 800,
        run_id: str = "r") -> dict[str, Any]:
    with store.reading() as db:
        return series.series(db, run_id, keys, first, last, px)


def plain(row: Any, key: str) -> Any:
    """The number in a row, None where there is none; NaN where it is not finite."""
    for name, value in row.items():
        if name == key and isinstance(value, int | float):
            try:
                return float(value) if math.isfinite(value) else math.nan
            except OverflowError:
                return math.nan
        if isinstance(value, dict) and key.startswith(f"{name}."):
            return plain(value, key[len(name) + 1:])
    return None


def check(found: dict[str, list[Any]], steps: list[int], values: list[Any], px: int) -> None:
    """The buckets are those rows in their order, and say of them what is true. values: None: there is no number."""
    assert len(found["step"]) <= px
    # A bucket begins at the first row of its step that is not in the one before: with rising steps that is unambiguous.
    starts = [steps.index(step) for step in found["step"]]
    assert starts == sorted(set(starts)) and starts[0] == 0
    if len(steps) <= px:
        assert starts == list(range(len(steps)))
    for i, (a, b) in enumerate(zip(starts, [*starts[1:], len(steps)], strict=True)):
        known = [value for value in values[a:b] if value is not None and not math.isnan(value)]
        assert found["missing"][i] == b - a - len(known)
        wanted = (known[0], min(known), max(known), known[-1]) if known else (None,) * 4
        assert tuple(found[name][i] for name in ("first", "min", "max", "last")) == wanted


@settings(max_examples=40, deadline=None)
@given(st.lists(ROW, max_size=40), st.integers(1, 60), st.integers(-5, 60), st.integers(-5, 60), st.integers(0, 3))
def test_any_rows(rows: list[Any], px: int, first: int, last: int, blocks: int) -> None:
    """blocks: rows are repeated until they are about that many blocks long."""
    many = (rows * (1 + blocks * BLOCK // max(len(rows), 1)))[:blocks * BLOCK + len(rows)]
    many = [{**row, "step": 2 * i} for i, row in enumerate(many)]
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "db")
        put(store, many)
        keys = ["a", "b", "n", "n.x", "n.y.z", "a.x", "never"]
        last, first = last * (1 + 30 * blocks), first * (1 + 3 * blocks)
        found, all_of = ask(store, keys, first, last, px), ask(store, keys, None, None, px)
        with store.reading() as db:
            occurring = series.keys(db, "r")
        store.close()
    for key in keys:
        column = [plain(row, key) for row in many]
        occurs = any(value is not None for value in column)
        assert (key in occurring) == occurs
        inside = [i for i in range(len(many)) if first <= 2 * i <= last]
        if occurs:
            check(all_of[key], [2 * i for i in range(len(many))], column, px)
        if occurs and inside:
            check(found[key], [2 * i for i in inside], [column[i] for i in inside], px)
        else:
            assert found[key] == {name: [] for name in ("step", "first", "min", "max", "last", "missing")}


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of 200,000 rows and some, with one spike and one value that is missing."""
    store = Store(tmp_path_factory.mktemp("long") / "db")
    n = 200 * BLOCK + 77
    rng = np.random.default_rng(0)
    loss = rng.standard_normal(n).round(3).tolist()
    loss[123_456], loss[54_321] = 1000.0, None
    rows = [{"step": i + 1, "loss": x} for i, x in enumerate(loss)]
    put(store, rows, at_once=5000)
    yield store, loss
    store.close()


@pytest.mark.parametrize("px", [1, 2, 10, 100, 799, 3000, 10_000])
def test_a_spike_and_a_gap_are_in_every_zoom(long: Any, px: int) -> None:
    store, loss = long
    for width in (len(loss), 120_000, 40_001, 9_000, 65, 1):
        for middle in (123_456, 54_321):
            first = max(0, min(middle - width // 3, len(loss) - width))
            steps = list(range(first + 1, first + width + 1))
            found = ask(store, ["loss"], steps[0], steps[-1], px)["loss"]
            inside = loss[first:first + width]
            check({**found, "step": [step - first - 1 for step in found["step"]]}, _Range(width), inside, px)
            assert sum(found["missing"]) == (first <= 54_321 < first + width)
            assert (max(x for x in found["max"] if x is not None) == 1000) == (1000 in inside) if width > 1 else True
            assert len(found["step"]) >= min(px, width / UNIT)


class _Range(list[int]):
    """The numbers below n, in which each is found at once."""

    def __init__(self, n: int) -> None:
        super().__init__(range(n))

    def index(self, value: int, *_: Any) -> int:
        return value


def test_a_cut_reaches_the_blocks(store: Store) -> None:
    rows = [{"step": i, "loss": float(i), "old": 1} for i in range(3 * BLOCK)]
    put(store, rows)
    store.write(lambda db: ingest.cut(db, "r", 1500, 0.0))
    with store.reading() as db:
        assert ingest.count(db, "r", "metrics") == 1501
    rows = rows[:1501] + [{"step": i, "loss": -1.0} for i in range(1501, 3000)]
    put(store, rows)
    check(ask(store, ["loss"], px=100)["loss"], _Range(3000), [row["loss"] for row in rows], 100)
    check(ask(store, ["old"], px=100)["old"], _Range(3000), [row.get("old") for row in rows], 100)


def test_steps_that_are_none_take_that_of_the_row_before(store: Store) -> None:
    put(store, [{"loss": 1.0}, {"step": 5, "loss": 2.0}, {"step": 3, "loss": 3.0}, {"step": "x", "loss": 4.0},
                {"step": 2**70, "loss": 5.0}, {"step": 9, "loss": 6.0}])
    assert ask(store, ["loss"])["loss"]["step"] == [0, 5, 5, 5, 5, 9]
    assert ask(store, ["loss"], 5, 8)["loss"]["first"] == [2, 3, 4, 5]


@settings(max_examples=100, deadline=None)
@given(st.recursive(VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)))
def test_every_row_is_read_as_it_was_written(value: Any) -> None:
    from helios.train.board.schema import strict, text

    assert text(parse(text(value))) == text(value)
    json.loads(strict(text(value)), parse_constant=lambda name: pytest.fail(name))
