"""Settings of a run: one table says what can be set; the command line, TOML files and --set all go through it.

Precedence: defaults < preset < --config FILE.toml < --set key=value < flags.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from helios.errors import UserError, nearest
from helios.model.config import MLPS, GPTConfig
from helios.train.monitors import fitness
from helios.train.settings import BY_KEY, SECTIONS, named, parse


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


@dataclass
class SearchConfig:
    """The search for an activation; see settings.py for what the fields mean."""

    mode: str = "none"
    max_cost: float = 1e9
    activation_pool: str = ",".join(MLPS)
    genome: str = "global"
    genomes: str = ""
    population_size: int = 6
    generations: int = 2
    replicates: int = 3
    budget: str = "steps"
    steps_per_candidate: int = 100
    tokens_per_candidate: int = 200_000
    seconds_per_candidate: float = 60.0
    candidate_eval_interval: int = 25
    selection: str = "topk"
    tournament_size: int = 3
    elitism: bool = True
    mutation_rate: float = 0.5
    crossover_rate: float = 0.5
    diversity_bonus: float = 0.05
    diversity_decay: str = "cosine"
    rank_by: str = "val_loss"
    fitness: str = "quality"
    fitness_coefficients: str = ""
    match: str = "rule"
    shared_init: bool = True
    shared_batches: bool = True
    reuse: bool = True
    candidate_schedule: str = "constant"
    candidate_lr: float | None = None
    candidate_warmup: int | None = None
    early_stop: bool = False
    after: str = "restart"
    after_schedule: str = "own"

    @property
    def pool(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.activation_pool.split(","))

    @property
    def reuses(self) -> bool:
        """Whether a second training of a genome would be the first one again, and is left out."""
        return self.reuse and self.shared_init and self.shared_batches and self.candidate_schedule == "constant"

    @property
    def coefficients(self) -> dict[str, float]:
        terms = (term.split("=") for term in self.fitness_coefficients.split(",") if term)
        return {name: float(value) for name, value in terms}

    def __bool__(self) -> bool:
        return self.mode != "none"


@dataclass
class MonitorConfig:
    """What is watched in every run, and what may act on it."""

    cusum: bool = True
    cusum_sensitivity: float = 12.0
    cusum_slack: float = 0.5
    cusum_window: int = 50
    cusum_grace: int = 10
    metrics_interval: int = 200
    track_weight_entropy: bool = True
    track_effective_rank: bool = True
    track_free_energy: bool = True
    track_layer_grads: bool = True
    track_mi_profiles: bool = False
    track_population_metrics: bool = True
    free_energy_beta: float = 0.01
    complexity: str = "parameters"
    plateau_evals: int = 5
    plateau_delta: float = 0.005
    adaptive_batch: bool = False
    batch_min: int = 1
    batch_max: int = 64
    batch_step: int = 4
    calm_steps_before_restore: int = 200
    dynamic_lr: str = "none"


# What cannot change a bit of the trained weights: it stays out of the hash. Texts are compared by their own hash.
_NO_BITS = {"backend", "device", "eval_interval", "eval_iters", "sample_interval", "checkpoint_interval"}


@dataclass
class Config:
    model: GPTConfig
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The sections as plain values, as config.json holds them; the search only where there is one."""
        return {"model": model_dict(self.model)} | {name: dataclasses.asdict(getattr(self, name))
                                                    for name in SECTIONS[1:] if name != "search" or self.search}

    @property
    def hash(self) -> str:
        """32 hex digits that name everything that influences the bits of training, the texts excepted."""
        train = {k: v for k, v in dataclasses.asdict(self.train).items() if k not in _NO_BITS}
        named = {"model": model_dict(self.model), "train": train}
        if self.search:
            named["search"] = dataclasses.asdict(self.search)
        if self.monitor.adaptive_batch or self.monitor.dynamic_lr != "none":
            named["monitor"] = dataclasses.asdict(self.monitor)
        return hashlib.sha256(canonical(named).encode()).hexdigest()[:32]


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
            flags: Mapping[str, Any] | None = None, base: Mapping[str, Any] | None = None,
            search_file: str | Path | None = None) -> Config:
    """The settings of a run. `flags`: {key: value}, None where not given; `base`: the sections of a run to resume, in
    the place of the defaults; `search_file`: as `file`, its bare keys and [search] alike, and a search is meant.
    Raises UserError for unknown names, wrong types, values out of range."""
    values: dict[str, Any] = {}
    if base is not None:
        values |= _flatten(base, "config.json")
    if preset is not None:
        values |= _preset(preset)
    if file is not None:
        values |= _toml(file)
    if search_file is not None:
        values |= {"mode": "ffn-activation"} | _toml(search_file)
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: expected key=value")
        setting = named(key.strip(), "--set")
        values[setting.key] = parse(setting, value.strip(), f"--set {key.strip()}")
    for key, value in (flags or {}).items():
        if value is not None:
            values[key] = parse(BY_KEY[key], value, f"--{BY_KEY[key].flag}")
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
            setting = named(f"{section}.{key}" if section else key, origin)
            # config.json has null where TOML leaves the key out.
            values[setting.key] = None if value is None else parse(setting, value, f"{origin}: {key}")
    return values


