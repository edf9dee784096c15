"""The settings of the historic runs that are run again."""

from __future__ import annotations

from typing import Any

import pytest

from helios.bench.reproduce import AGAIN, WAYS, plans
from helios.train import history
from helios.train.config import Config
from helios.train.search.births import Candidate
from helios.train.search.evolution import next_generation, trainings
from helios.train.stage import training

POOL = ("gelu", "silu", "relu", "swiglu")


def config(run: str, way: str, **more: Any) -> Config:
    return plans(run, [way], {"data": "/somewhere/text.txt", "val_data": "/somewhere/val.txt"}, **more)[0].config


def test_5ke3_is_160_steps_of_search_and_340_after() -> None:
    for way in WAYS:
        c = config("5ke3", way)
        assert c.train.steps == 340 and c.search.steps_per_candidate == 20
        assert c.model.parameters() == history.read("5ke3").parameters
    faithful, fair = config("5ke3", "faithful").search, config("5ke3", "fair").search
    assert trainings(faithful, 6) * 20 == 160 and not (faithful.shared_init or faithful.shared_batches)
    # Every genome of the pool is measured in the first generation, and none again.
    parents = [Candidate(f"gen0_{a}_{i}", f"X-{i}", a, 0, 0, val_loss_mean=1.0, status="complete")
               for i, a in enumerate(POOL)]
    children = next_generation(fair, c.model, parents, 1, 0)
    assert {c.activation for c in children} <= set(POOL) and fair.reuse
    assert len(POOL) * fair.replicates * 20 == 160


def test_4kwo_has_the_rates_of_its_50_000_steps() -> None:
    run = history.read("4kwo")
    short, preset = config("4kwo", AGAIN, steps=500), config("4kwo", AGAIN, steps=500, more=["steps=50000"])
    assert (short.train.steps, preset.train.steps) == (500, run.planned)
    assert [training(short).rate(s) for s in range(500)] == [training(preset).rate(s) for s in range(500)]
    for step, lr in run.column("lr").items():
        assert step > 500 or training(short).rate(step - 1) == pytest.approx(lr, rel=2e-3)
    assert short.model.parameters() == run.parameters
