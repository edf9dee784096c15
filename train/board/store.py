"""The store: one thread that writes to the database, in transactions that writers share, and readers beside it."""

from __future__ import annotations

import queue
import sqlite3
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
        self.locks: dict[str, bool] = {}  # of runs in directories: whether a process holds them
        self.listener: Callable[[], object] = lambda: None  # called after each commit, by the writing thread
        self._readers = threading.local()
        self._open: list[sqlite3.Connection] = []
        self._work: queue.SimpleQueue[tuple[Work, Future[Any]] | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="store")
        self._writer.start()

    def submit(self, work: Work) -> Future[Any]:
        """Have `work(connection)` done within a transaction. Its future has the result once that is on the disk, or the
        error: sqlite3.Error where it could not be written."""
        future: Future[Any] = Future()
        self._work.put((work, future))
        return future

    def write(self, work: Work) -> Any:
        """Do as `submit`, wait, and return the result or raise the error."""
        return self.submit(work).result()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection of this thread's, within which the database stays as it is."""
        db = getattr(self._readers, "db", None)
        if db is None:
            db = self._readers.db = schema.connect(self.path)
            self._open.append(db)
        db.execute("BEGIN")
        try:
            yield db
        finally:
            db.execute("ROLLBACK")

    def close(self) -> None:
        """Write what is waiting and end."""
        self._work.put(None)
        self._writer.join()
        for db in self._open:
            with suppress(sqlite3.Error):
                db.close()
        self.lock.release()

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
