"""A file of rows that grows while it is read, and may be cut or replaced."""

from __future__ import annotations

import json
import os
from array import array
from bisect import bisect_right
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from helios.train.records.rows import parse

ROWS, SIZE = 500, 4 << 20  # most rows and bytes in a post, but for a single row
LONGEST = 7 << 20  # bytes of a row; a board takes posts of 8 MiB
CHUNK = 1 << 20  # bytes read at a time


class Cut(Exception):
    """The file was cut short while it was read."""


class Log:
    """The whole rows of a file to which rows are added, as `lines` of rows.py reads them; it may also be cut short, and
    replaced.

    pause: called after each few rows that are read. rows, size: that many rows are in that many bytes at the file's
    beginning, and need not be read; `whole` reads them still.
    """

    def __init__(self, path: Path, pause: Callable[[], object], rows: int = 0, size: int = 0) -> None:
        self.path, self.pause = path, pause
        self.damaged = self.long = 0  # lines that are no rows, rows that are too long
        self.fd = -1
        self.base, self.end = rows, size  # rows that were not read, bytes that need not be read again
        self.starts = array("Q")  # where the rows after `base` begin

    @property
    def count(self) -> int:
        """Return how many rows there are."""
        return self.base + len(self.starts)

    @property
    def there(self) -> bool:
        """Return whether there is a file."""
        return self.fd >= 0

    def look(self) -> bool:
        """Take in what has been added; return whether the file was cut or replaced, and is read from its beginning."""
        try:
            now = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            now = None
        other = self.fd >= 0 and (now is None or now.st_size < self.end or not os.path.samestat(now, os.fstat(self.fd)))
        if other:
            self.close()
        if self.fd < 0 and now:
            self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            if self.end and os.pread(self.fd, 1, self.end - 1) != b"\n":
                self.base = self.end = 0
        if now and now.st_size > self.end:
            self._read()
        return other

    def _read(self) -> None:
        size = CHUNK
        while raw := os.pread(self.fd, size, self.end):
            whole = raw.rfind(b"\n") + 1
            if not whole and len(raw) < size:
                return
            size = CHUNK if whole else 2 * size
            for n, line in enumerate(raw[:whole].split(b"\n")[:-1]):
                if _is_row(line):
                    self.starts.append(self.end)
                    self.long += len(line) > LONGEST
                else:
                    self.damaged += 1
                self.end += len(line) + 1
                if n % 20 == 19:
                    self.pause()

    def whole(self) -> None:
        """Read all rows, the first ones, too."""
        self.close()
        self.look()

    def lines(self, first: int, most: int = ROWS) -> list[bytes]:
        """Return the rows from `first` on, as many as a post holds, and at most `most`."""
        if first < self.base:
            self.whole()
        i = first - self.base
        stops = self.starts[i + 1:i + 1 + most].tolist()
        if len(stops) < most:
            stops.append(self.end)
        n = max(1, bisect_right(stops, self.starts[i] + SIZE))
        raw = os.pread(self.fd, stops[n - 1] - self.starts[i], self.starts[i])
        cuts = [stop - self.starts[i] for stop in (self.starts[i], *stops[:n])]
        if len(raw) < cuts[-1]:
            raise Cut(f"{self.path} was cut while it was read")
        # What follows a row's end is damaged.
        return [fitting(raw[a:b].partition(b"\n")[0]) for a, b in pairwise(cuts)]

    def known(self, rows: int) -> tuple[int, int]:
        """Return (a number of rows, their bytes), for __init__: of `rows` rows, where they were read."""
        i = rows - self.base
        if not 0 <= i <= len(self.starts):
            return 0, 0
        return rows, self.starts[i] if i < len(self.starts) else self.end

    def close(self) -> None:
        """Forget all that was read."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd, self.base, self.end, self.damaged, self.long = -1, 0, 0, 0, 0
        del self.starts[:]


def fitting(line: bytes) -> bytes:
    """Return the row, or what says that it is left out, for it is too long for any post."""
    if len(line) <= LONGEST:
        return line
    row = json.loads(line)
    kept = {key: row[key] for key in ("step", "time", "kind", "id") if len(str(row.get(key, " " * 99))) < 99}
    return json.dumps(kept | {"left_out": f"a row of {len(line):,} bytes"}).encode()


def _is_row(line: bytes) -> bool:
    try:
        return isinstance(parse(line), dict)
    except (ValueError, RecursionError):
        return False
