"""Which steps are in trouble: each once, without a clock, and without a threshold."""

from __future__ import annotations

from typing import Any

import pytest

from helios.train.monitors.cusum import CLIP, FLUSH, GRAD, MEMORY, TPS, VAL
from helios.train.monitors.trouble import Trouble
from helios.train.search.tally import Tally


def row(norm: float | None = 1.0, **more: Any) -> dict[str, Any]:
    return {"grad_norm": norm, "loss": 5.0, "val_loss": None, "clip_coef": 1.0, "tokens_per_sec": 1000.0,
            "ms_per_iter": 64.0} | more


@pytest.mark.parametrize(("alerts", "counts"), [
    (0, False), (None, False), (TPS, False), (FLUSH | MEMORY, False), (GRAD, True), (CLIP, True), (VAL, True),
    (TPS | VAL, True)])
def test_alerts_of_the_speed_do_not_count(alerts: int | None, counts: bool) -> None:
    found = Trouble.of(row(cusum_alerts=alerts), [])
    assert found.alert is counts and found.any is counts


@pytest.mark.parametrize(("more", "spike", "skipped"), [
    ({"skipped": True, "skip_reason": "spike"}, True, True),
    ({"skipped": True, "skip_reason": "loss not finite"}, False, True),
    ({"skipped": True, "skip_reason": "overflow"}, False, False),  # which is how a loss scale is found
    ({}, False, False)])
def test_updates_that_were_held_back(more: dict[str, Any], spike: bool, skipped: bool) -> None:
    assert Trouble.of(row(**more), []) == Trouble(spike, skipped, alert=False)


def test_a_spike_is_seen_without_a_threshold() -> None:
    norms: list[float] = []
    usual = [1.0, 1.2, 0.8, 1.1, 0.9] * 4
    assert not any(Trouble.of(row(x), norms).any for x in usual)
    assert Trouble.of(row(10.5), norms).spike and not Trouble.of(row(9.5), norms).spike
    assert not Trouble.of(row(float("nan"), skipped=True, skip_reason="gradient not finite"), norms).spike
    assert len(norms) == 22 and max(norms) == 10.5
    for _ in range(80):  # what has become usual is no spike any more
        last = Trouble.of(row(30.0), norms)
    assert not last.spike and len(norms) == 50
    assert not Trouble.of(row(99.0), [1.0] * 3).spike  # too few to say what is usual


def test_a_step_counts_once_whatever_was_wrong() -> None:
    tally = Tally()
    rows = [row()] * 12 + [row(50.0, skipped=True, skip_reason="spike", cusum_alerts=GRAD | TPS),
                           row(cusum_alerts=TPS), row(skipped=True, skip_reason="loss not finite"),
                           row(cusum_alerts=CLIP), row(60.0)]
    for r in rows:
        tally.step(r, 64, timed=True)
        tally.observe(r)
    assert (tally.spikes, tally.skipped, tally.alerts) == (2, 2, 2)
    assert tally.trouble == 4  # not 6: the spike was skipped, and an alert as well
    again = Tally(vars(tally))
    assert vars(again) == vars(tally)
