"""Settings: where they come from, which wins, and how wrong ones are refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helios.cli.train import main
from helios.errors import UserError
from helios.model.activations import activation
from helios.model.config import GPTConfig
from helios.model.settings import Setting
from helios.train import settings_page
from helios.train.config import SETTINGS, Config, TrainConfig, presets, resolve
from helios.train.records.rows import canonical

FLAGS = """--format --tokenizer
--data --val-data --preset --config --set --backend --device --precision --seed --run-dir --resume --quiet
--steps --batch --block --layers --dim --heads --ffn-dim --activation --dropout --softcap --vocab-size --lr --lr-min
--warmup --beta1 --beta2 --eps --weight-decay --grad-clip --spike-threshold --accum --eval-interval --eval-iters
--sample-interval --checkpoint-interval --keep --keep-every --retries --report --search --search-config --max-cost
--log --dry-run --norm --logit-softcap --attn-dropout --resid-dropout --mlp-dropout --embd-dropout
--zero-init-outputs --qk-norm --init-from --morph --challenge-interval --challenge-on"""


def test_the_command_has_exactly_the_flags_of_the_interface() -> None:
    assert sorted(flag for p in main.params for flag in p.opts) == sorted(FLAGS.split())
    keys = [s.key for s in SETTINGS]
    assert len(set(keys)) == len(keys)  # bare keys are clear


def test_the_page_of_settings_is_that_of_the_declarations() -> None:
    """`helios-info --settings` prints docs/settings.md."""
    page = Path(__file__).parents[2] / "docs" / "settings.md"
    assert page.read_text("utf-8") == settings_page.markdown()


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.key)
def test_every_setting_says_what_it_is_and_reads_its_default(setting: Setting) -> None:
    assert setting.help and setting.read(setting.default, "here") == setting.default
    assert (setting.read("auto", "here") is None) if setting.takes_auto else True


def test_what_is_given_from_python_is_read_alike() -> None:
    assert TrainConfig(lr="0.5", steps="7").lr == 0.5  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^warmup: expected a whole number, got 1\.5$"):
        TrainConfig(warmup=1.5)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"--lr-min 3e-05 is above --lr 1e-05"):
        Config(train=TrainConfig(lr=1e-5))
    changed = Config().replaced("train", steps=3)
    assert (changed.train.steps, Config().train.steps) == (3, 500)


def test_settings_with_others_are_as_those_made_anew() -> None:
    own = GPTConfig(n_layer=2, softcap=15.0)
    assert own.replaced(n_embd="64", activation="relu|relu") == GPTConfig(n_layer=2, softcap=15.0, n_embd=64,
                                                                          activation="relu")
    assert own == GPTConfig(n_layer=2, softcap=15.0)
    for values, error, message in (({"n_head": 0}, UserError, "at least 1"), ({"heads": 4}, TypeError, "heads"),
                                   ({"n_head": 7}, UserError, "a multiple of n_head 7")):
        with pytest.raises(error, match=message):
            own.replaced(**values)


def test_precedence(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('steps = 7\n[train]\nlr = 1e-3\nwarmup = 3\nseed = 1\n[model]\nlayers = 3\n')
    assert resolve().train.steps == 500
    assert resolve("tiny").train.steps == 12
    assert resolve("tiny", file).train.steps == 7
    assert resolve("tiny", file, ["train.steps=8"]).train.steps == 8
    config = resolve("tiny", file, ["steps=8", "seed=2"], {"steps": "9", "seed": None})
    assert (config.train.steps, config.train.seed, config.train.warmup, config.model.n_layer) == (9, 2, 3, 3)
    assert config.model.vocab_size == 300  # the preset's


def test_a_run_to_resume_takes_the_place_of_the_defaults() -> None:
    base = resolve("tiny", flags={"lr": "0.5", "ffn_dim": "48"}).to_dict()
    assert resolve(base=base).to_dict() == base
    assert resolve(base=base, flags={"steps": "99"}).train.steps == 99


@pytest.mark.parametrize("name", presets())
def test_presets(name: str) -> None:
    assert resolve(name).train.steps > 0


@pytest.mark.parametrize(("name", "parameters"), [("small-17m", 17_437_440), ("gpt2-124m", 162_954_240)])
def test_larger_presets(name: str, parameters: int) -> None:
    assert resolve(name).model.parameters() == parameters


def test_historic_6l() -> None:
    config = resolve("historic-6l")
    t, m = config.train, config.model
    assert m.parameters() == 6_838_784
    assert (t.batch_size, t.steps, t.lr, t.lr_min, t.warmup) == (8, 500, 3e-4, 5e-6, 50)
    assert (t.beta1, t.beta2, t.eps, t.weight_decay, t.grad_clip) == (0.9, 0.95, 1e-6, 0.1, 1.0)
    assert (m.dropout, m.softcap, t.spike_threshold, t.eval_interval, t.sample_interval) == (0.1, 30, 10, 100, 200)


@pytest.mark.parametrize(("preset", "assignments", "flags", "message"), [
    ("quikstart", [], {}, "unknown preset 'quikstart'; did you mean quickstart?"),
    (None, ["batchsize=3"], {}, "unknown key 'batchsize'; did you mean batch_size?"),
    (None, ["steps"], {}, "--set steps: expected key=value"),
    (None, ["train.layers=3"], {}, r"layers belongs in \[model\], not in \[train\]"),
    (None, ["steps=many"], {}, "--set steps: expected a whole number, got 'many'"),
    (None, [], {"steps": "1.5"}, "--steps: expected a whole number, got '1.5'"),
    (None, [], {"steps": "0"}, "--steps: expected at least 1, got '0'"),
    (None, [], {"lr": "nan"}, "--lr: expected a number, got 'nan'"),
    (None, [], {"beta2": "1"}, "--beta2: expected at least 0 and less than 1"),
    (None, [], {"precision": "f16"}, "--precision: expected one of f32, mixed, got 'f16'"),
    (None, [], {"backend": "vulcan"}, "did you mean vulkan?"),
    (None, [], {"activation": "geluu"}, "'geluu'.*did you mean gelu?"),
    (None, [], {"activation": "gelu,relu"}, "activation: given 2, expected one"),
    (None, [], {"n_head": "7"}, "multiple of n_head 7"),
    (None, [], {"lr": "1e-5"}, "--lr-min 3e-05 is above --lr 1e-05"),
])
def test_refused(preset: str | None, assignments: list[str], flags: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        resolve(preset, None, assignments, flags)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "message"), [
    ("steps = ", "is no TOML file"),
    ("[trane]\nsteps = 1", r"unknown table \[trane\]; did you mean train"),
    ("[train]\nsteps = '1x'", "steps: expected a whole number"),
    ("[train]\nsteps = true", "steps: expected a whole number"),
    ("[train]\nstep = 1", "unknown key 'step'; did you mean steps?"),
    ("[model]\nactivation = [1]", "activation: expected an activation"),
])
def test_refused_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(UserError, match=message):
        resolve(file=tmp_path / "a.toml")
    with pytest.raises(UserError, match="cannot read"):
        resolve(file=tmp_path / "b.toml")


@pytest.mark.parametrize(("key", "name"), [
    ("learning_rate", "lr"), ("learning_rat", "lr"), ("Steps", "steps"), ("step", "steps"), ("batchsize", "batch_size"),
    ("layer", "layers"), ("embd", "n_embd"), ("head", "heads"), ("dims", "dim"), ("block_len", "block_size")])
def test_an_unknown_key_gets_the_nearest_name(key: str, name: str) -> None:
    with pytest.raises(UserError, match=rf"unknown key '{key}'; did you mean {name}\?$"):
        resolve(assignments=[f"{key}=1"])


@pytest.mark.parametrize("key", ["zzz", "quiet"])
def test_an_unknown_key_like_none_gets_no_name(key: str) -> None:
    with pytest.raises(UserError, match=rf"unknown key '{key}'; helios-info --settings lists them$"):
        resolve(assignments=[f"{key}=1"])


def test_activations_of_each_block(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('activation = ["gelu", "swiglu"]\nlayers = 2')
    config = resolve(file=tmp_path / "a.toml")
    assert config.model.activations == (activation("gelu"), activation("swiglu"))
    assert config == resolve(flags={"activation": "gelu,swiglu", "n_layer": "2"})
    assert resolve(flags={"activation": "gelu,gelu", "n_layer": "2"}) == resolve(flags={"n_layer": "2"})


OWN = '[activations]\nquick = "x * sigmoid(1.702*x)"\ngate = "a*silu(g)*u; a=.5"\n'
QUICK, GATE = "quick: x*sigmoid(1.702*x)", "gate: a*silu(g)*u; a=0.5"


def test_own_names_are_known_to_every_source_and_spelt_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("own", OWN), ("search", 'activation_pool = ["gelu", "quick"]\n' + OWN),
                       ("other", '[activations]\nquick = "sin(x)"'), ("uses", "activation = 'quick'\n" + OWN)):
        (tmp_path / f"{name}.toml").write_text(text)
    monkeypatch.setattr("helios.train.config.PRESETS", tmp_path)
    file = tmp_path / "own.toml"
    assert resolve(file=file).model.activation == "gelu"
    for found in (resolve(file=file, flags={"activation": "quick"}), resolve("own", assignments=["activation=quick"]),
                  resolve("uses"), resolve(search_file=file, flags={"activation": '["quick", "quick"]', "n_layer": 2})):
        assert found.model.activation == QUICK
        assert resolve(base=found.to_dict()) == found  # a run needs no other file
    assert resolve("own", tmp_path / "other.toml", flags={"activation": "quick"}).model.activation == "quick: sin(x)"
    search = resolve(search_file=tmp_path / "search.toml").search
    assert search.activation_pool == f"gelu|{QUICK}" and search.pool == ("gelu", QUICK)
    blocks = resolve(file=file, flags={"activation": "gelu,gate", "n_layer": "2"}).model
    assert blocks.activation == f"gelu|{GATE}" and blocks.activations[1].text == GATE


def test_own_names_in_genomes(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(OWN + "[search]\ngenome = 'per_block'\n[model]\nlayers = 2")
    for given, expected in (("gate||gelu|quick||sin(x)|relu", f"{GATE}||gelu|{QUICK}||sin(x)|relu"),
                            ("gate;gelu,quick", f"{GATE}||gelu|{QUICK}"), ("gelu;relu", "gelu;relu"),
                            ('[["gate", "gelu"], "quick"]', f"{GATE}|gelu||{QUICK}")):
        assert resolve(file=tmp_path / "a.toml", assignments=[f"genomes={given}"]).search.genomes == expected


@pytest.mark.parametrize(("line", "message"), [
    ('gelu = "x"', "activations: 'gelu' is an activation already; choose another name"),
    ('sin = "x"', "activations: 'sin' is a function of formulas"), ('u = "x"', "activations: 'u' is a variable"),
    ('"a b" = "x"', "activations: 'a b' is no name, which has letters, digits and _"),
    ('"" = "x"', "activations: '' is no name"), ("f = 1", "activations.f: expected a formula in quotes, got 1"),
    ("f.x = 'x'", "activations.f: expected a formula"), ('f = ""', "activations.f: .*empty"),
    ('f = "gelu"', "activations.f: formula 'gelu', column 1: gelu is a function: write gelu"),
    ('f = "x+tan(x)"', "activations.f: formula 'x.tan.x.', column 3: unknown function 'tan'; did you mean tanh?"),
    ('f = "x|x"', "activations.f: formula 'x.x', column 2: '.' cannot be part"),
])
def test_own_names_that_cannot_be(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.toml").write_text(f"[activations]\n{line}")
    with pytest.raises(UserError, match=rf"^{re.escape(str(tmp_path))}/a.toml: {message}") as error:
        resolve(file=tmp_path / "a.toml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["activation", "activation_pool", "genomes"])
def test_a_name_that_nobody_gave(tmp_path: Path, key: str) -> None:
    (tmp_path / "a.toml").write_text(f"{key} = 'quik'\n{OWN}")
    with pytest.raises(UserError, match=rf"^{key}: given 'quik', expected one of gelu, .*gate, or .*mean quick\?$"):
        resolve(file=tmp_path / "a.toml")


DEVICE = {"backend": "vulkan", "name": "card", "driver": "1"}


def changes(preset: str, base: dict[str, str], flags: dict[str, str]) -> bool:
    """Whether the flags change the fingerprint of a run."""
    one, other = (resolve(preset, assignments=[f"{k}={v}" for k, v in base.items()], flags=f).fingerprint(DEVICE)
                  for f in ({}, flags))
    assert len(one) == len(other) == 32
    return one != other


@pytest.mark.parametrize("flags", [{"lr": "0.02"}, {"seed": "1"}, {"accum": "2"}, {"steps": "13"}, {"softcap": "0"},
                                   {"n_layer": "1"}, {"precision": "mixed"}])
def test_the_fingerprint_names_what_influences_the_bits(flags: dict[str, str]) -> None:
    assert not changes("tiny", {}, {}) and changes("tiny", {}, flags)


@pytest.mark.parametrize("flags", [
    {"sample_interval": "1"}, {"checkpoint_interval": "1"}, {"keep": "0"}, {"keep_every": "5"}, {"retries": "2"},
    {"morph": "project"}, {"backend": "cpu_ref"}, {"device": "0"}])  # the device that computes is named instead
def test_the_fingerprint_leaves_out_the_rest(flags: dict[str, str]) -> None:
    assert not changes("tiny", {}, flags) and not changes("tiny", {"search": "ffn-activation"}, flags)


@pytest.mark.parametrize("flags", [{"eval_interval": "1"}, {"eval_iters": "9"}, {"eval_batch": "2"}])
def test_evaluations_count_where_they_decide(flags: dict[str, str]) -> None:
    """They choose a search's winner, and what acts on the validation loss acts on the training."""
    assert not changes("tiny", {}, flags)
    for base in ({"search": "ffn-activation"}, {"dynamic_lr": "cusum"}):
        assert changes("tiny", base, flags)


@pytest.mark.parametrize("other", [{"backend": "cpu_ref"}, {"name": "another card"}, {"driver": "2"}])
def test_the_device_counts(other: dict[str, str]) -> None:
    config = resolve("tiny")
    assert config.fingerprint(DEVICE) != config.fingerprint(DEVICE | other)


def test_the_weights_that_a_run_begins_with_count() -> None:
    config = resolve("tiny")
    assert len({config.fingerprint(DEVICE), config.fingerprint(DEVICE, "a"), config.fingerprint(DEVICE, "b")}) == 3


def test_canonical_json() -> None:
    assert canonical({"b": 1, "a": [0.1, None, "é"]}) == '{"a":[0.1,null,"é"],"b":1}'
    with pytest.raises(ValueError, match="JSON"):
        canonical(float("nan"))
