"""Controls act on planted alarms and curves, give back what they took, and stop none that could have won."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios.train.monitors.controls import LR_LEAST, AdaptiveBatch, DynamicLR, HeatCapacity, Plateau, bound
from helios.train.monitors.cusum import CLIP, GRAD, TPS, VAL

from .runs import monitor_of


def draw(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, 5], np.uint64)))


# -- batch ------------------------------------------------------------------------------------------------------------
def test_alarms_change_the_batch_and_calm_restores_it() -> None:
    control = AdaptiveBatch(16, 4, 20, 4, calm=3)
    seen = [control.update(alerts) for alerts in (0, GRAD, TPS, 0, 0, 0, 0, 0, 0, 0, 0, 0)]
    assert [batch for batch, _ in seen] == [16, 12, 8, 8, 8, 12, 12, 12, 16, 16, 16, 16]
    assert [reason for _, reason in seen if reason] == [
        "grad alert: batch 16 to 12", "tps alert: batch 12 to 8", "3 calm steps: batch 8 to 12",
        "3 calm steps: batch 12 to 16"]


@pytest.mark.parametrize(("alerts", "batch"), [
    (GRAD, 12), (TPS, 12), (GRAD | TPS, 12), (CLIP, 20), (CLIP | GRAD, 16), (VAL, 16), (VAL | CLIP, 20), (0, 16)])
def test_what_an_alarm_does(alerts: int, batch: int) -> None:
    assert AdaptiveBatch(16, 1, 64, 4, calm=9).update(alerts)[0] == batch


def test_limits() -> None:
    control = AdaptiveBatch(10, 7, 12, 4, calm=2)
    assert [control.update(GRAD) for _ in range(2)] == [(7, "grad alert: batch 10 to 7"), (7, None)]
    assert [control.update(CLIP)[0] for _ in range(3)] == [11, 12, 12]
    assert [control.update(0)[0] for _ in range(4)] == [12, 10, 10, 10]  # not past where it was
    with pytest.raises(ValueError, match="3 is not between 4 and 8"):
        AdaptiveBatch(3, 4, 8, 1, calm=1)


def test_any_alarm_disturbs_the_calm() -> None:
    control = AdaptiveBatch(16, 1, 64, 4, calm=3)
    assert [control.update(a)[0] for a in (GRAD, 0, 0, VAL, 0, 0, 0)] == [12, 12, 12, 12, 12, 12, 16]


# -- learning rate ----------------------------------------------------------------------------------------------------
def test_alarms_halve_the_rate_and_calm_restores_it() -> None:
    control = DynamicLR("cusum", calm=2)
    seen = [control.update(alerts) for alerts in (0, GRAD, VAL, TPS, CLIP, 0, 0, 0, 0, 0, 0)]
    assert [factor for factor, _ in seen] == [1, 0.5, 0.25, 0.25, 0.25, 0.25, 0.5, 0.5, 1, 1, 1]
    assert [reason for _, reason in seen if reason] == [
        "grad alert: rate × 0.5", "val alert: rate × 0.25", "2 calm steps: rate × 0.5", "2 calm steps: rate × 1"]
    assert control.factor == 1


def test_a_busy_machine_does_not_hold_a_rate_down() -> None:
    control = DynamicLR("cusum", calm=3)
    assert [control.update(alerts)[0] for alerts in (GRAD, TPS, TPS, TPS)] == [0.5, 0.5, 0.5, 1.0]
    assert [control.update(alerts)[0] for alerts in (GRAD | TPS, TPS, CLIP, TPS, TPS, TPS)] == [
        0.5, 0.5, 0.5, 0.5, 0.5, 1.0]


def test_the_rate_has_a_floor() -> None:
    control = DynamicLR("cusum", calm=2)
    assert [control.update(GRAD)[0] for _ in range(6)] == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 16, 1 / 16]
    assert LR_LEAST == 1 / 16 and control.update(GRAD) == (1 / 16, None)


def test_the_less_varied_the_population_the_higher_the_rate() -> None:
    control = DynamicLR("entropy", calm=2)
    assert control.update(GRAD) == (1, None)  # not measured
    factors = [control.update(0, bits)[0] for bits in (0.0, 0.5, 1.0, 1.5, 2.0, 2.6)]
    assert factors == sorted(factors, reverse=True)
    assert (factors[0], factors[2], factors[-2:]) == (2, 1, [0.5, 0.5])
    assert control.update(GRAD, 0.0) == (2, "population entropy 0 bits: rate × 2")
    assert control.update(0, 0.0) == (2, None) and control.update(0) == (2, None)


def test_an_unknown_mode() -> None:
    with pytest.raises(ValueError, match="cusum or entropy, got 'none'"):
        DynamicLR("none", 5)


# -- both behind a monitor --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("series", "bit", "batch", "factor"), [
    (0, GRAD, 12, 0.5), (1, CLIP, 20, 1), (2, TPS, 12, 1), (3, VAL, 16, 0.5)])
def test_a_planted_regime_shift(series: int, bit: int, batch: int, factor: float) -> None:
    """The norm rises × 2.5, the coefficient falls to 0.6, the speed to 0.7, the loss rises by 0.5: each at step 300."""
    steps, at, calm = 900, 300, 200
    r = draw(1)
    rows = np.stack([np.exp(r.normal(0, 0.25, steps)) / 2.5, np.ones(steps), 5000 * (1 + r.normal(0, 0.05, steps)),
                     3 + r.normal(0, 0.01, steps)])
    shifted = [2.5, 0.6, 0.7, (3 + 0.5) / 3][series]
    rows[series, at:] *= shifted
    monitor, sizes, rates = monitor_of(), AdaptiveBatch(16, 4, 64, 4, calm), DynamicLR("cusum", calm)
    seen = []
    for row in rows.T.tolist():
        alerts = monitor.update(*row)["cusum_alerts"]
        seen.append((alerts, sizes.update(alerts)[0], rates.update(alerts)[0]))
    (alarm,) = [step for step, (alerts, _, _) in enumerate(seen) if alerts]
    assert at <= alarm < at + 50
    assert seen[alarm - 1] == (0, 16, 1)
    assert seen[alarm] == (bit, batch, factor) and seen[alarm + calm - 1] == (0, batch, factor)
    assert seen[alarm + calm:] == [(0, 16, 1)] * (steps - alarm - calm)


# -- heat capacity ----------------------------------------------------------------------------------------------------
def test_the_slope_of_loss_on_rate() -> None:
    r = draw(2)
    for slope in (-400.0, 0.0, 2500.0):
        heat = HeatCapacity()
        rates = 3e-4 * (1 + np.arange(80) / 80)
        found = [heat.update(4 + slope * lr + e, lr) for lr, e in zip(rates, r.normal(0, 1e-4, 80), strict=True)]
        assert found[:HeatCapacity.WINDOW - 1] == [None] * 49 and None not in found[49:]
        assert found[-1] == pytest.approx(slope, abs=1)


def test_no_slope_without_movement() -> None:
    heat = HeatCapacity()
    assert [heat.update(4 - i / 100, 3e-4) for i in range(60)] == [None] * 60
    assert [heat.update(4, 3e-4 * (1 + 1e-4 * i)) for i in range(60)] == [None] * 60
    assert [heat.update(4, 0.0) for _ in range(60)][-1] is None
    assert heat.update(4, 1e-4) == 0  # a halved rate is movement


def test_heat_leaves_out_what_is_not_finite() -> None:
    clean, dirty = HeatCapacity(), HeatCapacity()
    assert dirty.update(math.nan, 1.0) is None
    for i in range(60):
        before = clean.update(5 - i / 10, 1e-3 * i)
        assert dirty.update(5 - i / 10, 1e-3 * i) == before
        assert dirty.update(math.nan, 1e-3) == dirty.update(math.inf, 1e-3) == before
    json.dumps(dirty.state(), allow_nan=False)


# -- plateau ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("losses", "at"), [
    ([5, 4, 3, 2, 1], []),
    ([5, 4, 4, 4, 4, 4, 4], [4]),  # once
    ([5, 4, 4, 4, 4, 3, 3, 3, 3], [4, 8]),  # armed again
    ([5, 4, 4, 4, 3.95, 3.95], [4]),  # too small an improvement
    ([5, 4, 3.95, 3.89, 3.85, 3.78], []),  # small ones that add up
    ([4, 5, 6, 7, 8], [3]),
    ([4, math.nan, math.inf, -math.inf, 3, 3], [3]),
    ([math.nan] * 5, [2]),
])
def test_plateaus(losses: list[float], at: list[int]) -> None:
    plateau = Plateau(3, 0.1)
    assert [i for i, loss in enumerate(losses) if plateau.update(loss)] == at
    json.dumps(plateau.state(), allow_nan=False)


def test_without_a_least_improvement_the_same_loss_is_none() -> None:
    plateau = Plateau(2, 0.0)
    assert [plateau.update(x) for x in (3.0, 3.0, 3.0, 2.999, 2.998)] == [False, False, True, False, False]


# -- bound ------------------------------------------------------------------------------------------------------------
def test_the_bound_by_hand() -> None:
    assert bound([(10, 5.0), (20, 4.0), (30, 3.5)], 50) == 3.5 - 0.1 * 20
    assert bound([(10, 5.0), (20, 4.9), (30, 4.0)], 40) == pytest.approx(4.0 - 0.9)  # the steepest
    assert bound([(0, 9.0), (10, 5.0), (20, 4.0), (30, 3.5)], 50) == 3.5 - 0.4 * 20
    assert bound([(10, 3.0), (20, 4.0), (30, 5.0)], 50) == 5.0
    assert bound([(10, 5.0), (20, 4.0), (30, 3.5)], 30) == bound([(10, 5.0), (20, 4.0), (30, 3.5)], 20) == 3.5


@pytest.mark.parametrize("values", [[], [(10, 5.0)], [(10, 5.0), (20, 4.0)], [(10, 5.0), (20, math.nan), (30, 4.0)],
                                    [(10, 5.0), (20, 4.0), (30, math.inf)]])
def test_no_bound_yet(values: list[tuple[int, float]]) -> None:
    assert bound(values, 50) == -math.inf


STEPS, EVERY = 400, 25
POWER = st.tuples(st.floats(0.2, 1.5), st.floats(5, 100)).map(
    lambda p: lambda t: (1 + t / p[1]) ** -p[0])
DECAY = st.floats(20, 200).map(lambda tau: lambda t: np.exp(-t / tau))
CURVE = st.tuples(st.floats(1, 5), st.floats(0.5, 4), st.one_of(POWER, DECAY)).map(
    lambda c: lambda t: c[0] + c[1] * c[2](t))


def race(curves: list[Any], noise: float, seed: int) -> tuple[int, set[int]]:
    """Candidates one after the other, each stopped once its bound is above the best final loss so far: (the one whose
    whole curve ends lowest, those that were stopped). `noise`: share of what a curve still falls in an interval."""
    steps = np.arange(EVERY, STEPS + 1, EVERY)
    best, finals, stopped = math.inf, [], set()
    for i, curve in enumerate(curves):
        losses = curve(steps)
        falls = -np.diff(losses, prepend=curve(0))
        losses = losses + noise * falls * draw(seed + i).uniform(-1, 1, len(steps))
        finals.append(losses[-1])
        seen = list(zip(steps.tolist(), losses.tolist(), strict=True))
        if any(bound(seen[:n], STEPS) > best for n in range(1, len(seen))):
            stopped.add(i)
        else:
            best = min(best, losses[-1])
    return int(np.argmin(finals)), stopped


@settings(max_examples=200, deadline=None)
@given(st.lists(CURVE, min_size=2, max_size=6), st.sampled_from([0.0, 0.01]), st.integers(0, 99))
def test_the_best_is_never_stopped(curves: list[Any], noise: float, seed: int) -> None:
    best, stopped = race(curves, noise, seed)
    assert best not in stopped


@settings(max_examples=200, deadline=None)
@given(CURVE, st.integers(3, 16))
def test_it_is_below_what_convex_curves_reach(curve: Any, n: int) -> None:
    seen = [(s, float(curve(s))) for s in range(EVERY, n * EVERY + 1, EVERY)]
    assert bound(seen, STEPS) <= curve(STEPS) + 1e-12


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_the_hopeless_are_stopped(noise: float) -> None:
    fall = lambda floor: lambda t: floor + 3 * (1 + t / 20) ** -0.7
    assert race([fall(2), fall(4), fall(1.9), fall(2.5)], noise, 3) == (2, {1, 3})


# -- state ------------------------------------------------------------------------------------------------------------
ALERTS = st.sampled_from([0, 0, 0, GRAD, CLIP, TPS, VAL, GRAD | VAL, 15])
LOSS = st.floats(-100, 100) | st.sampled_from([math.nan, math.inf])
MAKERS: dict[str, tuple[Any, Any]] = {
    "batch": (lambda: AdaptiveBatch(8, 2, 16, 2, 3), st.tuples(ALERTS)),
    "cusum": (lambda: DynamicLR("cusum", 3), st.tuples(ALERTS)),
    "entropy": (lambda: DynamicLR("entropy", 3), st.tuples(ALERTS, st.none() | st.floats(0, 3))),
    "heat": (HeatCapacity, st.tuples(LOSS, st.floats(0, 1))),
    "plateau": (lambda: Plateau(3, 0.1), st.tuples(LOSS)),
}


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_restored_is_never_stopped(name: str, data: st.DataObject) -> None:
    make, inputs = MAKERS[name]
    rows = data.draw(st.lists(inputs, max_size=30)) * 4
    at = data.draw(st.integers(0, len(rows)))
    whole, first, second = make(), make(), make()
    expected = [whole.update(*row) for row in rows]
    begun = [first.update(*row) for row in rows[:at]]
    saved = json.dumps(first.state(), allow_nan=False)
    second.restore(json.loads(saved))
    assert begun + [second.update(*row) for row in rows[at:]] == expected
    assert second.state() == whole.state() and json.dumps(first.state()) == saved
