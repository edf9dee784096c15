"""Weights of a model made from those of another: what stays the same, what is said where something does not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helios.backends.backend import Backend
from helios.backends.cpu_ref import CpuRef
from helios.errors import UserError
from helios.model import GPT, GPTConfig
from helios.model.activations import split
from helios.model.gpt import initial_state
from helios.optim import AdamW
from helios.train import morph
from helios.train.morph import Morph, grouped, told

BASE = GPTConfig(vocab_size=23, block_size=8, n_layer=2, n_head=2, n_embd=16, ffn_dim=24)


def weights(cfg: GPTConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of a trained net's size: scores and logits about 1, norms and streams with a mean."""
    draw = np.random.default_rng(seed)
    return {name: (w + (0.2 * draw.standard_normal(w.shape) if w.ndim == 1 else
                        (draw.standard_normal(w.shape) + 0.3) / math.sqrt(w.shape[1]))).astype(np.float32)
            for name, w in initial_state(cfg, seed).items()}


def logits(cfg: GPTConfig, state: dict[str, np.ndarray], backend: Backend, tokens: np.ndarray) -> np.ndarray:
    model = GPT(cfg, backend)
    model.load_state_dict(state)
    return model.logits(tokens).numpy()


def apart(was: GPTConfig, state: dict[str, np.ndarray], now: GPTConfig, found: Morph, backend: Backend) -> float:
    """Return the largest difference of logits, of the tokens and positions that both have."""
    v, t = min(was.vocab_size, now.vocab_size), min(was.block_size, now.block_size)
    tokens = np.random.default_rng(5).integers(0, v, (2, t))
    one, other = (logits(cfg, w, backend, tokens)[..., :v] for cfg, w in ((was, state), (now, found.weights)))
    return float(np.abs(one - other).max())


# What keeps the function: the old model's settings, the new one's, and the first mode that can do it.
KEPT: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "nothing": ({}, {}, "exact"), "dropout": ({}, {"dropout": 0.1, "zero_init_outputs": True}, "exact"),
    "a block more": ({}, {"n_layer": 3}, "prefix"), "blocks more": ({}, {"n_layer": 7}, "prefix"),
    "positions": ({}, {"block_size": 13}, "prefix"), "fewer positions": ({}, {"block_size": 5}, "prefix"),
    "tokens": ({}, {"vocab_size": 31}, "prefix"), "fewer tokens": ({}, {"vocab_size": 9}, "prefix"),
    **{f"units of {act}": ({"activation": act}, {"ffn_dim": 40}, "project")
       for act in ("gelu", "swiglu", "universal", "kan_bspline", "gelu|swiglu")},
    "heads": ({}, {"n_head": 3, "n_embd": 24}, "project"),
    "heads with qk_norm": ({"qk_norm": True, "norm": "rms"}, {"n_head": 4, "n_embd": 32}, "project"),
    **{f"width, {norm}": ({"norm": norm, "activation": "swiglu"}, {"n_embd": 24}, "project")
       for norm in ("layer", "rms")},
    **{f"four times the width, {norm}": ({"norm": norm}, {"n_embd": 64}, "project") for norm in ("layer", "rms")},
    "universal": ({"activation": "silu"}, {"activation": "universal"}, "project"),
    "all at once": ({"activation": "silu"}, {"activation": "universal", "n_layer": 5, "n_embd": 40, "vocab_size": 29,
                                             "block_size": 11, "ffn_dim": 50}, "project"),
}


@pytest.mark.parametrize("name", KEPT)
def test_the_function_stays(name: str, each_backend: Backend) -> None:
    before, after, how = KEPT[name]
    was, now = replace(BASE, **before), replace(BASE, **before | after)
    state = weights(was)
    found = morph.morph(state, was, now, how, 3)
    assert not found.changes and apart(was, state, now, found, each_backend) <= 1e-5
    for less in morph.MODES[:morph.MODES.index(how)]:
        with pytest.raises(UserError, match=rf"^--morph {less}: .* there and .* here; --morph {how} can do that$"):
            morph.morph(state, was, now, less, 3)


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_width_is_exact_up_to_the_roundings_of_weights(norm: str) -> None:
    """In float64, where s = 2 is exact and only the means are rounded."""
    was, now = replace(BASE, norm=norm), replace(BASE, norm=norm, n_embd=64, n_head=8)
    state = weights(was)
    error = apart(was, state, now, morph.morph(state, was, now, "project", 0), CpuRef(np.float64))
    assert error <= (1e-6 if norm == "layer" else 1e-12)


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_width_is_exact_whatever_the_mean_of_the_stream(norm: str, each_backend: Backend) -> None:
    """Ten times its channels' spread: the child is the function that the parent is without roundings, which are the
    larger ones there."""
    was = replace(BASE, norm=norm)
    state = {name: w + np.float32(10 / math.sqrt(w.shape[-1])) * name.endswith(tuple(morph.WRITERS))
             for name, w in weights(was).items()}
    now, tokens = replace(was, n_embd=24), np.arange(16).reshape(2, 8)
    found = morph.morph(state, was, now, "project", 3)
    exact = logits(was, state, CpuRef(np.float64), tokens)
    assert np.abs(logits(now, found.weights, each_backend, tokens) - exact).max() <= 1e-5


