import dataclasses
import json

import pytest

from helios.errors import UserError
from helios.model import GPTConfig
from helios.model.activations import activation


@pytest.mark.parametrize(("values", "count"), [
    ({"activation": "gelu"}, 6_838_784),
    ({"activation": "silu"}, 6_838_784),
    ({"activation": "relu"}, 6_838_784),
    ({"activation": "swiglu"}, 6_937_088),
    ({"activation": "universal"}, 6_838_784 + 6 * 2 * 1024),
    ({"activation": "kan_spline"}, 6_838_784 + 6 * 5 * 1024),
    ({"norm": "rms"}, 6_838_784 - 13 * 256),
    ({"logit_softcap": 15, "embd_dropout": 0.1, "zero_init_outputs": True}, 6_838_784),
    ({"activation": "gelu,swiglu,gelu,swiglu,gelu,swiglu"}, (6_838_784 + 6_937_088) // 2),
    ({"activation": "swiglu", "ffn_dim": 1024, "n_embd": 384, "n_layer": 8, "block_size": 512}, 17_437_440),
])
def test_parameters(values, count):
    assert GPTConfig(**values).parameters() == count


@pytest.mark.parametrize(("n_embd", "gated"), [(256, 704), (384, 1024), (512, 1408)])
def test_default_width_is_each_blocks_own(n_embd, gated):
    cfg = GPTConfig(n_embd=n_embd, n_layer=3, activation=["relu", "swiglu", "kan_spline"])
    assert cfg.ffn_dims == (4 * n_embd, gated, 4 * n_embd)
    assert dataclasses.replace(cfg, ffn_dim=100).ffn_dims == (100, 100, 100)


def test_activation_may_be_given_in_three_ways():
    assert GPTConfig(n_layer=2, activation="gelu").activations == (activation("gelu"),) * 2
    mixed = [GPTConfig(n_layer=2, activation=a) for a in ("silu, swiglu", ["silu", "swiglu"], ("silu", "swiglu"))]
    assert {cfg.activations for cfg in mixed} == {(activation("silu"), activation("swiglu"))}
    assert len(set(mixed)) == 1


@pytest.mark.parametrize(("values", "words"), [
    ({"activation": "swigl"}, "activation: given 'swigl', expected one of gelu, .*did you mean swiglu\\?"),
    ({"activation": "gelu,relu"}, "activation: given 2, expected one, or one for each of the 6 blocks"),
    ({"activation": ""}, "activation: given '', expected one of gelu"),
    ({"n_embd": 250}, "n_embd: given 250, expected a multiple of n_head 8, as 248"),
    ({"n_layer": 0}, "n_layer: expected from 1 to 1,000, got 0"),
    ({"vocab_size": 4000.0}, "vocab_size: expected a whole number, got 4000.0"),
    ({"block_size": True}, "block_size: expected a whole number, got true"),
    ({"ffn_dim": -1}, "ffn_dim: expected at least 1, got -1"),
    ({"dropout": 1.0}, "dropout: expected at least 0 and less than 1, got 1.0"),
    ({"resid_dropout": 1}, "resid_dropout: expected at least 0 and less than 1, got 1"),
    ({"attn_dropout": "none"}, "attn_dropout: expected a number or auto, got 'none'"),
    ({"embd_dropout": "auto"}, "embd_dropout: expected a number, got 'auto'"),
    ({"dropout": float("nan")}, "dropout: expected a number, got NaN"),
    ({"zero_init_outputs": 1}, "zero_init_outputs: expected true or false, got 1"),
    ({"norm": "rmsnorm"}, "norm: expected one of layer, rms, got 'rmsnorm'"),
    ({"logit_softcap": -1}, "logit_softcap: expected at least 0, got -1"),
    ({"softcap": -1}, "softcap: expected at least 0, got -1"),
    ({"softcap": "much"}, "softcap: expected a number, got 'much'"),
])
def test_errors_are_one_precise_line(values, words):
    with pytest.raises(UserError, match=words) as error:
        GPTConfig(**values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("values", "expected"), [
    ({}, (0, 0, 0, 0)), ({"dropout": 0.1}, (0.1, 0.1, 0.1, 0)), ({"embd_dropout": 0.2}, (0, 0, 0, 0.2)),
    ({"dropout": 0.1, "attn_dropout": "auto", "resid_dropout": 0, "mlp_dropout": 0.3}, (0.1, 0, 0.3, 0)),
])
def test_dropouts_apart(values, expected):
    assert GPTConfig(**values).dropouts == expected


def test_dict_round_trip():
    cfg = GPTConfig(n_layer=2, activation=["universal", "swiglu"], ffn_dim=96, dropout=0.25, softcap=0)
    assert GPTConfig.from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg
    with pytest.raises(UserError, match=r"unknown setting 'n_heads'; did you mean n_head\?"):
        GPTConfig.from_dict({"n_heads": 4})


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GPTConfig().n_layer = 7  # type: ignore[misc]
