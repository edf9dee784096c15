"""Mixed precision in the model and the optimizer: gradients, the loss scale, and that f32 knows nothing of either."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from helios import random
from helios.backends.backend import SCALE_MAX, SCALE_MIN, SCALE_PATIENCE, SCALE_START, STATS, Backend
from helios.backends.cpu_ref import CpuRef
from helios.model import GPT, GPTConfig
from helios.optim import AdamW
from helios.tensor import Tensor

SMALL = GPTConfig(vocab_size=97, block_size=24, n_layer=2, n_head=3, n_embd=48, ffn_dim=80, dropout=0.2)


def batch() -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(1).integers(0, SMALL.vocab_size, (2, 3, 19))
    return ids[0], ids[1]


def loss_and_gradients(be: Backend, scale: float | None = None, **settings: Any) -> dict[str, np.ndarray]:
    model = GPT(dataclasses.replace(SMALL, **settings), be)
    draw = np.random.default_rng(0)
    model.load_state_dict({name: (w + draw.standard_normal(w.shape) * (0.3 if w.ndim == 1 else w.shape[1] ** -0.5)
                                  ).astype(np.float32) for name, w in model.state_dict().items()})
    loss = model.loss(*batch(), random.state(5, 3))
    loss.backward(None if scale is None else Tensor(be.array(np.float32(scale)), be))
    found = {"loss": loss.numpy()}
    for name, p in model.named_parameters():
        assert p.grad is not None
        found[name] = p.grad.numpy()
    return found


STEADY = {"norm": "rms", "logit_softcap": 2.0, "resid_dropout": 0.0, "embd_dropout": 0.1}
ACTIVATIONS = ("gelu", "silu", "relu", "swiglu", "universal", "kan_spline", "kan_bspline", "mish",
               "a*silu(g)*u+b*g*sin(u); a=1, b=0.1")


@pytest.mark.parametrize("settings", [*({"activation": name} for name in ACTIVATIONS), STEADY, {"qk_norm": True}],
                         ids=lambda s: "-".join(map(str, s.values())))
def test_gradients_of_a_model(each_mixed: Backend, settings: dict[str, Any]) -> None:
    """Against float64 with the same roundings. Where the last digit of a float32 decides one, a float16's last digit
    changes, and with it others further on (or with relu a sign): the norm of all differences stays below that of what
    rounding changes at all."""
    backends = CpuRef(np.float64, "mixed"), each_mixed, CpuRef(np.float64)
    exact, given, plain = (loss_and_gradients(be, SCALE_START, **settings) for be in backends)
    total = np.sqrt(sum((g**2).sum() for g in exact.values()))
    off = lambda other: np.sqrt(sum(((given[name] - g) ** 2).sum() for name, g in other.items())) / total
    assert abs(given["loss"] / exact["loss"] - 1) < 1e-3
    assert off(exact) < 0.7 * off(plain)
    assert off(exact) < 5e-3 and off(plain) < 5e-2


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_a_scale_of_the_loss_scales_the_gradients(each_backend: Backend, scale: float) -> None:
    plain, scaled = loss_and_gradients(each_backend), loss_and_gradients(each_backend, scale)
    assert plain["loss"] == scaled["loss"]
    for name in plain.keys() - {"loss"}:
        if scale == 1.0:
            assert np.array_equal(scaled[name], plain[name]), name
        else:
            np.testing.assert_allclose(scaled[name], scale * plain[name], rtol=1e-6, atol=0)


def test_a_scale_must_fit(each_backend: Backend) -> None:
    x = Tensor(each_backend.array(np.ones(3, np.float32)), each_backend, True)
    for scale in (x, Tensor(CpuRef().array(np.float32(1)), CpuRef())):
        with pytest.raises(ValueError, match="scale must be a scalar on"):
            x.sum().backward(scale)


# -- the loss scale ---------------------------------------------------------------------------------------------------
def optimizer(be: Backend, scaling: bool = True, **settings: float) -> AdamW:
    w = Tensor(be.array(np.linspace(-1, 1, 91, dtype=np.float32).reshape(7, 13)), be, True)
    return AdamW([("w", w)], lr=0.01, loss_scaling=scaling, **settings)  # type: ignore[arg-type]


def step(opt: AdamW, times: float = 1.0, loss: float = 1.0, seed: int = 0) -> dict[str, float]:
    """One update from a gradient as backward() would leave it: multiplied by the scale."""
    (w,), be = opt.parameters.values(), opt.backend
    opt.zero_grad()
    scale = 1.0 if opt.loss_scale is None else opt.loss_scale.item()
    with np.errstate(invalid="ignore"):
        w.accumulate(be.array(np.random.default_rng(seed).standard_normal(w.shape).astype(np.float32)
                              * np.float32(times * scale)))
    opt.step(loss=Tensor(be.array(np.float32(loss)), be))
    return opt.last()


def preset(opt: AdamW, **stats: float) -> None:
    state = opt.state_dict()
    for name, value in stats.items():
        state["stats"][STATS.index(name)] = value
    opt.load_state_dict(state)


def test_scaling_changes_no_bit_of_the_weights(each_backend: Backend) -> None:
    """The scale is a power of two: it moves exponents, and the optimizer moves them back."""
    plain, scaled = optimizer(each_backend, False), optimizer(each_backend)
    for n in range(4):
        a, b = step(plain, seed=n), step(scaled, seed=n)
        assert all(a[name] == b[name] for name in ("grad_norm", "clip_coef", "skipped", "updates", "loss"))
    ours, theirs = plain.state_dict(), scaled.state_dict()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours if name != "stats")
    assert np.array_equal(plain.parameters["w"].numpy(), scaled.parameters["w"].numpy())


def test_without_scaling_nothing_moves(each_backend: Backend) -> None:
    opt = optimizer(each_backend, False)
    assert opt.loss_scale is None
    preset(opt, good_updates=SCALE_PATIENCE - 1)
    last = [step(opt), step(opt, np.inf)][1]
    assert (last["loss_scale"], last["overflows"], last["good_updates"]) == (1, 0, SCALE_PATIENCE - 1)


def test_overflow_halves_the_scale_and_skips(each_backend: Backend) -> None:
    opt = optimizer(each_backend)
    for _ in range(3):
        last = step(opt)
    assert (last["loss_scale"], last["good_updates"], last["updates"]) == (SCALE_START, 3, 3)
    before = opt.parameters["w"].numpy()
    for n, times in enumerate((np.inf, np.nan), 1):
        last = step(opt, times)
        assert (last["skipped"], last["updates"], last["overflows"], last["good_updates"]) == (1, 3, n, 0)
        assert last["loss_scale"] == SCALE_START / 2**n
    assert np.array_equal(opt.parameters["w"].numpy(), before)
    last = step(opt)
    assert (last["skipped"], last["updates"], last["overflows"], last["good_updates"]) == (0, 4, 2, 1)
    preset(opt, loss_scale=SCALE_MIN)
    assert step(opt, np.inf)["loss_scale"] == SCALE_MIN


def test_other_skips_leave_the_scale(each_backend: Backend) -> None:
    opt = optimizer(each_backend, spike_threshold=50.0)
    for times, loss in ((100.0, 1.0), (1.0, np.nan), (np.nan, np.nan), (np.inf, np.inf)):
        step(opt)
        last = step(opt, times, loss)
        assert (last["skipped"], last["overflows"], last["loss_scale"]) == (1, 0, SCALE_START)
        assert last["good_updates"] == 0


def test_good_updates_double_the_scale(each_backend: Backend) -> None:
    opt = optimizer(each_backend)
    preset(opt, good_updates=SCALE_PATIENCE - 2)
    for scale, good in ((1, SCALE_PATIENCE - 1), (2, 0), (2, 1)):
        last = step(opt)
        assert (last["loss_scale"], last["good_updates"]) == (scale * SCALE_START, good)
    preset(opt, good_updates=SCALE_PATIENCE - 1, loss_scale=SCALE_MAX)
    assert step(opt)["loss_scale"] == SCALE_MAX


def test_the_scale_is_saved_and_fits_the_precision(each_backend: Backend) -> None:
    opt = optimizer(each_backend)
    step(opt), step(opt, np.inf)
    state, other = opt.state_dict(), optimizer(each_backend)
    other.load_state_dict(state)
    assert other.last() == opt.last() and other.loss_scale is not None and other.loss_scale.item() == SCALE_START / 2
    plain = optimizer(each_backend, False)
    plain.load_state_dict(state)  # a mixed run continued in f32
    assert plain.last()["loss_scale"] == 1
    other.load_state_dict(plain.state_dict())  # and the other way
    assert other.last()["loss_scale"] == SCALE_START
