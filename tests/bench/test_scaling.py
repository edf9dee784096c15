"""How a step's cost grows: figures that do not depend on the clock, and what the command prints and writes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from helios.bench import scaling
from helios.bench.scaling import AXES, Point, cells, config, exponents
from helios.bench.step import QUICK
from helios.cli import bench
from helios.errors import TooLarge

from ..commands import invoke, refused

run = partial(invoke, bench.main)


def test_each_axis_grows_alone_over_a_factor_of_16() -> None:
    for axis, (key, values) in AXES.items():
        assert values[-1] == 16 * values[0]
        found = [config(axis, value) for value in values]
        first, *_, last = ({**c.model.to_dict(), "batch_size": c.train.batch_size} for c in found)
        assert {name for name in first if first[name] != last[name]} - {"n_head"} == {key}
        assert {c.model.n_embd // c.model.n_head for c in found} == {32}


@pytest.mark.usefixtures("backend")
def test_what_a_step_takes() -> None:
    small, large = (measured for measured in (scaling.measured("L", 1, "none", QUICK),
                                              scaling.measured("L", 2, "none", QUICK)))
    assert 0 < small.memory_mib < large.memory_mib and 0 < small.dispatches < large.dispatches
    parameters = [config("L", value).model.parameters() for value in (1, 2)]
    for point, count in zip((small, large), parameters, strict=True):  # weights, two moments
        assert point.checkpoint_mib * 2**20 == pytest.approx(12 * count, rel=0.02)


def test_powers_are_those_of_the_largest_values() -> None:
    found = [Point("T", t, 5.0 + t**2 * (t > 64), 3.0 * t, 7, 1.0, 1.0, None) for t in AXES["T"][1]]
    powers = exponents(found)["T"]
    assert powers["ms"] == pytest.approx(2, abs=1e-3) and powers["memory_mib"] == pytest.approx(1)
    assert powers["dispatches"] == pytest.approx(0) and "peer_ms" not in powers
    assert [row[1] for row in cells(found)] == ["64", "128", "256", "512", "1,024", "power"]


def test_an_axis_ends_where_memory_does(monkeypatch: pytest.MonkeyPatch) -> None:
    class Here:
        """An executor in this process."""

        def __init__(self, *given: object) -> None: ...

        def __enter__(self) -> Here:
            return self

        def __exit__(self, *given: object) -> None: ...

        def submit(self, work: object, axis: str, value: int, *given: object) -> Here:
            self.value = value
            return self

        def result(self) -> Point:
            if self.value > 2:
                raise TooLarge("no room")
            return Point("L", self.value, 1.0, 1.0, 1, 1.0, 1.0, None)

    said: list[str] = []
    monkeypatch.setattr(scaling, "ProcessPoolExecutor", Here)
    assert [p.value for p in scaling.points(["L"], "none", False, said.append)] == [1, 2]
    assert said[-1] == "L 4: no room"


@pytest.mark.usefixtures("backend")
def test_the_command(tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    result = run("scaling", "--quick", "--axis", "batch", "--json", file, "--plot", tmp_path)
    assert result.exit_code == 0, result.output
    found = json.loads(file.read_text())
    assert [(p["axis"], p["value"]) for p in found["points"]] == [("batch", 1), ("batch", 2)]
    assert set(found["exponents"]["batch"]) >= {"ms", "memory_mib"} and "power" in result.output
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    refused(run("scaling", "--axis", "H"), "'H'")
    refused(run("scaling", "--json", tmp_path / "none" / "s.json"), "no folder")
