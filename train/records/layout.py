"""The files of a run directory: their names, and what config.json and the events say of the run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from helios.errors import UserError
from helios.train.records.rows import lines

CONFIG, TOKENIZER, LOCK = "config.json", "tokenizer.json", "lock"
METRICS, EVENTS, SAMPLES = LOGS = ("metrics.jsonl", "events.jsonl", "samples.jsonl")
CHECKPOINTS = "checkpoints"
PLAN = "search"  # folder of files that the plan of a run has beside these, as a search has
# Kind of rows → the file in it that is written anew, and not only added to.
REPLACED = {kind: f"{PLAN}/{kind}.jsonl" for kind in ("candidates", "windows")}
REPORT = "report.json"  # what boards have of the run
JOURNAL = "journal.jsonl"  # in an experiment's directory
RUNS = "runs"  # beside it: the folder of the experiment's run directories
# Kind of an event that begins or ends a run's life → how the run stands then.
LIFE = {"run_start": "active", "resumed": "active", "run_complete": "completed", "interrupted": "interrupted",
        "paused": "interrupted", "stopped": "completed", "diverged": "failed", "device_lost": "failed",
        "failed": "failed"}

Signature = tuple[int, int, int] | None  # inode, size, time of the last change in ns


def signature(folder: str, name: str) -> Signature:
    """Return what changes with the content of a file; None where there is none."""
    try:
        found = os.stat(f"{folder}/{name}")
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def read_config(path: Path) -> dict[str, Any]:
    """Return the content of config.json in the run directory `path`. Raises UserError where there is no valid one."""
    try:
        config = json.loads((path / CONFIG).read_bytes())
    except OSError as error:
        if (path / JOURNAL).exists():
            raise UserError(f"{path} is an experiment's: helios-evolve report {path} tells of it, and its runs are in "
                            f"{path / RUNS}") from error
        raise UserError(f"{path} is no run directory: {CONFIG}: {error.strerror}; give that of a run") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path / CONFIG} is damaged: {error}") from error
    kinds = {"model": dict, "train": dict, "data": dict, "run_id": str}
    if not isinstance(config, dict) or not all(isinstance(config.get(key), kind) for key, kind in kinds.items()):
        raise UserError(f"{path / CONFIG} is foreign: it lacks model, train, data or run_id")
    return config


def read_object(path: str | Path) -> dict[str, Any] | None:
    """Return the JSON object in a file; None where there is none."""
    with suppress(OSError, ValueError, RecursionError), open(path, "rb") as file:
        found = json.loads(file.read())
        return found if isinstance(found, dict) else None
    return None


def find_runs(folder: Path, depth: int = 3) -> Iterator[Path]:
    """Yield the run directories in a folder, by name: those with a config.json, at most `depth` levels below it, and
    none within another. Raises UserError where the folder cannot be read."""
    try:
        places = sorted(entry.path for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from error
    for place in map(Path, places):
        if os.path.exists(place / CONFIG):  # False, too, where nobody may look
            yield place
        elif depth > 1:
            with suppress(UserError):  # a folder of others', which is not readable
                yield from find_runs(place, depth - 1)


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the settings, and what else two contents of config.json say of model, device, machine and versions, where
    they differ: section.name and both values, None where one lacks it."""
    for section in dict.fromkeys((*one, *other)):
        a, b = (about.get(section) for about in (one, other))
        if isinstance(a, dict) or isinstance(b, dict):
            a, b = (x if isinstance(x, dict) else {} for x in (a, b))
            yield from ((f"{section}.{key}", a.get(key), b.get(key)) for key in dict.fromkeys((*a, *b))
                        if a.get(key) != b.get(key))
        elif a != b and section not in ("run_id", "created", "config_hash"):
            yield section, a, b


def finished(path: Path) -> bool:
    """Return whether the run in the directory `path` came to its end and has not been continued since."""
    kinds = [event.get("kind") for _, event in lines(path / EVENTS)]
    return next((LIFE[kind] == "completed" for kind in reversed(kinds) if kind in LIFE), False)


def had_checkpoint(path: Path) -> bool:
    """Return whether there has been a checkpoint of the run in the directory `path`, as its events tell."""
    return any(event.get("kind") in ("checkpoint", "run_complete", "stopped") for _, event in lines(path / EVENTS))


def way_on(path: Path) -> str:
    """Return in words how the run goes on that could not write to its directory `path`."""
    if any((path / CHECKPOINTS).glob("step-*")):
        return f"earlier checkpoints are whole, put that right and continue with --resume {path}"
    return "there is no checkpoint yet, put that right and start again"
