"""Early stops of a training: rules on its rows, so that a resumed one stops where it would have without a pause."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

from helios.model.settings import COUNT, NATURAL, PORTION, POSITIVE, SHARE, Settings, setting
from helios.train.config import Config
from helios.train.monitors.controls import Plateau
from helios.train.monitors.trouble import Trouble
from helios.train.progress import Display
from helios.train.records.layout import METRICS
from helios.train.records.records import Records
from helios.train.records.rows import clipped, lines
from helios.train.stage import Plan

IN_A_ROW = 10  # steps above stop_loss


@dataclass(frozen=True)
class StopsConfig(Settings):
    """When a training ends before its last step."""

    stop_nan: int = setting(3, NATURAL, "steps in a row without a finite loss that end a training; 0: none do")
    stop_spikes: float = setting(1.0, PORTION, "end it above this share of spikes of the gradient norm in the last "
                                 "stop_window steps; 1: never")
    stop_clipped: float = setting(1.0, PORTION, "end it above this share of clipped gradients in the last stop_window "
                                  "steps, those of the warm-up not counted; 1: never")
    stop_speed: float = setting(0.0, SHARE, "end it when the median speed of stop_window steps is below this share of "
                                "that of all steps before; the clock decides, not the seed; 0: never")
    stop_plateau: int = setting(0, NATURAL, "evaluations in a row, none better by plateau_delta, that end it; 0: never")
    stop_loss: float | None = setting(None, POSITIVE, f"end it when the loss of {IN_A_ROW} steps in a row is above "
                                      "this; auto: the loss of a uniform guess, ln(vocab_size)")
    stop_loss_after: int = setting(0, NATURAL, "steps that may have such a loss; 0: all may")
    stop_window: int = setting(100, COUNT, "steps by which spikes, clipping and speed are judged")


class Seen:
    """What the rules go by: the rows of a training so far, as they are made or as metrics.jsonl holds them."""

    def __init__(self, stops: StopsConfig, config: Config) -> None:
        self.stops, self.warmup = stops, config.train.warmup
        self.limit = math.log(config.model.vocab_size) if stops.stop_loss is None else stops.stop_loss
        self.every = config.train.eval_interval
        self.plateau = Plateau(stops.stop_plateau, config.monitor.plateau_delta)
        self.norms: list[float] = []  # the last ones, for Trouble
        self.spikes, self.clipped = deque[bool](maxlen=stops.stop_window), deque[bool](maxlen=stops.stop_window)
        self.speeds: list[float] = []
        self.not_finite = self.above = 0  # steps in a row

    def take(self, row: Mapping[str, Any]) -> None:
        """Take in the next row. An evaluation that is not finite counts as none: a file has null for both; nor does
        one that was made where the training paused."""
        loss, val_loss = (math.nan if row[name] is None else row[name] for name in ("loss", "val_loss"))
        self.not_finite = 0 if math.isfinite(loss) else self.not_finite + 1
        self.above = 0 if loss <= self.limit or not row["step"] > self.stops.stop_loss_after > 0 else self.above + 1
        self.spikes.append(Trouble.of(row, self.norms).spike)
        if row["step"] > self.warmup:
            self.clipped.append(clipped(row))
        if self.stops.stop_speed:
            self.speeds.append(row["tokens_per_sec"])
        if math.isfinite(val_loss) and row["step"] % self.every == 0:
            self.plateau.update(val_loss)

    def slow(self) -> bool:
        """Return whether the last steps were slow; it is asked once a window."""
        n, past = self.stops.stop_window, self.speeds[:-self.stops.stop_window]
        return bool(past) and len(past) % n == 0 and median(self.speeds[-n:]) < self.stops.stop_speed * median(past)


class Rule(NamedTuple):
    """A reason to stop: its name, when it holds, and what is said then, with the settings by name."""

    name: str
    holds: Callable[[StopsConfig, Seen], bool]
    why: str


_share = lambda window: sum(window) / len(window) if len(window) == window.maxlen else 0.0
RULES = (
    Rule("nan", lambda c, seen: 0 < c.stop_nan <= seen.not_finite, "no finite loss in {stop_nan} steps in a row"),
    Rule("spikes", lambda c, seen: _share(seen.spikes) > c.stop_spikes,
         "more than {stop_spikes:.0%} of the last {stop_window} steps were spikes of the gradient norm"),
    Rule("clipping", lambda c, seen: _share(seen.clipped) > c.stop_clipped,
         "more than {stop_clipped:.0%} of the last {stop_window} steps were clipped"),
    Rule("speed", lambda c, seen: seen.slow(),
         "the median speed of {stop_window} steps was below {stop_speed:.0%} of that before, by this machine's clock"),
    Rule("plateau", lambda c, seen: 0 < c.stop_plateau <= seen.plateau.waited,
         "no better validation loss in {stop_plateau} evaluations"),
    Rule("loss", lambda c, seen: seen.above >= IN_A_ROW,
         "after step {stop_loss_after} the loss was above {limit:.4g} in " f"{IN_A_ROW} steps in a row"))


class Stopping(Plan):
    """The plan of a training that a rule may end before its last step: Run.open(…, plan=partial(Stopping, stops))."""

    def __init__(self, stops: StopsConfig, config: Config) -> None:
        super().__init__(config)
        self.stops = stops
        self.rule: Rule | None = None

    def begin(self, records: Records, device: str, display: Display, state: Mapping[str, Any] | None) -> None:
        self.seen, self.rule = Seen(self.stops, self.config), None
        for _, row in lines(records.path / METRICS):
            self.observe(row)

    def observe(self, row: Mapping[str, Any]) -> None:
        if self.rule is None and row["step"] < self.config.train.steps:
            self.seen.take(row)
            self.rule = next((rule for rule in RULES if rule.holds(self.stops, self.seen)), None)

    @property
    def over(self) -> str:
        return self.rule.name if self.rule else ""

    @property
    def why(self) -> str:
        return self.rule.why.format(**self.stops.to_dict(), limit=self.seen.limit) if self.rule else ""
