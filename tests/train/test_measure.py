"""What a run directory tells of a training is what was counted as it trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from helios.backends.backend import Backend
from helios.errors import Diverged, UserError
from helios.train.config import Config, resolve
from helios.train.evolve.measure import Measured, measure
from helios.train.evolve.stops import Stopping, StopsConfig
from helios.train.loop import Loop
from helios.train.monitors.cusum import CLIP
from helios.train.progress import Display
from helios.train.records.layout import EVENTS, METRICS
from helios.train.records.rows import rows
from helios.train.run import Run
from helios.train.search.births import Replicate
from helios.train.search.tally import Tally
from helios.train.stage import Plan

QUIET = Display(quiet=True)
TIMES = ("seconds", "tokens_per_sec_mean", "fitness", "memory_mb")


class Counted(Plan):
    """A training that is counted as a search's are."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.tally = Tally()

    def step(self, row: Mapping[str, Any], tokens: int, timed: bool) -> None:
        self.tally.step(row, tokens, timed)

    def observe(self, row: Mapping[str, Any]) -> None:
        self.tally.observe(row)

    def replicate(self) -> Replicate:
        return self.tally.replicate(self.config.train.seed, self.config.model.parameters(), self.config, lambda: 0.0)


def tiny(backend: str = "cpu_ref", **settings: Any) -> Config:
    return resolve("tiny", flags={"backend": backend, "steps": 20, "eval_interval": 5, "seed": 3} | settings)


def counted(found: Measured) -> dict[str, Any]:
    return {name: getattr(found, name) for name in Replicate.__dataclass_fields__}


def timeless(found: Measured) -> dict[str, Any]:
    return {name: value for name, value in vars(found).items() if name not in TIMES}


def test_what_is_read_back_is_what_was_counted(tmp_path: Path, each_backend: Backend) -> None:
    """Also over pauses, after each of which a first step is not timed."""
    config, found = tiny(each_backend.name), []
    for name, pauses in (("whole", ()), ("paused", (5, 13))):
        plan = Counted(config)
        for until in (*pauses, None):
            Run.open(config, tmp_path / name, plan=lambda config, plan=plan: plan).train(QUIET, until=until)
            if until:
                assert (half := measure(tmp_path / name)).status == "unfinished" and half.steps == until
                assert half.why == f"at step {until}, asked to go to {until}"
        found.append(measure(tmp_path / name))
        assert counted(found[-1]) == vars(plan.replicate())
    whole, paused = found
    assert (whole.status, whole.why, whole.steps, whole.tokens, whole.seed) == ("complete", None, 20, 20 * 4 * 16, 3)
    assert whole.parameters == config.model.parameters() and whole.val_loss == whole.evaluations[-1][1] is not None
    assert [step for step, _ in paused.evaluations] == [5, 10, 13, 15, 20]
    extra = [e for e in paused.evaluations if e[0] != 13]
    assert timeless(paused) | {"evaluations": extra} == timeless(whole)
    log = rows(tmp_path / "whole" / METRICS)
    assert whole.seconds == pytest.approx(sum(row["ms_per_iter"] for row in log[1:]) / 1000)
    assert (whole.memory_mb is None) == (each_backend.name == "cpu_ref")


def test_killed_and_resumed_it_is_measured_the_same(tmp_path: Path, cpu_ref: Backend, monkeypatch: pytest.MonkeyPatch
                                                    ) -> None:
    config, record = tiny(checkpoint_interval=4), Loop._record

    class Killed(BaseException):
        pass

    def dies(self: Loop, row: dict[str, Any]) -> None:
        record(self, row)
        if row["step"] == 11:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Loop, "_record", dies)
        Run.open(config, tmp_path / "killed").train(QUIET)
    half = measure(tmp_path / "killed")
    assert (half.status, half.why, half.steps) == ("unfinished", "it was killed after step 11, or is under way", 11)
    for name in ("killed", "whole"):
        assert Run.open(config, tmp_path / name).train(QUIET).finished
    killed, whole = measure(tmp_path / "killed"), measure(tmp_path / "whole")
    assert timeless(killed) == timeless(whole)
    log = rows(tmp_path / "killed" / METRICS)  # the first step of each process is not timed
    assert killed.seconds == pytest.approx(sum(row["ms_per_iter"] for row in log if row["step"] not in (1, 9)) / 1000)


def test_a_step_of_another_batch_is_not_timed(tmp_path: Path, cpu_ref: Backend, planted: dict[int, int]) -> None:
    planted |= {3: CLIP}
    config = resolve(base=tiny().to_dict(), assignments=["adaptive_batch=true", "batch_max=6", "batch_step=2"])
    plan = Counted(config)
    Run.create(config, tmp_path / "run", plan=lambda config: plan).train(QUIET)
    found = measure(tmp_path / "run")
    assert counted(found) == vars(plan.replicate()) and found.tokens > 20 * 4 * 16 and found.cusum_alerts == 1


@pytest.mark.parametrize(("settings", "stops", "patched", "status", "why", "val_loss"), [
    ({"eval_interval": 0}, None, {}, "complete", "it has no validation point: no evaluation was asked for", False),
    ({"spike_threshold": 1e-3}, None, {}, "diverged", "every update was skipped (spike)", True),
    ({}, None, {"evaluate": lambda self: math.nan}, "diverged", "the last validation loss is not finite", False),
    ({}, {"stop_loss_after": 2, "stop_loss": 0.1}, {}, "stopped", "after step 2 the loss was above 0.1 in 10", True),
    ({}, {}, {"_row": math.nan}, "diverged", "no finite loss in 3 steps in a row", False),
    ({}, None, {"_row": math.nan}, "diverged", "the loss is not finite", True),
    ({}, None, {"_save": Diverged("the weights are not finite")}, "diverged", "the weights are not finite", True),
    ({}, None, {"_save": UserError("the disk is full")}, "failed", "the disk is full", True),
])
def test_how_a_training_stands(tmp_path: Path, cpu_ref: Backend, monkeypatch: pytest.MonkeyPatch, val_loss: bool,
                               settings: dict[str, Any], stops: dict[str, Any] | None, patched: dict[str, Any],
                               status: str, why: str) -> None:
    row = Loop._row

    def raising(error: Exception) -> Any:
        raise error

    for name, how in patched.items():
        replaced = {"_row": lambda self, *args, how=how: row(self, *args) | {"loss": how},
                    "_save": lambda self, folder, how=how: raising(how)}.get(name, how)
        monkeypatch.setattr(Loop, name, replaced)
    plan = Plan if stops is None else partial(Stopping, StopsConfig(**stops))
    run = Run.create(tiny(**settings), tmp_path / "run", plan=plan)
    if isinstance(patched.get("_save"), Exception):
        with pytest.raises(type(patched["_save"])):
            run.train(QUIET)
    else:
        run.train(QUIET)
    found = measure(run.path)
    assert found.status == status and str(found.why).startswith(why), rows(run.path / EVENTS)[-1]
    assert (found.val_loss is not None) == val_loss
    if "evaluate" in patched:
        assert found.evaluations == [(5, None), (10, None), (15, None), (20, None)]


def test_no_run_and_no_step(tmp_path: Path, cpu_ref: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="is no run directory"):
        measure(tmp_path)
    monkeypatch.setattr(Loop, "run", lambda self: 1 / 0)
    run = Run.create(tiny(), tmp_path / "run")
    with pytest.raises(ZeroDivisionError):
        run.train(QUIET)
    found = measure(run.path)
    assert (found.status, found.steps, found.val_loss, found.train_loss) == ("failed", 0, None, None)
    assert found.why == "ZeroDivisionError: division by zero"
