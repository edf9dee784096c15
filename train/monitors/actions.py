"""Online control: carries out the rules of the setting `actions`, one step after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from helios.train.config import Config
from helios.train.monitors.cusum import Restorable
from helios.train.rules import LEAST, MOST, Action, rules

WORDS = {"lr": "factor on the rate", "clip": "clip", "guard": "spike threshold", "batch": "batch"}


class Acted(NamedTuple):
    """What a rule did at a step."""

    alert: str
    action: str
    reason: str
    effect: str

    def __str__(self) -> str:
        return f"{self.alert}: {self.action}: {self.effect} ({self.reason})"


class Actions(Restorable):
    """Carries out rules. A rule acts at the first of its alerts; those that follow belong to the same onset until there
    was none of them in `calm` steps in a row, the rule's own number or calm_steps_before_restore. Then what it did is
    undone, if the rule has a number, and it may act again.

    held: what the rules in force hold, by their texts: factors, sequences, thresholds. quiet: for those in an onset,
    the steps since its last alert. stopped: why the training is to end, "" where it is not. wanted: the change that a
    branch asked for at the last step is to make, "" without one, None where none was asked for.
    """

    STATE = ("held", "quiet", "usual", "stopped", "wanted")

    def __init__(self, config: Config) -> None:
        m, t = config.monitor, config.train
        self.rules, self.calm = {f"{a.alert}: {a.text}": a for a in rules(m.actions)}, m.calm_steps_before_restore
        self.base: Mapping[str, float] = {"lr": 1.0, "clip": t.grad_clip, "guard": t.spike_threshold,
                                          "batch": t.batch_size}
        self.sizes = m.batch_min, m.batch_max
        self.held: dict[str, float] = {}
        self.quiet: dict[str, int] = {}
        self.usual: float | None = None  # the last known baseline of the gradient norm
        self.stopped = ""
        self.wanted: str | None = None

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned, but for rules that are no more. What these hold counts for nothing, and is
        let go of at the next step, which records it."""
        super().restore(state)
        self.quiet = {text: n for text, n in self.quiet.items() if text in self.rules}
        if not any(self.stopped.startswith(text) for text in self.rules):
            self.stopped = ""

    def value(self, what: str) -> float:
        """Return the present value of a quantity: the factor on the rate, the clip or spike threshold (0: none), or the
        batch in sequences."""
        return self._with(what, [self.held[text] for text, rule in self.rules.items()
                                 if rule.what == what and text in self.held])

    def _with(self, what: str, held: list[float]) -> float:
        """Return as `value`, were these amounts all that rules hold of the quantity."""
        base = self.base[what]
        if not held:
            return base
        if what == "guard":
            return min(x for x in (base, *held) if x)
        if what == "batch":
            return max(self.sizes[0], min(base + sum(held), self.sizes[1]))
        return base * max(LEAST, min(math.prod(held), MOST))

    def update(self, alerts: Mapping[str, str], usual: float | None, fits: Callable[[int], bool]) -> list[Acted]:
        """Take in a step and return what was done or undone.

        alerts: the step's, with their reasons. usual: the baseline of the gradient norm before it, None where none is
        learned. fits: tells whether a batch fits in memory.
        """
        self.wanted, self.usual, acted = None, self.usual if usual is None else usual, self._dropped()
        for text, rule in self.rules.items():
            calm, effect = rule.calm or self.calm, ""
            if rule.alert in alerts:
                reason, begins = alerts[rule.alert], text not in self.quiet
                self.quiet = self.quiet | {text: 0}
                if begins:
                    effect = self._act(text, rule, reason, fits)
            elif text in self.quiet:
                self.quiet = self.quiet | {text: self.quiet[text] + 1}
                reason = f"{calm} calm steps"
                if self.quiet[text] >= calm:
                    effect = self._hold(text, rule, None, fits) if rule.calm and text in self.held else ""
                    kept = rule.calm and text in self.held  # for want of memory; so it waits again
                    self.quiet = self.quiet | {text: 0} if kept else _without(self.quiet, text)
            if effect:
                acted.append(Acted(rule.alert, rule.text, reason, effect))
        return acted

    def _dropped(self) -> list[Acted]:
        """Let go of what rules hold that are no more; return what that undid."""
        gone = [rule for text in self.held if text not in self.rules for rule in rules(text)]
        self.held = {text: x for text, x in self.held.items() if text in self.rules}
        return [Acted(rule.alert, rule.text, "the rule is no more",
                      f"{WORDS[rule.what]} {_shown(self.value(rule.what))} again") for rule in gone]

    def _act(self, text: str, rule: Action, reason: str, fits: Callable[[int], bool]) -> str:
        """Carry out a rule; return in words what that changed, "" where it was nothing."""
        if rule.what == "stop":
            self.stopped = f"{text} ({reason})"
            return "the training ends"
        if rule.what == "branch":
            if self.wanted is not None:
                return "another branch is asked for at this step"
            self.wanted = rule.change.text if rule.change else ""
            return "a branch is asked for"
        if rule.what == "guard":
            if self.usual is None:
                return "the usual gradient norm is not known yet"
            return self._hold(text, rule, rule.by * self.usual, fits)
        was = self.held.get(text)
        if rule.what == "batch":
            return self._hold(text, rule, (was or 0) + rule.by, fits)
        return self._hold(text, rule, (1.0 if was is None else was) * rule.by, fits)

    def _hold(self, text: str, rule: Action, amount: float | None, fits: Callable[[int], bool]) -> str:
        """Let a rule hold an amount, or none; return as `_act`."""
        what, before, held = rule.what, self.value(rule.what), self.held
        self.held = _without(held, text) if amount is None else held | {text: amount}
        after = self.value(what)
        if what == "batch" and after > before and not fits(int(after)):
            self.held = held
            return f"no memory for a batch of {after}"
        if after == before:
            # What another rule hides is held, since it may outlast that one; but at a bound by itself a rule goes no
            # further.
            alone = [self._with(what, [found[text]] if text in found else []) for found in (held, self.held)]
            if amount is not None and alone[0] == alone[1]:
                self.held = held
            return ""
        return f"{WORDS[what]} {_shown(before)} to {_shown(after)}"


def _shown(x: float) -> str:
    return f"{x:g}" if x else "none"


def _without(found: dict[str, Any], text: str) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key != text}
