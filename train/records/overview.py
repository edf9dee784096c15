"""What is known of a run at a glance, and how it stands: of a directory, or of rows that were sent elsewhere."""

from __future__ import annotations

import fcntl
import math
import time
from calendar import timegm
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypedDict

from helios.train.records.layout import CONFIG, EVENTS, LIFE, LOCK, LOGS, METRICS, read_config
from helios.train.records.rows import lines

STALE = 180.0  # seconds without news after which nothing more is expected
RECENT = 32  # last steps whose median is the speed
SILENT = "its process ended without a word"
# Key → its name in what config.json says of the experiment that a run belongs to.
EVOLVE = {"experiment": "experiment", "candidate": "id", "replicate": "replicate", "phase": "phase"}


class Status(NamedTuple):
    """How a run stands: active, completed, interrupted, failed or stale, and why."""

    word: str
    reason: str


def status(last: Mapping[str, Any] | None, locked: bool | None, age: float) -> Status:
    """Return how a run stands. It follows from its events, so that a late row of a finished run revives nothing.

    last: the last event of a kind in LIFE; None: there is none. locked: whether a process holds its directory; None:
    not known. age: seconds since the last news of it.
    """
    word = LIFE[last["kind"]] if last else "active"
    if word == "completed" or (word != "active" and not locked):
        return Status(word, "" if last is None or last["kind"] == "run_complete" else str(last.get("message") or ""))
    if locked or (locked is None and age <= STALE):
        return Status("active", "")
    return Status("stale", f"no news for {STALE:.0f} s") if age > STALE else Status("interrupted", SILENT)


class Glance(TypedDict, total=False):
    """What Overview takes from a row of metrics.jsonl."""

    step: Any
    loss: Any
    val_loss: Any
    tokens_per_sec: Any
    symbio_phase: Any


class Overview:
    """What is known of a run, put together from its files: config.json, then rows and events in their order."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self.about: dict[str, Any] = {}
        self.life: dict[str, Any] | None = None  # the last event of a kind in LIFE
        self.begun: str | None = None  # time of the first event
        self.count = self.step = self.searched = 0  # rows; the last one's step; steps of a search
        self.loss: float | None = None
        self.val_loss: float | None = None  # the last one
        self.best: tuple[float, int] | None = None  # the lowest after a search: loss, step
        self.speeds: list[float] = []  # tokens/s of the last steps
        vars(self).update(state or {})
        self.speeds = [*self.speeds]

    def state(self) -> dict[str, Any]:
        """Return what __init__ takes, as plain values."""
        return vars(self) | {"speeds": [*self.speeds]}

    def config(self, about: Mapping[str, Any]) -> None:
        """Take in the content of config.json."""
        names = ("run_id", "created", "chat", "model", "train", "search", "device", "parameters", "symbio_winner",
                 "champion", "evolve")
        self.about = {name: about[name] for name in names if name in about}

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Take in the next row of metrics.jsonl."""
        self.count += 1
        self.step = _whole(row.get("step")) or self.step
        self.searched += row.get("symbio_phase") == "search"
        self.loss = number(row.get("loss"))
        if (value := number(row.get("val_loss"))) is not None:
            self.val_loss = value
            if row.get("symbio_phase") != "search" and (self.best is None or value < self.best[0]):
                self.best = value, self.step
        if (speed := number(row.get("tokens_per_sec"))) is not None:
            self.speeds.append(speed)
            del self.speeds[:-RECENT]

    def event(self, event: Mapping[str, Any]) -> None:
        """Take in the next line of events.jsonl."""
        if self.begun is None and isinstance(event.get("time"), str):
            self.begun = event["time"]
        if isinstance(event.get("kind"), str) and event["kind"] in LIFE:
            self.life = {key: event.get(key) for key in ("kind", "message")}

    def entry(self, locked: bool | None, updated: float, now: float | None = None) -> dict[str, Any]:
        """Return what is known, by name; None: not known. locked: as `status` takes it. updated: seconds since the
        epoch at which the last news came; now: the present, likewise. Losses are in nats a token."""
        section = lambda name: value if isinstance(value := self.about.get(name), dict) else {}
        model, train, search, device, evolve, champion = map(
            section, ("model", "train", "search", "device", "evolve", "champion"))
        created = self.about.get("created")
        found = status(self.life, locked, (time.time() if now is None else now) - updated)
        known = all(isinstance(model.get(key), int) for key in ("n_layer", "n_embd", "n_head", "block_size"))
        steps = 0 if search.get("after") == "none" else _whole(train.get("steps"))
        return {
            "run_id": self.about.get("run_id"), "status": found.word, "reason": found.reason,
            "domain": "chat" if self.about.get("chat", True) else "text",
            "created": created if isinstance(created, str) else self.begun, "updated": utc(updated), "step": self.step,
            "steps": None if steps is None else steps + self.searched,
            "model": "L{n_layer} D{n_embd} H{n_head} T{block_size}".format(**model) if known else None,
            "parameters": _whole(self.about.get("parameters")),
            "activation": self.about.get("symbio_winner") or champion.get("activation") or model.get("activation"),
            "precision": train.get("precision"), "device": device.get("name"), "loss": self.loss,
            "val_loss": self.val_loss, "best_val_loss": self.best and self.best[0],
            "best_val_step": self.best and self.best[1],
            "tokens_per_sec": number(median(self.speeds)) if self.speeds else None,
            "coverage": self.count / self.step if self.step else None, "symbio": bool(search),
            "symbio_winner": self.about.get("symbio_winner"), "historic": False,
            **{key: evolve.get(name) for key, name in EVOLVE.items()}}


def read(path: Path) -> dict[str, Any]:
    """Return what is known of the run in the directory `path`, as `Overview.entry` does. Raises UserError where there
    is none."""
    overview = Overview()
    overview.config(read_config(path))
    for _, row in lines(path / METRICS, kind=Glance):
        overview.metrics(row)
    for _, event in lines(path / EVENTS):
        overview.event(event)
    return overview.entry(locked(path), updated(path))


def locked(path: Path) -> bool:
    """Return whether a process holds the lock of the run directory `path`."""
    with suppress(OSError), open(path / LOCK, "rb") as file:
        try:
            # Held for a moment only: directory.locked waits for longer than that.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def updated(path: Path) -> float:
    """Return when something was last written to the run directory `path`, in seconds since the epoch; 0: never."""
    latest = 0.0
    for name in (CONFIG, *LOGS):
        with suppress(OSError):
            latest = max(latest, (path / name).stat().st_mtime)
    return latest


def utc(seconds: float) -> str:
    """Return a time in seconds since the epoch as events have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def seconds(time_: str) -> float:
    """Return what `utc` made of seconds. Raises ValueError for anything else."""
    return timegm(time.strptime(time_, "%Y-%m-%dT%H:%M:%SZ"))


def number(x: Any) -> float | None:
    """Return the number if it is one, and finite."""
    if isinstance(x, float):
        return x if math.isfinite(x) else None
    if isinstance(x, bool) or not isinstance(x, int):
        return None
    with suppress(OverflowError):  # an integer beyond every float
        return float(x)
    return None


def _whole(x: Any) -> int | None:
    return x if isinstance(x, int) and not isinstance(x, bool) else None
