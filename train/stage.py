"""The stages of a run: stretches of steps in which one model is trained, from a start of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from helios.errors import UserError
from helios.model import GPTConfig
from helios.train import checkpoint
from helios.train.checkpoint import Checkpoint, State
from helios.train.config import Config, TrainConfig
from helios.train.data import Dataset
from helios.train.progress import Display
from helios.train.records.records import Records
from helios.train.schedule import learning_rate
from helios.train.state import TrainState

ALONE, SEARCH, CHALLENGED = "without a search", "with a search", "with challengers"  # runs, by their plans
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
    done: int = 0  # steps of it that `start` is after
    monitors: Sequence[str] = ()  # parts of Monitors that it takes over from there, too
    train: TrainConfig | None = None  # settings of its training; None: the run's


def training(config: Config, first: int = 0) -> Stage:
    """Return the training that a run is for, as a stage after `first` steps of a search."""
    t = config.train
    rate = partial(learning_rate, steps=t.steps, warmup=t.warmup, lr=t.lr, lr_min=t.lr_min)
    return Stage(model=config.model, init_seed=t.seed, data_seed=t.seed, first=first, steps=t.steps, rate=rate,
                 eval_interval=t.eval_interval)


def kind_of(state: State) -> str:
    """Return in words what a run is that has a checkpoint with that state."""
    kept = state["search"]
    return ALONE if kept is None else CHALLENGED if "champion" in kept else SEARCH


class Plan:
    """What a run trains, in which order, and all that this adds to the run: here a single training, and nothing. A
    search is a subclass.

    What comes next depends on nothing but the settings and what `state` returns.
    """

    samples = True  # whether the model is to write something at the end
    continues: Sequence[str] = (ALONE,)  # runs from whose checkpoints it goes on
    branches = False  # whether it can train a branch beside the run
    keys: Sequence[str] = ()  # of config.json: those that `found` may give
    dataset: Dataset | None = None  # that the run trains on; None: the texts that its settings name are read

    def __init__(self, config: Config) -> None:
        self.config = config

    # -- before the run begins ----------------------------------------------------------------------------------------
    def check(self) -> None:
        """Raise UserError where the settings ask for what the plan does not do, or for too much."""
        if self.config.search or self.config.search.continuous:
            raise UserError(f"the settings ask for a search (mode = {self.config.search.mode}), and this run has no "
                            "plan of one; make it with plan=helios.train.plans.planned")
        if not self.branches and (asked := self.config.monitor.changes.get("branch")):
            raise UserError(f"actions: {asked}: this run has nothing that trains a branch; leave it out")

    def models(self) -> list[GPTConfig]:
        """Return the models that may be trained; others are no larger than these."""
        return [self.config.model]

    def beside(self) -> GPTConfig | None:
        """Return a model that is trained while another stays in memory; None: there is none."""
        return None

    def cost(self) -> str:
        """Return in words what may be trained besides the training that the run is for; "" where nothing is."""
        return ""

    def check_resumed(self, found: Checkpoint, saved: Mapping[str, Any]) -> None:
        """Raise UserError unless the run can go on from a checkpoint. saved: the settings of its run, by section."""
        checkpoint.check_model(found, self.config.model.to_dict())

    def done(self, state: State) -> int:
        """Return how many steps of the training that the run is for are done at a checkpoint."""
        return state["step"]

    def found(self, state: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return what config.json says of the plan's result, by the state that a checkpoint keeps."""
        return {}

    def begin(self, records: Records, device: str, display: Display, state: Mapping[str, Any] | None) -> None:
        """Begin, or go on from what `state` returned. records: of the run, in whose folder layout.PLAN the plan may
        write. device: its name."""

    # -- during the run -----------------------------------------------------------------------------------------------
    @property
    def over(self) -> str:
        """Return in a word why the present stage is to end before its last step; "" where it is not."""
        return ""

    @property
    def why(self) -> str:
        """Return the same in a sentence, where the stage is final."""
        return self.over

    def stage(self) -> Stage | None:
        """Return the present stage; None where nothing is left to train."""
        return training(self.config)

    def step(self, row: Mapping[str, Any], tokens: int, timed: bool) -> None:
        """Count a step, which read so many tokens. timed: whether its time is that of computing alone."""

    def observe(self, row: Mapping[str, Any]) -> None:
        """Take in the same step's row once it has the monitors' columns and, if one was measured, a validation loss."""

    def finish(self, state: TrainState, save: Callable[[Path], Path]) -> None:
        """Take the result of a stage that is over and choose the next. save: writes a checkpoint into a folder."""

    def branch(self, step: int, change: str, reason: str, usual: float | None) -> None:
        """Hear that a rule asks for a branch after that step, and why. change: an action such as lr*0.5; "": any.
        usual: the gradient norm's usual value, None where it is not known."""

    def opens(self, row: Mapping[str, Any]) -> None:
        """Begin what is to be trained beside the run from the step of that row on, which no rule made the run's last,
        after a branch that was asked for."""

    def saves(self, step: int) -> bool:
        """Return whether a checkpoint is to be written after that step of the run, whatever the settings say."""
        return False

    def saved(self) -> None:
        """Keep and remove files of the plan's own, as the checkpoints of the run need them, after one was written."""

    def due(self, step: int) -> bool:
        """Return whether `decide` is to be called after that step of the run, of which there is a checkpoint."""
        return False

    def decide(self, dataset: Dataset, evaluate: Callable[[], float], stopped: Callable[[], bool]) -> Path | None:
        """Decide with what the present stage, whose steps go on, is trained from here on: return the checkpoint of
        other weights, and `stage` has their model; None: as before. dataset: that the run trains on. evaluate: returns
        the validation loss of the present weights. Raises Stopped where `stopped` says so; asked again, it goes on."""
        return None

    def state(self) -> dict[str, Any] | None:
        """Return what a checkpoint keeps of the plan, as plain values; None where that is nothing."""
        return None

    def outcome(self) -> str:
        """Return in words what the plan decided; "" where nothing was."""
        return ""
