"""The peer is the same model: with our weights its loss, gradients and updates are ours."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest

from helios import random
from helios.backends.cpu_ref import CpuRef
from helios.bench.step import Training
from helios.model.activations import TABLE
from helios.model.config import GPTConfig
from helios.model.gpt import EMBEDDINGS, OUTPUTS
from helios.train.config import Config, TrainConfig

torch = pytest.importorskip("torch", reason="PyTorch is a peer, not a requirement")
SMALL = GPTConfig(vocab_size=53, block_size=11, n_layer=2, n_head=3, n_embd=24, dropout=0.0)
SETTINGS = TrainConfig(batch_size=3, lr=2.0**-7, eps=1e-6, grad_clip=0.5)
TOLERANCE = 1e-5  # of float64; PyTorch clips by clip/(norm + 1e-6)


def sides(model: GPTConfig):  # type: ignore[no-untyped-def]
    """Ours on cpu_ref and the peer with the same weights, in float64, and a batch."""
    from helios.bench import torch_gpt

    ours = Training(Config(model, SETTINGS), CpuRef(np.float64))
    theirs = torch_gpt.Training(model, SETTINGS)
    theirs.model.double()
    draw = np.random.default_rng(1)
    state = {name: (w + 0.1 * draw.standard_normal(w.shape)).astype(np.float32)
             for name, w in ours.state.model.state_dict().items()}
    ours.state.model.load_state_dict(state)
    theirs.model.load_state_dict({name: torch.from_numpy(w.copy()) for name, w in state.items()})
    return ours, theirs, draw.integers(0, model.vocab_size, (2, 3, model.block_size)).astype(np.int32)


@pytest.mark.parametrize("activation", [*TABLE, "train*silu(g)*u+keys*g*sin(u); train=1, keys=0.1"])
def test_same_loss_gradients_and_updates(activation: str) -> None:
    check(dataclasses.replace(SMALL, activation=activation, softcap=5.0))


def check(model: GPTConfig) -> None:
    ours, theirs, (tokens, targets) = sides(model)
    for _ in range(3):
        assert theirs.step(tokens, targets) == pytest.approx(ours.step(tokens, targets), rel=TOLERANCE)
        coefficient = ours.state.opt.last()["clip_coef"]  # theirs are clipped in place
        assert coefficient < 1
        for name, p in theirs.model.named_parameters():
            mine = coefficient * ours.backend.numpy(ours.state.model.weights[name].grad_home)
            np.testing.assert_allclose(p.grad.numpy(), mine, rtol=0, atol=TOLERANCE * max(np.abs(mine).max(), 1e-3))
    for name, w in ours.state.model.state_dict().items():
        np.testing.assert_allclose(theirs.model.state_dict()[name].numpy(), w, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("settings", [{"norm": "rms"}, {"qk_norm": True}, {"qk_norm": True, "softcap": 0.0},
                                      {"softcap": 0.0}, {"logit_softcap": 0.5}], ids=str)
def test_same_with_other_settings(settings: dict[str, Any]) -> None:
    check(dataclasses.replace(SMALL, **settings))


def test_outputs_that_start_at_zero() -> None:
    from helios.bench.torch_gpt import GPT

    for zero in (False, True):
        state = GPT(dataclasses.replace(SMALL, zero_init_outputs=zero)).state_dict()
        ends = (".bias", *OUTPUTS) if zero else (".bias",)
        assert {name for name, w in state.items() if not w.any()} == {name for name in state if name.endswith(ends)}


def test_groups_are_those_of_our_optimizer() -> None:
    ours, theirs, _ = sides(SMALL)
    decaying = sum(p.numel() for p in theirs.optimizer.param_groups[0]["params"])
    assert decaying == sum(w.size for name, w in ours.state.model.weights.items()
                           if ours.state.opt.start[name] < ours.state.opt.n_decay)
    assert [group["weight_decay"] for group in theirs.optimizer.param_groups] == [SETTINGS.weight_decay, 0.0]


def test_same_with_the_same_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    from helios.bench import torch_gpt

    ours, theirs, (tokens, targets) = sides(dataclasses.replace(
        SMALL, dropout=0.1, attn_dropout=0.2, mlp_dropout=0.0, embd_dropout=0.3))
    sites = itertools.cycle([EMBEDDINGS, *range(3 * SMALL.n_layer)])
    key = random.state(SETTINGS.seed, 1)

    def dropout(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        return x * torch.from_numpy(random.keep(tuple(x.shape), key, next(sites), p)) / (1 - p)

    monkeypatch.setattr(torch_gpt.F, "dropout", dropout)
    assert theirs.step(tokens, targets) == pytest.approx(ours.step(tokens, targets), rel=TOLERANCE)
    coefficient = ours.state.opt.last()["clip_coef"]
    for name, p in theirs.model.named_parameters():
        mine = coefficient * ours.backend.numpy(ours.state.model.weights[name].grad_home)
        np.testing.assert_allclose(p.grad.numpy(), mine, rtol=0, atol=TOLERANCE * max(np.abs(mine).max(), 1e-3))


def test_dropout_draws() -> None:
    _, theirs, (tokens, targets) = sides(dataclasses.replace(SMALL, dropout=0.5))
    x, y = (torch.from_numpy(a).long() for a in (tokens, targets))
    assert theirs.model(x, y).item() != theirs.model(x, y).item()
    theirs.model.eval()
    assert theirs.model(x, y).item() == theirs.model(x, y).item()
