"""Monitors in a run: their columns are of the step they stand at, and alarms act on the steps after it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from helios.backends.backend import Backend
from helios.train import checkpoint, fitness
from helios.train.loop import Loop
from helios.train.monitors import weights
from helios.train.monitors.cusum import CLIP, GRAD
from helios.train.records.layout import EVENTS
from helios.train.schedule import learning_rate

from .runs import Make, final, rows


def batch(row: dict[str, Any]) -> int:
    return round(row["tokens_per_sec"] * row["ms_per_iter"] / 1000 / 16)


def test_the_weights_are_those_of_the_step(make: Make, each_backend: Backend) -> None:
    t = make(each_backend, metrics_interval=4, checkpoint_interval=4, free_energy_beta=0.5)
    assert t.run()
    log = rows(t)
    assert [r["step"] for r in log if "weight_entropy" in r] == [4, 8, 12]
    for path in checkpoint.directories(t.records.path):
        found = checkpoint.load(path)
        row, expected = log[found.state["step"] - 1], weights.weight_metrics(found.model)
        assert {name: row[name] for name in expected} == expected
        assert row["free_energy"] == pytest.approx(row["loss"] + 0.5 * row["weight_entropy"])
        assert row["fitness_score"] == pytest.approx(1 / row["free_energy"])
        assert row["complexity_score"] == pytest.approx(math.log10(t.state.model.num_parameters()))


def test_a_free_energy_of_zero_ends_no_run(make: Make, cpu_ref: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitness, "free_energy", lambda *_: 0.0)
    t = make(cpu_ref, metrics_interval=4)
    assert t.run()
    assert [r["fitness_score"] for r in rows(t) if "free_energy" in r] == [None] * 3  # where -inf is written as null


def test_layers_make_up_the_gradient(make: Make, each_backend: Backend) -> None:
    layers_make_up_the_gradient(make(each_backend, metrics_interval=3))


def test_layers_make_up_the_gradient_of_mixed_precision(make: Make, each_mixed: Backend) -> None:
    layers_make_up_the_gradient(make(each_mixed, metrics_interval=3, precision="mixed"))


def layers_make_up_the_gradient(t: Loop) -> None:
    assert t.run()
    seen = [r for r in rows(t) if "per_layer_grad_norms" in r]
    assert len(seen) == 4
    for r in seen:
        norms = r["per_layer_grad_norms"]
        assert list(norms) == ["embedding", "block0", "block1", "head"] and all(x > 0 for x in norms.values())
        assert math.hypot(*norms.values()) == pytest.approx(r["grad_norm"], rel=1e-4)


def test_all_memory_is_taken_before_the_first_step(make: Make, each_backend: Backend) -> None:
    t = make(each_backend, metrics_interval=4, track_mi_profiles="true")
    recorded = [len(capture.programs) for capture in (t.state.last, t.state.evaluation, t.state.probe)]
    assert recorded == [1, 1, 1]
    assert t.run() and recorded == [len(c.programs) for c in (t.state.last, t.state.evaluation, t.state.probe)]
    assert [r["step"] for r in rows(t) if "mi_input_repr" in r] == [4, 8, 12]


def test_looking_changes_nothing(make: Make, each_backend: Backend) -> None:
    looked = make(each_backend, "looked", metrics_interval=1, track_mi_profiles="true")
    blind = make(each_backend, "blind", metrics_interval=0, cusum="false", plateau_evals=0)
    assert looked.run() and blind.run()
    assert final(looked) == final(blind)
    assert all(r["mi_input_repr"] >= 0 and r["mi_repr_output"] >= 0 for r in rows(looked))
    assert not any(set(r) & {"weight_entropy", "cusum_alerts", "per_layer_grad_norms"} for r in rows(blind))


def test_alarms_change_the_batch(make: Make, each_backend: Backend, planted: dict[int, int]) -> None:
    planted |= {3: CLIP, 5: GRAD, 6: GRAD, 7: GRAD}
    t = make(each_backend, adaptive_batch="true", batch_min=2, batch_max=6, batch_step=2, steps=20,
             calm_steps_before_restore=4, checkpoint_interval=4)
    assert t.run()
    log = rows(t)
    expected = [4, 4, 4, 6, 6, 4, 2, 2, 2, 2, 2, 4, 4, 4, 4, 4, 4, 4, 4, 4]
    assert [batch(r) for r in log] == [r["adaptive_batch_size"] for r in log] == expected
    assert [(r["step"], bool(r.get("batch_change_reason"))) for r in log if r.get("batch_change_reason")] == [
        (n, True) for n in (3, 5, 6, 11)]
    assert len(t.state.last.programs) <= 2
    assert [e["step"] for e in rows(t, EVENTS) if e["kind"] == "batch"] == [3, 5, 6, 11]
    for path in checkpoint.directories(t.records.path)[1:]:  # as if it had died soon after step 4
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    whole = [r["loss"] for r in log]
    again = make(each_backend, adaptive_batch="true", batch_min=2, batch_max=6, batch_step=2, steps=20,
                 calm_steps_before_restore=4, checkpoint_interval=4)
    assert again.step == 4 and again.run()
    assert [r["loss"] for r in rows(again)] == whole


def test_a_batch_without_room_stays(make: Make, cpu_ref: Backend, planted: dict[int, int],
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    planted |= {2: CLIP}
    monkeypatch.setattr(Loop, "fits", lambda self, size: False)
    t = make(cpu_ref, adaptive_batch="true", batch_max=8)
    assert t.run()
    log = rows(t)
    assert {batch(r) for r in log} == {4}
    assert [r["batch_change_reason"] for r in log if r.get("batch_change_reason")] == ["no memory for a batch of 8"]


def test_another_batch_has_another_speed(make: Make, cpu_ref: Backend, planted: dict[int, int], slow: set[int]) -> None:
    """Its baseline is learned anew, from 3 values, and not from the steps that record their work."""
    planted |= {9: CLIP}
    slow |= {10}
    t = make(cpu_ref, adaptive_batch="true", batch_max=8, cusum_window=3, cusum_grace=0, steps=16)
    assert t.run()
    assert [r["step"] for r in rows(t) if r.get("cusum_tps") is not None] == [5, 6, 7, 8, 9, 14, 15, 16]


def test_alarms_halve_the_rate(make: Make, each_backend: Backend, planted: dict[int, int]) -> None:
    planted |= {3: GRAD, 4: GRAD}
    t = make(each_backend, dynamic_lr="cusum", calm_steps_before_restore=3)
    assert t.run()
    factors = [r["lr"] / learning_rate(i, steps=12, warmup=2, lr=1e-2, lr_min=1e-3) for i, r in enumerate(rows(t))]
    assert factors == pytest.approx([1, 1, 1, 1 / 2, 1 / 4, 1 / 4, 1 / 4, 1 / 2, 1 / 2, 1 / 2, 1, 1])
    assert [e["kind"] for e in rows(t, EVENTS)].count("lr") == 4


def test_a_plateau_is_an_event(make: Make, cpu_ref: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loop, "evaluate", lambda self: max(3.0, 5.0 - 0.5 * self.step))
    t = make(cpu_ref, eval_interval=1, plateau_evals=3)
    assert t.run()
    assert [e["step"] for e in rows(t, EVENTS) if e["kind"] == "plateau"] == [7]


def test_a_gradient_that_is_not_finite_is_an_alert_and_no_more(make: Make, each_backend: Backend,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    t = make(each_backend, steps=30, cusum_window=5, cusum_grace=2)
    real = t.state.submit

    def submit(*inputs: Any) -> Callable[[], tuple]:
        wait = real(*inputs)

        def spoilt() -> tuple:
            loss, stats = wait()
            if t.done == 14:
                stats = stats.copy()
                stats[0] = math.nan
            return loss, stats

        return spoilt

    monkeypatch.setattr(t.state, "submit", submit)
    assert t.run()
    log = rows(t)
    assert log[14]["grad_norm"] is None and log[14]["cusum_alerts"] & GRAD
    assert "not finite" in log[14]["cusum_alert_reason"]
    assert all(isinstance(r.get("cusum_grad"), float) for r in log[16:])
