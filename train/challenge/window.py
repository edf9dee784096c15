"""A window: challengers of the model in training, and the test by which one of them replaces it.

All of this is a pure function of its arguments, so that a run that was killed decides as it would have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from helios.train.config import SETTINGS
from helios.train.search.births import Candidate
from helios.train.search.operators import Genome, key
from helios.train.search.statistics import Values, compare, holm

KEPT, SWITCH = "kept", "switch"  # verdicts, and the kinds of their events
# Settings that may change while it is open. Those of data only name the texts, which may not.
FREE = {"max_cost", "challenge_genes"} | {s.key for s in SETTINGS if not s.bits or s.section == "data"}


class Judged(NamedTuple):
    """A challenger's losses beside those of the model, paired by replicate."""

    difference: float  # challenger - model, in nats: below 0 is better
    error: float  # its standard error
    p: float  # of a challenger that is no better, corrected for the window's number of them
    separated: bool


def judge(model: Values, challengers: Sequence[Values], rate: float) -> tuple[list[Judged | None], int | None]:
    """Return what the losses say of each challenger, None where one is missing or not finite, and the position of the
    one that replaces the model: of those that are separated the best. None: the model stays.

    The test is Student's of the differences by replicate, one-sided, for a challenger that is no better may only stay
    out. Replicate r of all had the same batches, from the same weights on, so that the differences are independent of
    each other, whatever the text and the model are like. The p-values are corrected by Holm's method, one that could
    not be compared being counted, too: a window of challengers that are no better replaces the model with a chance of
    `rate` at most.
    """
    found = [compare(losses, model) for losses in challengers]
    one_sided = [1.0 if d is None else d.p / 2 if d.difference < 0 else 1 - d.p / 2 for d in found]
    judged = [None if d is None else Judged(d.difference, d.error, p, p <= rate and d.difference < 0)
              for d, p in zip(found, holm(one_sided), strict=True)]
    won = [(one.difference, i) for i, one in enumerate(judged) if one and one.separated]
    return judged, min(won)[1] if won else None


@dataclass(frozen=True)
class Window:
    """A window that is open."""

    number: int  # from 1 on
    opened: int  # the step of the run after which its trainings begin
    steps: int
    reason: str
    challengers: list[Candidate] = field(default_factory=list)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)  # of the run by then; older ones have none

    @property
    def closes(self) -> int:
        """Return the step of the run after which it is judged."""
        return self.opened + self.steps

    @property
    def name(self) -> str:
        """Return the name of its folder."""
        return f"w{self.number}"


class Training(NamedTuple):
    """What came of a challenger's trainings in a window."""

    losses: list[float | None]  # of validation, by replicate
    moments: bool  # whether the optimizer's moments went on, too
    changes: list[str]  # why it began as another function than the model, a setting each
    why: str | None = None  # a training came to nothing


def line(window: Window, champion: Candidate, model: Values, trained: Sequence[Training], rate: float,
         why: str | None = None) -> dict[str, Any]:
    """Return the line of the journal of a window that is over, whose verdict says what becomes of the model.

    champion: the model in training, with its losses by replicate, of which 0 is the run itself. why: one of these
    trainings came to nothing, and challengers were not trained.
    """
    judged, won = judge(model, [t.losses for t in trained], rate)
    challengers = [
        {"id": c.id, "name": c.name, "parent_id": c.parent_id, "lineage": c.lineage, "mutation": c.mutation,
         "activation": c.activation, "settings": c.settings, "losses": t.losses, "moments": t.moments,
         "changes": t.changes, "why": t.why, "difference": j and j.difference, "error": j and j.error, "p": j and j.p,
         "separated": bool(j and j.separated)}
        for c, t, j in zip(window.challengers, trained, judged, strict=True)]
    return {"window": window.number, "opened": window.opened, "closed": window.closes, "reason": window.reason,
            "champion": champion.id, "losses": list(model), "why": why, "challengers": challengers,
            "verdict": KEPT if won is None else SWITCH, "winner": None if won is None else challengers[won]["id"]}


def sentence(line: dict[str, Any], champion: Candidate) -> str:
    """Return in words what a window came to."""
    said = []
    for c in line["challengers"]:
        if c["difference"] is None:
            said.append(f"{c['id']} ({c['mutation']}) {c['why'] or 'has no loss to compare'}")
        else:
            better = "lower" if c["difference"] < 0 else "higher"
            said.append(f"{c['id']} ({c['mutation']}) {better} by {abs(c['difference']):.4f} ± {c['error']:.4f} nats, "
                        f"p {c['p']:.2g}")
    failed = f", since a training of it came to nothing ({line['why']})" if line["why"] else ""
    kept = f"{champion.id} is kept{failed}" if line["winner"] is None else f"{line['winner']} replaces {champion.id}"
    return f"window {line['window']}, {line['reason']}: {kept}: {'; '.join(said)}"


def tried(lines: Sequence[Mapping[str, Any]], champion: Candidate) -> list[str]:
    """Return the keys of the genomes that this champion met in the windows so far, each once."""
    return [*dict.fromkeys(key(Genome(c["activation"], c["settings"])) for found in lines
                           if found["champion"] == champion.id for c in found["challengers"])]


def comparable(loss: float | None) -> float | None:
    """Return a loss, None where it is not finite."""
    return loss if loss is not None and math.isfinite(loss) else None
