import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from helios import random
from helios.backends.cpu_ref import CpuRef
from helios.capture import Capture
from helios.errors import UserError
from helios.model import GPT, GPTConfig
from helios.tensor import Tensor

SMALL = GPTConfig(vocab_size=97, block_size=24, n_layer=2, n_head=3, n_embd=48, ffn_dim=80)
FORMULA = "quick: a*silu(g)*u+b*g*sin(u); a=1, b=0.1"  # gated, and with coefficients
ACTIVATIONS = ["gelu", "silu", "relu", "swiglu", "universal", "kan_spline", "kan_bspline", "mish", FORMULA,
               "swiglu,kan_spline"]
SETTINGS: list[dict[str, Any]] = [*({"activation": name} for name in ACTIVATIONS), {"norm": "rms"}, {"qk_norm": True},
                                   {"logit_softcap": 1.5}, {"resid_dropout": 0.0, "embd_dropout": 0.1},
                                   {"attn_dropout": 0.0, "mlp_dropout": 0.4}]
of_settings = pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
RNG = random.state(5, 3)


def lively(model: GPT, seed: int = 0) -> GPT:
    """Weights far from the start's near-zero: scores of some size, every nonlinearity bent."""
    draw = np.random.default_rng(seed)
    state = model.state_dict()
    for name, w in state.items():
        noise = draw.standard_normal(w.shape)
        state[name] = (w + 0.3 * noise if w.ndim == 1 else noise / math.sqrt(w.shape[1])).astype(np.float32)
    model.load_state_dict(state)
    return model


def batch(cfg: GPTConfig, b: int = 3, t: int = 19) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(1).integers(0, cfg.vocab_size, (2, b, t))
    return ids[0], ids[1]


# -- parameters -------------------------------------------------------------------------------------------------------
MLP_NAMES: dict[str, dict[str, tuple[int, ...]]] = {
    **{name: {"mlp.fc1.weight": (80, 48), "mlp.fc2.weight": (48, 80)} for name in ("gelu", "silu", "relu", "mish")},
    "swiglu": {"mlp.fc1.weight": (160, 48), "mlp.fc2.weight": (48, 80)},
    "universal": {"mlp.fc1.weight": (80, 48), "mlp.fc2.weight": (48, 80), "mlp.act.a": (80,), "mlp.act.b": (80,)},
    "kan_spline": {"mlp.fc1.weight": (80, 48), "mlp.fc2.weight": (48, 80),
                   **{f"mlp.act.c{k}": (80,) for k in range(5)}},
    "kan_bspline": {"mlp.fc1.weight": (80, 48), "mlp.fc2.weight": (48, 80), "mlp.act.points": (16, 80)},
    FORMULA: {"mlp.fc1.weight": (160, 48), "mlp.fc2.weight": (48, 80), "mlp.act.a": (80,), "mlp.act.b": (80,)},
}


@pytest.mark.parametrize("settings", [*({"activation": name} for name in ACTIVATIONS), {"qk_norm": True}], ids=str)
def test_names_shapes_and_count(settings):
    cfg = dataclasses.replace(SMALL, **settings)
    expected: dict[str, tuple[int, ...]] = {
        "wte.weight": (97, 48), "wpe.weight": (24, 48), "ln_f.weight": (48,), "ln_f.bias": (48,),
        "lm_head.weight": (97, 48)}
    for i, act in enumerate(cfg.activations):
        block = {"ln1.weight": (48,), "ln1.bias": (48,), "attn.qkv.weight": (144, 48), "attn.out.weight": (48, 48),
                 "ln2.weight": (48,), "ln2.bias": (48,), **MLP_NAMES[act.text]}
        block |= {"attn.q_norm.weight": (16,), "attn.k_norm.weight": (16,)} if cfg.qk_norm else {}
        expected |= {f"blocks.{i}.{end}": shape for end, shape in block.items()}
    model = GPT(cfg, "cpu_ref")
    assert {name: p.shape for name, p in model.named_parameters()} == expected
    assert model.num_parameters() == cfg.parameters()


