"""Planted shifts are found once, noise and healthy curves are let pass, and nothing poisons a channel."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios.train.monitors.cusum import CLIP, FLUSH, GRAD, MEMORY, TPS, VAL, Cusum, Monitor, _normal

from .runs import WATCHED, monitor_of

NAMES = ("grad_norm", "clip_coef", "tokens_per_sec", "val_loss", "timing_flush_ms", "gpu_mem_pool_mb")
COLUMNS = ("cusum_grad", "cusum_clip", "cusum_tps", "cusum_val", "cusum_flush", "cusum_memory", "cusum_alerts",
           "cusum_alert_reason")
SEEDS = range(8)
AT = 300  # where a shift is planted


def cusum_of(direction: int = 1, floor: float = 0.1, sensitivity: float = WATCHED.cusum_sensitivity,
             slack: float = WATCHED.cusum_slack, window: int = WATCHED.cusum_window, grace: int = WATCHED.cusum_grace
             ) -> Cusum:
    return Cusum(direction, floor, sensitivity, slack, window, grace)


def draw(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, 7], np.uint64)))


def noise(seed: int, steps: int, norm: Any = 0.9) -> dict[str, np.ndarray]:
    """The four series of a run at rest, its norm around `norm`."""
    r = draw(seed)
    norms = norm * np.exp(r.normal(0, 0.25, steps))
    return {"grad_norm": norms, "clip_coef": np.minimum(1, 1 / norms),
            "tokens_per_sec": 5000 * (1 + r.normal(0, 0.05, steps)), "val_loss": 3 + r.normal(0, 0.03, steps)}


def watch(series: dict[str, Any], monitor: Monitor | None = None) -> list[tuple[int, int]]:
    """(step, mask) of every alert; channels that are not given are not measured."""
    monitor = monitor or monitor_of()
    rows = zip(*(np.asarray(x).tolist() for x in series.values()), strict=True)
    found = []
    for step, row in enumerate(rows):
        given = dict(zip(series, row, strict=True))
        if alerts := monitor.update(*(given.get(n) for n in NAMES))["cusum_alerts"]:
            found.append((step, alerts))
    return found


def then(before: float, after: float, steps: int = 600) -> np.ndarray:
    return np.where(np.arange(steps) < AT, before, after)


def found_once(alerts: list[tuple[int, int]], bit: int) -> bool:
    return len(alerts) == 1 and alerts[0][1] == bit and AT <= alerts[0][0] < AT + 50


# -- noise ------------------------------------------------------------------------------------------------------------
def test_silent_on_noise() -> None:
    assert sum(bool(watch(noise(seed, 10_000))) for seed in range(20)) <= 1


def test_noise_would_alarm_a_nervous_monitor() -> None:
    """The control: silence is no matter of course. The second is accepted as it is."""
    for nervous in (monitor_of(slack=0.0), monitor_of(sensitivity=4, window=5)):
        assert len(watch(noise(1, 10_000), nervous)) > 3


@pytest.mark.parametrize("sigma", [0.25, 0.5, 0.8])
def test_clipping_leans_to_one_side_and_is_noise_all_the_same(sigma: float) -> None:
    for seed, middle in enumerate((0.3, 0.5, 0.7, 0.9, 1.1)):
        norms = middle * np.exp(draw(seed).normal(0, sigma, 5000))
        assert watch({"clip_coef": np.minimum(1, 1 / norms)}) == []


def test_spikes_are_no_regime() -> None:
    r = draw(0)
    spikes = np.where(r.random(3000) < 0.05, np.exp(r.exponential(6, 3000)), 1)
    assert watch({"grad_norm": noise(0, 3000)["grad_norm"] * spikes}) == []


# -- planted shifts ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", SEEDS)
def test_planted_shifts_are_found_once(seed: int) -> None:
    rest = noise(seed, 600)
    assert found_once(watch({"grad_norm": rest["grad_norm"] * then(1, 2.5)}), GRAD)
    assert found_once(watch({"tokens_per_sec": rest["tokens_per_sec"] * then(1, 0.7)}), TPS)
    assert found_once(watch({"clip_coef": then(1, 0.6)}), CLIP)
    assert found_once(watch({"clip_coef": np.minimum(1, then(1, 0.6) * np.exp(draw(seed).normal(0, 0.1, 600)))}), CLIP)
    assert found_once(watch({"val_loss": rest["val_loss"] + then(0, 0.5)}), VAL)
    assert found_once(watch({"timing_flush_ms": 40 * rest["grad_norm"] * then(1, 3)}), FLUSH)
    assert found_once(watch({"gpu_mem_pool_mb": then(200, 300)}), MEMORY)
    rising = rest["val_loss"] + np.maximum(0, np.arange(600) - AT) * 0.01
    assert AT <= watch({"val_loss": rising})[0][0] < AT + 50


@pytest.mark.parametrize("seed", SEEDS)
def test_a_rise_after_a_steep_fall_is_found_at_few_evaluations(seed: int) -> None:
    fall = 3 + 5 * (1 + np.arange(20)) ** -0.7
    loss = np.concatenate([fall, fall[-1] + 0.1 * np.arange(1, 9)]) + draw(seed).normal(0, 0.005, 28)
    assert watch({"val_loss": loss[:20]}) == []
    assert [mask for _, mask in watch({"val_loss": loss})] == [VAL]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_second_shift_is_found_after_the_first(seed: int) -> None:
    levels = np.repeat([1, 2.5, 6.25], 300)
    alerts = watch({"grad_norm": noise(seed, 900)["grad_norm"] * levels})
    assert [mask for _, mask in alerts] == [GRAD, GRAD]
    assert 300 <= alerts[0][0] < 350 and 600 <= alerts[1][0] < 650


def test_monitoring_goes_on_to_the_last_step() -> None:
    rest = noise(0, 20_000)
    rest["tokens_per_sec"][-20:] *= 0.7
    ((step, mask),) = watch(rest)
    assert mask == TPS and step >= 19_980


# -- what is healthy --------------------------------------------------------------------------------------------------
T = np.arange(1500)
NORMS = {
    "falls by a factor": np.maximum(0.8, 3.5 * (0.8 / 3.5) ** (T / 500)),
    "falls in a line": np.maximum(0.8, 3.5 - 2.7 * T / 500),
    "falls at first": 0.8 + 2.7 * np.exp(-T / 80),
    "doubles in 400 steps": 0.9 * 2 ** np.clip((T - 100) / 400, 0, 1.5),
}


@pytest.mark.parametrize("curve", NORMS)
@pytest.mark.parametrize("sigma", [0.25, 0.05])
def test_a_healthy_norm(curve: str, sigma: float) -> None:
    for seed in range(3):
        norms = NORMS[curve] * np.exp(draw(seed).normal(0, sigma, len(T)))
        assert watch({"grad_norm": norms, "clip_coef": np.minimum(1, 1 / norms)}) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_a_shift_right_after_a_fall_is_found(seed: int) -> None:
    norms = NORMS["falls in a line"] * np.exp(draw(seed).normal(0, 0.25, len(T))) * np.where(T < 520, 1, 2.5)
    ((step, _),) = watch({"grad_norm": norms})
    assert 520 <= step < 570


@pytest.mark.parametrize("sigma", [0.0, 0.005, 0.02])
def test_a_falling_loss(sigma: float) -> None:
    for loss in (3 + 5 * np.exp(-np.arange(2000) / 300), 3 + 5 * (1.0 + np.arange(100)) ** -0.7):
        assert watch({"val_loss": loss + draw(2).normal(0, sigma, len(loss))}) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_a_speed_up_is_no_collapse(seed: int) -> None:
    speed = noise(seed, 600)["tokens_per_sec"] * then(1, 2.7)
    assert watch({"tokens_per_sec": speed}) == []
    speed[400:] /= 2.7  # but what follows is measured against the new speed
    ((step, mask),) = watch({"tokens_per_sec": speed})
    assert mask == TPS and 400 <= step < 420


def test_a_baseline_without_variance_has_a_floor() -> None:
    still = {"grad_norm": np.full(300, 1.0), "clip_coef": np.full(300, 1.0), "tokens_per_sec": np.full(300, 9e3),
             "val_loss": np.full(300, 3.0)}
    moved = {name: np.concatenate([x, np.full(2000, x[0] * factor)])
             for (name, x), factor in zip(still.items(), (1.1, 0.95, 0.98, 1.001), strict=True)}
    assert watch(moved) == []


# -- what is no number ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_an_event_and_changes_nothing(bad: float) -> None:
    clean, dirty = monitor_of(), monitor_of()
    for step, row in enumerate(zip(*(x.tolist() for x in noise(3, 200).values()), strict=True)):
        if step in (0, 30, 150, 151):
            columns = dirty.update(bad, bad, bad, bad)
            assert columns["cusum_alerts"] == GRAD | CLIP | TPS | VAL
            assert columns["cusum_alert_reason"] == ("grad_norm not finite; clip_coef not finite; "
                                                     "tokens_per_sec not finite; val_loss not finite")
        assert dirty.update(*row) == clean.update(*row)
    json.dumps(dirty.state(), allow_nan=False)


def test_one_channel_only() -> None:
    columns = monitor_of().update(1.0, 1.0, math.nan, None)
    assert columns["cusum_alerts"] == TPS and columns["cusum_alert_reason"] == "tokens_per_sec not finite"


def test_what_has_no_logarithm_is_a_low_value() -> None:
    rest = noise(0, 600)
    assert found_once(watch({"tokens_per_sec": rest["tokens_per_sec"] * then(1, 0)}), TPS)
    assert watch({"grad_norm": rest["grad_norm"] * then(1, 0)}) == []


# -- columns ----------------------------------------------------------------------------------------------------------
def test_columns_and_reasons() -> None:
    monitor, rest = monitor_of(), noise(0, 600)
    rows: list[dict[str, Any]] = []
    for step, norm in enumerate((rest["grad_norm"] * then(1, 2.5)).tolist()):
        rows.append(monitor.update(norm, 1.0, None, 3.0 if step % 100 == 99 else None))
    assert all(tuple(row) == COLUMNS for row in rows)
    window = WATCHED.cusum_window
    learning = WATCHED.cusum_grace + window
    assert [r["cusum_grad"] is None for r in rows[:learning + 1]] == [True] * learning + [False]
    assert all(r["cusum_tps"] is None for r in rows)
    assert [r["cusum_val"] for r in rows[:599]] == [None] * 599 and rows[599]["cusum_val"] == 0.0
    (alarm,) = [i for i, r in enumerate(rows) if r["cusum_alerts"]]
    assert rows[alarm]["cusum_alerts"] == GRAD and rows[alarm]["cusum_alert_reason"] == "grad_norm regime shift"
    assert rows[alarm]["cusum_grad"] > WATCHED.cusum_sensitivity > rows[alarm - 1]["cusum_grad"]
    assert [r["cusum_grad"] is None for r in rows[alarm + 1:alarm + window + 2]] == [True] * window + [False]
    assert all(r["cusum_alert_reason"] is None for i, r in enumerate(rows) if i != alarm)


@pytest.mark.parametrize(("series", "reason"), [
    ({"clip_coef": then(1, 0.6)}, "persistent clipping onset"), ({"tokens_per_sec": then(9, 6)}, "throughput collapse"),
    ({"val_loss": then(3, 4)}, "validation loss divergence"),
    ({"timing_flush_ms": then(20, 60)}, "longer waiting for the device"),
    ({"gpu_mem_pool_mb": then(1, 2)}, "memory growth"),
])
def test_reasons(series: dict[str, np.ndarray], reason: str) -> None:
    monitor = monitor_of()
    ((name, values),) = series.items()
    rows = [monitor.update(*(x if name == n else None for n in NAMES)) for x in values.tolist()]
    assert [r["cusum_alert_reason"] for r in rows if r["cusum_alerts"]] == [reason]


def test_reset_begins_anew() -> None:
    monitor, rest = monitor_of(), noise(0, 400)
    slow = rest | {"tokens_per_sec": rest["tokens_per_sec"] / 2.7, "grad_norm": rest["grad_norm"] * 3}
    watch(rest, monitor)
    monitor.reset()
    assert monitor.state() == monitor_of().state()
    assert watch(slow, monitor) == []


# -- one series -------------------------------------------------------------------------------------------------------
def test_sums_by_hand() -> None:
    cusum = cusum_of(1, 0.01, grace=2)
    baseline = [(-1.0) ** i for i in range(50)]
    for x in [99.0, 99.0, *baseline]:
        assert cusum.update(x) is None and cusum.value is None
    z = _normal(2 / math.sqrt(50 / 49) * math.sqrt(50 / 51), 49)
    cusum.update(2.0)
    assert cusum.value == pytest.approx(z - 0.5) and z == pytest.approx(1.9, abs=0.05)
    before = cusum.value
    cusum.update(cusum.mean)
    assert cusum.value == pytest.approx(before - 0.5)
    cusum.update(cusum.mean - 50)
    assert cusum.down == 2.0  # the cap less the slack
    assert cusum.up == 0.0


@pytest.mark.parametrize(("t", "freedom", "z"), [
    (2.7764, 4, 1.95996), (2.2281, 10, 1.95996), (2.0096, 49, 1.95996), (-3.169, 10, -2.5758),
])
def test_student_on_the_normal_scale(t: float, freedom: float, z: float) -> None:
    """Quantiles from a table of Student's distribution."""
    assert _normal(t, freedom) == pytest.approx(z, abs=0.02)


