"""Reads the run directories of a folder into the store as they grow, also those of runs in other processes."""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from helios.errors import UserError
from helios.train.board import ingest, queries, tail
from helios.train.board.guard import ID
from helios.train.board.journals import Reader
from helios.train.board.store import Store, warn
from helios.train.records.journal import JOURNAL
from helios.train.records.layout import (
    CHECKPOINTS,
    CONFIG,
    EVENTS,
    METRICS,
    REPLACED,
    Signature,
    read_config,
    read_object,
)
from helios.train.records.layout import signature as _signature
from helios.train.records.overview import STALE, locked

TICK = 0.4  # seconds between two looks at the runs under way
WARM = 10.0  # seconds for which a run is under way after a change; others are looked through as often, or with new rows
DEPTH = 3  # levels of folders in which runs and experiments are found
OF_EXPERIMENT = 2  # levels below an experiment's directory in which its runs are found, wherever it lies
SUMMARY = "search/summary.json"
KINDS = {f"{kind}.jsonl": kind for kind in ingest.LOGS}
ABOUT = (CONFIG, SUMMARY, CHECKPOINTS)  # read whole when one of them changes
_STEP = re.compile(r"step-(\d{6,})")
_STATE = "state.json"


@dataclass(eq=False)
class _Run:
    path: str
    run_id: str
    seen: dict[str, Signature] = field(default_factory=dict)  # by name of a file
    places: dict[str, tail.Place] | None = None  # by kind of rows: up to where they are read; None: not looked up yet
    checkpoints: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)  # by name
    warm: float = 0.0  # until when


