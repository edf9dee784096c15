"""The settings of a search that goes on while a run trains."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from helios.errors import UserError, nearest
from helios.model.settings import ANY, COUNT, NATURAL, Range, Settings, declared, setting
from helios.train.monitor_config import MonitorConfig
from helios.train.rules import ALERTS as EVERY
from helios.train.rules import PLATEAU
from helios.train.search_config import SearchConfig

# Alerts by name, as their columns; not those of speed, waiting and memory: the machine must not decide what is trained.
ALERTS = {"grad": ("cusum_grad",), "clip": ("cusum_clip",), "val": ("cusum_val",),
          "cusum": ("cusum_grad", "cusum_clip", "cusum_val")}
INTERVAL = 200  # steps between windows where nothing else is asked for
OPENING = ("challenge_interval", "challenge_on")  # settings that ask for windows
IN_BOTH = {"mode", "max_cost", "activation_pool", "genome"}  # settings of a search before a training and of one in it


@dataclass(frozen=True)
class ChallengeConfig(Settings):
    """Challengers of a run's model while it trains; docs/challenge.md explains it."""

    challenge_interval: int | None = setting(None, NATURAL, "steps at whose multiples a window of challengers opens, "
                                             "unless one is open or closes there; 0: none by the step; auto: "
                                             f"{INTERVAL}, and with challenge_on 0",
                                             flag="challenge-interval")
    challenge_on: str | None = setting(None, ANY, "what else opens a window, with commas between: alerts (cusum, or "
                                       "any of grad, clip and val, also as cusum_grad, …) and plateau",
                                       flag="challenge-on")
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
                clock = f"cusum_{name}" in EVERY
                why = "; that alert is the machine's, which must not decide" if clock else nearest(
                    name, (*ALERTS, PLATEAU))
                raise UserError(f"challenge_on: unknown name {name!r}{why}; there are {', '.join((*ALERTS, PLATEAU))}")

    @property
    def _names(self) -> list[str]:
        given = [name.strip() for name in (self.challenge_on or "").split(",")]
        return [name.removeprefix("cusum_") for name in given if name]  # cusum_grad, as a rule names it, or grad

    @property
    def interval(self) -> int:
        """Return the steps between windows, 0 for none by the step."""
        if self.challenge_interval is None:
            return 0 if self.challenge_on else INTERVAL
        return self.challenge_interval

    @property
    def alerts(self) -> set[str]:
        """Return the columns of the alerts that open a window."""
        return {column for name in self._names for column in ALERTS.get(name, ())}

    @property
    def plateau(self) -> bool:
        """Return whether a plateau opens a window."""
        return PLATEAU in self._names

    def clashes(self, search: SearchConfig, monitor: MonitorConfig, eval_interval: int) -> Iterable[tuple[bool, str]]:
        """Yield (whether a rule on these settings and others of the run is broken, the message), rule by rule."""
        asked = next((key for key in OPENING if getattr(self, key) is not None), None)
        yield asked is not None and not search.continuous, (
            f"{asked} opens windows of challengers while the run trains, and --search {search.mode} has none; give "
            "--search continuous, or leave it out")
        if search.continuous:
            yield from self._search_clashes(search, monitor)
        elif not monitor.branches:
            return
        yield eval_interval == 0, "--eval-interval 0: challengers are judged by evaluations; give an interval"

    def _search_clashes(self, search: SearchConfig, monitor: MonitorConfig) -> Iterable[tuple[bool, str]]:
        other = next((one.key for one in declared(SearchConfig) if one.key not in IN_BOTH
                      and getattr(search, one.key) != one.default), None)
        yield other is not None, (f"{other} is of a search before the training, and --search continuous goes on during "
                                  "it; leave it out, or give --search ffn-activation")
        yield not (self.interval or self.challenge_on), ("challenge_interval is 0 and challenge_on names nothing, so "
                                                         "that no window of challengers would ever open; give one")
        yield bool(self.alerts) and not monitor.cusum, ("challenge_on names alerts, and cusum = false raises none; set "
                                                        "cusum = true")
        yield self.plateau and not monitor.plateau_evals, ("challenge_on names plateau, and plateau_evals = 0 finds "
                                                           "none; give a number of evaluations")
