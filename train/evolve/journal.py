"""The journal of an experiment: what was asked, born, measured and decided, in an order that no executor changes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from helios.errors import UserError
from helios.train.records.rows import lines

Entry = Mapping[str, Any]  # a line

T = TypeVar("T")
VERSION = 1


class Journal:
    """The file `path` of an experiment's lines."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, mend: bool = False) -> Iterator[dict[str, Any]]:
        """Yield the lines; none where there is no file, and none that a kill cut short, or of a generation of which it
        cut lines off. mend: remove these from the file in the end, and make it where there is none. Raises UserError
        where another is damaged, where it is no journal of this version, or where it cannot be written."""
        length = 0
        for raw, line in whole(lines(self.path, strict=True), lambda pair: pair[1]):
            if not length and (line.get("kind"), line.get("version")) != ("experiment", VERSION):
                raise UserError(f"{self.path} is no journal of version {VERSION}: its first line is not that of an "
                                "experiment")
            length += len(raw)
            yield line
        if not mend:
            return
        try:
            with open(self.path, "ab") as file:
                file.truncate(length)
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from error

    def append(self, entries: Iterable[Entry]) -> None:
        """Write entries; when it returns, they outlast a power cut. Raises UserError where they cannot be written."""
        text = "".join(json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n" for entry in entries)
        try:
            with open(self.path, "ab") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}; make room, then go on with --resume "
                            f"{self.path.parent}") from error


def whole(given: Iterable[T], line: Callable[[T], Entry]) -> Iterator[T]:
    """Yield what is given, but for a last generation of which lines are missing. line: the line of each."""
    held: list[T] = []
    missing = 0
    for one in given:
        held.append(one)
        missing = line(one)["lines"] if line(one).get("kind") == "generation" else missing - 1
        if missing <= 0:
            yield from held
            held = []
