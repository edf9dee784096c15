"""A long training, watched: where it is looked at, and what is told of it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from helios.bench import long
from helios.cli import bench
from helios.train.records.layout import METRICS

from ..commands import invoke

run = partial(invoke, bench.main)


def test_marks() -> None:
    assert long.marks(30) == [30] and long.marks(1000) == [1000]
    assert long.marks(12_000) == [1000, 2000, 5000, 10_000, 12_000]


def test_what_is_told_of_it(tmp_path: Path) -> None:
    result = run("long", "--steps", 60, "--run-dir", tmp_path / "run", "--json", tmp_path / "found.json")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "found.json").read_text())
    (mark,) = found["marks"]
    rows = [json.loads(line) for line in (tmp_path / "run" / METRICS).read_text().splitlines()]
    assert mark["step"] == 60 == len(rows) and mark["ms"] * 60 == pytest.approx(rows[-1]["elapsed_ms"])
    assert mark["memory_mib"] > 20 and mark["files"] > 3 and mark["checkpoints_mib"] > 0
    assert mark["records_mib"] * 2**20 == (tmp_path / "run" / METRICS).stat().st_size
    assert list(found["reading_s"]) == ["a row at a time", "helios-runs", "helios-report"]
    assert "all records read, helios-runs: 0.0" in result.stdout


def test_where_it_cannot_train(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").touch()
    result = run("long", "--steps", 5, "--run-dir", tmp_path)
    assert result.exit_code == 2 and not result.stdout
    assert "not empty" in capfd.readouterr().err  # what the process said
