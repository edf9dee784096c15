"""Elementwise work moves into what produces its input exactly where that changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from helios import ops, random
from helios.backends.vulkan import backend as module
from helios.backends.vulkan.array import VkArray
from helios.backends.vulkan.pipelines import Kernel
from helios.capture import Capture
from helios.model import GPT, GPTConfig
from helios.tensor import Tensor

from .vulkan import STEADY, Training, make

A, B, Y = np.random.default_rng(0).standard_normal((3, 40, 40)).astype(np.float32)


def record(fn: Callable[..., tuple[Tensor, ...]]) -> tuple[list[str], list[np.ndarray]]:
    """The names of the commands, and the outputs."""
    capture = Capture(fn, make())
    out = capture(A, B, Y)
    (program,) = capture.programs.values()
    return [c.name for c in program.commands], list(out)  # type: ignore[attr-defined]


@pytest.mark.parametrize("finish", [
    lambda v, y: v + y, lambda v, y: y + v, lambda v, y: v - y, lambda v, y: y - v, lambda v, y: v * y,
    lambda v, y: ops.gelu(v), lambda v, y: v * 3.0, lambda v, y: ops.softcap(v, 2.0)])
def test_fused(finish: Callable[[Tensor, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    fn = lambda a, b, y: (finish(a @ b, y),)
    names, (fused,) = record(fn)
    assert len(names) == 1 and names[0].startswith("matmul")
    with monkeypatch.context() as patched:
        patched.setattr(module, "fuse", lambda commands, pipelines: list(commands))
        names, (plain,) = record(fn)
    assert names[1:] == ["elementwise"]
    np.testing.assert_allclose(fused, plain, rtol=1e-5, atol=1e-5)


def test_not_fused_where_the_value_is_used_again() -> None:
    def fn(a: Tensor, b: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        value = a @ b
        return value + y, value * 2.0

    names, (total, double) = record(fn)
    assert names.count("elementwise") == 2
    np.testing.assert_allclose(total - Y, double / 2, atol=1e-5)


def test_not_fused_where_the_value_is_returned() -> None:
    def fn(a: Tensor, b: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        value = a @ b
        return value, value + y

    names, (value, total) = record(fn)
    assert "elementwise" in names
    np.testing.assert_allclose(value + Y, total, atol=1e-5)


def test_not_fused_where_the_other_array_comes_later() -> None:
    def fn(a: Tensor, b: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        value = a @ b
        later = b @ y
        return value + (later + later * later), later

    names, (out, later) = record(fn)
    assert names[-1] == "elementwise"
    np.testing.assert_allclose(out, A @ B + later + later * later, rtol=1e-4, atol=1e-4)


def test_an_array_that_changes_in_between_is_not_read_early() -> None:
    be = make()
    state = Tensor(be.array(np.zeros((40, 40), np.float32)), be)

    def fn(a: Tensor, b: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        value = a @ b
        be.assign(state.data, y.data)
        return (value + state,)

    out = Capture(fn, be)(A, B, Y)[0]
    np.testing.assert_allclose(out, A @ B + Y, atol=1e-5)


@pytest.mark.parametrize("norm", [lambda x, w: ops.layer_norm(x, w, w), ops.rms_norm], ids=["layer", "rms"])
def test_dropout_goes_into_the_norm_that_reads_it(norm: Callable[..., Tensor]) -> None:
    be = make()
    key = random.state(3, 4)
    w = Tensor(be.array(np.full(37, 1.5, np.float32)), be)

    def late(h: Tensor, x: Tensor, rng: Tensor) -> tuple[Tensor, ...]:
        x = ops.dropout(h, 0.3, rng, 9, residual=x)
        y = norm(x, w)
        return x * 2.0, y

    def early(h: Tensor, x: Tensor, rng: Tensor) -> tuple[Tensor, ...]:
        x = ops.dropout(h, 0.3, rng, 9, residual=x)
        double = x * 2.0  # needs the sum before the norm
        return double, norm(x, w)

    h, x = np.random.default_rng(1).standard_normal((2, 70, 37)).astype(np.float32)
    outs, names = [], []
    for f in (late, early):
        capture = Capture(f, be)
        outs.append(capture(h, x, key))
        (program,) = capture.programs.values()
        names.append([c.name for c in program.commands])  # type: ignore[attr-defined]
    assert "dropout" not in names[0] and "dropout" in names[1]
    kept = random.keep((70, 37), key, 9, 0.3)
    np.testing.assert_allclose(outs[0][0], 2 * (x + np.where(kept, h, 0) / np.float32(0.7)), atol=1e-6)
    for a, b in zip(*outs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("columns", [37, 40])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("rms", [False, True])
def test_dropout_of_a_gradient_goes_into_the_norm_that_made_it(columns: int, late: bool, rms: bool) -> None:
    be, draw = make(), np.random.default_rng(1)
    key, other, w = random.state(3, 4), random.state(5, 6), be.array(np.full(columns, 1.5, np.float32))
    state, other_state = be.array(key), be.array(other)

    def fn(x: VkArray, g: VkArray) -> list[VkArray]:
        _, *saved = be.rms_norm(x, w, 1e-5) if rms else be.layer_norm(x, w, w, 1e-5)
        dx, dw, *_ = (be.rms_norm_backward if rms else be.layer_norm_backward)(x, w, *saved, g)
        if late:  # what it draws by is not there yet
            be.assign(state, other_state)
        return [be.scale(dx, 1.0), be.dropout(dx, state, 0.3, 9), dw]

    x, g = draw.standard_normal((2, 70, columns)).astype(np.float32)
    program = be.record(fn, [(x.shape, x.dtype)] * 2)
    assert ("dropout" in [c.name for c in program.commands]) == late
    dx, dropped, dw = program.submit([x, g])()
    kept = random.keep((70, columns), other if late else key, 9, 0.3)
    np.testing.assert_array_equal(dropped != 0, kept & (dx != 0))
    np.testing.assert_allclose(dropped, np.where(kept, dx, 0) / np.float32(0.7), rtol=1e-6)
    centred = x if rms else x - x.mean(1, keepdims=True)
    hat = centred / np.sqrt((centred * centred).mean(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(dw, (g * hat).sum(0), rtol=1e-4, atol=1e-4)


def test_dropout_of_a_gradient_waits_for_what_it_writes_over() -> None:
    """The sums over columns read x wherever the rows' gradients are, so nothing may be written over it."""
    be, rng = make(), np.random.default_rng(0)
    x, g = rng.standard_normal((2, 300, 64)).astype(np.float32)
    key, home, w = random.state(3, 4), be.array(x), be.array(np.ones(64, np.float32))

    def fn(g: VkArray, rng: VkArray) -> list[VkArray]:
        _, mean, rstd = be.layer_norm(home, w, w, 1e-5)
        dx, dw, _ = be.layer_norm_backward(home, w, mean, rstd, g)
        be.assign(home, be.dropout(dx, rng, 0.3, 9), take=True)
        return [dw]

    program = be.record(fn, [(g.shape, g.dtype), (key.shape, key.dtype)])
    assert "dropout" in [c.name for c in program.commands]
    (dw,) = program.submit([g, key])()
    hat = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(dw, (g * hat).sum(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, STEADY], ids=["", "steady"])
