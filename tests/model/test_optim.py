import dataclasses
from typing import Any

import numpy as np
import pytest

from helios import random
from helios.backends.cpu_ref import CpuRef
from helios.capture import Capture
from helios.errors import UserError
from helios.model import GPT, GPTConfig
from helios.optim import ALIGN, AdamW
from helios.tensor import Tensor, tensor

SHAPES = {"wte.weight": (5, 9), "ln.weight": (9,), "a.weight": (7, 9), "wpe.weight": (3, 9), "b.weight": (13, 10),
          "ln.bias": (9,), "odd": (1, 1)}
NO_DECAY = ("wte.weight", "wpe.weight")
DECAYING = ("a.weight", "b.weight", "odd")
TINY = GPTConfig(vocab_size=61, block_size=16, n_layer=2, n_head=2, n_embd=20, activation="swiglu,universal",
                 dropout=0.1)


def parameters(backend) -> dict[str, Tensor]:
    draw = np.random.default_rng(0)
    return {name: Tensor(backend.array(draw.standard_normal(shape)), backend, True) for name, shape in SHAPES.items()}


def gradients(step: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(100 + step)
    return {name: (scale * draw.standard_normal(shape)).astype(np.float32) for name, shape in SHAPES.items()}


def give(opt: AdamW, grads: dict[str, np.ndarray]) -> None:
    opt.zero_grad()
    for name, p in opt.parameters.items():
        p.accumulate(opt.backend.array(grads[name]))


def contents(opt: AdamW) -> dict[str, np.ndarray]:
    return opt.state_dict() | {name: p.numpy() for name, p in opt.parameters.items()}


class Reference:
    """AdamW by the book, tensor by tensor, in float64."""

    def __init__(self, start, lr, betas, eps, weight_decay, grad_clip):
        self.w = {name: x.astype(np.float64) for name, x in start.items()}
        self.m, self.v = ({name: np.zeros_like(x) for name, x in self.w.items()} for _ in range(2))
        self.t, self.settings = 0, (lr, betas, eps, weight_decay, grad_clip)

    def step(self, grads):
        lr, (beta1, beta2), eps, decay, clip = self.settings
        self.t += 1
        self.norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads.values()))
        for name, w in self.w.items():
            g = grads[name] * min(1.0, clip / self.norm)
            m, v = self.m[name], self.v[name]
            m += (1 - beta1) * (g - m)
            v += (1 - beta2) * (g * g - v)
            if name in DECAYING:
                w -= lr * decay * w
            w -= lr * (m / (1 - beta1**self.t)) / (np.sqrt(v / (1 - beta2**self.t)) + eps)


@pytest.mark.parametrize("scale", [0.01, 1.0], ids=["unclipped", "clipped"])
def test_five_steps_against_float64(each_backend, scale):
    settings: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-3, "weight_decay": 0.5, "grad_clip": 1.0}
    given = parameters(each_backend)
    reference = Reference({name: p.numpy() for name, p in given.items()}, **settings)
    opt = AdamW(given.items(), **settings, no_decay=NO_DECAY)
    for step in range(5):
        give(opt, gradients(step, scale))
        opt.step()
        reference.step(gradients(step, scale))
        last = opt.last()
        assert last["grad_norm"] == pytest.approx(reference.norm, rel=1e-6)
        assert last["clip_coef"] == pytest.approx(min(1.0, 1.0 / reference.norm), rel=1e-6)
        assert (last["skipped"], last["updates"]) == (0, step + 1)
    state = opt.state_dict()
    for name, p in given.items():
        np.testing.assert_allclose(p.numpy(), reference.w[name], rtol=1e-6, atol=1e-7, err_msg=name)
        for kind, moments in (("exp_avg", reference.m), ("exp_avg_sq", reference.v)):
            largest = np.abs(moments[name]).max()
            np.testing.assert_allclose(state[f"{kind}.{name}"], moments[name], rtol=1e-6, atol=1e-6 * largest,
                                       err_msg=f"{kind}.{name}")


def test_matrices_decay_unless_named():
    opt = AdamW(parameters(CpuRef()).items())
    assert {name for name, start in opt.start.items() if start < opt.n_decay} == {*DECAYING, *NO_DECAY}
    model = GPT(TINY, "cpu_ref")
    opt = AdamW(model.named_parameters(), no_decay=model.config.no_decay)
    spared = {name for name, start in opt.start.items() if start >= opt.n_decay and len(opt.parameters[name].shape) > 1}
    assert spared == set(model.config.no_decay) == {"wte.weight", "wpe.weight"}


