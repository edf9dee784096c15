"""Settings of a run: one table says what can be set; the command line, TOML files and --set all go through it.

Precedence: defaults < preset < --config FILE.toml < --set key=value < flags.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from helios.backends.backend import PRECISIONS
from helios.errors import UserError, nearest
from helios.model.config import MLPS, GPTConfig


@dataclass
class TrainConfig:
    backend: str = "auto"
    device: str | None = None
    precision: str = "f32"
    seed: int = 0
    steps: int = 500
    batch_size: int = 8  # sequences in one micro-step; a step takes accum of them
    lr: float = 3e-4
    lr_min: float = 3e-5
    warmup: int = 50
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    spike_threshold: float = 0.0
    accum: int = 1
    eval_interval: int = 100
    eval_iters: int = 8
    sample_interval: int = 0
    checkpoint_interval: int = 100


@dataclass
class DataConfig:
    data: str = "synth:2MB"
    val_data: str | None = None


Check = tuple[str, Callable[[Any], bool]]  # what is expected, in words, and the test for it
ANY: Check = ("", lambda x: True)
COUNT: Check = ("at least 1", lambda x: x >= 1)
NATURAL: Check = ("at least 0", lambda x: x >= 0)
POSITIVE: Check = ("greater than 0", lambda x: x > 0)
SHARE: Check = ("at least 0 and less than 1", lambda x: 0 <= x < 1)


def one_of(*names: str) -> Check:
    return ("one of " + ", ".join(names), lambda x: x in names)


def _names(value: Any) -> str:
    """Names with commas between, or a list of them; GPTConfig knows which there are."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise ValueError
    return ",".join(names)


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str) or not math.isfinite(float(value)):
        raise ValueError
    return float(value)


def _text(value: Any) -> str:
    # Devices are also chosen by number, and TOML and JSON know numbers.
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value):
        raise ValueError
    return str(value)


class Kind(NamedTuple):
    words: str  # in messages
    metavar: str
    parse: Callable[[Any], Any]  # raises ValueError


INT = Kind("a whole number", "N", _integer)
FLOAT = Kind("a number", "X", _number)
TEXT = Kind("text", "TEXT", _text)
WIDTH = Kind("a whole number or auto", "N", lambda x: None if x == "auto" else _integer(x))
NAMES = Kind("a name or several with commas between", "NAME[,NAME…]", _names)


class Setting(NamedTuple):
    flag: str
    section: str
    key: str
    kind: Kind
    check: Check
    help: str


