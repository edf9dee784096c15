"""Tiny runs with challengers, and what they leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from helios.train import checkpoint
from helios.train.config import Config, resolve
from helios.train.plans import planned
from helios.train.progress import Display
from helios.train.records.layout import EVENTS, METRICS
from helios.train.records.rows import rows
from helios.train.run import Run

QUIET = Display(quiet=True)
CLOCKED = ("elapsed_ms", "ms_per_iter", "tokens_per_sec")


def config_of(**settings: Any) -> Config:
    """A tiny run of 24 steps, with windows of a challenger in two replicates at 6, 12 and 18, unless told otherwise."""
    given = {"steps": 24, "challenge_interval": 6, "challenge_steps": 4, "challenge_replicates": 2, "challengers": 1,
             "keep": 0, "eval_interval": 6, "backend": "cpu_ref", "dropout": 0.1} | settings
    return resolve("tiny", assignments=[f"{k}={v}" for k, v in given.items()])


def trained(config: Config, path: Path, until: int | None = None) -> Run:
    run = Run.open(config, path, plan=planned)
    run.train(QUIET, until)
    return run


def weights(path: Path, step: int = 0) -> bytes:
    found = checkpoint.path_of(path, step) if step else checkpoint.directories(path)[-1]
    return (found / checkpoint.MODEL).read_bytes() + (found / checkpoint.OPTIMIZER).read_bytes()


def log(path: Path) -> list[dict[str, Any]]:
    """The rows, without what the clock measures."""
    return [{k: v for k, v in row.items() if k not in CLOCKED and not k.startswith(("timing_", "symbio_", "gpu_",
                                                                                   "cusum_tps"))}
            for row in rows(path / METRICS)]


def events(path: Path, *kinds: str) -> list[dict[str, Any]]:
    return [e for e in rows(path / EVENTS) if e["kind"] in kinds]


# A challenger that is better by construction: the model hardly learns.
SLOW = {"lr": 1e-4, "lr_min": 1e-5, "warmup": 0, "challenge_genes": "lr=1e-4|1e-2", "challenge_replicates": 3}
