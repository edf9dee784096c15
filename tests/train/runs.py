"""What the tests of whole runs share; `make` and `dataset` are fixtures of conftest.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from helios.model import GPTConfig
from helios.train import checkpoint
from helios.train.config import Config, SearchConfig, resolve
from helios.train.loop import Loop
from helios.train.monitor_config import MonitorConfig
from helios.train.monitors.cusum import Monitor
from helios.train.records.layout import METRICS
from helios.train.search import evolution
from helios.train.search.births import Candidate
from helios.train.search.files import CANDIDATES, SUMMARY

Make = Callable[..., Loop]
SMALL = {"activation_pool": "gelu,relu,swiglu", "population_size": "3", "generations": "2", "replicates": "2",
         "steps_per_candidate": "6", "candidate_eval_interval": "3", "steps": "8", "checkpoint_interval": "0",
         "eval_interval": "4", "cusum_window": "5"}  # a search that takes seconds


def first_generation(cfg: SearchConfig, n_layer: int, seed: int, **model: object) -> list[Candidate]:
    return evolution.first_generation(cfg, GPTConfig(n_layer=n_layer, **model), seed)


def next_generation(cfg: SearchConfig, n_layer: int, population: Sequence[Candidate], generation: int, seed: int,
                    **model: object) -> list[Candidate]:
    return evolution.next_generation(cfg, GPTConfig(n_layer=n_layer, **model), population, generation, seed)


def configured(**settings: Any) -> Config:
    return resolve("tiny", assignments=[f"{k}={v}" for k, v in ({"keep": 0} | settings).items()])


WATCHED = MonitorConfig()


def monitor_of(sensitivity: float = WATCHED.cusum_sensitivity, slack: float = WATCHED.cusum_slack,
            window: int = WATCHED.cusum_window, grace: int = WATCHED.cusum_grace) -> Monitor:
    """A monitor as a run has it, but for what is given."""
    return Monitor(sensitivity, slack, window, grace)


def rows(t: Loop, name: str = METRICS) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (t.records.path / name).read_text().splitlines()]


def final(t: Loop) -> bytes:
    """Weights and moments of the last checkpoint."""
    (path,) = checkpoint.directories(t.records.path)[-1:]
    return (path / checkpoint.MODEL).read_bytes() + (path / checkpoint.OPTIMIZER).read_bytes()


def candidates(t: Loop) -> list[dict[str, Any]]:
    return rows(t, f"search/{CANDIDATES}")


def summary(t: Loop) -> dict[str, Any]:
    return json.loads((t.records.path / "search" / SUMMARY).read_text())
