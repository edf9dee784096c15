"""Two historic runs, run again: their settings, and a page with the original's figures beside them."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from helios.train import history
from helios.train.config import Config, resolve
from helios.train.plans import planned as plan_of
from helios.train.progress import Display
from helios.train.records.layout import finished
from helios.train.report import against, reading
from helios.train.run import Run

# The ways to run 5ke3 again. With evaluations every 40 steps some are at the original's, 200 and 400.
WAYS: Mapping[str, tuple[str, ...]] = {
    "faithful": ("candidate_schedule=run", "shared_init=false", "shared_batches=false", "reuse=false", "replicates=1",
                 "after=restart", "after_schedule=run", "diversity_bonus=0", "eval_interval=40"),
    "fair": ("replicates=2", "eval_interval=40"),
}
AGAIN = "again"  # the one way to run 4kwo
NAMES: Mapping[str, tuple[str, ...]] = {"5ke3": tuple(WAYS), "4kwo": (AGAIN,)}  # of the folders of their runs
# The steps of 4kwo's warm-up, in which the learning rate depends on the step alone: a shorter run has the same rates.
LONGEST = 500
WHAT = {
    "faithful": "**Faithful** goes the original's way: one schedule of the learning rate through search and training, "
                "one seed a candidate, each with initial values and batches of its own. But a candidate is ranked by "
                "its own validation loss, and the winner is what is trained on.",
    "fair": "**Fair** gives all candidates the same initial values, batches and learning rates, with two seeds each; a "
            "genome is measured once; the training after the search has a schedule of its own.",
    AGAIN: f"In the first {LONGEST} steps of the original's schedule, its warm-up, the learning rate depends on the "
           "step alone, so fewer steps have the rates of that schedule.",
}


class Plan(NamedTuple):
    """A run to make, in a folder of this name."""

    name: str
    config: Config


def plans(run: str, ways: Sequence[str], flags: Mapping[str, Any], steps: int = 300, more: Iterable[str] = ()
          ) -> list[Plan]:
    """Return the runs that repeat the historic `run` in these `ways`, which are in NAMES. steps: of 4kwo.

    flags: {setting: value}, None where not given. more: "key=value" each, which win over all but the flags, for models
    that train in seconds. Raises UserError.
    """
    settings = {**WAYS, AGAIN: (f"steps={steps}", "eval_interval=100", "checkpoint_interval=100")}
    return [Plan(name, resolve(f"run-{run}", assignments=(*settings[name], *more), flags=flags)) for name in ways]


def run(planned: Sequence[Plan], folder: Path, display: Display) -> bool:
    """Run or continue each plan in a folder of its own; return False where a signal came.
    Raises UserError where a folder holds another run."""
    for plan in planned:
        begun = Run.open(plan.config, folder / plan.name, plan=plan_of)
        if not begun.finished and not begun.train(display).finished:
            return False
        gc.collect()  # frees its memory before the next one takes its own
    return True


def page(name: str, folder: Path) -> str:
    """Return the page on the finished runs in `folder` that repeat the historic run `name`. Raises UserError."""
    runs = {way: reading.read(folder / way) for way in NAMES[name] if finished(folder / way)}
    return against.page(history.read(name), {against.HERE if way == AGAIN else way: run for way, run in runs.items()},
                        [WHAT[way] for way in runs])