def test_an_rms_norm_has_no_bias():
    layer, rms = (dataclasses.replace(SMALL, norm=norm) for norm in ("layer", "rms"))
    names = [name for name in layer.shapes() if not name.endswith("bias")]
    assert list(GPT(rms, "cpu_ref").weights) == names and rms.parameters() == layer.parameters() - 5 * 48


def test_initial_values():
    cfg = GPTConfig(vocab_size=500, block_size=64, n_layer=4, n_head=2, n_embd=64,
                    activation="gelu,swiglu,universal,kan_spline", qk_norm=True)
    state = GPT(cfg, "cpu_ref", seed=1).state_dict()
    for name, w in state.items():
        if w.ndim == 1:
            constants = {"bias": 0.0, "weight": 1.0, "a": 1.0, "b": 0.0, "c0": 0.5, "c1": 0.0, "c2": 0.5, "c3": 0.0,
                         "c4": 0.0}
            assert (w == constants[name.split(".")[-1]]).all(), name
        else:
            residual = name.endswith(("attn.out.weight", "mlp.fc2.weight"))
            std = 0.02 / math.sqrt(2 * 4) if residual else 0.02
            assert w.dtype == np.float32
            assert abs(w.std() / std - 1) < 5 / math.sqrt(2 * w.size), name
            assert abs(w.mean()) < 5 * std / math.sqrt(w.size), name


def test_outputs_that_start_at_zero(each_backend):
    cfg = dataclasses.replace(SMALL, zero_init_outputs=True)
    model, plain = GPT(cfg, each_backend, seed=3), GPT(SMALL, "cpu_ref", seed=3).state_dict()
    for name, w in model.state_dict().items():
        zero = name.endswith(("attn.out.weight", "mlp.fc2.weight"))
        assert np.array_equal(w, np.zeros_like(w) if zero else plain[name]), name
    tokens, _ = batch(cfg)
    x = plain["wte.weight"][tokens] + plain["wpe.weight"][:tokens.shape[1]]  # blocks add nothing
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(model.logits(tokens).numpy(), x @ plain["lm_head.weight"].T, rtol=0, atol=1e-5)
    gradients = loss_and_gradients(model, None)
    for i in range(cfg.n_layer):  # but learn to
        assert not gradients[f"blocks.{i}.mlp.fc1.weight"].any() and gradients[f"blocks.{i}.mlp.fc2.weight"].any()
        assert not gradients[f"blocks.{i}.attn.qkv.weight"].any() and gradients[f"blocks.{i}.attn.out.weight"].any()


def test_initial_values_depend_on_seed_and_name_only(backend):
    cfg = dataclasses.replace(SMALL, activation="gelu,swiglu")
    state = GPT(cfg, "cpu_ref", seed=3).state_dict()
    for other in (GPT(cfg, backend, seed=3), GPT(cfg, CpuRef(np.float64), seed=3)):
        assert all(np.array_equal(w, state[name]) for name, w in other.state_dict().items())
    mutant = GPT(dataclasses.replace(cfg, activation="kan_spline,swiglu"), "cpu_ref", seed=3).state_dict()
    assert all(np.array_equal(w, state[name]) for name, w in mutant.items() if name in state)
    reseeded = GPT(cfg, "cpu_ref", seed=4).state_dict()
    matrices = [w for w in state.values() if w.ndim == 2]
    assert all(not np.array_equal(w, state[name]) for name, w in reseeded.items() if w.ndim == 2)
    assert len({w.reshape(-1)[0] for w in matrices}) == len(matrices)


def test_state_dict_round_trip(each_backend):
    model, other = lively(GPT(SMALL, each_backend)), GPT(SMALL, each_backend, seed=9)
    places = {name: p.data for name, p in other.named_parameters()}
    other.load_state_dict(model.state_dict())
    assert all(p.data is places[name] for name, p in other.named_parameters())
    assert all(np.array_equal(w, other.state_dict()[name]) for name, w in model.state_dict().items())
    tokens, targets = batch(SMALL)
    assert other.loss(tokens, targets).item() == model.loss(tokens, targets).item()


