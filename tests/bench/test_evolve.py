"""What an experiment itself costs: its command, and how times are told apart."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from helios.bench import evolve
from helios.bench.evolve import PARTS, Clock, Row, exponents
from helios.cli import bench


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evolve, "SHAPES", dict([next(iter(evolve.SHAPES.items()))]))
    result = CliRunner().invoke(bench.main, ["evolve", "--quick", "--preset", "tiny", "--plot", str(tmp_path),
                                             "--json", str(tmp_path / "x.json")])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "x.json").read_text())
    assert [row["births"] for row in found["rows"]] == [births + 1 for births in evolve.QUICK]  # and the preset
    for row in found["rows"]:
        assert row["parts"].keys() == PARTS.keys() and min(row["parts"].values()) > 0
        assert row["lines"] > row["births"] and row["bytes"] > 100 * row["lines"] and row["memory"] > 10
        assert row["seconds"] == sum(row["parts"].values()) - row["parts"]["planted"]
    (powers,) = found["exponents"].values()
    assert powers.keys() == {*evolve.COST, "all", "read back", "journal"}
    training = found["training"]
    assert training["trainings"] > 1 and min(training["parts"].values()) > 0
    assert training["around"] == pytest.approx(sum(
        x for part, x in training["parts"].items() if part not in (evolve.DRIVER, *evolve.USEFUL)))
    assert (tmp_path / "evolve-cost.png").read_bytes().startswith(b"\x89PNG")


def test_the_exponent() -> None:
    rows = [Row("", n, 1, n, dict.fromkeys(PARTS, 0.0) | {"state": 3e-9 * n**1.5}, 0.0, 0.0, 0, 0.0)
            for n in (10, 1000, 100_000, 10_000)]
    rows[0].parts["state"] = 1.0  # of few births it says nothing
    assert exponents(rows)[""]["all"] == pytest.approx(1.5)


def test_a_part_is_without_what_others_take_in_it() -> None:
    now = 0.0

    def spend(seconds: float) -> None:
        nonlocal now
        now += seconds

    there = SimpleNamespace(inner=lambda: spend(2.0))

    def outer() -> None:
        spend(1.0)
        there.inner()
        spend(4.0)

    there.outer = outer
    clock = Clock({"outer": ((there, "outer"),), "inner": ((there, "inner"),)}, lambda: now)
    with clock.running():
        there.outer()
        spend(8.0)
        there.inner()
    there.outer()
    assert clock.parts == {"outer": 5.0, "inner": 4.0}