SETTINGS = (
    Setting("data", "data", "data", TEXT, ANY, "Training text: a UTF-8 file, or synth:2MB[:SEED]."),
    Setting("val-data", "data", "val_data", TEXT, ANY, "Validation text; else documents of --data are set apart."),
    Setting("backend", "train", "backend", TEXT, one_of("auto", "vulkan", "cpu_ref"), "auto, vulkan or cpu_ref."),
    Setting("device", "train", "device", TEXT, ANY, "Vulkan device: its index or part of its name."),
    Setting("precision", "train", "precision", TEXT, one_of(*PRECISIONS),
            "f32, or mixed: matrices are rounded to float16 where they are multiplied."),
    Setting("seed", "train", "seed", INT, ("from 0 to 2⁶³-1", lambda x: 0 <= x < 2**63), "Of everything random."),
    Setting("steps", "train", "steps", INT, COUNT, "Optimizer steps."),
    Setting("batch", "train", "batch_size", INT, COUNT, "Sequences in one micro-step."),
    Setting("block", "model", "block_size", INT, COUNT, "Tokens in a sequence, T."),
    Setting("layers", "model", "n_layer", INT, COUNT, "Blocks, L."),
    Setting("dim", "model", "n_embd", INT, COUNT, "Width, D."),
    Setting("heads", "model", "n_head", INT, COUNT, "Attention heads, H."),
    Setting("ffn-dim", "model", "ffn_dim", WIDTH, ("at least 1", lambda x: x is None or x >= 1),
            "Width of the MLP, F; auto: 4D, for swiglu 8D/3 rounded up to 64."),
    Setting("activation", "model", "activation", NAMES, ANY, f"{', '.join(MLPS)}; one, or one for each block."),
    Setting("dropout", "model", "dropout", FLOAT, SHARE, "On attention weights and residual branches."),
    Setting("softcap", "model", "softcap", FLOAT, NATURAL, "c·tanh(s/c) on attention scores; 0: none."),
    Setting("vocab-size", "model", "vocab_size", INT, COUNT, "Tokens in the vocabulary, V."),
    Setting("lr", "train", "lr", FLOAT, POSITIVE, "Highest learning rate."),
    Setting("lr-min", "train", "lr_min", FLOAT, NATURAL, "Learning rate at both ends of the schedule."),
    Setting("warmup", "train", "warmup", INT, NATURAL, "Steps from --lr-min to --lr; then a cosine back."),
    Setting("beta1", "train", "beta1", FLOAT, SHARE, "AdamW: memory of the mean."),
    Setting("beta2", "train", "beta2", FLOAT, SHARE, "AdamW: memory of the squares."),
    Setting("eps", "train", "eps", FLOAT, POSITIVE, "AdamW: added to the root."),
    Setting("weight-decay", "train", "weight_decay", FLOAT, NATURAL, "Of matrices; not of embeddings and norms."),
    Setting("grad-clip", "train", "grad_clip", FLOAT, NATURAL, "Highest global gradient norm; 0: no clipping."),
    Setting("spike-threshold", "train", "spike_threshold", FLOAT, NATURAL, "Skip updates of a higher norm; 0: never."),
    Setting("accum", "train", "accum", INT, COUNT, "Micro-steps whose gradients make one step."),
    Setting("eval-interval", "train", "eval_interval", INT, NATURAL, "Steps between evaluations; 0: never."),
    Setting("eval-iters", "train", "eval_iters", INT, COUNT, "Batches in one evaluation, the same ones each time."),
    Setting("sample-interval", "train", "sample_interval", INT, NATURAL, "Steps between samples; 0: at the end only."),
    Setting("checkpoint-interval", "train", "checkpoint_interval", INT, NATURAL,
            "Steps between checkpoints; 0: at the end only."),
)
SECTIONS = ("model", "train", "data")
BY_KEY = {s.key: s for s in SETTINGS}
# A setting also answers to its flag's name: `--set layers=4`.
BY_NAME = {s.flag.replace("-", "_"): s for s in SETTINGS} | BY_KEY
# What others call some of them, for the hint on an unknown key.
ELSEWHERE = {"learning_rate": "lr", "max_iters": "steps", "d_model": "n_embd", "gradient_accumulation_steps": "accum"}

# What cannot change a bit of the trained weights: it stays out of the hash. Texts are compared by their own hash.
_NO_BITS = {"backend", "device", "eval_interval", "eval_iters", "sample_interval", "checkpoint_interval"}


@dataclass
class Config:
    model: GPTConfig
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """{model, train, data} of plain values, as config.json holds them."""
        return {"model": model_dict(self.model), "train": dataclasses.asdict(self.train),
                "data": dataclasses.asdict(self.data)}

    @property
    def hash(self) -> str:
        """32 hex digits that name everything that influences the bits of training, the texts excepted."""
        train = {k: v for k, v in dataclasses.asdict(self.train).items() if k not in _NO_BITS}
        return hashlib.sha256(canonical({"model": model_dict(self.model), "train": train}).encode()).hexdigest()[:32]


def model_dict(model: GPTConfig) -> dict[str, Any]:
    """The model's settings as plain values; as many equal activations as there are blocks are one."""
    return model.to_dict() | ({"activation": model.activations[0]} if len(set(model.activations)) == 1 else {})