def test_state_dict_that_does_not_fit():
    model = GPT(SMALL, "cpu_ref")
    before, state = model.state_dict(), model.state_dict()
    state["ln_f.scale"] = state.pop("ln_f.bias")
    state["wpe.weight"] = state["wpe.weight"][1:]
    with pytest.raises(UserError) as error:
        model.load_state_dict(state)
    for words in ("ln_f.bias missing", "ln_f.scale unexpected", "wpe.weight (given (23, 48), expected (24, 48))"):
        assert words in str(error.value)
    assert all(np.array_equal(w, before[name]) for name, w in model.state_dict().items())
    with pytest.raises(UserError, match=r"wte\.weight given as int64"):
        model.load_state_dict({**before, "wte.weight": before["wte.weight"].astype(int)})


# -- the function -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_loss_at_the_start_is_ln_v(each_backend, activation):
    cfg = GPTConfig(vocab_size=1000, block_size=32, n_layer=2, n_head=4, n_embd=64, activation=activation)
    loss = GPT(cfg, each_backend).loss(*batch(cfg, 4, 32)).item()
    # logits of variance D·0.02² add half of it to ln V; the rest is the batch's chance, 2·√(variance/rows)
    variance = 64 * 0.02**2
    assert abs(loss - math.log(1000) - variance / 2) < 2 * math.sqrt(variance / 128)


