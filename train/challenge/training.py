"""The trainings of a window: ordinary runs in the run's own folder, each of them from its checkpoint where the window
opened."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from helios.errors import Diverged, TooLarge
from helios.model import GPTConfig
from helios.train import checkpoint
from helios.train.challenge.journal import remove_all
from helios.train.challenge.window import FREE, Window, comparable
from helios.train.checkpoint import Checkpoint
from helios.train.config import Config
from helios.train.data import Dataset
from helios.train.evolve.training import train_on
from helios.train.morph import changes, morph
from helios.train.progress import Display
from helios.train.records.layout import METRICS
from helios.train.records.rows import rows
from helios.train.run import Run
from helios.train.stage import Plan, Stage, training
from helios.train.state import Stopped

APART = 1 << 26  # batches between the replicates' first ones; dropout masks repeat after 2³²


class Beside(Plan):
    """The plan of a training in a window."""

    samples = False

    def __init__(self, given: Stage, dataset: Dataset, config: Config) -> None:
        super().__init__(config)
        self.given, self.dataset = given, dataset

    def stage(self) -> Stage:
        return self.given


def stage_of(whole: Config, window: Window, start: Path, replicate: int, position: int, parts: Sequence[str],
             settling: int = 0) -> Stage:
    """Return the training of a replicate: the run's own, with the settings `whole`, from where the window opened to
    where it closes. position: batches that the run had drawn; replicate 0 goes on with those that the run did. parts:
    of the monitors, that go on, too. settling: steps over which the rate rises to that of the schedule."""
    found = training(whole)
    return replace(found, steps=window.closes, start=start, done=window.opened, monitors=parts,
                   offset=position - window.opened * whole.train.accum + APART * replicate,
                   rate=partial(settled, rate=found.rate, opened=window.opened, settling=settling))


def settled(step: int, rate: Callable[[int], float], opened: int, settling: int) -> float:
    """Return the rate of the run's 0-based `step`, in the first `settling` ones after `opened` a part of it."""
    return rate(step) * min(1.0, (step - opened + 1) / settling) if settling else rate(step)


def keep_start(run: Path, folder: Path, step: int) -> None:
    """Copy the run's checkpoint of a step into the folder of a window, unless it is there, so that it stays as long as
    the window needs it. A kill at any moment leaves it whole or absent."""
    found = checkpoint.path_of(run, step)
    if start_in(folder) is None and found.is_dir():
        checkpoint.copy(found, folder)


def start_in(folder: Path) -> Path | None:
    """Return the checkpoint that the trainings in a folder begin with; None where there is none."""
    return next(iter(checkpoint.directories(folder)), None)


def started(found: Checkpoint, model: GPTConfig, folder: Path, seed: int) -> tuple[Path, bool, list[str]]:
    """Return the checkpoint that a challenger with this model begins with, whether it holds the optimizer's moments,
    too, and why it is another function than the run's model.

    Where all shapes are the run's, and coefficients are learned of the run's formulas, it is the run's own; else it is
    written into `folder`, unless it is there. Raises UserError where no weights can be made.
    """
    was = GPTConfig.from_dict(found.state["model"])
    blocks = zip(was.activations, model.activations, strict=False)
    if was.shapes() == model.shapes() and all(a.function == b.function or not b.coefficients for a, b in blocks):
        return found.path, True, list(changes(was, model))
    made = morph(found.model, was, model, "project", seed)
    there = start_in(folder)
    if there is None:
        folder.mkdir(parents=True, exist_ok=True)
        state: dict[str, Any] = {**found.state, "model": model.to_dict(), "search": None}
        there = checkpoint.save(folder, found.state["step"], made.weights, {}, {
            key: value for key, value in state.items() if key not in ("format", "step", "files", "sha256")})
    return there, False, made.changes


def train(config: Config, stage: Stage, path: Path, about: Mapping[str, Any], dataset: Dataset, display: Display,
          stopped: Callable[[], bool], keep: bool) -> tuple[float | None, str | None]:
    """Make a training of a window with the settings `config`, unless it is there, or go on with it; return its
    validation loss, None where it is not finite, and why there is none. dataset: the run's. keep: whether its last
    checkpoint stays, too.

    Raises Stopped where a signal came, and UserError for what is not the challenger's fault.
    """
    if stopped():
        raise Stopped
    run = Run.open(config, path, "training of a window", plan=partial(Beside, stage, dataset),
                   about={"window": dict(about)}, free=FREE)
    try:
        train_on(run, display)
    except (Diverged, TooLarge) as error:
        return None, str(error)
    finally:
        gc.collect()  # gives its memory back
    if not keep:
        remove_all(path)
    log = rows(path / METRICS)
    loss = comparable(log[-1]["val_loss"]) if log else None
    return loss, None if loss is not None else "its validation loss is not finite"
