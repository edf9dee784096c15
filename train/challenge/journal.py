"""What a run's windows leave in its folder: the journal search/windows.jsonl, a line for each that is over, as
window.line makes it, and a folder each, with the checkpoint where it opened and a run directory for each training."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from helios.errors import UserError
from helios.files import write_atomic
from helios.train import checkpoint
from helios.train.records.layout import CHECKPOINTS, PLAN, TOKENIZER, way_on
from helios.train.records.rows import lines

FOLDER, WINDOWS = PLAN, "windows.jsonl"


def read(run: Path, count: int | None = None) -> list[dict[str, Any]]:
    """Return the first `count` lines of the run in that directory, or all; none where it has no journal. Raises
    UserError where one of them is damaged."""
    return [line for _, line in islice(lines(run / FOLDER / WINDOWS, strict=True), count)]


def append(run: Path, line: Mapping[str, Any]) -> None:
    """Write the line of a window that is over; it is on the disk when this returns. Raises UserError where it cannot be
    written."""
    try:
        with open(run / FOLDER / WINDOWS, "ab") as file:
            file.write(_bytes([line]))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _failed(run, error) from error


def cut(run: Path, over: int, opened: bool = False) -> None:
    """Keep the first `over` windows, and the folder of the next one if that is open: a run that goes on from an earlier
    checkpoint has not had the others yet. Raises UserError where the journal cannot be written."""
    kept, known = read(run, over), {f"w{number}" for number in range(1, over + 1 + opened)}
    try:
        (run / FOLDER).mkdir(exist_ok=True)
        write_atomic(run / FOLDER / WINDOWS, lambda file: file.write(_bytes(kept)))
    except OSError as error:
        raise _failed(run, error) from error
    for path in _folders(run):
        if path.name not in known:
            shutil.rmtree(path)


def leave(run: Path, over: int) -> None:
    """Keep the records of the first `over` windows, for a run that goes on without challengers, and no checkpoints of
    theirs. Raises UserError where the journal cannot be written."""
    cut(run, over)
    for path in _folders(run):
        remove_checkpoints(path)


def remove_checkpoints(folder: Path, keep: Collection[str] = ()) -> None:
    """Remove the checkpoints of a window that is over, and vocabularies, but for those right in folders of the names
    `keep`; the records of its trainings stay."""
    for place in (folder, *(path for path in folder.iterdir() if path.is_dir())):
        if place.name not in keep:
            remove_all(place)


def remove_all(folder: Path) -> None:
    """Remove the checkpoints and the vocabulary right in a folder, and the folder where nothing is left."""
    for path in checkpoint.directories(folder):
        checkpoint.remove(path)
    checkpoint.clean(folder)
    (folder / TOKENIZER).unlink(missing_ok=True)
    for empty in (folder / CHECKPOINTS, folder):
        with suppress(OSError):  # it is not there, or not empty
            empty.rmdir()


def _folders(run: Path) -> list[Path]:
    return [path for path in (run / FOLDER).glob("w*") if path.is_dir()]


def _bytes(lines: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines).encode()


def _failed(run: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to {run / FOLDER}: {error.strerror}; {way_on(run)}")
