"""The plan of a training alone, as which a run with challengers may go on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from helios.errors import UserError
from helios.train.challenge import journal
from helios.train.challenge.standing import standing
from helios.train.checkpoint import Checkpoint
from helios.train.progress import Display
from helios.train.records.records import Records
from helios.train.stage import ALONE, CHALLENGED, Plan


class Alone(Plan):
    """A single training, which has left its challengers where it had any."""

    continues = (ALONE, CHALLENGED)
    keys = ("champion",)  # which goes

    def check_resumed(self, found: Checkpoint, saved: Mapping[str, Any]) -> None:
        state = found.state["search"]
        if state and (why := standing(state).bound()):
            raise UserError(f"{found.path}: {why}; leave --search and actions as they were, or begin a new run with "
                            "--init-from")
        super().check_resumed(found, saved)

    def begin(self, records: Records, device: str, display: Display, state: Mapping[str, Any] | None) -> None:
        if state:
            journal.leave(records.path, standing(state).over)
