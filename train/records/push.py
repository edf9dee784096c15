"""Brings what a board holds of a run to what the run's directory holds.

The files are the truth, and the board is asked what it has of them: rows that it holds and the files do not (a run was
resumed from a checkpoint, a file was replaced) go, and those that it lacks are sent. Of a file that is not there, as in
a directory that is being removed, it keeps what it has. What is noted in report.json only spares reading a long file
from its beginning.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from helios.errors import UserError
from helios.files import write_atomic
from helios.train.records.client import BoardError, Client, part_of
from helios.train.records.layout import (
    CHECKPOINTS,
    CONFIG,
    EVENTS,
    METRICS,
    REPLACED,
    REPORT,
    SAMPLES,
    read_config,
    read_object,
)
from helios.train.records.log import ROWS, SIZE, Cut, Log, fitting
from helios.train.records.rows import finite, lines

LOGS = {"metrics": METRICS, "events": EVENTS, "samples": SAMPLES}  # files by kind; rows are only added to them
SUMMARY = "search/summary.json"
ALIVE = 60.0  # seconds without a post after which one says that the run lives
NOTED = 5.0  # seconds between writings of report.json
HIGHEST = 2**53  # no step is higher
CONFLICTS = 5  # in a row, after which the board is at fault


class Push:
    """What a board has of a run, and what it lacks.

    path: the run directory. warn: shows a warning. pause: called after each few rows that are read.
    """

    def __init__(self, path: Path, client: Client, warn: Callable[[str], object],
                 pause: Callable[[], object] = int) -> None:
        self.path, self.client, self.warn = path, client, warn
        noted = self._noted().get(client.url, {})
        self.logs = {kind: Log(path / name, pause, *_counts(noted.get(kind))) for kind, name in LOGS.items()}
        self.have = {kind: log.base for kind, log in self.logs.items()}  # rows that the board has, as ours
        # By kind in REPLACED; `ours` as they are sent, and as `_text` has them.
        self.ours: dict[str, list[tuple[bytes, str]]] = {kind: [] for kind in REPLACED}
        self.theirs: dict[str, list[str]] = {kind: [] for kind in REPLACED}  # the board's, as `_text` has them
        self.read: dict[str, tuple[int, ...] | None] = dict.fromkeys(REPLACED)  # stamp of the file as it was read
        self.run_id = ""
        self.agreed = False  # whether `have` and `theirs` are what the board said
        self.conflicts = self.sent = 0  # conflicts in a row; rows sent in all
        self.stamps: tuple[Any, ...] = ()  # of the files of the last post of kind run
        self.checkpoints: dict[str, tuple[int, dict[str, Any]]] = {}  # by name: when it was made, what is told of it
        self.posted = self.saved = 0.0  # by time.monotonic()
        self.warned: set[tuple[Path, str]] = set()

    @property
    def left(self) -> int:
        """Return how many rows are still to be sent, of those seen so far."""
        return (sum(max(0, log.count - self.have[kind]) for kind, log in self.logs.items())
                + sum(len(self.ours[kind]) - self._same_rows(kind) for kind in REPLACED))

    def round(self) -> bool:
        """Send at most one post of each kind, of what is new; return whether more waits to be sent.

        Raises BoardError, and UserError where the directory holds no run; the next round begins by asking the board.
        """
        changed = [log.look() for log in self.logs.values()]
        self._look()
        agreed, self.agreed = self.agreed and not any(changed), False
        try:
            if not agreed or self._changed():
                counts = self._about()
                known = self.have | {kind: len(rows) for kind, rows in self.theirs.items()}
                if not agreed or any(counts.get(kind, 0) != number for kind, number in known.items()):
                    self._agree(counts)
            for kind, log in self.logs.items():
                if self.have[kind] < log.count:
                    self._send(kind, log.lines(self.have[kind]))
            for kind in REPLACED:
                self._replace(kind)
        except (BoardError, Cut) as error:
            passing = isinstance(error, Cut) or error.status in (404, 409)  # the files or the board have changed
            self.conflicts = self.conflicts + 1 if passing else 0
            if not 0 < self.conflicts <= CONFLICTS:
                raise
            return True
        self.agreed, self.conflicts = True, 0
        self._warn_of_losses()
        if time.monotonic() - self.saved > NOTED:
            self.note()
        return self.left > 0

    def note(self) -> None:
        """Write report.json."""
        now = {kind: dict(zip(("rows", "bytes"), log.known(self.have[kind]), strict=True))
               for kind, log in self.logs.items()}
        self.saved = time.monotonic()
        if self._noted().get(self.client.url) != now:
            text = json.dumps(self._noted() | {self.client.url: now}, indent=2) + "\n"
            with suppress(OSError):  # without it, the next one reads more
                write_atomic(self.path / REPORT, lambda file: file.write(text.encode()))

    def close(self) -> None:
        """Write report.json and close all files."""
        self.note()
        for log in self.logs.values():
            log.close()

    def _noted(self) -> dict[str, Any]:
        found = read_object(self.path / REPORT) or {}
        return {url: about for url, about in found.items() if isinstance(about, dict)}

    # -- of the run as a whole ----------------------------------------------------------------------------------------
    def _changed(self) -> bool:
        """Return whether the board is to be told of the run: something of it has changed, or nothing for a while."""
        return self._stamps() != self.stamps or time.monotonic() - self.posted > ALIVE

    def _stamps(self) -> tuple[Any, ...]:
        return tuple(_stamp(self.path / name) for name in (CONFIG, SUMMARY, CHECKPOINTS))

    def _about(self) -> dict[str, int]:
        """Send what is known of the run; return how many rows of each kind the board has."""
        stamps, config = self._stamps(), read_config(self.path)
        self.run_id = config["run_id"]
        about = {"config": config, "summary": read_object(self.path / SUMMARY), "checkpoints": self._checkpoints()}
        answer = self._post("run", rows=[json.dumps(about).encode()])
        self.stamps = stamps
        return answer

    def _checkpoints(self) -> list[dict[str, Any]]:
        """Return step, val_loss and bytes of each checkpoint."""
        found = {}
        for path in sorted((self.path / CHECKPOINTS).glob("step-*")):
            with suppress(OSError, ValueError):  # it has just been removed, or is none
                made = path.stat().st_mtime_ns
                if self.checkpoints.get(path.name, (0, {}))[0] == made:
                    found[path.name] = self.checkpoints[path.name]
                    continue
                loss = (read_object(path / "state.json") or {}).get("val_loss")
                found[path.name] = made, {"step": int(path.name.removeprefix("step-")),
                                          "val_loss": loss if isinstance(loss, float) else None,
                                          "bytes": sum(file.stat().st_size for file in path.iterdir())}
        self.checkpoints = found
        return [about for _, about in found.values()]

    # -- what the board has -------------------------------------------------------------------------------------------
    def _agree(self, counts: dict[str, int]) -> None:
        """Find out which of our rows the board has, and let others of its go. counts: how many rows it has."""
        for tries in range(CONFLICTS):
            cuts = []
            for kind in self.logs:
                same, step = self._same(kind, counts[kind])
                if same < counts[kind]:
                    cuts.append(step - 1)
            if not cuts:
                break
            # A cut also leaves rows of lower steps that follow higher ones, and these may differ now.
            counts = self._post("run", cut=min(cuts) if tries < CONFLICTS - 2 else -HIGHEST - 1)
        else:
            raise BoardError(f"{self.client.url} does not let rows go that {self.path} no longer holds", 500)
        self.have = {kind: counts[kind] for kind in self.logs}
        # A board of an earlier version knows nothing of windows, which it says where it is sent some.
        self.theirs = {kind: [_text(row) for row in self._get(kind)] if counts.get(kind) else [] for kind in REPLACED}

    def _same(self, kind: str, count: int) -> tuple[int, int]:
        """Return how many of the board's `count` rows are ours, and the lowest step of the others. Raises UserError
        where the file is gone, as in a directory that is being removed."""
        log = self.logs[kind]
        if count and not log.there:
            raise UserError(f"{log.path} is gone; put it back, or the board at {self.client.url} keeps what it has")
        if kind != "metrics":
            theirs = self._get(kind) if count else []
            if count and log.base:
                log.whole()
            same = next((i for i, row in enumerate(theirs) if i >= log.count or _text(row) != self._ours(log, i)),
                        len(theirs))
            return same, min((_step(row) for row in theirs[same:]), default=0)
        equal = lambda i: _text(self._row(i)) == self._ours(log, i)
        if (n := min(count, log.count)) and not equal(n - 1):
            if log.base:
                log.whole()
            low, n = 0, min(count, log.count)
            while low < n:  # rows before `low` are equal; that at `n` is not, or there is none
                middle = (low + n) // 2
                low, n = (middle + 1, n) if equal(middle) else (low, middle)
        return n, _step(self._row(n)) if n < count else 0

    def _ours(self, log: Log, i: int) -> str:
        return _text(json.loads(log.lines(i, 1)[0]))

    def _row(self, i: int) -> dict[str, Any]:
        """Return the row `i` of the board's metrics."""
        rows = self._get("rows", after=i, limit=1)
        if not rows:
            raise BoardError(f"{self.client.url} has lost rows of {self.run_id}", 409)
        return rows[0]

    def _get(self, what: str, **query: object) -> list[dict[str, Any]]:
        return part_of(self.client.get(f"/api/runs/{quote(self.run_id, safe='')}/{what}", **query), "rows")

    # -- rows ---------------------------------------------------------------------------------------------------------
    def _send(self, kind: str, rows: Sequence[bytes]) -> None:
        first = self.have[kind]
        if self._post(kind, first, rows) != first + len(rows):
            raise BoardError(f"{self.client.url} has other rows of {self.run_id}", 409)
        self.have[kind] += len(rows)
        self.sent += len(rows)

    def _look(self) -> None:
        for kind, name in REPLACED.items():
            if (stamp := _stamp(self.path / name)) != self.read[kind]:
                ours = [fitting(line[:-1]) for line, _ in lines(self.path / name)]
                self.ours[kind], self.read[kind] = [(line, _text(json.loads(line))) for line in ours], stamp

    def _same_rows(self, kind: str) -> int:
        """Return how many rows the board has as they are, before the first that it lacks or has otherwise."""
        ours, theirs = self.ours[kind], self.theirs[kind]
        pairs = enumerate(zip(ours, theirs, strict=False))
        return next((i for i, (a, b) in pairs if a[1] != b), min(len(ours), len(theirs)))

    def _replace(self, kind: str) -> None:
        """Send rows from the first one on that the board lacks or has otherwise; all of its go from there."""
        ours, theirs = self.ours[kind], self.theirs[kind]
        if self.read[kind] and (first := self._same_rows(kind)) < max(len(ours), len(theirs)):
            rows = _batch([line for line, _ in ours[first:]])
            self._post(kind, first, rows)
            theirs[first:] = [text for _, text in ours[first:first + len(rows)]]
            self.sent += len(rows)

    def _post(self, kind: str, first: int | None = None, rows: Sequence[bytes] | None = None,
              cut: int | None = None) -> Any:
        head = {"run_id": self.run_id, "kind": kind, "from": first, "cut": cut}
        body = json.dumps({key: value for key, value in head.items() if value is not None}).encode()
        if rows is not None:  # as they are in the file, to the last digit
            body = body[:-1] + b', "rows": [' + b",\n".join(rows) + b"]}"
        answer = self.client.post("/api/ingest", body)
        self.posted = time.monotonic()
        return part_of(answer, "next")

    def _warn_of_losses(self) -> None:
        for log in self.logs.values():
            for number, what in ((log.damaged, "damaged, and not sent"),
                                 (log.long, "too long to be sent, and only named")):
                if number and (log.path, what) not in self.warned:
                    self.warned.add((log.path, what))
                    self.warn(f"warning: {log.path}: {number:,} {'line is' if number == 1 else 'lines are'} {what}")


def _text(row: Any) -> str:
    """Return a row as text; equal rows give equal texts, whatever became of numbers that are not finite."""
    return json.dumps(finite(row))


def _step(row: dict[str, Any]) -> int:
    """Return the step of a row, no higher than a board takes it for."""
    return step if type(step := row.get("step")) is int and abs(step) <= HIGHEST else 0


def _batch(rows: Sequence[bytes]) -> Sequence[bytes]:
    """Return as many of the rows as a post holds, and at least one."""
    n = size = 0
    while n < min(len(rows), ROWS) and (not n or size + len(rows[n]) <= SIZE):
        size += len(rows[n])
        n += 1
    return rows[:n]


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Return what changes when a file does; None where there is none."""
    with suppress(OSError):
        found = path.stat()
        return found.st_ino, found.st_mtime_ns, found.st_size
    return None


def _counts(noted: Any) -> tuple[int, int]:
    """Return (rows, bytes) as report.json has them; (0, 0) for anything else."""
    rows, size = (noted.get(key) if isinstance(noted, dict) else 0 for key in ("rows", "bytes"))
    return (rows, size) if type(rows) is type(size) is int and rows > 0 and size > 0 else (0, 0)
