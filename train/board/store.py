"""The store: one thread that writes to the database, in transactions that writers share, and readers beside it."""

from __future__ import annotations

import os
import queue
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from helios.errors import UserError
from helios.train.board import schema

TOGETHER = 64  # writings in a transaction at most
KEPT = 100_000  # changes kept for the stream

Work = Callable[[sqlite3.Connection], Any]


def warn(message: str) -> None:
    """Print a warning in one line, if standard error is still open: a terminal may be closed before its board ends."""
    with suppress(OSError, ValueError):
        print(f"warning: {' '.join(message.splitlines())}", file=sys.stderr, flush=True)


class Store:
    """The runs of a board, in a database."""

    def __init__(self, path: Path) -> None:
        """Open the database, or make it. Raises UserError where it is another's, or in use by another board."""
        self.path = path
        self.lock = FileLock(f"{path}.lock")
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"{path} is in use by another board; stop that, or give another --db") from None
        except (OSError, NotImplementedError) as error:
            raise UserError(f"cannot use {path} as the board's database: {error}; give another --db") from error
        try:
            schema.create(path)
        except UserError:
            self.lock.release()
            raise
        self._file = os.stat(path)
        self.locks: dict[str, bool] = {}  # of runs in directories: whether a process holds them
        self.listener: Callable[[], object] = lambda: None  # called after each commit, by the writing thread
        self._idle: list[sqlite3.Connection] = []  # for reading
        self._work: queue.SimpleQueue[tuple[Work, Future[Any]] | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="store")
        self._writer.start()

    def submit(self, work: Work) -> Future[Any]:
        """Have `work(connection)` done within a transaction. Its future has the result once that is on the disk, or the
        error: sqlite3.Error where it could not be written."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()  # what may be written already cannot be cancelled
        self._work.put((work, future))
        return future

    def write(self, work: Work) -> Any:
        """Do as `submit`, wait, and return the result or raise the error."""
        return self.submit(work).result()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection of the caller's alone, within which the database stays as it is."""
        self._check()
        try:
            db = self._idle.pop()
        except IndexError:
            db = schema.connect(self.path)
        db.execute("BEGIN")
        try:
            yield db
        finally:
            db.execute("ROLLBACK")
            self._idle.append(db)

    def close(self) -> None:
        """Write what is waiting and end."""
        self._work.put(None)
        self._writer.join()
        for db in self._idle:
            with suppress(sqlite3.Error):
                db.close()
        self.lock.release()

    def _check(self) -> None:
        """Raise sqlite3.OperationalError where the file is no longer there: SQLite would go on in what nobody sees."""
        with suppress(OSError):
            if os.path.samestat(os.stat(self.path), self._file):
                return
        raise sqlite3.OperationalError(f"{self.path} was removed or replaced; start the board again")

    def _write(self) -> None:
        db, ended = None, False
        while not ended:
            batch = [self._work.get()]
            with suppress(queue.Empty):
                while len(batch) < TOGETHER:
                    batch.append(self._work.get_nowait())
            ended = None in batch
            jobs = [job for job in batch if job is not None]
            done: list[tuple[Future[Any], Any]] = []
            try:
                self._check()
                if db is None:
                    db = schema.connect(self.path, write=True)
                db.execute("BEGIN IMMEDIATE")
                for work, future in jobs:
                    db.execute("SAVEPOINT one")
                    try:
                        done.append((future, work(db)))
                    except Exception as error:
                        if isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError:
                            raise  # the disk's or the database's
                        # Else the writer of this one hears of it, and the others are not harmed.
                        db.execute("ROLLBACK TO one")
                        future.set_exception(error)
                    db.execute("RELEASE one")
                db.execute("DELETE FROM changes WHERE id <= (SELECT max(id) FROM changes) - ?", (KEPT,))
                db.execute("COMMIT")
            except sqlite3.Error as error:
                # Nothing is acknowledged. A new connection, since after an I/O error the old one may be of no use.
                with suppress(sqlite3.Error):
                    if db is not None:
                        db.close()
                db = None
                for _, future in jobs:
                    if not future.done():
                        future.set_exception(error)
                continue
            for future, result in done:
                future.set_result(result)
            with suppress(RuntimeError):  # the streams have ended
                self.listener()
        if db is not None:
            with suppress(sqlite3.Error):
                db.close()