def test_layout(each_backend):
    given = parameters(each_backend)
    before = {name: p.numpy() for name, p in given.items()}
    opt = AdamW(given.items(), no_decay=NO_DECAY)
    assert all(np.array_equal(p.numpy(), before[name]) for name, p in given.items())
    assert all(start % ALIGN == 0 for start in opt.start.values())
    assert {name for name, start in opt.start.items() if start < opt.n_decay} == set(DECAYING)
    for step in range(2):
        give(opt, gradients(step))
        opt.step()
    outside = np.ones(opt.weights.shape, bool)
    for name, start in opt.start.items():
        assert outside[start:start + given[name].size].all()  # none overlaps another
        outside[start:start + given[name].size] = False
    for slab in (opt.weights, opt.grads, opt.exp_avg, opt.exp_avg_sq):
        assert not each_backend.numpy(slab)[outside].any()
    for name, p in given.items():
        place = slice(opt.start[name], opt.start[name] + p.size)
        assert np.array_equal(each_backend.numpy(opt.weights)[place], p.numpy().reshape(-1))
        assert np.array_equal(each_backend.numpy(opt.grads)[place], gradients(1)[name].reshape(-1))


@pytest.mark.parametrize("bad", ["spike", "nan", "inf", "loss"])
def test_a_bad_step_changes_nothing(each_backend, bad):
    opt = AdamW(parameters(each_backend).items(), lr=0.01, spike_threshold=50.0)
    give(opt, gradients(0))
    opt.step()
    before = contents(opt)
    grads, loss = gradients(1), None
    if bad == "spike":
        grads = gradients(1, 10.0)
    elif bad == "loss":
        loss = Tensor(each_backend.array(np.float32(np.nan)), each_backend)
    else:
        grads["b.weight"][12, 9] = float(bad)
    give(opt, grads)
    opt.step(loss=loss)
    after, last = contents(opt), opt.last()
    assert (last["skipped"], last["updates"]) == (1, 1)
    assert all(np.array_equal(after[name], x) for name, x in before.items() if name != "stats")
    if bad == "spike":
        assert last["grad_norm"] > 50
    give(opt, gradients(2))
    opt.step()
    assert (opt.last()["skipped"], opt.last()["updates"]) == (0, 2)
    assert all(not np.array_equal(p.numpy(), before[name]) for name, p in opt.parameters.items())
    assert all(np.isfinite(x).all() for x in contents(opt).values())


def test_a_skipped_step_leaves_no_trace_in_the_next(each_backend):
    plain, bumped = (AdamW(parameters(each_backend).items(), lr=0.01) for _ in range(2))
    for step in range(3):
        give(plain, gradients(step))
        plain.step()
        if step == 1:
            give(bumped, gradients(7, np.inf))
            bumped.step()
        give(bumped, gradients(step))
        bumped.step()
    assert all(np.array_equal(bumped_x, x) for bumped_x, x in zip(contents(bumped).values(), contents(plain).values(),
                                                                   strict=True))


def test_learning_rate_may_change_and_be_a_tensor(each_backend):
    changing, given = (AdamW(parameters(each_backend).items(), lr=0.5) for _ in range(2))
    for step, lr in enumerate((0.01, 0.02, 0.0)):
        before = {name: p.numpy() for name, p in changing.parameters.items()}
        give(changing, gradients(step))
        changing.lr = lr
        changing.step()
        give(given, gradients(step))
        given.step(lr=Tensor(each_backend.array(np.full(1, lr, np.float32)), each_backend))
        for name, p in changing.parameters.items():
            assert np.array_equal(p.numpy(), given.parameters[name].numpy())
            assert np.array_equal(p.numpy(), before[name]) == (lr == 0)


def test_accumulation_over_batches(each_backend):
    """Filling with zeros and adding two gradients equals one step on their sum."""
    once, twice = (AdamW(parameters(each_backend).items(), lr=0.01) for _ in range(2))
    a, b = gradients(0), gradients(1)
    give(once, {name: a[name] + b[name] for name in a})
    once.step()
    give(twice, gradients(9))  # to be forgotten
    twice.zero_grad(fill=True)
    for grads in (a, b):
        for name, p in twice.parameters.items():
            p.accumulate(each_backend.array(grads[name]))
    twice.step()
    assert all(np.array_equal(p.numpy(), once.parameters[name].numpy()) for name, p in twice.parameters.items())


def test_zeroing_is_one_fill(backend):
    if backend.name == "cpu_ref":
        pytest.skip("cpu_ref records nothing")
    opt = AdamW(parameters(backend).items())
    give(opt, gradients(0))
    opt.step()

    def zero() -> tuple[Tensor]:
        opt.zero_grad(fill=True)
        return (Tensor(opt.grads, backend),)

    capture = Capture(zero, backend)
    assert not capture()[0].any()
    (program,) = capture.programs.values()
    assert program.dispatches == 1


def test_every_parameter_needs_a_gradient_and_one_owner():
    backend = CpuRef()
    given = parameters(backend)
    opt = AdamW(given.items())
    for name, p in given.items():
        if name != "ln.bias":
            p.accumulate(backend.array(np.ones(p.shape)))
    with pytest.raises(RuntimeError, match=r"ln\.bias has no gradient"):
        opt.step()
    with pytest.raises(ValueError, match=r"wte\.weight already belongs"):
        AdamW(given.items())
    fresh = parameters(backend)
    for twice in ([*fresh.items(), ("wte.weight", fresh["odd"])], [*fresh.items(), ("again", fresh["odd"])], []):
        with pytest.raises(ValueError, match="one name of its own"):
            AdamW(twice)


