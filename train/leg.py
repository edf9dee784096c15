"""A stretch of a run: one model, trained from a start of its own. A run is one; a search puts one before it for each
candidate and seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from helios.model import GPTConfig
from helios.train.config import Config
from helios.train.schedule import learning_rate


@dataclass(frozen=True)
class Leg:
    model: GPTConfig
    init_seed: int  # of the initial weights
    data_seed: int  # of batches and dropout masks
    first: int  # steps of the run before it
    steps: int  # its length, at most
    rate: Callable[[int], float]  # learning rate of its 0-based step
    eval_interval: int  # in its own steps; the last is evaluated anyway
    final: bool = True  # whether it trains what the run is for
    label: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)  # what each of its rows also has
    start: Path | None = None  # folder with the weights and moments to begin with, in the place of new ones
    offset: int = 0  # batches that were drawn before it


def training(config: Config, first: int = 0) -> Leg:
    """The training that a run is for, after `first` steps of a search."""
    t = config.train
    rate = partial(learning_rate, steps=t.steps, warmup=t.warmup, lr=t.lr, lr_min=t.lr_min)
    return Leg(model=config.model, init_seed=t.seed, data_seed=t.seed, first=first, steps=t.steps, rate=rate,
               eval_interval=t.eval_interval)
