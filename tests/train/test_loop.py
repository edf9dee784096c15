"""The loop: one row a step, evaluation that disturbs nothing, accumulation, guarded steps."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from helios.backends.backend import SCALE_MAX, SCALE_START, STATS, Backend
from helios.errors import Diverged, UserError
from helios.model import GPTConfig
from helios.train import checkpoint, data, device, samples
from helios.train.data import Dataset
from helios.train.loop import Loop
from helios.train.records import records
from helios.train.records.layout import EVENTS, SAMPLES
from helios.train.schedule import learning_rate
from helios.train.state import TrainState
from helios.train.tokenizer import END, USER

from .runs import Make, final, rows


def test_one_row_a_step_and_it_learns(make: Make, each_backend: Backend) -> None:
    t = make(each_backend, steps=40, sample_interval=20)
    assert t.run()
    log = rows(t)
    assert [r["step"] for r in log] == list(range(1, 41))
    assert [r["step"] for r in log if r["val_loss"] is not None] == [6, 12, 18, 24, 30, 36, 40]
    assert abs(log[0]["loss"] - math.log(300)) < 0.3 and log[-1]["loss"] < 3.5
    assert not any("skipped" in r for r in log)
    for r in log:
        assert r["lr"] == learning_rate(r["step"] - 1, steps=40, warmup=2, lr=1e-2, lr_min=1e-3)
        assert r["clip_coef"] == pytest.approx(min(1, 1 / r["grad_norm"]), rel=1e-5)
        assert r["tokens_per_sec"] == pytest.approx(1000 * 4 * 16 / r["ms_per_iter"])
        assert r["timing_fwd_ms"] > 0 and r["timing_bwd_ms"] > 0 and r["timing_optim_ms"] > 0
        assert (r["gpu_ops_count"] is None) == (each_backend.name == "cpu_ref")
    assert t.best == min(({"step": r["step"], "loss": r["val_loss"]} for r in log if r["val_loss"]),
                         key=lambda b: b["loss"])
    samples = rows(t, SAMPLES)
    assert [s["step"] for s in samples] == [20] * 5 + [40] * 5
    assert all(s["prompt"].startswith("<|user|> ") and s["prompt"].endswith(" <|assistant|>") for s in samples)
    assert [p.name for p in checkpoint.directories(t.records.path)] == [
        f"step-{n:06d}" for n in (6, 12, 18, 20, 24, 30, 36, 40)]  # one before the samples, too


def test_evaluating_and_sampling_disturb_nothing(make: Make, each_backend: Backend) -> None:
    always = make(each_backend, "a", eval_interval=1, eval_iters=3, sample_interval=4, checkpoint_interval=5)
    never = make(each_backend, "b", eval_interval=0, checkpoint_interval=0)
    assert always.run() and never.run()
    assert final(always) == final(never)
    assert [r["loss"] for r in rows(always)] == [r["loss"] for r in rows(never)]
    assert all(r["val_loss"] is not None for r in rows(always))
    assert all(r["val_loss"] is None for r in rows(never))


def test_two_evaluations_at_rest_are_equal(make: Make, each_backend: Backend) -> None:
    t = make(each_backend)
    assert t.evaluate() == t.evaluate()


def test_tables_do_not_decay(make: Make, cpu_ref: Backend) -> None:
    opt = make(cpu_ref).state.opt
    matrices = {name for name, p in opt.parameters.items() if len(p.shape) > 1}
    assert {n for n, start in opt.start.items() if start < opt.n_decay} == matrices - {"wte.weight", "wpe.weight"}


def test_accumulation_is_a_larger_batch(make: Make, each_backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    halves = make(each_backend, "a", batch_size=4, accum=2, dropout=0, eval_interval=0, steps=6)
    assert halves.run()

    def joined(tokens: Any, step: int, size: int, block: int, seed: int, stream: int) -> tuple[np.ndarray, np.ndarray]:
        parts = [real(tokens, 2 * step + i, size // 2, block, seed, stream) for i in (0, 1)]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    real = data.batch
    monkeypatch.setattr(data, "batch", joined)
    whole = make(each_backend, "b", batch_size=8, accum=1, dropout=0, eval_interval=0, steps=6)
    assert whole.run()
    for key, tolerance in (("loss", 1e-4), ("grad_norm", 1e-2)):
        np.testing.assert_allclose([r[key] for r in rows(halves)], [r[key] for r in rows(whole)], rtol=tolerance)
    assert rows(halves)[0]["loss"] == pytest.approx(rows(whole)[0]["loss"], rel=2e-6)


def test_accumulation_of_three_draws_three_batches(make: Make, cpu_ref: Backend,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, real = [], data.batch

    def batch(ids: np.ndarray, step: int, *rest: int) -> tuple[np.ndarray, np.ndarray]:
        drawn.append(step)
        return real(ids, step, *rest)

    monkeypatch.setattr(data, "batch", batch)
    t = make(cpu_ref, accum=3, steps=4, eval_interval=0)
    assert t.run()
    assert drawn == list(range(12))
    state = json.loads((checkpoint.directories(t.records.path)[-1] / "state.json").read_text())
    assert state["position"] == 12 and state["step"] == 4


def poison(t: Loop) -> None:
    state = t.state.model.state_dict()
    state["lm_head.weight"][0, 0] = np.nan
    t.state.model.load_state_dict(state)


def test_a_loss_that_is_not_finite(make: Make, each_backend: Backend) -> None:
    t = make(each_backend, steps=5, eval_interval=2)
    poison(t)
    before = t.state.opt.state_dict()
    with pytest.raises(Diverged, match="no checkpoint of them"):
        t.run()
    log = rows(t)
    assert [r["step"] for r in log] == [1, 2, 3, 4, 5]
    assert all(r["loss"] is None and r["skipped"] for r in log)
    kinds = [e["kind"] for e in rows(t, EVENTS)]
    assert kinds.count("non_finite") == 5 and kinds.count("skipped") == 5
    assert t.best is None
    after = t.state.opt.state_dict()
    for name in before:
        if name != "stats":
            np.testing.assert_array_equal(before[name], after[name])


def test_spikes_are_skipped_and_counted(make: Make, each_backend: Backend) -> None:
    t = make(each_backend, steps=4, spike_threshold=1e-3, eval_interval=0)
    before = t.state.model.state_dict()
    assert t.run()
    assert [(r["step"], r["skipped"], r["skip_reason"]) for r in rows(t)] == [(n, True, "spike") for n in (1, 2, 3, 4)]
    for name, value in t.state.model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_mixed_precision_learns_as_f32_does(make: Make, each_mixed: Backend, request: pytest.FixtureRequest) -> None:
    f32 = request.getfixturevalue("cpu_ref" if each_mixed.name == "cpu_ref" else "backend")
    losses = []
    for be in (f32, each_mixed):
        t = make(be, be.precision, precision=be.precision, steps=60, dropout=0.1, eval_interval=60, sample_interval=0)
        assert t.run()
        assert not any("skipped" in r for r in rows(t))
        assert {r.get("loss_scale") for r in rows(t)} == ({None} if be.precision == "f32" else {SCALE_START})
        losses.append([rows(t)[-1]["val_loss"], np.mean([r["loss"] for r in rows(t)[-10:]])])
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.01)


def test_overflows_are_skipped_and_counted(make: Make, each_mixed: Backend) -> None:
    """A scale at which the gradient of the logits is beyond float16 comes down until it is not."""
    t = make(each_mixed, precision="mixed", steps=30, eval_interval=0)
    state = t.state.opt.state_dict()
    state["stats"][STATS.index("loss_scale")] = SCALE_MAX
    t.state.opt.load_state_dict(state)
    assert t.run()
    log = rows(t)
    skipped = [r for r in log if r.get("skipped")]
    assert skipped and all(r["skip_reason"] == "overflow" and r["grad_norm"] is None for r in skipped)
    assert [r["step"] for r in skipped][:3] == [1, 2, 3] and len(skipped) < 10
    assert log[-1]["loss_scale"] == SCALE_MAX / 2 ** len(skipped) and log[-1]["loss"] < log[0]["loss"]
    events = [e for e in rows(t, EVENTS) if e["kind"] == "skipped"]
    assert len(events) == len(skipped) == t.state.opt.last()["overflows"]
    assert events[0]["reason"] == "overflow" and f"loss scale now {SCALE_MAX / 2:g}" in events[0]["message"]


def test_one_submit_a_step(make: Make, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loop, "sample", lambda self: None)
    counts = []
    for steps in (5, 15):
        t = make(backend, str(steps), steps=steps, eval_interval=0, checkpoint_interval=0)
        before = backend.submits
        t.run()
        counts.append(backend.submits - before)
    assert counts[1] - counts[0] == 10


def test_memory_is_asked_before_it_is_taken() -> None:
    small = GPTConfig(vocab_size=4000, block_size=256, n_layer=6, n_head=8, n_embd=256)
    needed = device.memory_needed(small, 8)
    assert needed > 16 * small.parameters()
    memory = {"available": needed}
    card: Any = SimpleNamespace(device_name="card", kind="cpu", precision="f32", memory=lambda: memory,
                                max_allocation=2**40)
    device.check_memory(small, 8, card)
    memory["available"] -= 1
    with pytest.raises(UserError, match=r"6,838,784 parameters at batch 8 needs about \d+ MiB, but card has"):
        device.check_memory(small, 8, card)


def test_the_largest_array_must_fit_too() -> None:
    config = GPTConfig(vocab_size=50_000, block_size=256, n_layer=1, n_head=1, n_embd=8)
    logits = 4 * 8 * 256 * 50_000
    card: Any = SimpleNamespace(device_name="card", kind="cpu", precision="f32", memory=lambda: {"available": 2**40},
                                max_allocation=logits)
    device.check_memory(config, 8, card)
    card.max_allocation -= 1
    with pytest.raises(UserError, match=r"the largest array takes 391 MiB, but card gives 391 MiB at once"):
        device.check_memory(config, 8, card)
    gated = GPTConfig(vocab_size=64, block_size=256, n_layer=2, n_head=1, n_embd=64, activation="gelu,swiglu")
    card.max_allocation = 4 * 8 * 256 * 2 * 192
    device.check_memory(gated, 8, card)
    card.max_allocation -= 1
    with pytest.raises(UserError, match="the largest array takes 3 MiB"):
        device.check_memory(gated, 8, card)


def test_what_an_evaluation_needs_is_taken_before_the_first_step(make: Make, backend: Backend,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a run would find out at its first evaluation that its memory does not suffice, and lose all steps before."""
    if backend.name == "cpu_ref":
        pytest.skip("cpu_ref records nothing")

    def too_large(self: TrainState, *inputs: Any) -> None:
        raise UserError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(TrainState, "_evaluation", too_large)
        before = backend.submits
        with pytest.raises(UserError, match="out of memory"):
            make(backend, eval_interval=6).run()
        assert make(backend, "never", eval_interval=0, steps=2).run()
    t = make(backend, eval_interval=6)
    recorded = len(t.state.last.programs), len(t.state.evaluation.programs)
    assert recorded == (1, 1) and t.run()
    assert (len(t.state.last.programs), len(t.state.evaluation.programs)) == recorded
    assert backend.submits > before


