"""Files sent to the board in parts: kept beside the database under their SHA-256, so that no name becomes a path."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from starlette.exceptions import HTTPException

from helios.files import write_atomic
from helios.train.board.ingest import change
from helios.train.board.store import Store

PART, LARGEST = 2**20, 2**40  # bytes of a part, and of a file, at most
KEPT = 7 * 86400.0  # seconds for which what no run lists is kept


class Uploads:
    """The files of a store's runs."""

    def __init__(self, store: Store) -> None:
        self.store, self.folder = store, Path(f"{store.path}.files")

    def tidy(self) -> None:
        """Remove what came long ago and was never finished, and files in whose place others were sent."""
        with self.store.reading() as db:
            listed = {sha256 for sha256, in db.execute("SELECT sha256 FROM files")}
        with suppress(OSError):
            for path in self.folder.iterdir():
                if path.name not in listed and path.stat().st_mtime < time.time() - KEPT:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def have(self, size: int, sha256: str) -> list[int]:
        """Return the numbers of the parts that are there of such a file."""
        parts = self._parts(size, sha256)
        return sorted(int(p.name) for p in parts.iterdir() if p.name.isdecimal()) if parts.is_dir() else []

    def put(self, number: int, data: bytes, digest: str, size: int, sha256: str) -> list[int]:
        """Keep a part and return the numbers of those that are there. Raises HTTPException where it is damaged."""
        if hashlib.sha256(data).hexdigest() != digest.lower():
            raise HTTPException(400, "the part is damaged: its SHA-256 is not X-SHA256; send it again")
        parts = self._parts(size, sha256)
        if not data or len(data) != min(PART, size - number * PART):  # all but the last have PART bytes
            raise HTTPException(400, f"a file of {size:,} bytes has no part {number} of {len(data):,} bytes")
        parts.mkdir(parents=True, exist_ok=True)
        write_atomic(parts / str(number), lambda file: file.write(data))
        return self.have(size, sha256)

    def finish(self, run_id: str, name: str, size: int, sha256: str, step: int | None) -> None:
        """Put the parts together and list the file. Raises HTTPException where some are missing or their whole is
        another."""
        parts, path = self._parts(size, sha256), self.folder / sha256
        if not (path.exists() and path.stat().st_size == size):
            numbers = self.have(size, sha256)
            if len(numbers) < -(-size // PART):
                raise HTTPException(409, f"{len(numbers)} of {-(-size // PART)} parts are there; send the others")
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                write_atomic(path, lambda file: _join(parts, numbers, file, sha256))
            except HTTPException:
                shutil.rmtree(parts, ignore_errors=True)
                raise
        self.store.write(lambda db: _list(db, run_id, name, size, sha256, step))
        shutil.rmtree(parts, ignore_errors=True)

    def path(self, db: sqlite3.Connection, run_id: str, name: str) -> Path | None:
        """Return where a file is, None where there is none of that name."""
        row = db.execute("SELECT sha256 FROM files WHERE run_id = ? AND name = ?", (run_id, name)).fetchone()
        path = self.folder / row[0] if row else None
        return path if path and path.is_file() else None

    def _parts(self, size: int, sha256: str) -> Path:
        return self.folder / f"{sha256}-{size}.parts"


def _join(parts: Path, numbers: list[int], file: IO[bytes], sha256: str) -> None:
    digest = hashlib.sha256()
    for number in numbers:
        data = (parts / str(number)).read_bytes()
        digest.update(data)
        file.write(data)
    if digest.hexdigest() != sha256:
        raise HTTPException(409, "the parts together are not the file of that size and SHA-256; send all of them again")


def _list(db: sqlite3.Connection, run_id: str, name: str, size: int, sha256: str, step: int | None) -> None:
    if not db.execute("SELECT 1 FROM runs WHERE run_id = ?", (run_id,)).fetchone():
        raise HTTPException(404, f"no run {run_id}; send its config first")
    db.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", (run_id, name, step, size, sha256))
    change(db, run_id, "run")