@pytest.mark.parametrize("changes", [
    *({name: value} for name in ("lr", "eps", "weight_decay", "grad_clip", "spike_threshold")
      for value in (-1.0, np.nan, np.inf, 1e300, 1e-300)), {"eps": 0.0},
    *({"betas": pair} for pair in ((1.0, 0.9), (0.9, 2.0), (-0.1, 0.9), (np.nan, 0.9), (0.9, 1 - 1e-10)))],
    ids=lambda changes: " ".join(f"{k} {v}" for k, v in changes.items()))
def test_numbers_that_float32_cannot_use_are_refused(changes):
    p = tensor(np.ones(3), "cpu_ref", True)
    (name,) = changes
    with pytest.raises(ValueError, match=f"AdamW: {name}: expected a number"):
        AdamW([("w", p)], **changes)
    assert p.grad_home is None
    optimizer = AdamW([("w", p)], lr=0.0, betas=(0.0, 0.0), weight_decay=0.0, grad_clip=0.0)
    optimizer.lr = -1.0
    p.sum().backward()
    with pytest.raises(ValueError, match="lr: expected"):
        optimizer.step()


def test_parameters_are_on_one_backend():
    given = [("a", tensor([1.0], "cpu_ref", True)), ("b", tensor([1.0], CpuRef(), True))]
    with pytest.raises(ValueError, match="AdamW: a is on cpu_ref, b on another backend, cpu_ref"):
        AdamW(given)
    with pytest.raises(ValueError, match="integers must fit int32"):
        tensor([2**40], "cpu_ref")


def test_state_dict_round_trip(each_backend):
    """Weights and optimizer state, loaded elsewhere, go on with the same bits."""
    opt, other = (AdamW(parameters(each_backend).items(), lr=0.01) for _ in range(2))
    for step in range(2):
        give(opt, gradients(step))
        opt.step()
    places = [other.exp_avg, other.exp_avg_sq, other.stats.data]
    other.load_state_dict(opt.state_dict())
    assert all(a is b for a, b in zip(places, [other.exp_avg, other.exp_avg_sq, other.stats.data], strict=True))
    for name, p in other.parameters.items():
        each_backend.upload(p.data, opt.parameters[name].numpy())
    for step in range(2, 4):
        for o in (opt, other):
            give(o, gradients(step))
            o.step()
    assert all(np.array_equal(x, contents(other)[name]) for name, x in contents(opt).items())


def test_state_dict_that_does_not_fit():
    opt = AdamW(parameters(CpuRef()).items())
    state = opt.state_dict()
    state["exp_avg.odd"] = state["exp_avg.odd"][0]
    del state["stats"]
    with pytest.raises(UserError, match=r"stats missing; exp_avg.odd \(given \(1,\), expected \(1, 1\)\)"):
        opt.load_state_dict(state)


# -- with a model -----------------------------------------------------------------------------------------------------
def train(backend, captured: bool, steps: int = 3) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    model = GPT(TINY, backend, seed=1)
    opt = AdamW(model.named_parameters())

    def step(tokens: Tensor, targets: Tensor, rng: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
        opt.zero_grad()
        loss = model.loss(tokens, targets, rng)
        loss.backward()
        opt.step(lr, loss)
        return loss, opt.stats

    capture = Capture(step, backend)
    seen: list[np.ndarray] = []
    for n in range(steps):
        tokens, targets = np.random.default_rng(n).integers(0, TINY.vocab_size, (2, 3, 13)).astype(np.int32)
        inputs = tokens, targets, random.state(1, n), np.full(1, 0.01 * (n + 1), np.float32)
        if captured:
            seen += capture(*inputs)
        else:
            seen += [t.numpy() for t in step(*(Tensor(backend.array(x), backend) for x in inputs))]
    return contents(opt), seen


def test_captured_steps_equal_eager_ones(each_backend):
    eager, captured = train(each_backend, False), train(each_backend, True)
    assert all(np.array_equal(x, captured[0][name]) for name, x in eager[0].items())
    assert all(np.array_equal(x, y) for x, y in zip(eager[1], captured[1], strict=True))
    assert len({float(x) for x in eager[1][::2]}) == 3
    assert eager[1][-1][3] == 3  # updates


def test_training_learns_by_heart(each_backend):
    """A model small enough to look at memorises one batch."""
    model = GPT(dataclasses.replace(TINY, dropout=0.0), each_backend, seed=1)
    opt = AdamW(model.named_parameters(), lr=1e-2)
    tokens = np.arange(16)[None] * np.array([[1], [3]])
    losses = []
    for _ in range(30):
        opt.zero_grad()
        loss = model.loss(tokens, (tokens + 7) % 61)
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