# What changes the function, and how that is said.
CHANGED: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "softcap": ({}, {"softcap": 0.0}, "exact", "softcap 30 → 0"),
    "logit_softcap": ({}, {"logit_softcap": 5.0}, "exact", "logit_softcap 0 → 5"),
    "activation": ({}, {"activation": "relu"}, "exact", "activation gelu → relu"),
    "gated formulas": ({"activation": "max(g,0)*u"}, {"activation": "g*min(u,0)"}, "exact", "activation max(g, 0)*u →"),
    "heads at one width": ({}, {"n_head": 4}, "exact", "n_head 2 → 4, of 8 → 4 channels"),
    "qk_norm": ({}, {"qk_norm": True}, "project", "qk_norm false → true"),
    "norm": ({}, {"norm": "rms"}, "project", "norm layer → rms"),
    "back": ({"norm": "rms"}, {"norm": "layer"}, "project", "norm rms → layer"),
    "fewer blocks": ({}, {"n_layer": 1}, "prefix", "n_layer 2 → 1"),
    "fewer units": ({}, {"ffn_dim": 9}, "project", "ffn_dim 24 → 9"),
    "narrower": ({}, {"n_embd": 10}, "project", "n_embd 16 → 10"),
    "a gate": ({}, {"activation": "geglu"}, "project", "activation gelu → geglu"),
    "larger heads with qk_norm": ({"qk_norm": True}, {"n_embd": 24}, "project", "heads of 8 → 12 channels, with qk_no"),
    "all of heads": ({}, {"n_embd": 30, "n_head": 5}, "project", "n_head 2 → 5, of 8 → 6 channels"),
    "coefficients": ({"activation": "universal"}, {"activation": "silu"}, "project", "activation universal → silu"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_change_is_said(name: str, cpu_ref: Backend) -> None:
    before, after, how, said = CHANGED[name]
    was, now = replace(BASE, **before), replace(BASE, **before | after)
    state = weights(was)
    found = morph.morph(state, was, now, how, 3)
    assert len(found.changes) == 1 and found.changes[0].startswith(said) and f"another function: {said}" in told(found)
    assert apart(was, state, now, found, cpu_ref) > 1e-4


def test_formulas_that_part_far_out_are_others() -> None:
    was = replace(BASE, activation="x")
    assert list(morph.changes(was, replace(BASE, activation="min(x,10)"))) == ["activation x → min(x, 10)"]
    assert not list(morph.changes(was, replace(BASE, activation="a*x+b*min(x,10); a=1, b=0")))


def test_what_becomes_of_heads() -> None:
    """Key rows that are new are 0, query rows keep the scores; heads are continued one by one or as they lie."""
    state, now = weights(BASE), replace(BASE, n_embd=24)
    qkv = morph.morph(state, BASE, now, "project", 0).weights["blocks.0.attn.qkv.weight"].reshape(3, 2, 12, 24)
    old = state["blocks.0.attn.qkv.weight"].reshape(3, 2, 8, 16)
    np.testing.assert_allclose(qkv[0, :, :8, :16], old[0] * math.sqrt(12 / 8), rtol=1e-6)
    assert np.array_equal(qkv[1:, :, :8, :16], old[1:]) and not qkv[1, :, 8:].any() and qkv[[0, 2], :, 8:].all()
    same = morph.morph(state, BASE, replace(BASE, n_head=8), "exact", 0)
    assert all(np.array_equal(same.weights[name], w) for name, w in state.items())
    assert {line.note for line in same.table if "attn" in line.name} == {"heads 2 of 8 → 8 of 2"}


def test_what_becomes_of_parts_and_coefficients() -> None:
    """Gates and values are widened apart; a part that both activations have is kept; coefficients are kept where the
    formula is the same, and else begin anew."""
    was = replace(BASE, activation="swiglu")
    state = weights(was)
    fc1 = "blocks.1.mlp.fc1.weight"
    wide = morph.morph(state, was, replace(was, ffn_dim=40), "project", 0).weights[fc1].reshape(2, 40, 16)
    assert np.array_equal(wide[:, :24], state[fc1].reshape(2, 24, 16))
    plain = morph.morph(state, was, BASE, "project", 0).weights[fc1]
    assert np.array_equal(plain, state[fc1][:24])
    was = replace(BASE, activation="universal")
    state = weights(was)
    other = morph.morph(state, was, replace(was, activation="a*silu(x)+b*x; a=2, b=3", ffn_dim=30), "project", 0)
    a = other.weights["blocks.0.mlp.act.a"]
    assert np.array_equal(a[:24], state["blocks.0.mlp.act.a"]) and (a[24:] == 2).all() and not other.changes
    fresh = morph.morph(state, was, replace(was, activation="a*relu(x)+b*x; a=2, b=3"), "project", 0)
    assert (fresh.weights["blocks.0.mlp.act.a"] == 2).all() and fresh.changes


def test_tokens_are_found_by_their_texts(cpu_ref: Backend) -> None:
    was, now = replace(BASE, vocab_size=5), replace(BASE, vocab_size=6)
    there, here = list("abcde"), list("xeadyc")
    state = weights(was)
    found = morph.morph(state, was, now, "project", 0, (there, here))
    ids = [there.index(x) for x in here if x in there], [here.index(x) for x in here if x in there]
    one, other = (logits(cfg, w, cpu_ref, np.array([i]))[..., i]
                  for cfg, w, i in zip((was, now), (state, found.weights), ids, strict=True))
    assert np.abs(one - other).max() <= 1e-5 and found.table[0].note == "4 of 6 tokens known" and not found.changes
    own = initial_state(now, 0)
    assert np.array_equal(found.weights["lm_head.weight"][[0, 4]], own["lm_head.weight"][[0, 4]])
    with pytest.raises(UserError, match=r"^--morph exact: wte.weight is \[5, 16\] there and \[5, 16\] here, for a vocab"
                                        r"ulary of other tokens; --morph project can do that$"):
        morph.morph(state, was, was, "exact", 0, (there, list("abcdf")))
    morph.morph(state, was, now, "prefix", 0, (there, list("abcdef")))


@pytest.mark.parametrize("after, back", [
    ({"n_layer": 5}, "prefix"), ({"block_size": 13}, "prefix"), ({"vocab_size": 30}, "prefix"),
    ({"ffn_dim": 33}, "project"), ({"qk_norm": True}, "project"), ({"activation": "universal"}, "project"),
    ({"n_layer": 3, "ffn_dim": 40, "vocab_size": 24}, "project")])
def test_there_and_back(after: dict[str, Any], back: str) -> None:
    was = replace(BASE, activation="silu")
    state, now = weights(was), replace(was, **after)
    there = morph.morph(state, was, now, "project", 1).weights
    here = morph.morph(there, now, was, back, 2).weights
    assert here.keys() == state.keys() and all(np.array_equal(here[name], w) for name, w in state.items())


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("after", [{"n_embd": 24}, {"n_embd": 40, "n_head": 5}, {
    "n_embd": 24, "n_layer": 3, "ffn_dim": 40, "vocab_size": 40, "block_size": 30}])
def test_wider_and_back_is_the_same_function(norm: str, after: dict[str, int], each_backend: Backend) -> None:
    was, now = replace(BASE, norm=norm), replace(BASE, norm=norm, **after)
    state = weights(was)
    here = morph.morph(morph.morph(state, was, now, "project", 1).weights, now, was, "project", 2)
    assert apart(was, state, was, here, each_backend) <= 1e-5


def test_a_generic_net_is_cut_off_as_it_is() -> None:
    """Its channels have about equal shares of what is written, so that nothing is scaled."""
    was = replace(BASE, n_embd=64)
    found = morph.morph(initial_state(was, 0), was, replace(was, n_embd=32), "project", 0)
    assert np.allclose(found.weights["ln_f.weight"], 1, atol=0.03)


@pytest.mark.parametrize("before, after", [
    ({}, {"n_layer": 4}), ({"activation": "swiglu"}, {"ffn_dim": 40}), ({"activation": "silu"}, {"activation": "univers"
    "al", "ffn_dim": 30}), ({}, {"n_embd": 24}), ({"norm": "rms"}, {"n_embd": 24}), ({}, {"n_embd": 24, "n_head": 3}),
    ({"norm": "rms", "qk_norm": True}, {"n_embd": 40, "n_layer": 3}), ({}, {"vocab_size": 30, "block_size": 12})])
def test_all_that_is_new_learns(before: dict[str, Any], after: dict[str, Any], cpu_ref: Backend) -> None:
    """Two steps of AdamW without decay change every entry of every tensor."""
    was, now = replace(BASE, **before), replace(BASE, **before | after)
    found = morph.morph(weights(was), was, now, "project", 3)
    assert {line.how for line in found.table if line.name.startswith("blocks.2.")} <= {"cloned"}
    model = GPT(now, cpu_ref)
    model.load_state_dict(found.weights)
    opt = AdamW(model.named_parameters(), lr=1e-2, weight_decay=0)
    for step in range(2):
        ids = np.arange(8 * now.block_size * 2).reshape(2, 8, -1) * (7 + step) % now.vocab_size
        opt.zero_grad()
        model.loss(*ids).backward()
        opt.step()
    for name, w in model.state_dict().items():
        assert (w != found.weights[name]).mean() > 0.99, name


FORMULAS = ["gelu", "silu", "swiglu", "universal", "kan_bspline", "mine: a*tanh(g)*u+b*g; a=1, b=0.1"]


@st.composite
def configs(draw: Callable[[st.SearchStrategy[Any]], Any]) -> GPTConfig:
    """Small models of all kinds."""
    heads, layers = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    several = layers if draw(st.booleans()) else 1
    acts = draw(st.lists(st.sampled_from(FORMULAS), min_size=several, max_size=several))
    return GPTConfig(vocab_size=draw(st.integers(1, 12)), block_size=draw(st.integers(1, 6)), n_layer=layers,
                     n_head=heads, n_embd=heads * draw(st.integers(1, 5)),
                     ffn_dim=draw(st.sampled_from([1, 3, 8, None])),
                     activation="|".join(acts), norm=draw(st.sampled_from(["layer", "rms"])),
                     qk_norm=draw(st.booleans()), softcap=draw(st.sampled_from([30.0, 30.0, 0.0])),
                     zero_init_outputs=draw(st.booleans()))


@settings(max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(configs(), configs(), st.data())
def test_any_model_becomes_any_other(was: GPTConfig, other: GPTConfig, data: st.DataObject) -> None:
    """And where nothing is said to change, nothing does."""
    kept = data.draw(st.sets(st.sampled_from(["norm", "qk_norm", "softcap", "activation", "n_head", "n_layer", "n_embd",
                                              "ffn_dim"])))
    values = other.to_dict() | {key: getattr(was, key) for key in kept}
    if values["n_embd"] % values["n_head"]:
        values["n_embd"] = other.n_embd * values["n_head"]
    if len(acts := split(values["activation"])) > 1:
        values["n_layer"] = len(acts)
    now, state = GPTConfig(**values), weights(was, 1)
    found = morph.morph(state, was, now, "project", 2)
    assert {name: w.shape for name, w in found.weights.items()} == now.shapes()
    assert all(w.dtype == np.float32 and np.isfinite(w).all() for w in found.weights.values())
    assert [line.name for line in found.table] == list(now.shapes()) and told(found, whole=True)
    if not found.changes:
        assert apart(was, state, now, found, CpuRef(np.float64)) <= 2e-5


def test_lines_of_blocks_that_are_alike_are_one() -> None:
    was = replace(BASE, activation="gelu|swiglu|gelu|gelu", n_layer=4)
    found = morph.morph(weights(was), was, replace(was, activation="gelu", ffn_dim=30), "project", 0)
    lines = {line.name: line for line in grouped(found.table)}
    assert lines["blocks.0-3.ln1.weight"].how == "copied"
    assert lines["blocks.0,2-3.mlp.fc1.weight"].note == "inputs of units 24 → 30"
    assert lines["blocks.1.mlp.fc1.weight"].note == "inputs of units 48 → 30"
