"""The numpy peer is the same model: with our weights its loss, gradients and updates are ours."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from helios.backends.cpu_ref import CpuRef
from helios.bench import numpy_gpt
from helios.bench.step import Training
from helios.cli import bench
from helios.errors import UserError
from helios.model.config import GPTConfig
from helios.train.config import Config, TrainConfig

from ..commands import invoke, refused

SMALL = GPTConfig(vocab_size=53, block_size=11, n_layer=2, n_head=3, n_embd=24, dropout=0.0)
SETTINGS = TrainConfig(batch_size=3, lr=2.0**-7, eps=1e-6, grad_clip=0.5)
TOLERANCE = 1e-6  # of float64, but for an epsilon in float32


@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_same_loss_gradients_and_updates(softcap: float) -> None:
    model = dataclasses.replace(SMALL, softcap=softcap)
    ours, theirs = Training(Config(model, SETTINGS), CpuRef(np.float64)), numpy_gpt.Training(model, SETTINGS)
    draw = np.random.default_rng(1)
    state = {name: (w + 0.1 * draw.standard_normal(w.shape)).astype(np.float32)
             for name, w in ours.state.model.state_dict().items()}
    ours.state.model.load_state_dict(state)
    theirs.w, theirs.m, theirs.v = ({name: scale * w.astype(np.float64) for name, w in state.items()}
                                    for scale in (1, 0, 0))
    for _ in range(3):
        tokens, targets = draw.integers(0, model.vocab_size, (2, 3, model.block_size - 1)).astype(np.int32)
        loss, grads = theirs.gradients(tokens, targets)
        assert theirs.step(tokens, targets) == loss == pytest.approx(ours.step(tokens, targets), rel=TOLERANCE)
        assert ours.state.opt.last()["clip_coef"] < 1
        for name, g in grads.items():
            mine = ours.backend.numpy(ours.state.model.weights[name].grad_home)
            np.testing.assert_allclose(g, mine, rtol=0, atol=TOLERANCE * max(np.abs(mine).max(), 1e-3))
    for name, w in ours.state.model.weights.items():
        np.testing.assert_allclose(theirs.w[name], w.numpy(), rtol=0, atol=TOLERANCE)


def test_masks_are_those_of_the_forward_pass() -> None:
    """With equal draws, the loss changes along a step as its gradients say."""
    model = dataclasses.replace(SMALL, dropout=0.3, n_layer=1)
    training, draw = numpy_gpt.Training(model, SETTINGS), np.random.default_rng(2)
    training.w = {name: w.astype(np.float64) + 0.1 * draw.standard_normal(w.shape) for name, w in training.w.items()}
    tokens, targets = draw.integers(0, model.vocab_size, (2, 3, model.block_size))
    along = {name: draw.standard_normal(w.shape) for name, w in training.w.items()}

    def at(step: float) -> tuple[float, dict[str, np.ndarray]]:
        training.draws = np.random.default_rng(3)
        training.w, kept = {name: w + step * along[name] for name, w in training.w.items()}, training.w
        try:
            return training.gradients(tokens, targets)
        finally:
            training.w = kept

    slope = (at(1e-5)[0] - at(-1e-5)[0]) / 2e-5
    assert slope == pytest.approx(sum(float(np.vdot(g, along[name])) for name, g in at(0)[1].items()), rel=1e-5)


@pytest.mark.parametrize("other", [{"activation": "silu"}, {"norm": "rms"}, {"qk_norm": True}, {"logit_softcap": 5.0}])
def test_models_that_it_does_not_have(other: dict[str, object]) -> None:
    with pytest.raises(UserError, match="--peer numpy has models with gelu"):
        numpy_gpt.check(dataclasses.replace(SMALL, **other))


def test_the_command() -> None:
    result = invoke(bench.main, "step", "--preset", "tiny", "--backend", "cpu_ref", "--peer", "numpy", "--quick")
    assert result.exit_code == 0 and "numpy" in result.stdout, result.output
    refused(invoke(bench.main, "step", "--preset", "tiny", "--activation", "silu", "--peer", "numpy"), "gelu")