def _build(values: Mapping[str, Any]) -> Config:
    model, train, data, search, monitor = ({k: v for k, v in values.items() if BY_KEY[k].section == section}
                                           for section in SECTIONS)
    settings = TrainConfig(**train)
    if settings.lr_min > settings.lr:
        raise UserError(f"--lr-min {settings.lr_min:g} is above --lr {settings.lr:g}; give one at most as high")
    if search.keys() - {"max_cost"}:  # who says how to search wants one
        search = {"mode": "ffn-activation"} | search
    config = Config(GPTConfig(**model), settings, DataConfig(**data), SearchConfig(**search), MonitorConfig(**monitor))
    m = config.monitor
    if m.adaptive_batch and not m.batch_min <= settings.batch_size <= m.batch_max:
        raise UserError(f"batch_size {settings.batch_size} is not between batch_min {m.batch_min} and batch_max "
                        f"{m.batch_max}, which adaptive_batch keeps to")
    if m.adaptive_batch and settings.accum > 1:
        raise UserError("adaptive_batch changes the batch of a step, and --accum divides it; give one of them")
    if m.dynamic_lr == "entropy" and not (config.search and m.track_population_metrics):
        raise UserError("dynamic_lr = entropy goes by the population of a search, with track_population_metrics; "
                        "give cusum, or --search")
    if config.search:
        check_search(config)
    return config


def check_search(config: Config) -> None:
    """Raises UserError where the settings of a search cannot be used together."""
    s = config.search
    for name in s.pool:
        if name not in MLPS:
            raise UserError(f"activation_pool: given {name!r}, expected some of {', '.join(MLPS)}{nearest(name, MLPS)}")
    for genome in filter(None, s.genomes.split(";")):
        replace(config.model, activation=genome)  # raises UserError
        if len(set(genome.split(","))) > 1 and s.genome == "global":
            raise UserError(f"genomes: {genome} differs by block; set genome = per_block")
    acts = config.monitor.adaptive_batch or config.monitor.dynamic_lr != "none"
    if s.early_stop and acts:
        raise UserError("early_stop needs a constant rate and batch; leave adaptive_batch and dynamic_lr off")
    if config.monitor.adaptive_batch and s.budget == "steps":
        raise UserError("adaptive_batch makes steps of different sizes: set budget = tokens")
    if config.monitor.dynamic_lr == "entropy" and s.reuses:
        raise UserError("dynamic_lr = entropy gives each generation rates of its own: set reuse = false")
    if "run" in (s.candidate_schedule, s.after_schedule) and (s.budget != "steps" or s.reuses or s.early_stop):
        raise UserError("a schedule of the run through the search must know the search's length: it needs "
                        "budget = steps, reuse = false and no early_stop")
    if s.candidate_lr is not None and s.candidate_lr < config.train.lr_min:
        raise UserError(f"candidate_lr {s.candidate_lr:g} is below --lr-min {config.train.lr_min:g}")
    if len(set(s.pool)) < len(s.pool):
        raise UserError(f"activation_pool: {s.activation_pool} names an activation twice")
    fitness.fitness_coefficients(s.fitness, s.coefficients)
    if s.match == "params" and config.model.ffn_dim not in (None, "matched"):
        raise UserError("match = params chooses the MLPs' width itself; leave --ffn-dim out")
    if s.early_stop and (s.rank_by != "val_loss" or s.candidate_schedule != "constant" or s.budget != "steps"):
        raise UserError("early_stop bounds the validation loss of a training at a constant rate and known length: it "
                        "needs rank_by = val_loss, candidate_schedule = constant and budget = steps")
    if s.after == "continue" and s.after_schedule == "run":
        raise UserError("after = continue goes on from the winner's weights, with a schedule of its own; leave "
                        "after_schedule out")
    if config.train.eval_interval == 0:
        raise UserError("--eval-interval 0: a search ranks by evaluations; give an interval")
