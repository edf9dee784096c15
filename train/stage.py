"""The stages of a run: stretches of steps, in each of which one model is trained from a start of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from helios.model import GPTConfig
from helios.train.config import Config
from helios.train.schedule import learning_rate
from helios.train.state import TrainState


@dataclass(frozen=True)
class Stage:
    model: GPTConfig
    init_seed: int  # of the initial weights
    data_seed: int  # of batches and dropout masks
    first: int  # steps of the run before it
    steps: int  # its length, at most
    rate: Callable[[int], float]  # learning rate of its 0-based step
    eval_interval: int  # in its own steps; the last is evaluated anyway
    final: bool = True  # whether it trains what the run is for
    label: str = ""  # what the display calls it
    columns: Mapping[str, Any] = field(default_factory=dict)  # what each of its rows also has
    start: Path | None = None  # folder with the weights and moments to begin with, in the place of new ones
    offset: int = 0  # batches that were drawn before it


def training(config: Config, first: int = 0) -> Stage:
    """Return the stage that a run is for, after `first` steps of a search."""
    t = config.train
    rate = partial(learning_rate, steps=t.steps, warmup=t.warmup, lr=t.lr, lr_min=t.lr_min)
    return Stage(model=config.model, init_seed=t.seed, data_seed=t.seed, first=first, steps=t.steps, rate=rate,
                 eval_interval=t.eval_interval)


class Plan:
    """Which stage comes when. This one is of a run that trains and does nothing else; a search is another.

    All that a plan has decided is in `state`; nothing else but the settings decides what comes next.
    """

    over = False  # whether the stage under way has ended, before its last step

    def __init__(self, config: Config) -> None:
        self.config = config

    def stage(self) -> Stage | None:
        """Return the stage that is to be trained, now or next; None where nothing is left."""
        return training(self.config)

    def step(self, row: Mapping[str, Any], timed: bool) -> None:
        """Count a step of a stage that is not final. timed: whether its time is that of a step and nothing else."""

    def observe(self, row: Mapping[str, Any]) -> None:
        """Take in what a step's row came to have: the monitors' columns, and the validation loss if there is one."""

    def finish(self, state: TrainState, save: Callable[[Path], Path]) -> None:
        """Take the result of a stage that is over, and choose the next. save: writes a checkpoint below a folder."""

    def prune(self) -> None:
        """Remove files of its own that no checkpoint of the run needs."""

    def state(self) -> dict[str, Any] | None:
        """Return what `restore` takes, as plain values; None where there is nothing to keep."""
        return None

    def outcome(self) -> str:
        """Return in words what was decided; "" where nothing was."""
        return ""
