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
    for way in WAYS["5ke3"]:
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


@pytest.mark.parametrize(("run", "after"), [("4kwo", 50_000), ("2ao8", 50_000 - 160)])
def test_the_others_have_the_rates_of_all_their_steps_and_pause(run: str, after: int) -> None:
    known, (plan,) = history.read(run), plans(run, [AGAIN], {"data": "text.txt", "val_data": "val.txt"}, 7)
    assert plan.until == 7 and plan.config.train.steps == after
    rate = training(plan.config).rate
    for step, lr in known.column("lr").items():
        assert rate(step - 1) == pytest.approx(lr, rel=2e-3)
    assert plan.config.model.parameters() == known.parameters
    for section in ("model", "train"):
        there, here = known.config[section], plan.config.to_dict()[section]
        differ = {key for key, value in there.items() if here[key] != value}
        assert differ <= {"eval_interval", "sample_interval", "checkpoint_interval", "steps", "ffn_dim"}, differ


def test_2ao8_is_160_steps_of_search_where_no_alert_changes_the_batch() -> None:
    c = config("2ao8", AGAIN)
    each = c.search.tokens_per_candidate / (c.train.batch_size * c.model.block_size)
    assert each == 20 and trainings(c.search, 6) * each == 160
    assert (c.monitor.batch_min, c.train.batch_size, c.monitor.batch_max) == (12, 12, 64)