def test_a_training_step_is_the_same_without(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    fused, losses = Training(make(), **settings), []
    for _ in range(3):
        losses.append(fused.step()[0])
    with monkeypatch.context() as patched:
        patched.setattr(module, "fuse", lambda commands, pipelines: list(commands))
        plain = Training(make(), **settings)
        np.testing.assert_allclose([plain.step()[0] for _ in range(3)], losses, rtol=1e-5)
    count = lambda training: [c.name for c in training.program.commands].count("dropout")
    assert count(fused) == bool(settings) < count(plain)
    assert fused.program.dispatches < plain.program.dispatches - 10


@pytest.mark.parametrize(("settings", "dispatches", "masks"), [
    ({"norm": "rms"}, 0, 0), ({"logit_softcap": 5.0}, 0, 0), ({"zero_init_outputs": True}, 0, 0),
    ({"attn_dropout": 0.0}, 0, 0), ({"resid_dropout": 0.0}, 0, -2), ({"mlp_dropout": 0.0}, 0, -2),
    ({"embd_dropout": 0.1}, 1, 2)], ids=str)  # its backward pass goes into the first norm's
def test_what_a_setting_costs(settings: dict[str, Any], dispatches: int, masks: int) -> None:
    """Dispatches of a step, and masks drawn outside of attention for each way of a block's branch."""
    counts = []
    for more in ({}, settings):
        training = Training(make(), "gelu", **more)
        training.step()
        commands = [c for c in training.program.commands if isinstance(c.kernel, Kernel)]
        drawn = [c for c in commands if c.kernel.defines.keys() & {"DROPOUT_BEFORE", "DROPOUT_AFTER"}
                 and max(c.kernel.defines.get(name, 0) for name in ("DROPOUT_BEFORE", "DROPOUT_AFTER"))]
        counts.append((training.program.dispatches, len(drawn) + [c.name for c in commands].count("dropout")))
    assert counts[1] == (counts[0][0] + dispatches, counts[0][1] + masks)


def test_the_soft_cap_of_logits_goes_into_their_product() -> None:
    model = GPT(GPTConfig(vocab_size=50, block_size=8, n_layer=1, n_head=1, n_embd=16, logit_softcap=2.0), make())
    capture = Capture(lambda tokens: (model.logits(tokens),), model.backend)
    capture(np.zeros((2, 8), np.int32))
    (program,) = capture.programs.values()
    assert "elementwise" not in program.kernels and program.kernels[-1].startswith("matmul")
