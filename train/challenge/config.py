"""The settings of a search that goes on while a run trains."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from helios.errors import UserError, nearest
from helios.model.settings import ANY, COUNT, NATURAL, Range, Settings, declared, setting
from helios.train.monitors.cusum import CHANNELS, CLIP, GRAD, VAL

if TYPE_CHECKING:
    from helios.train.config import Config

PLATEAU = "plateau"
# Alerts by name, as bits; not those of speed, waiting and memory: the machine must not decide what is trained.
ALERTS = {"grad": GRAD, "clip": CLIP, "val": VAL, "cusum": GRAD | CLIP | VAL}
INTERVAL = 200  # steps between windows where nothing else is asked for
OPENING = ("challenge_interval", "challenge_on")  # settings that ask for windows
IN_BOTH = {"mode", "max_cost", "activation_pool", "genome"}  # settings of a search before a training and of one in it


@dataclass(frozen=True)
class ChallengeConfig(Settings):
    """Challengers of a run's model while it trains; docs/challenge.md explains it."""

    challenge_interval: int | None = setting(None, NATURAL, "steps from one window of challengers to the next; 0: none "
                                             f"by the step; auto: {INTERVAL}, and with challenge_on 0",
                                             flag="challenge-interval")
    challenge_on: str | None = setting(None, ANY, "what else opens a window, with commas between: alerts (cusum, or "
                                       "any of grad, clip and val) and plateau", flag="challenge-on")
    challenge_steps: int = setting(50, COUNT, "steps of a window, after which challengers are judged")
    challengers: int = setting(2, COUNT, "challengers in a window")
    challenge_replicates: int = setting(4, Range("from 2 to 32", lambda x: 2 <= x <= 32), "trainings of each, and of "
                                        "the present model; one of these is the run itself")
    challenge_error: float = setting(0.05, Range("above 0, to 0.5", lambda x: 0 < x <= 0.5), "chance, at most, that in "
                                     "a window of challengers which are no better one replaces the model")
    challenge_genes: str = setting("activation,lr,dropouts,n_layer", ANY, "settings of which a challenger has one "
                                   "changed, with commas between, each with =LOW..HIGH or =A|B behind it where it is "
                                   "narrowed")

    def check(self) -> None:
        for name in self._names:
            if name not in (*ALERTS, PLATEAU):
                clock = any(c.column == f"cusum_{name}" for c in CHANNELS)
                why = "; that alert is the machine's, which must not decide" if clock else nearest(
                    name, (*ALERTS, PLATEAU))
                raise UserError(f"challenge_on: unknown name {name!r}{why}; there are {', '.join((*ALERTS, PLATEAU))}")

    @property
    def _names(self) -> list[str]:
        return [name.strip() for name in (self.challenge_on or "").split(",") if name.strip()]

    @property
    def interval(self) -> int:
        """Return the steps between windows, 0 for none by the step."""
        if self.challenge_interval is None:
            return 0 if self.challenge_on else INTERVAL
        return self.challenge_interval

    @property
    def alerts(self) -> int:
        """Return the bits of the alerts that open a window."""
        bits = 0
        for name in self._names:
            bits |= ALERTS.get(name, 0)
        return bits

    @property
    def plateau(self) -> bool:
        """Return whether a plateau opens a window."""
        return PLATEAU in self._names


def clashes(config: Config) -> Iterable[tuple[bool, str]]:
    """Yield (whether a rule on challengers and other settings is broken, the message), rule by rule."""
    c, s, t = config.challenge, config.search, config.train
    asked = next((key for key in OPENING if getattr(c, key) is not None), None)
    yield asked is not None and not s.continuous, (
        f"{asked} opens windows of challengers while the run trains, and --search {s.mode} has none; give --search "
        "continuous, or leave it out")
    if not config.challenged:
        return
    yield t.eval_interval == 0, "--eval-interval 0: challengers are judged by evaluations; give an interval"
    if s.continuous:
        yield from _search_clashes(config)
    first = c.interval if s.continuous and not c.challenge_on else 1
    yield first + c.challenge_steps >= t.steps, (
        f"challenge_steps: a window of {c.challenge_steps:,} steps that opens at step {first:,} does not end before "
        f"the run's last, {t.steps:,}; lower challenge_steps or challenge_interval, or give more --steps")


def _search_clashes(config: Config) -> Iterable[tuple[bool, str]]:
    """Yield the same for the rules on a search that goes on."""
    c, s, m = config.challenge, config.search, config.monitor
    other = next((one.key for one in declared(type(s)) if one.key not in IN_BOTH
                  and getattr(s, one.key) != one.default), None)
    yield other is not None, (f"{other} is of a search before the training, and --search continuous goes on during it; "
                              "leave it out, or give --search ffn-activation")
    yield not (c.interval or c.challenge_on), ("challenge_interval is 0 and challenge_on names nothing, so that no "
                                               "window of challengers would ever open; give one of them")
    yield bool(c.alerts) and not m.cusum, "challenge_on names alerts, and cusum = false raises none; set cusum = true"
    yield c.plateau and not m.plateau_evals, ("challenge_on names plateau, and plateau_evals = 0 finds none; give a "
                                              "number of evaluations")