def test_the_direction_of_harm() -> None:
    for direction in (1, -1):
        for sign in (1, -1):
            cusum = cusum_of(direction, 0.1)
            alarms = [cusum.update(x) for x in (sign * then(0, 3) + draw(1).normal(0, 1, 600)).tolist()]
            assert ("shift" in alarms) == (direction == sign)


def test_no_value_is_no_observation() -> None:
    sparse, dense = cusum_of(1, 0.1), cusum_of(1, 0.1)
    for x in draw(1).normal(0, 1, 300).tolist():
        assert sparse.update(None) is None
        assert sparse.update(x) == dense.update(x)
        assert sparse.state() == dense.state()


@pytest.mark.parametrize("wrong", [{"window": 1}, {"sensitivity": 0.0}, {"floor": 0.0}])
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Cusum needs a window"):
        cusum_of(**wrong)


# -- state ------------------------------------------------------------------------------------------------------------
VALUE = st.one_of(st.none(), st.floats(), st.floats(0.1, 10))


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(VALUE, VALUE, VALUE, VALUE), max_size=60), at=st.integers(0, 60),
       window=st.integers(2, 8), grace=st.integers(0, 5), sensitivity=st.sampled_from([1.0, 4.0, 12.0]))
def test_restored_is_never_stopped(rows: list[tuple[float | None, ...]], at: int, window: int, grace: int,
                                   sensitivity: float) -> None:
    def run(monitor: Monitor, part: Iterable[tuple[float | None, ...]]) -> list[dict[str, Any]]:
        return [monitor.update(*row) for row in part]

    whole = monitor_of(sensitivity, 0.5, window, grace)
    first, second = monitor_of(sensitivity, 0.5, window, grace), monitor_of(sensitivity, 0.5, window, grace)
    expected = run(whole, rows)
    begun = run(first, rows[:at])
    second.restore(json.loads(json.dumps(first.state(), allow_nan=False)))
    saved = json.dumps(first.state())
    assert begun + run(second, rows[at:]) == expected
    assert second.state() == whole.state()
    assert json.dumps(first.state()) == saved  # the two share nothing
    json.dumps(expected, allow_nan=False)
