"""The journal of a run's windows: search/windows.jsonl, a line for each that is over, as window.line makes it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from helios.errors import UserError
from helios.files import write_atomic
from helios.train.records.layout import PLAN, way_on
from helios.train.records.rows import rows

FOLDER, WINDOWS = PLAN, "windows.jsonl"


def write(run: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write the journal of the run in that directory: all lines, for a run that goes on from an earlier checkpoint has
    fewer. Raises UserError where it cannot be written."""
    text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    try:
        (run / FOLDER).mkdir(exist_ok=True)
        write_atomic(run / FOLDER / WINDOWS, lambda file: file.write(text.encode()))
    except OSError as error:
        raise UserError(f"cannot write to {run / FOLDER}: {error.strerror}; {way_on(run)}") from error


def read(run: Path) -> list[dict[str, Any]]:
    """Return the lines of the run in that directory; none where it has no journal. Raises UserError where one is
    damaged."""
    return rows(run / FOLDER / WINDOWS, strict=True)