def test_a_checkpoint_comes_before_samples(make: Make, cpu_ref: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill while the model speaks loses no step, and resumed the model speaks again."""
    class Killed(BaseException):
        pass

    def killed(self: Loop) -> None:
        assert checkpoint.step_of(checkpoint.directories(self.records.path)[-1]) == self.step == len(rows(self))
        raise Killed

    settings = {"steps": 6, "sample_interval": 4, "eval_interval": 0, "checkpoint_interval": 0}
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "sample", killed)
        for step in (4, 6):
            t = make(cpu_ref, **settings)
            with pytest.raises(Killed):
                t.run()
            assert t.step == step
    t = make(cpu_ref, **settings)
    assert t.step == 6 and t.run() and t.run()
    assert [s["step"] for s in rows(t, SAMPLES)] == [6] * 5  # those of step 4 were not to be


def test_a_larger_batch_may_take_what_a_run_has(make: Make, cpu_ref: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    t = make(cpu_ref)
    needed, free = device.memory_needed(t.state.model.config, 8), 1000
    for pool, fits in ((needed - free, True), (needed - free - 1, False)):
        monkeypatch.setattr(cpu_ref, "memory", lambda pool=pool: {"available": free, "pool": pool})
        assert t.fits(8) is fits


@pytest.mark.parametrize(("interval", "saved"), [(2, 2), (0, 2)])
def test_sampling_that_fails_loses_no_step(make: Make, cpu_ref: Backend,
                                           monkeypatch: pytest.MonkeyPatch, interval: int, saved: int) -> None:
    def fail(self: Loop) -> None:
        raise MemoryError("of the device")

    monkeypatch.setattr(Loop, "sample", fail)
    t = make(cpu_ref, steps=4, eval_interval=2, sample_interval=2, checkpoint_interval=interval)
    with pytest.raises(MemoryError, match="of the device"):
        t.run()
    (path,) = checkpoint.directories(t.records.path)
    found = checkpoint.load(path)
    assert found.state["step"] == found.state["best_val"]["step"] == saved == len(rows(t))


def test_an_answer_ends_where_the_user_speaks(dataset: Dataset) -> None:
    said = dataset.tokenizer.encode(" I am nobody. <|user|>").tolist()
    asked: dict[str, Any] = {}

    def sampler(prompts: list[list[int]], *rest: Any, **more: Any) -> list[list[int]]:
        asked.update(more)
        return [said, said[:-1]]

    texts = samples.answer(sampler, dataset.tokenizer, ["a", "b"], 9, 1.0, None, 0)  # type: ignore[arg-type]
    assert texts == ["I am nobody."] * 2
    assert asked["stop"] == {dataset.tokenizer.id(END), dataset.tokenizer.id(USER)}


def test_prompts_are_wrapped() -> None:
    assert samples.chat_prompt(" Hi ") == "<|user|> Hi <|assistant|>"
    assert samples.chat_prompt("<|user|> Hi <|assistant|> Well") == "<|user|> Hi <|assistant|> Well"
    assert len(samples.PROMPTS) == 5


def test_columns_are_those_of_the_interface(make: Make, cpu_ref: Backend) -> None:
    t = make(cpu_ref, steps=1, checkpoint_interval=0)
    t.run()
    (row,) = rows(t)
    assert tuple(row)[:len(records.COLUMNS)] == records.COLUMNS
    assert set(row) - set(records.COLUMNS) <= set(records.MORE_COLUMNS)
