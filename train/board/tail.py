"""The end of a file to which lines are added: what is new in it, and whether what was read of it is still the same."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from helios.train.board.ingest import Row
from helios.train.board.schema import parse

CHUNK, LONGEST = 2**20, 2**26  # bytes read at a time, and of a line at most
MARK = 64  # bytes before a place by which it is recognised


class Place(NamedTuple):
    """Up to where a file is read: in which inode, how many bytes, how many rows, and the last bytes of these."""

    inode: int
    offset: int
    rows: int
    mark: bytes


def read(path: str, place: Place | None, warn: Callable[[str], object]) -> tuple[list[Row], Place] | None:
    """Return the next rows of a file, at most about CHUNK bytes of them, and the place after them; None: the file is
    not the one that was read, or was cut. place: where to begin; None: at the beginning.

    As `rows.lines` does, a damaged line is left out, with a warning, and so is a last line without an end. Raises
    OSError.
    """
    with open(path, "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        place = place or Place(status.st_ino, 0, 0, b"")
        file.seek(place.offset - len(place.mark))
        if (status.st_ino != place.inode or status.st_size < place.offset
                or file.read(len(place.mark)) != place.mark):
            return None
        size, raw = CHUNK, b""
        while len(raw) < size and (more := file.read(size - len(raw))):
            raw += more
            if len(raw) == size and b"\n" not in raw and size < LONGEST:
                size *= 2
    end = raw.rfind(b"\n") + 1
    if not end and len(raw) >= LONGEST:
        warn(f"{path}: a line after byte {place.offset:,} is longer than {LONGEST:,} bytes and is left out")
        end = len(raw)  # its rest is damaged, and left out as well
    lines = raw[:end].split(b"\n")[:-1]
    found = [row for line in lines if (row := _row(line))]
    damaged = len(lines) - len(found)
    if damaged:
        warn(f"{path}: {damaged} damaged line{'s' * (damaged > 1)} after byte {place.offset:,} left out")
    return found, Place(place.inode, place.offset + end, place.rows + len(found), (place.mark + raw[:end])[-MARK:])


def differs(path: str, lines: Iterator[str]) -> tuple[int, bool] | None:
    """Return the number of the first of `lines` that is no row of the file as it is there, and whether that is so since
    the file ends before it; None where all of them are, whatever follows, or there is no file. Raises OSError."""
    expected, n = next(lines, None), 0
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below)
    except FileNotFoundError:
        return None
    with file:
        for raw in file:
            if expected is None:
                return None
            if raw != f"{expected}\n".encode():
                row = _row(raw[:-1]) if raw.endswith(b"\n") else None
                if row is None:
                    continue
                if row[1] != parse(expected):
                    return n, False
            expected, n = next(lines, None), n + 1
    return None if expected is None else (n, True)


def _row(line: bytes) -> Row | None:
    """Return the row of a line, None where it is damaged."""
    try:
        text = line.decode()
        row = parse(text)
    except ValueError:
        return None
    return (text, row) if isinstance(row, dict) else None