def by_the_formula(cfg: GPTConfig, w: dict[str, np.ndarray], tokens: np.ndarray) -> np.ndarray:
    """The logits in plain numpy, head by head, written from the model's definition alone."""

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        if cfg.norm == "rms":
            return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"]
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(var + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    relu = lambda h: h * (h > 0)
    silu = lambda h: h / (1 + np.exp(-h))
    gelu = lambda h: 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    size, t = cfg.n_embd // cfg.n_head, tokens.shape[1]
    x = w["wte.weight"][tokens] + w["wpe.weight"][:t]
    for i, act in enumerate(cfg.activations):
        p = {name.removeprefix(f"blocks.{i}."): value for name, value in w.items() if name.startswith(f"blocks.{i}.")}
        qkv = norm(x, f"blocks.{i}.ln1") @ p["attn.qkv.weight"].T
        heads = []
        for head in range(cfg.n_head):
            q, k, v = (qkv[..., part * cfg.n_embd + head * size:][..., :size] for part in range(3))
            if cfg.qk_norm:
                q, k = (x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p[f"attn.{name}_norm.weight"]
                        for name, x in (("q", q), ("k", k)))
            scores = np.einsum("btc,bsc->bts", q, k) / math.sqrt(size)
            scores = cfg.softcap * np.tanh(scores / cfg.softcap)
            weights = np.exp(scores) * np.tril(np.ones((t, t)))
            heads.append(weights / weights.sum(-1, keepdims=True) @ v)
        x = x + np.concatenate(heads, -1) @ p["attn.out.weight"].T
        y = norm(x, f"blocks.{i}.ln2")
        h, c = y @ p["mlp.fc1.weight"].T, lambda name, p=p: p[f"mlp.act.{name}"]
        h = {
            "gelu": lambda h, c: gelu(h), "silu": lambda h, c: silu(h), "relu": lambda h, c: relu(h),
            "swiglu": lambda h, c: silu(h[..., : h.shape[-1] // 2]) * h[..., h.shape[-1] // 2 :],
            "universal": lambda h, c: silu(h) * c("a") + h * c("b"),
            "kan_spline": lambda h, c: (c("c0") * silu(h) + c("c1") * relu(h) + c("c2") * gelu(h) + c("c3") * h
                                        + c("c4") * h * h),
            "kan_bspline": lambda h, c: CpuRef(np.float64).spline(h, c("points")),  # by definition in test_ops.py
            "mish": lambda h, c: h * np.tanh(np.log1p(np.exp(h))),
            FORMULA: lambda h, c: (c("a") * silu(h[..., : h.shape[-1] // 2]) * h[..., h.shape[-1] // 2 :]
                                   + c("b") * h[..., : h.shape[-1] // 2] * np.sin(h[..., h.shape[-1] // 2 :])),
        }[act.text](h, c)
        x = x + h @ p["mlp.fc2.weight"].T
    logits = norm(x, "ln_f") @ w["lm_head.weight"].T
    return cfg.logit_softcap * np.tanh(logits / cfg.logit_softcap) if cfg.logit_softcap else logits


@of_settings
def test_logits_against_the_formula(settings):
    cfg = dataclasses.replace(SMALL, softcap=1.5, **settings)
    model = lively(GPT(cfg, CpuRef(np.float64)))
    tokens, targets = batch(cfg)
    logits = by_the_formula(cfg, {name: p.numpy() for name, p in model.named_parameters()}, tokens)
    np.testing.assert_allclose(model.logits(tokens).numpy(), logits, rtol=1e-9, atol=1e-9)
    picked = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    loss = (np.log(np.exp(logits).sum(-1)) - picked).mean()
    assert model.eval().loss(tokens, targets).item() == pytest.approx(loss, rel=1e-12)


def loss_and_gradients(model: GPT, rng: np.ndarray | None) -> dict[str, np.ndarray]:
    loss = model.train(rng is not None).loss(*batch(model.config), rng)
    loss.backward()
    return {"loss": loss.numpy(), **{name: gradient(p) for name, p in model.named_parameters()}}


def gradient(p: Tensor) -> np.ndarray:
    assert p.grad is not None
    return p.grad.numpy()


@pytest.mark.parametrize("rng", [None, RNG], ids=["", "dropout"])
@of_settings
def test_loss_and_gradients_against_float64(each_backend, settings, rng):
    cfg = dataclasses.replace(SMALL, **{"dropout": 0.2} | settings)
    exact = loss_and_gradients(lively(GPT(cfg, CpuRef(np.float64))), rng)
    given = loss_and_gradients(lively(GPT(cfg, each_backend)), rng)
    for name, g in exact.items():
        assert given[name].dtype == np.float32
        assert np.abs(given[name] - g).max() <= 1e-5 * np.abs(g).max(), name


@pytest.mark.parametrize("rng", [None, RNG], ids=["", "dropout"])
@of_settings
def test_gradients_against_finite_differences(settings, rng):
    cfg = GPTConfig(vocab_size=11, block_size=7, n_layer=2, n_head=2, n_embd=6, ffn_dim=5, dropout=0.2, softcap=2.0,
                    **settings)
    model = lively(GPT(cfg, CpuRef(np.float64)))
    tokens, targets = batch(cfg, 2, 6)
    model.train(rng is not None).loss(tokens, targets, rng).backward()
    draw, step = np.random.default_rng(2), 1e-5
    for name, p in model.named_parameters():
        direction, at, ends = draw.standard_normal(p.shape), p.numpy(), []
        for sign in (1, -1):
            p.data = at + sign * step * direction
            ends.append(model.loss(tokens, targets, rng).item())
        p.data = at
        slope = float((gradient(p) * direction).sum())
        assert abs((ends[0] - ends[1]) / (2 * step) - slope) < 1e-7 * (1 + abs(slope)), name


@pytest.mark.parametrize("changes", [{}, {"activation": "swiglu"}, {"qk_norm": True}], ids=str)
def test_causal(each_backend, changes):
    model = lively(GPT(dataclasses.replace(SMALL, **changes), each_backend))
    tokens, _ = batch(SMALL, 3, 24)
    before = model.logits(tokens).numpy()
    for t in (0, 1, 7, 16, 23):
        changed = tokens.copy()
        changed[:, t] = (changed[:, t] + 1) % SMALL.vocab_size
        after = model.logits(changed).numpy()
        assert np.array_equal(after[:, :t], before[:, :t]), t
        assert (np.abs(after[:, t:] - before[:, t:]).max(axis=(0, 2)) > 1e-3).all(), t  # and all later ones hear of it
        assert np.array_equal(model.logits(changed[:, :t + 1]).numpy().argmax(-1), after[:, :t + 1].argmax(-1)), t


@pytest.mark.parametrize("qk_norm", [False, True])
def test_heads_are_permuted_not_mixed(each_backend, qk_norm):
    model = lively(GPT(dataclasses.replace(SMALL, qk_norm=qk_norm), each_backend))
    tokens, _ = batch(SMALL)
    state = {name: w + w[::-1] if "_norm" in name else w for name, w in model.state_dict().items()}  # for `within`
    model.load_state_dict(state)
    before = model.logits(tokens).numpy()

    def with_channels(order: np.ndarray) -> np.ndarray:
        """Logits with the attention's channels in another order, the same in q, k, v and the output."""
        new = dict(state)
        for i in range(SMALL.n_layer):
            qkv, out = f"blocks.{i}.attn.qkv.weight", f"blocks.{i}.attn.out.weight"
            new[qkv] = state[qkv].reshape(3, 48, 48)[:, order].reshape(144, 48)
            new[out] = np.ascontiguousarray(state[out][:, order])
        model.load_state_dict(new)
        return model.logits(tokens).numpy()

    channels = np.arange(48).reshape(3, 16)
    permuted = with_channels(channels[[2, 0, 1]].reshape(-1))
    within = with_channels(channels[:, ::-1].reshape(-1))
    mixed = with_channels(np.roll(np.arange(48), 8))  # half of each head moves to the next
    assert np.abs(permuted - before).max() < 1e-5 * np.abs(before).max()
    assert np.abs(within - before).max() < 1e-5 * np.abs(before).max()
    assert np.abs(mixed - before).max() > 1e-2 * np.abs(before).max()


def test_logits_of_the_last_position_only(each_backend):
    model = lively(GPT(SMALL, each_backend))
    tokens, _ = batch(SMALL)
    last = np.array([18, 0, 7])
    few, all_ = model.logits(tokens, last).numpy(), model.logits(tokens).numpy()
    assert few.shape == (3, 97)
    assert np.abs(few - all_[np.arange(3), last]).max() < 1e-5 * np.abs(all_).max()
    for wrong in ([0, 0], [0, 0, 19], [-1, 0, 0]):
        with pytest.raises(ValueError, match="last must be"):
            model.logits(tokens, np.array(wrong))


# -- modes ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["dropout", "resid_dropout", "embd_dropout"])
def test_dropout_draws_and_modes(each_backend, name):
    cfg = dataclasses.replace(SMALL, **{name: 0.1})
    model, twin = GPT(cfg, each_backend, seed=2), GPT(cfg, each_backend, seed=2)
    tokens, targets = batch(cfg)
    losses = [model.loss(tokens, targets).item() for _ in range(4)]
    assert len(set(losses)) == 4  # a new mask each
    assert [twin.loss(tokens, targets).item() for _ in range(4)] == losses
    given = [model.loss(tokens, targets, rng).item() for rng in (RNG, RNG, random.state(5, 4), random.state(6, 3))]
    assert given[0] == given[1] and len(set(given)) == 3
    assert model.loss(tokens, targets, Tensor(each_backend.array(RNG), each_backend)).item() == given[0]
    plain = GPT(SMALL, each_backend, seed=2)
    still = {model.eval().loss(tokens, targets).item(), model.loss(tokens, targets, RNG).item()}
    assert still == {plain.loss(tokens, targets).item()}
    for mode in (True, False):
        assert np.array_equal(model.train(mode).logits(tokens).numpy(), plain.logits(tokens).numpy())


def test_masks_that_a_recorded_function_would_repeat(each_backend):
    model = GPT(dataclasses.replace(SMALL, dropout=0.1), each_backend, seed=2)
    inputs = [x.astype(np.int32) for x in batch(SMALL)]
    for rng in (None, RNG):
        with pytest.raises(RuntimeError, match="loss: a recorded function would repeat these dropout masks; take rng"):
            Capture(lambda x, y, rng=rng: (model.loss(x, y, rng),), each_backend)(*inputs)
    assert model.draws == 0
    capture = Capture(lambda x, y, rng: (model.loss(x, y, rng),), each_backend)
    assert capture(*inputs, RNG)[0] == model.loss(*inputs, RNG).item() != capture(*inputs, random.state(6, 3))[0]
    still = Capture(lambda x, y: (model.eval().loss(x, y),), each_backend)
    assert still(*inputs)[0] == model.loss(*inputs).item()


@pytest.mark.parametrize(("settings", "expected"), [
    ({"dropout": 0.1}, [(site, 0.1) for site in range(6)]),
    ({"dropout": 0.1, "embd_dropout": 0.2}, [(2**32 - 1, 0.2), *((site, 0.1) for site in range(6))]),
    ({"dropout": 0.1, "attn_dropout": 0.3, "resid_dropout": 0.0}, [(0, 0.3), (2, 0.1), (3, 0.3), (5, 0.1)]),
    ({"mlp_dropout": 0.3}, [(2, 0.3), (5, 0.3)]), ({"resid_dropout": 0.3}, [(1, 0.3), (4, 0.3)]),
    ({"embd_dropout": 0.3}, [(2**32 - 1, 0.3)]), ({}, []),
    ({"dropout": 0.1, "attn_dropout": 0, "resid_dropout": 0, "mlp_dropout": 0}, [])], ids=str)
def test_dropout_sites(settings, expected):
    """Each of a block's three dropouts has a mask of its own, 3i, 3i + 1 and 3i + 2, and the embeddings' the last one;
    where nothing is dropped there is no mask."""

    class Spy(CpuRef):
        def attention(self, qkv, rng, n_head, cap, p, site, qk=None):
            sites.extend([(site, p)] * (p > 0))
            return super().attention(qkv, None, n_head, cap, 0.0, site)

        def dropout(self, h, rng, p, site, residual=None):
            sites.append((site, p))
            return super().dropout(h, rng, p, site, residual)

    sites: list[tuple[int, float]] = []
    model = GPT(dataclasses.replace(SMALL, **settings), Spy())
    model.loss(*batch(SMALL))
    assert sites == expected and model.draws == bool(expected)


def test_no_grad(each_backend):
    model = GPT(SMALL, each_backend)
    with model.no_grad():
        loss = model.loss(*batch(SMALL))
    assert loss.node is None
    assert model.loss(*batch(SMALL)).node is not None


def test_wrong_tokens():
    model = GPT(SMALL, "cpu_ref")
    tokens, targets = batch(SMALL)
    for tokens_, targets_, words in [
        (np.zeros((1, 25), int), np.zeros((1, 25), int), r"tokens: .*block_size 24, got \(1, 25\)"),
        (tokens[0], targets, r"tokens: expected \[B, T\]"),
        (tokens, targets[:2], "must have one shape"),
        (tokens, np.where(targets == targets[0, 0], 97, targets), r"targets: id 97 is not in \[0, 97\)"),
        (tokens - 97, targets, r"tokens: id -\d+ is not in"),
    ]:
        with pytest.raises(ValueError, match=words):
            model.loss(tokens_, targets_)
    with pytest.raises(TypeError, match="tokens: expected integers, got float64"):
        model.loss(tokens / 1, targets)
    on_device = Tensor(model.backend.array(np.zeros((1, 25), np.int32)), model.backend)
    with pytest.raises(ValueError, match="block_size 24"):
        model.logits(on_device)
