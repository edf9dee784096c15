"""A training that comes to nothing ends early, at the same step whether it was paused or not."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from helios.backends.backend import Backend
from helios.errors import UserError
from helios.train import checkpoint
from helios.train.config import resolve
from helios.train.evolve.stops import RULES, Seen, Stopping, StopsConfig
from helios.train.loop import Loop
from helios.train.progress import Display
from helios.train.records import overview
from helios.train.records.layout import EVENTS, METRICS, finished
from helios.train.records.rows import line, rows
from helios.train.run import Run

from .runs import SMALL, configured

QUIET = Display(quiet=True)


def made(steps: int = 60, **columns: Any) -> Iterator[dict[str, Any]]:
    """Rows of a training; a column may be a function of the step."""
    for step in range(1, steps + 1):
        row = {"step": step, "loss": 5.0, "val_loss": None, "grad_norm": 1.0, "clip_coef": 1.0, "tokens_per_sec": 900.0}
        yield row | {name: f(step) if callable(f) else f for name, f in columns.items()}


LN_V = math.log(300)
CASES: list[tuple[str, dict[str, Any], dict[str, Any], int | None]] = [
    # rule, settings, columns, the step that it ends
    ("nan", {}, {"loss": lambda n: math.nan if n > 20 else 5.0}, 23),
    ("nan", {"stop_nan": 1}, {"loss": lambda n: math.inf if n == 7 else 5.0}, 7),
    ("nan", {}, {"loss": lambda n: math.nan if n % 3 else 5.0}, None),  # two in a row
    ("nan", {"stop_nan": 0}, {"loss": math.nan}, None),
    ("spikes", {"stop_spikes": 0.25, "stop_window": 8}, {"grad_norm": lambda n: 50.0 if n > 30 and n % 2 else 1.0}, 35),
    ("spikes", {"stop_spikes": 0.25, "stop_window": 8}, {"grad_norm": lambda n: 5.0 if n % 2 else 1.0}, None),
    ("spikes", {}, {"grad_norm": lambda n: 50.0 if n % 2 else 1.0}, None),
    ("clipping", {"stop_clipped": 0.9, "stop_window": 10}, {"clip_coef": 0.5}, 12),  # not before the warm-up of 2
    ("clipping", {"stop_clipped": 0.9, "stop_window": 10}, {"clip_coef": lambda n: 0.5 if n % 10 else 1.0}, None),
    ("clipping", {}, {"clip_coef": 0.5}, None),
    ("speed", {"stop_speed": 0.5, "stop_window": 10}, {"tokens_per_sec": lambda n: 100.0 if n > 33 else 900.0}, 40),
    ("speed", {"stop_speed": 0.5, "stop_window": 10}, {"tokens_per_sec": lambda n: 100.0 if n < 9 else 500.0}, None),
    ("plateau", {"stop_plateau": 3}, {"val_loss": lambda n: 4.0 if n % 5 == 0 else None}, 20),
    ("plateau", {"stop_plateau": 3}, {"val_loss": lambda n: 4.0 - n / 100 if n % 5 == 0 else None}, None),
    ("plateau", {"stop_plateau": 3}, {"val_loss": lambda n: math.nan if n > 1 else 4.0}, None),  # unknown in a file
    ("loss", {"stop_loss_after": 20}, {"loss": LN_V + 0.01}, 30),
    ("loss", {"stop_loss_after": 20}, {"loss": lambda n: LN_V + (0.01 if n % 10 else -0.01)}, None),
    ("loss", {"stop_loss_after": 20, "stop_loss": 4.9}, {}, 30),
    ("loss", {"stop_loss": 4.9}, {}, None),
]


@pytest.mark.parametrize(("rule", "settings", "columns", "at"), CASES)
def test_where_each_rule_ends_a_training(rule: str, settings: dict[str, Any], columns: dict[str, Any], at: int | None
                                         ) -> None:
    """By the rows as they are made, and as they are read back."""
    stops, read = StopsConfig(**settings), lambda row: json.loads(line(row))
    for way in (dict, read):
        seen, found = Seen(stops, configured(eval_interval=5)), None
        for row in map(way, made(**columns)):
            seen.take(row)
            if found := next(((r.name, row["step"]) for r in RULES if r.holds(stops, seen)), None):
                break
        assert found == ((rule, at) if at else None)


def test_every_rule_is_tried_and_says_why() -> None:
    assert {case[0] for case in CASES if case[3]} == {rule.name for rule in RULES} == {
        case[0] for case in CASES if not case[3]}
    values = StopsConfig().to_dict()
    for rule in RULES:
        said = rule.why.format(**values, limit=LN_V)
        assert "{" not in said and "\n" not in said
        assert ("clock" in said) == (rule.name == "speed")


def planned(**settings: Any) -> Any:
    return partial(Stopping, StopsConfig(**settings))


def test_what_is_measured_at_a_pause_makes_no_plateau(tmp_path: Path) -> None:
    config = resolve("tiny", flags={"backend": "cpu_ref", "eval_interval": 3}, assignments=["plateau_delta=9"])
    for name, pauses in (("whole", ()), ("paused", (4, 5))):
        for until in (*pauses, None):
            result = Run.open(config, tmp_path / name, plan=planned(stop_plateau=2)).train(QUIET, until=until)
        assert result.step == 9  # evaluated at 3, 6 and 9


def test_a_stopped_run_has_ended(tmp_path: Path, each_backend: Backend) -> None:
    """With a checkpoint, at the same step also where it was paused; and it is not trained again."""
    config = resolve("tiny", flags={"backend": each_backend.name, "checkpoint_interval": 0})
    plan, ends = planned(stop_loss_after=1, stop_loss=0.1), []
    for name, pauses in (("whole", ()), ("paused", (3, 7))):
        for until in (*pauses, None):
            run = Run.open(config, tmp_path / name, plan=plan)
            result = run.train(QUIET, until=until)
            assert result.finished == run.finished == (until is None)
        last = checkpoint.directories(run.path)[-1]
        ends.append((result.step, (last / checkpoint.MODEL).read_bytes(), (last / checkpoint.OPTIMIZER).read_bytes()))
    assert ends[0] == ends[1] and ends[0][0] == 11
    said = "after step 1 the loss was above 0.1 in 10 steps in a row"
    assert result.trouble == said and result.summary.startswith(f"done, but {said}: step 11 of 12, ")
    event = rows(run.path / EVENTS)[-1]
    assert (event["kind"], event["step"], event["reason"], event["message"]) == ("stopped", 11, "loss", said)
    assert overview.status(event, False, 0) == ("completed", said)
    assert Run.open(config, run.path, plan=plan).train(QUIET).step == 11 and len(rows(run.path / METRICS)) == 11
    assert finished(run.path) and [e["kind"] for e in rows(run.path / EVENTS)][-2:] == ["resumed", "stopped"]
    assert Run.open(config, run.path).train(QUIET).step == 12  # without the rules


@pytest.mark.parametrize("weights", [True, False])
def test_what_is_not_finite_ends_without_a_checkpoint(tmp_path: Path, cpu_ref: Backend, weights: bool,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    prepare, row = Loop._prepare, Loop._row

    def poisoned(self: Loop, **more: Any) -> None:
        prepare(self, **more)
        state = self.state.model.state_dict()
        state["lm_head.weight"][0, 0] = math.nan
        self.state.model.load_state_dict(state)

    if weights:
        monkeypatch.setattr(Loop, "_prepare", poisoned)
    monkeypatch.setattr(Loop, "_row", lambda self, *args: row(self, *args) | {"loss": math.nan})
    config = resolve("tiny", flags={"backend": "cpu_ref"})
    run = Run.open(config, tmp_path / "run", plan=planned())
    result = run.train(QUIET)
    assert (result.finished, result.step, run.finished) == (True, 3, True)
    assert [checkpoint.step_of(path) for path in checkpoint.directories(run.path)] == [3] * (not weights)
    assert rows(run.path / EVENTS)[-1]["reason"] == "nan"
    assert Run.open(config, run.path, plan=planned()).finished  # and no new one takes its place
    with pytest.raises(UserError, match="holds"):
        Run.create(config, run.path).train(QUIET)


def test_the_last_step_is_no_early_stop(tmp_path: Path, cpu_ref: Backend) -> None:
    config = resolve("tiny", flags={"backend": "cpu_ref", "steps": 11})
    run = Run.create(config, tmp_path / "run", plan=planned(stop_loss_after=1, stop_loss=0.1))
    assert run.train(QUIET).finished and rows(run.path / EVENTS)[-1]["kind"] == "run_complete"


def test_a_search_has_its_own_stops(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no plan of one"):
        Run.create(configured(**SMALL), tmp_path, plan=planned())
    with pytest.raises(UserError, match="stop_spikes: expected from 0 to 1"):
        StopsConfig(stop_spikes=2.0)
