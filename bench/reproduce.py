"""The historic runs, run again: their settings, and a page with the original's figures beside them."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from helios.train import history
from helios.train.config import Config, resolve
from helios.train.plans import planned as plan_of
from helios.train.progress import Display
from helios.train.records.layout import EVENTS, finished
from helios.train.records.rows import rows
from helios.train.report import against, reading
from helios.train.run import Run

AGAIN = "again"  # the way to run those that have no other


def _every(steps: int) -> tuple[str, ...]:
    return tuple(f"{what}_interval={steps}" for what in ("eval", "checkpoint", "sample"))


# By run, and name of its folder. With evaluations every 40 steps some of 5ke3 are at the original's, 200 and 400.
WAYS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "5ke3": {
        "faithful": ("candidate_schedule=run", "shared_init=false", "shared_batches=false", "reuse=false",
                     "replicates=1", "after=restart", "after_schedule=run", "diversity_bonus=0", "eval_interval=40"),
        "fair": ("replicates=2", "eval_interval=40"),
    },
    "4kwo": {AGAIN: _every(100)},
    "2ao8": {AGAIN: _every(50)},
}
PAUSES = "It pauses, and goes on with more --steps to the bits of a run that never paused."
WHAT = {
    "faithful": "**Faithful** goes the original's way: one schedule of the learning rate through search and training, "
                "one seed a candidate, each with initial values and batches of its own. But a candidate is ranked by "
                "its own validation loss, and the winner is what is trained on.",
    "fair": "**Fair** gives all candidates the same initial values, batches and learning rates, with two seeds each; a "
            "genome is measured once; the training after the search has a schedule of its own.",
    "4kwo": f"The rates are those of all the steps that the original was to make. {PAUSES}",
    "2ao8": "A candidate reads as many tokens as 20 steps of 12 sequences have, however large its batch becomes, and "
            "is ranked by its validation loss. The training after the search begins anew, with 12 sequences a step "
            "until alerts change that, and the rates of all the steps that the original was to make after its search. "
            f"{PAUSES}",
}


class Plan(NamedTuple):
    """A run to make, in a folder of this name. until: the step to pause at, those of a search included; None: none."""

    name: str
    config: Config
    until: int | None


def plans(run: str, ways: Sequence[str], flags: Mapping[str, Any], steps: int | None = None, more: Iterable[str] = ()
          ) -> list[Plan]:
    """Return the runs that repeat the historic `run` in these of its `ways`. steps: to go to for now; None: to the end.

    flags: {setting: value}, None where not given. more: "key=value" each, which win over all but the flags, for models
    that train in seconds. Raises UserError.
    """
    return [Plan(way, resolve(f"run-{run}", assignments=(*WAYS[run][way], *more), flags=flags), steps) for way in ways]


def run(planned: Sequence[Plan], folder: Path, display: Display) -> bool:
    """Run or continue each plan in a folder of its own; return False where a signal came.
    Raises UserError where a folder holds another run."""
    for plan in planned:
        begun = Run.open(plan.config, folder / plan.name, plan=plan_of)
        if begun.finished or (plan.until and _paused(begun.path) >= plan.until):
            continue
        ended = begun.train(display, plan.until)
        if not (ended.finished or ended.paused):
            return False
        gc.collect()  # frees its memory before the next one takes its own
    return True


def _paused(path: Path) -> int:
    """Return the last step that a run paused at, 0 where it never did."""
    return max((event["step"] for event in rows(path / EVENTS) if event["kind"] == "paused"), default=0)


def page(name: str, folder: Path, ways: Sequence[str]) -> str:
    """Return the page on the runs in `folder` that repeat the historic run `name`: those of these `ways`, and others
    that are finished. Raises UserError."""
    runs = {way: reading.read(folder / way) for way in WAYS[name] if way in ways or finished(folder / way)}
    return against.page(history.read(name), {against.HERE if way == AGAIN else way: run for way, run in runs.items()},
                        [WHAT[name if way == AGAIN else way] for way in runs])
