"""An experiment in its directory: what is kept when it is interrupted, and what it refuses before any work."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from helios.errors import UserError
from helios.train.evolve.driver import Driver
from helios.train.evolve.journal import Journal
from helios.train.evolve.trainings import Job, Results
from helios.train.progress import Display
from helios.train.records.journal import JOURNAL

from .planted import Planted, question

QUIET = Display(quiet=True)


@pytest.fixture(autouse=True)
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/train/evolve/test_report.py has them."""
    monkeypatch.setattr("helios.train.evolve.plots.draw", lambda *given: {})


class Interrupted(Planted):
    """Gives results in any order, and is interrupted now and then."""

    def __init__(self, *given: Any, often: float = 0.05) -> None:
        super().__init__(*given)
        self.random, self.often = random.Random(1), often

    def __call__(self, jobs: Sequence[Job]) -> Results:
        found = list(super().__call__(jobs))
        self.random.shuffle(found)
        for pair in found:
            if self.random.random() < self.often:
                raise KeyboardInterrupt
            yield pair


def journal(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]
    assert found[0].pop("id")  # a random one
    return found


def test_interrupted_and_resumed_the_journal_is_the_same(tmp_path: Path) -> None:
    whole = Driver.create(question(), tmp_path / "whole", QUIET)
    assert whole.run(Planted(whole.experiment.space))
    driver, times = Driver.create(question(), tmp_path / "parts", QUIET), 0
    executor = Interrupted(driver.experiment.space)
    while not driver.run(executor):
        driver, times = Driver.resume(tmp_path / "parts", QUIET), times + 1
        if times % 3 == 0:  # a kill in the middle of writing
            with open(tmp_path / "parts" / JOURNAL, "ab") as file:
                file.write(b'{"kind": "result", "id": "ge')
    assert times > 3 and journal(tmp_path / "parts") == journal(tmp_path / "whole")
    before = (tmp_path / "parts" / JOURNAL).read_bytes()
    assert Driver.resume(tmp_path / "parts", QUIET).run(Planted(driver.experiment.space))  # nothing is left to do
    assert (tmp_path / "parts" / JOURNAL).read_bytes() == before


def test_where_a_line_cannot_be_written_trainings_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, ended = Driver.create(question(), tmp_path / "x", QUIET), []

    def results(jobs: Sequence[Job]) -> Results:
        monkeypatch.setattr(Journal, "append", refuse)
        try:
            yield from Planted(driver.experiment.space)(jobs)
        finally:
            ended.append(True)

    def refuse(*given: object) -> None:
        raise UserError("no room")

    with pytest.raises(UserError, match="no room") as refusal:
        driver.run(results)
    assert ended and refusal  # while something still refers to where it was


def damaged(folder: Path, change: Any) -> None:
    lines = (folder / JOURNAL).read_bytes().splitlines(keepends=True)
    (folder / JOURNAL).write_bytes(b"".join(change(lines)))


@pytest.mark.parametrize(("change", "message"), [
    (lambda lines: [*lines[:5], lines[5][:20] + b"\n", *lines[6:]], "line 6, is damaged"),
    (lambda lines: lines[1:], "its first line is not that of an experiment"),
    (lambda lines: [lines[0].replace(b'"version": 1', b'"version": 9'), *lines[1:]], "no journal of version 1"),
    (lambda lines: [*lines[:5], lines[4], *lines[5:]], "is born twice"),
    (lambda lines: [*lines, b'{"kind": "weather"}\n'], "weather"), (lambda lines: [], "holds no experiment"),
    (lambda lines: [*lines, lines[0]], "two experiments")])
def test_a_damaged_journal_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    driver = Driver.create(question(generations=1, validation_replicates=0), tmp_path / "x", QUIET)
    assert driver.run(Planted(driver.experiment.space))
    damaged(tmp_path / "x", change)
    with pytest.raises(UserError, match=message):
        Driver.resume(tmp_path / "x", QUIET)


def test_directories_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").write_text("")
    driver = Driver.create(question(generations=1, validation_replicates=0), tmp_path / "there", QUIET)
    assert driver.run(Planted(driver.experiment.space))
    for name, message in (("file", "is a file"), ("full", "is not empty"), ("there", "go on with it with --resume")):
        with pytest.raises(UserError, match=message):
            Driver.create(question(), tmp_path / name, QUIET)
    with pytest.raises(UserError, match="holds no experiment"):
        Driver.resume(tmp_path / "full", QUIET)
    with FileLock(tmp_path / "there" / "lock"), pytest.raises(UserError, match="is in use by another process"):
        Driver.resume(tmp_path / "there", QUIET).run(Planted(driver.experiment.space))


@pytest.mark.parametrize(("settings", "message"), [
    ({"objectives": "val_los"}, "unknown objective 'val_los'; did you mean val_loss"),
    ({"objectives": ""}, "objectives"), ({"fitness": "-val_loss + lr"}, "nothing measured is called 'lr'"),
    ({"fitness": "__import__('os')"}, "cannot be part|unknown function"),
    ({"fitness": "inverse"}, "needs free_energy, which is not measured in an experiment"),
    ({"population_size": 1}, "at least 2"), ({"per_candidate": 0}, "greater than 0"), ({"budget": "steps"}, "budget"),
    ({"max_cost": 1000}, "more than --max-cost 1e[+]03"), ({"total": 10}, "do not suffice for one generation"),
    ({"population_min": 9}, "expected from population_min 9"), ({"generations": 0}, "at least 1"),
    ({"mode": "ffn-activation"}, "do not search themselves"), ({"per_candidate": 10}, "less than a step")])
def test_what_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        Driver.create(question(**settings), tmp_path / "x", QUIET)
    assert not (tmp_path / "x").exists()


def test_without_validation_data(tmp_path: Path) -> None:
    asked = replace(question(), base=question().base.replaced("data", val_data=None))
    with pytest.raises(UserError, match="give a text with --val-data"):
        Driver.create(asked, tmp_path / "x", QUIET)
