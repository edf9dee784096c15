"""The stages of a run: stretches of steps in which one model is trained, from a start of its own."""

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

SEED_STRIDE = 1_000_003  # distance of seeds whose draws have nothing in common


@dataclass(frozen=True)
class Stage:
    """A stretch of steps with one model."""

    model: GPTConfig
    init_seed: int  # seed of the initial weights
    data_seed: int  # seed of batches and dropout masks
    first: int  # steps of the run before it
    steps: int  # its length, at most
    rate: Callable[[int], float]  # learning rate of its 0-based step
    eval_interval: int  # steps of its own between evaluations; 0: none before its end
    final: bool = True  # whether it trains what the run is for
    label: str = ""  # what the display calls it
    columns: Mapping[str, Any] = field(default_factory=dict)  # added to each of its rows
    start: Path | None = None  # checkpoint whose weights and moments it begins with; None: new ones
    offset: int = 0  # batches that were drawn before it


def training(config: Config, first: int = 0) -> Stage:
    """Return the training that a run is for, as a stage after `first` steps of a search."""
    t = config.train
    rate = partial(learning_rate, steps=t.steps, warmup=t.warmup, lr=t.lr, lr_min=t.lr_min)
    return Stage(model=config.model, init_seed=t.seed, data_seed=t.seed, first=first, steps=t.steps, rate=rate,
                 eval_interval=t.eval_interval)


class Plan:
    """The order of a run's stages: here a single training; a search is a subclass.

    What comes next depends on nothing but the settings and what `state` returns.
    """

    over = False  # whether the present stage is to end before its last step

    def __init__(self, config: Config) -> None:
        self.config = config

    def stage(self) -> Stage | None:
        """Return the present stage; None where nothing is left to train."""
        return training(self.config)

    def step(self, row: Mapping[str, Any], tokens: int, timed: bool) -> None:
        """Count a step of a stage that is not final, which read so many tokens. timed: whether its time is that of
        computing alone."""

    def observe(self, row: Mapping[str, Any]) -> None:
        """Take in the same step's row once it has the monitors' columns and, if one was measured, a validation loss."""

    def finish(self, state: TrainState, save: Callable[[Path], Path]) -> None:
        """Take the result of a stage that is over and choose the next. save: writes a checkpoint into a folder."""

    def prune(self) -> None:
        """Remove files of the plan's own that no checkpoint of the run needs."""

    def state(self) -> dict[str, Any] | None:
        """Return what a checkpoint keeps of the plan, as plain values; None where that is nothing."""
        return None

    def outcome(self) -> str:
        """Return in words what the plan decided; "" where nothing was."""
        return ""