def canonical(value: Any) -> str:
    """JSON with one spelling for one value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def presets() -> list[str]:
    files = resources.files("helios.train.presets").iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def resolve(preset: str | None = None, file: str | Path | None = None, assignments: Iterable[str] = (),
            flags: Mapping[str, Any] | None = None, base: Mapping[str, Any] | None = None) -> Config:
    """The settings of a run. `flags`: {key: value}, None where not given; `base`: the {model, train, data} of a run
    to resume, in the place of the defaults. Raises UserError for unknown names, wrong types, values out of range."""
    values: dict[str, Any] = {}
    if base is not None:
        values |= _flatten(base, "config.json")
    if preset is not None:
        values |= _preset(preset)
    if file is not None:
        values |= _toml(file)
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: expected key=value")
        setting = _setting(key.strip(), "--set")
        values[setting.key] = _value(setting, value.strip(), f"--set {key.strip()}")
    for key, value in (flags or {}).items():
        if value is not None:
            values[key] = _value(BY_KEY[key], value, f"--{BY_KEY[key].flag}")
    return _build(values)


def _preset(name: str) -> dict[str, Any]:
    if name not in presets():
        raise UserError(f"unknown preset {name!r}{nearest(name, presets())}; there are {', '.join(presets())}")
    return _flatten(tomllib.loads(resources.files("helios.train.presets").joinpath(f"{name}.toml").read_text("utf-8")),
                    f"preset {name}")


def _toml(path: str | Path) -> dict[str, Any]:
    try:
        return _flatten(tomllib.loads(Path(path).read_text("utf-8")), str(path))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a TOML file") from error
    except ValueError as error:  # of TOML and of UTF-8
        raise UserError(f"{path} is no TOML file: {error}") from error


def _flatten(tables: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """{key: value} from tables [model], [train], [data] and bare keys."""
    values = {}
    for name, content in tables.items():
        # `data` is a table and, as a bare key, a path.
        if isinstance(content, Mapping):
            if name not in SECTIONS:
                raise UserError(f"{origin}: unknown table [{name}]{nearest(name, SECTIONS)}; "
                                f"there are {', '.join(f'[{s}]' for s in SECTIONS)}")
            entries, section = content, name
        else:
            entries, section = {name: content}, ""
        for key, value in entries.items():
            setting = _setting(f"{section}.{key}" if section else key, origin)
            # config.json has null where TOML leaves the key out.
            values[setting.key] = None if value is None else _value(setting, value, f"{origin}: {key}")
    return values


def _setting(name: str, origin: str) -> Setting:
    section, dot, key = name.rpartition(".")
    setting = BY_NAME.get(key.replace("-", "_"))
    if setting is None:
        raise UserError(f"{origin}: unknown key {key!r}{nearest(key, BY_NAME, 0.0, ELSEWHERE)}")
    if dot and section != setting.section:
        raise UserError(f"{origin}: {key} belongs in [{setting.section}], not in [{section}]")
    return setting


def _value(setting: Setting, value: Any, origin: str) -> Any:
    try:
        parsed = setting.kind.parse(value)
    except (ValueError, OverflowError):
        raise UserError(f"{origin}: expected {setting.kind.words}, got {value!r}") from None
    words, accepts = setting.check
    if not accepts(parsed):
        near = nearest(parsed, words.removeprefix("one of ").split(", ")) if setting.kind is TEXT else ""
        raise UserError(f"{origin}: expected {words}, got {value!r}{near}")
    return parsed


def _build(values: Mapping[str, Any]) -> Config:
    model, train, data = ({k: v for k, v in values.items() if BY_KEY[k].section == section} for section in SECTIONS)
    settings = TrainConfig(**train)
    if settings.lr_min > settings.lr:
        raise UserError(f"--lr-min {settings.lr_min:g} is above --lr {settings.lr:g}; give one at most as high")
    return Config(GPTConfig(**model), settings, DataConfig(**data))