class Watcher:
    """A thread that reads the runs in a folder into a store."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.folder, self.store = str(folder), store
        self.folders: dict[str, tuple[int, list[str]]] = {}  # that are no runs: time of a change, folders in it
        self.runs: dict[str, _Run] = {}  # by path
        self.owners: dict[str, str] = {}  # run id → path
        self.journals: dict[str, Reader] = {}  # by path of the experiment's directory
        self.left: dict[str, Signature] = {}  # left out: path → of config.json
        self.waiting: deque[_Run] = deque()  # to be looked through
        self.warned: set[str] = set()
        self.checked = time.time()  # for runs of which there is no news
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._loop, name="watch")

    def start(self) -> None:
        """Find the runs, and begin to read them."""
        self._guarded(self.folder, self._discover)
        self.thread.start()

    def stop(self) -> None:
        """End, after the rows at hand."""
        self.ended.set()
        self.thread.join()

    def _loop(self) -> None:
        turn, turns = 0, round(WARM / TICK)
        while not self.ended.is_set():
            began = time.monotonic()
            self._guarded(self.folder, self._discover)
            for path, reader in self.journals.items():
                self._guarded(path, partial(reader.look, self.store))
            cold = []
            for run in list(self.runs.values()):
                if run.warm > began or (run.seen and any(
                        _signature(run.path, name) != run.seen[name] for name in (METRICS, EVENTS))):
                    self._turn(run)
                else:
                    cold.append(run)
            if not self.waiting:
                turn = (turn + 1) % turns
                self.waiting.extend(cold[turn::turns])
            until = time.monotonic() + TICK
            while self.waiting and time.monotonic() < until and not self.ended.is_set():
                self._turn(self.waiting.popleft())
            self._guarded(self.folder, self._silent)
            if not self.waiting:
                self.ended.wait(max(0.0, began + TICK - time.monotonic()))

    def _turn(self, run: _Run) -> None:
        if self.runs.get(run.path) is not run:  # it vanished while it waited
            return
        if self._guarded(run.path, partial(self._look, run)) and run not in self.waiting:
            self.waiting.append(run)

    def _guarded(self, path: str, work: Callable[[], Any]) -> Any:
        """Return what `work` returns; warn where it fails, which is tried again later."""
        try:
            return work()
        except UserError as error:
            self._warn(str(error))
        except (OSError, sqlite3.Error) as error:
            self._warn(f"{path}: {error}")
        except Exception as error:  # a bug must not end the board
            self._warn(f"{path} cannot be read: {type(error).__name__}: {error}")
        return None

    def _warn(self, message: str) -> None:
        if message not in self.warned and len(self.warned) < 10_000:
            self.warned.add(message)
            warn(message)

    def _discover(self) -> None:
        """Find new runs and experiments, and forget those that vanished."""
        found: list[str] = []
        journals: list[str] = []
        self._walk(self.folder, DEPTH, found, journals, set())
        if set(self.journals) - set(journals):  # those that were left out may have a place now
            for reader in self.journals.values():
                reader.seen = reader.seen if reader.id else None
        self.journals = {path: self.journals.get(path) or Reader(path, self._held, self._warn) for path in journals}
        for path in set(self.runs) - set(found):
            self._forget(self.runs[path])
        new = [path for path in found if path not in self.runs and self.left.get(path, ()) != _signature(path, CONFIG)]
        for path in new:
            self.left[path] = _signature(path, CONFIG)
            self._guarded(path, partial(self._claim, path))
        fresh = [self.runs[path] for path in new if path in self.runs]
        fresh.sort(key=lambda run: (_signature(run.path, EVENTS) or (0, 0, 0))[2])
        self.waiting.extendleft(fresh)  # and so the latest one is read first

    def _forget(self, run: _Run) -> None:
        """Let go of a run directory, which may be found anew, as may others of the same run."""
        del self.runs[run.path], self.owners[run.run_id]
        self.store.locks.pop(run.run_id, None)
        self.left.clear()
        self._changed(run.run_id)

    def _held(self, experiment: str, path: str) -> None:
        """Raise UserError where an experiment is read from another directory than `path`."""
        for other, reader in self.journals.items():
            if reader.id == experiment and other != path:
                raise UserError(f"{path} is left out: {other} is of the same experiment, {experiment}")

    def _walk(self, folder: str, depth: int, found: list[str], journals: list[str], been: set[tuple[int, int]]) -> None:
        """Add the run directories in a folder to `found`, and those of experiments to `journals`. been: devices and
        inodes of the folders that were walked through, since links may lead back to one."""
        try:
            status = os.stat(folder)
        except OSError:
            self.folders.pop(folder, None)
            if folder == self.folder:
                raise
            return
        if (here := (status.st_dev, status.st_ino)) in been:
            return
        been.add(here)
        if os.path.exists(os.path.join(folder, JOURNAL)):
            journals.append(folder)
            depth = max(depth, OF_EXPERIMENT)
        changed, known = status.st_mtime_ns, self.folders.get(folder)
        if known and known[0] == changed:
            places = known[1]
        else:
            places = []
            with suppress(PermissionError), os.scandir(folder) as entries:
                places = sorted(e.path for e in entries if not e.name.startswith(".") and e.is_dir())
            # A clock's tick may hold another change, so that a time is to be relied on only when it has passed.
            self.folders[folder] = changed if time.time_ns() - changed > 2e9 else -1, places
        for place in places:
            if place in self.runs or os.path.exists(os.path.join(place, CONFIG)):
                found.append(place)
            elif depth > 1 or os.path.exists(os.path.join(place, JOURNAL)):
                self._walk(place, depth - 1, found, journals, been)

    def _claim(self, path: str) -> None:
        """Take in a new run directory, but not a second one of the same run."""
        run_id = read_config(Path(path))["run_id"]
        if not ID.fullmatch(run_id):
            raise UserError(f"{path} is left out: its run_id is no id of letters, digits, _ . and -")
        owner = self.owners.setdefault(run_id, path)
        if owner != path and os.path.samefile(owner, path):
            return
        if owner != path:
            raise UserError(f"{path} is left out: {owner} is of the same run, {run_id}")
        self.runs[path] = _Run(path, run_id)

    def _look(self, run: _Run) -> bool:
        """Read what is new of a run; return whether there is more."""
        now = {name: _signature(run.path, name) for name in (*ABOUT, *REPLACED.values(), *KINDS)}
        changed = {name for name, found in now.items() if found != run.seen.get(name)}
        updated = min(max((found[2] for found in now.values() if found), default=0) / 1e9, time.time())
        if changed and (run.seen or updated > time.time() - WARM):
            run.warm = time.monotonic() + WARM
        if run.places is None:
            self._begin(run)
        works = [self._about(run, updated)] if changed & set(ABOUT) else []
        works += [self._replacing(run, kind, updated) for kind, name in REPLACED.items()
                  if now[name] and name in changed]
        places, same, more = dict(run.places or {}), True, False
        for name, kind in KINDS.items():
            if now[name] and name in changed:
                part = tail.read(f"{run.path}/{name}", places.get(kind), self._warn)
                same = same and part is not None
                if part and part[1] != places.get(kind):
                    works.append(_taking(run.run_id, kind, places.get(kind), *part, updated))
                    places[kind], more = part[1], True
        try:
            if works:
                self.store.write(lambda db: [work(db) for work in works])
                run.places = places
        except ingest.Gap:  # rows that were read here were cut elsewhere
            same = False
        if not same:
            self._compare(run, True)
        self._lock(run, bool(changed))
        if same and not more:
            run.seen = now
        return more or not same

    def _lock(self, run: _Run, changed: bool) -> None:
        """See whether a process holds the run, where that may have changed."""
        known = self.store.locks.get(run.run_id)
        if not (changed or known):
            return
        held = self.store.locks[run.run_id] = locked(Path(run.path))
        if held:
            run.warm = time.monotonic() + WARM
        if held == known:
            return
        with self.store.reading() as db:
            found = queries.entries(db, {}, run.run_id)
        if known is not None or (found and found[0]["status"] in ("active", "stale")):
            self._changed(run.run_id)

    def _about(self, run: _Run, updated: float) -> Callable[[sqlite3.Connection], Any]:
        config = read_config(Path(run.path))
        if config["run_id"] != run.run_id:  # renamed onto the place of another
            self._forget(run)
            raise UserError(f"{run.path} was of the run {run.run_id}, and is now of {config['run_id']}")
        run.checkpoints = _checkpoints(os.path.join(run.path, CHECKPOINTS), run.checkpoints)
        summary, listed = read_object(os.path.join(run.path, SUMMARY)), [about for _, about in run.checkpoints.values()]
        return lambda db: ingest.about(db, run.run_id, config, summary, listed, updated)

    def _replacing(self, run: _Run, kind: str, updated: float) -> Callable[[sqlite3.Connection], Any]:
        place, found = None, []
        while (part := tail.read(f"{run.path}/{REPLACED[kind]}", place, self._warn)) and part[1] != place:
            place = part[1]
            found += part[0]
        return lambda db: ingest.put(db, run.run_id, kind, 0, found, updated)

    def _begin(self, run: _Run) -> None:
        """Look up how far a run was read by an earlier board, and compare what was never read with what was sent."""
        with self.store.reading() as db:
            counts = ingest.counts(db, run.run_id)
            places = {kind: tail.Place(*place) for kind, *place in db.execute(
                "SELECT kind, inode, offset, n, mark FROM sources WHERE run_id = ?", (run.run_id,))}
        # Else rows were cut elsewhere, and are to be read again.
        run.places = places if all(place.rows <= counts[kind] for kind, place in places.items()) else {}
        if not run.places and any(counts[kind] for kind in KINDS.values()):
            self._compare(run, False)

    def _compare(self, run: _Run, known: bool) -> None:
        """Compare a run's files with its rows in the store, and cut these from where they differ. All is read again.

        known: whether the files were read before; else rows that are not in them stay, since they may come from where
        the run goes on.
        """
        with self.store.reading() as db:  # before the files, which have all rows that are in the store
            steps = []
            for name, kind in KINDS.items():
                lines = (line for line, in db.cursor().execute(
                    f"SELECT line FROM {kind}_lines WHERE run_id = ? ORDER BY n", (run.run_id,)))
                found = tail.differs(os.path.join(run.path, name), lines)
                if found and (known or not found[1]):
                    steps.append(ingest.lowest_step(db, run.run_id, kind, found[0]))
            run.places, run.seen = {}, {}
            if not steps:
                return
            cut = ingest.level(db, run.run_id, min(steps) - 1)
        self.store.write(lambda db: ingest.cut(db, run.run_id, cut, 0.0))

    def _silent(self) -> None:
        """Tell of the runs that are stale from now on."""
        now = time.time()
        if now - self.checked < TICK:
            return
        with self.store.reading() as db:
            found = [run_id for run_id, in db.execute("SELECT run_id FROM runs WHERE updated > ? AND updated <= ?",
                                                      (self.checked - STALE, now - STALE))]
        self.checked = now
        for run_id in found:
            self._changed(run_id)

    def _changed(self, run_id: str) -> None:
        self.store.write(lambda db: ingest.change(db, run_id, "run"))


def _taking(run_id: str, kind: str, before: tail.Place | None, rows: list[ingest.Row], after: tail.Place,
            updated: float) -> Callable[[sqlite3.Connection], Any]:
    """Return what writes rows that were read, and up to where that is."""
    def take(db: sqlite3.Connection) -> None:
        ingest.put(db, run_id, kind, before.rows if before else 0, rows, updated)
        db.execute("INSERT OR REPLACE INTO sources VALUES (?, ?, ?, ?, ?, ?)", (run_id, kind, *after))
    return take


def _checkpoints(folder: str, known: dict[str, tuple[int, dict[str, Any]]]) -> dict[str, tuple[int, dict[str, Any]]]:
    """Return the time in ns at which each of the checkpoints in a folder was made, and what is known of it, by name.
    known: of those that were there before."""
    found = {}
    with suppress(OSError):
        for entry in os.scandir(folder):
            if not (match := _STEP.fullmatch(entry.name)):
                continue
            made = entry.stat().st_mtime_ns
            if entry.name in known and known[entry.name][0] == made:
                found[entry.name] = known[entry.name]
            elif (state := read_object(os.path.join(entry.path, _STATE))) is not None:
                loss = state.get("val_loss")
                found[entry.name] = made, {
                    "step": int(match[1]), "val_loss": loss if isinstance(loss, float) else None,
                    "bytes": sum(file.stat().st_size for file in os.scandir(entry.path))}
    return found
