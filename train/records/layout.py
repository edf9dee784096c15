"""The files of a run directory: their names, and what config.json and the events say of the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from helios.errors import UserError
from helios.train.records.rows import lines

CONFIG, TOKENIZER, LOCK = "config.json", "tokenizer.json", "lock"
METRICS, EVENTS, SAMPLES = LOGS = ("metrics.jsonl", "events.jsonl", "samples.jsonl")
CHECKPOINTS = "checkpoints"
REPORT = "report.json"  # what boards have of the run


def read_config(path: Path) -> dict[str, Any]:
    """Return the content of config.json in the run directory `path`. Raises UserError where there is no valid one."""
    try:
        config = json.loads((path / CONFIG).read_bytes())
    except OSError as error:
        raise UserError(f"{path} is no run directory: {CONFIG}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path / CONFIG} is damaged: {error}") from error
    kinds = {"model": dict, "train": dict, "data": dict, "run_id": str}
    if not isinstance(config, dict) or not all(isinstance(config.get(key), kind) for key, kind in kinds.items()):
        raise UserError(f"{path / CONFIG} is foreign: it lacks model, train, data or run_id")
    return config


def finished(path: Path) -> bool:
    """Return whether the run in the directory `path` came to its end and has not been continued since."""
    told = {"run_start": False, "resumed": False, "run_complete": True}
    kinds = [event.get("kind") for _, event in lines(path / EVENTS)]
    return next((told[kind] for kind in reversed(kinds) if kind in told), False)


def way_on(path: Path) -> str:
    """Return in words how the run goes on that could not write to its directory `path`."""
    if any((path / CHECKPOINTS).glob("step-*")):
        return f"earlier checkpoints are whole, put that right and continue with --resume {path}"
    return "there is no checkpoint yet, put that right and start again"
