"""The rules of online control, which say what alerts do: `cusum_grad: lr*0.5 for 200, clip*0.5; plateau: stop`.

A rule names an alert and its actions; docs/control.md has what they mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from helios.errors import UserError, nearest
from helios.model.settings import FLOAT, INT, Kind, shown

PLATEAU = "plateau"
ALERTS = ("cusum_grad", "cusum_clip", "cusum_tps", "cusum_val", "cusum_flush", "cusum_memory", PLATEAU)
SHORT = {alert.removeprefix("cusum_"): alert for alert in ALERTS}  # as challenge_on may name them, for a hint
LEAST, MOST = 1 / 16, 16.0  # factors on the rate and on the clip, each alone and all in force together
FORMS = {"lr": "lr*X", "clip": "clip*X", "guard": "guard*X", "batch": "batch+N or batch-N",
         "branch": "branch or branch CHANGE", "stop": "stop"}
QUANTITIES = ("lr", "clip", "guard", "batch")  # that an action changes


class Action(NamedTuple):
    """What an alert does."""

    alert: str
    what: str  # a key of FORMS
    by: float = 0.0  # a factor, or the sequences that the batch has more
    calm: int = 0  # steps in a row without the alert after which it is undone; 0: it stays
    change: Action | None = None  # what a branch is to change; None: nothing

    @property
    def text(self) -> str:
        """The action as a rule has it."""
        amount = f"{self.by:+.0f}" if self.what == "batch" else f"*{_spelt(self.by)}" if self.by else ""
        change = f" {self.change.text}" if self.change else ""
        return f"{self.what}{amount}{change}{f' for {self.calm}' if self.calm else ''}"


def _spelt(x: float) -> str:
    return repr(x).removesuffix(".0")


def _pairs(value: Any) -> Iterable[tuple[str, str]]:
    """Yield the alerts and their actions, as a text, or a table of texts or of lists of them, gives them."""
    if isinstance(value, str):
        value = [part.partition(":")[::2] for part in value.split(";") if part.strip()]
    elif isinstance(value, Mapping):
        value = value.items()
    else:
        raise ValueError
    for alert, actions in value:
        parts = actions if isinstance(actions, list | tuple) else [actions]
        if not all(isinstance(part, str) for part in parts):
            raise ValueError
        yield " ".join(alert.split()), ",".join(parts)


def _read(value: Any) -> str:
    """Return the canonical text of rules: in the order of ALERTS. Raises UserError for what is no rule."""
    found: dict[str, list[Action]] = {}
    for alert, actions in _pairs(value):
        if alert not in ALERTS:
            raise UserError(f"unknown alert {shown(alert)}{nearest(alert, ALERTS, SHORT)}; there are "
                            f"{', '.join(ALERTS)}")
        if alert in found:
            raise UserError(f"{alert} is given twice; give it once, with commas between its actions")
        found[alert] = made = [_action(alert, " ".join(part.split())) for part in actions.split(",")]
        for action in made:
            if sum(other.what == action.what for other in made) > 1:
                raise UserError(f"{alert}: {action.what} is given twice; give it once")
    return "; ".join(f"{alert}: {', '.join(action.text for action in found[alert])}"
                     for alert in ALERTS if alert in found)


def _action(alert: str, text: str) -> Action:
    """Read an action. Raises UserError."""
    def fail(why: str) -> UserError:
        return UserError(f"{alert}: {shown(text)}: {why}")

    # Any line matches.
    name, rest, steps = re.fullmatch(r"([A-Za-z_]*)(.*?)(?: for( .*|))?", text).groups()  # type: ignore[union-attr]
    rest, calm = rest.strip(), 0
    sign, amount = rest[:1], rest[1:].strip()
    if name not in FORMS:
        raise fail(f"expected {', '.join(FORMS.values())}{nearest(name, FORMS)}")
    if steps is not None and name in QUANTITIES:
        calm = _number(INT, steps, lambda n: n >= 1)
        if calm is None:
            raise fail(f"expected a whole number of steps, at least 1, after for, got {shown(steps.strip())}")
    elif steps is not None or (name == "stop" and rest):
        raise fail(f"{name} is for good; leave out what comes after it" if name == "stop" else
                   f"what a branch changes stays so; leave out {shown(f'for{steps}')}")
    if name == "stop":
        return Action(alert, name)
    if name == "branch":
        change = _action(alert, rest) if rest else None
        if change and change.what not in QUANTITIES:
            raise fail(f"a branch changes one of {', '.join(QUANTITIES)}")
        return Action(alert, name, change=change)
    if name == "batch":
        more = _number(INT, sign + amount, lambda n: n != 0) if sign in ("+", "-") else None
        if more is None:
            raise fail("expected batch+N or batch-N, with a whole number of sequences, at least 1")
        return Action(alert, name, more, calm)
    fits = (lambda x: x > 1) if name == "guard" else lambda x: LEAST <= x <= MOST and x != 1
    factor = _number(FLOAT, amount, fits) if sign == "*" else None
    if factor is None:
        words = "a number above 1" if name == "guard" else f"a factor from {LEAST} to {MOST:g} other than 1"
        raise fail(f"expected {name}*X, with {words} for X")
    return Action(alert, name, factor, calm)


def _number(kind: Kind, text: str, fits: Any) -> Any:
    """Return the number that a text spells, None where it is none, or one that does not fit."""
    try:
        found = kind.read(text.strip())
    except (ValueError, OverflowError):
        return None
    return found if fits(found) else None


RULES = Kind("rules, as ALERT: ACTION, several with ; between", "ALERT: ACTION[; …]", _read)


@lru_cache(64)
def rules(text: str) -> tuple[Action, ...]:
    """Return the actions of rules in their canonical text."""
    return tuple(_action(alert, action.strip()) for alert, actions in _pairs(text) for action in actions.split(","))
