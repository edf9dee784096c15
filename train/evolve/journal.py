"""The journal of an experiment: what was asked, born, measured and decided, in an order that no executor changes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from helios.errors import UserError
from helios.train.records.rows import rows

Entry = Mapping[str, Any]  # a line

JOURNAL = "journal.jsonl"
VERSION = 1


class Journal:
    """The lines of the file `path`, which is made where it is not there.

    entries: all there are. A last line that was cut short by a kill is removed, unless `read_only`. Raises UserError
    where another line is damaged, where the file cannot be read or written, or where it is no journal of this version.
    """

    def __init__(self, path: Path, read_only: bool = False) -> None:
        self.path = path
        self.entries: list[dict[str, Any]] = rows(path, strict=True)
        if self.entries and (self.entries[0].get("kind"), self.entries[0].get("version")) != ("experiment", VERSION):
            raise UserError(f"{path} is no journal of version {VERSION}: its first line is not that of an experiment")
        if read_only:
            return
        try:
            with open(path, "ab") as file:
                file.truncate(_whole(path))
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error

    def append(self, entries: Iterable[Entry]) -> None:
        """Write entries; when it returns, they outlast a power cut. Raises UserError where they cannot be written."""
        added = list(entries)
        text = "".join(json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n" for entry in added)
        try:
            with open(self.path, "ab") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}; make room, then go on with --resume "
                            f"{self.path.parent}") from error
        self.entries += map(dict, added)


def _whole(path: Path) -> int:
    """Return the length of the file's whole lines."""
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 65536)
            file.seek(start)
            at = file.read(end - start).rfind(b"\n")
            if at >= 0:
                return start + at + 1
            end = start
    return 0
