"""What a run writes of its steps into its records, and shows to its user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from helios.model import Sampler
from helios.train import samples
from helios.train.data import Dataset
from helios.train.monitors.actions import Acted
from helios.train.progress import Display
from helios.train.records.events import events_of
from helios.train.records.records import Records
from helios.train.stage import Stage


class Teller:
    """Writes and shows the steps of a run, and what its model says."""

    def __init__(self, records: Records, display: Display) -> None:
        self.records, self.display = records, display
        self.warned = False  # whether an update was skipped that should not have been

    def step(self, row: Mapping[str, Any], stage: Stage, acted: Sequence[Acted]) -> None:
        """Write a step's row and the events that it is. acted: what rules did at the step."""
        for kind, message, more in events_of(row):
            self.records.event(row["step"], kind, message, **more)
        if row.get("skipped"):
            self._warn(row, row["skip_reason"], stage)
        if row.get("action_reason"):  # of which there may be several
            for one in acted:
                self.records.event(row["step"], "action", str(one), alert=one.alert, action=one.action,
                                   reason=one.reason)
        self.display.row(self.records.metrics(row) | {k: row[k] for k in ("loss", "val_loss", "grad_norm")})

    def _warn(self, row: Mapping[str, Any], reason: str, stage: Stage) -> None:
        """Say once that an update was skipped which no setting explains, or the very first one."""
        first = row["step"] == stage.first + 1
        if not self.warned and stage.final and reason != "overflow" and (reason != "spike" or first):
            self.warned = True
            self.display.warn(f"warning: step {row['step']}: the update was skipped: {reason}, gradient norm "
                              f"{row['grad_norm']:.4g}, loss {row['loss']:.4g}")

    def sample(self, step: int, done: int, sampler: Sampler, given: Dataset, seed: int) -> None:
        """Let the model continue the dataset's prompts after a step of the run, of which its stage has done so many."""
        said = samples.taken(sampler, given.tokenizer, given.prompts, given.chat, seed)
        if isinstance(said, str):
            self.display.warn(f"warning: nothing to show at step {step}: {said}")
            return
        self.display.say(f"samples at step {done}:")
        for sample in said:
            self.records.sample(step, **sample)
            self.display.say(f"  {samples.shown(sample, given.chat)}")
