"""How a run with challengers stands: what its decisions go by, which its checkpoints keep."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from helios.train.challenge.window import KEPT, SWITCH, Window, tried
from helios.train.search.births import Candidate


@dataclass(frozen=True)
class Switch:
    """A challenger replaced the model."""

    step: int
    winner: str  # its id


@dataclass(frozen=True)
class Standing:
    """All that the next window depends on besides settings and seed; the journal has the windows themselves."""

    champion: Candidate  # the model in training
    over: int = 0  # windows so far, without one that is open
    candidates: int = 1  # so far, the run's own model included
    tried: list[str] = field(default_factory=list)  # keys of the genomes that this champion met
    switch: Switch | None = None  # the last one
    open: Window | None = None

    def judged(self, line: Mapping[str, Any]) -> Standing:
        """Return what follows from the line of the window that was open."""
        assert self.open is not None
        over, candidates = self.over + 1, self.candidates + len(line["challengers"])
        if line["verdict"] == KEPT:
            met = [*dict.fromkeys([*self.tried, *tried([line], self.champion)])]
            return replace(self, over=over, candidates=candidates, tried=met, open=None)
        champion = next(c for c in self.open.challengers if c.id == line["winner"])
        return Standing(champion, over, candidates, switch=Switch(line["closed"], champion.id))

    def bound(self) -> str:
        """Return why the run cannot go on without challengers; "" where it can: as long as it has its own model, and
        outside of a window."""
        if self.switch:
            return (f"since step {self.switch.step} the run trains {self.switch.winner}, a challenger, whose settings "
                    "it would not have without challengers")
        if self.open:
            return (f"a window of challengers opened at step {self.open.opened}: the run can go on without them once "
                    f"that is over, after step {self.open.closes}")
        return ""

    def state(self) -> dict[str, Any]:
        """Return this as plain values, which `standing` reads."""
        return dataclasses.asdict(self)


def standing(state: Mapping[str, Any]) -> Standing:
    """Return what a checkpoint keeps; older ones keep the lines of all windows instead."""
    if "windows" not in state:
        return msgspec.convert(state, Standing)
    return after(state["windows"], msgspec.convert(state["champion"], Candidate),
                 msgspec.convert(state["open"], Window | None))


def after(lines: Sequence[Mapping[str, Any]], champion: Candidate, opened: Window | None = None) -> Standing:
    """Return how a run stands after the windows with these lines, by which it came to that champion."""
    switches = [Switch(line["closed"], line["winner"]) for line in lines if line["verdict"] == SWITCH]
    return Standing(champion, len(lines), 1 + sum(len(line["challengers"]) for line in lines), tried(lines, champion),
                    switches[-1] if switches else None, opened)
