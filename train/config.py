"""The settings of a run. Each source wins over those before it: default, preset, --config, --set, flag."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from helios.backends import NAMES as BACKENDS
from helios.backends.backend import PRECISIONS
from helios.backends.vulkan.environment import WIDTHS
from helios.errors import UserError, nearest
from helios.files import read_toml
from helios.model.activations import ACTIVATIONS, GENOMES, own_formulas, parsed, spelt_out, split_genomes
from helios.model.config import GPTConfig
from helios.model.genes import any_of, in_steps, log, of_rest
from helios.model.settings import (
    ANY,
    COUNT,
    NATURAL,
    POSITIVE,
    SHARE,
    TEXTS,
    Range,
    Setting,
    Settings,
    declared,
    one_of,
    setting,
    shown,
)
from helios.train.challenge_config import OPENING, ChallengeConfig
from helios.train.directory import parent
from helios.train.fitness import fitness_coefficients, formula
from helios.train.formats import FORMATS
from helios.train.monitor_config import MonitorConfig
from helios.train.morph import MODES
from helios.train.records.client import ADDRESS, is_address
from helios.train.records.rows import canonical
from helios.train.search_config import SearchConfig
from helios.train.tokenizer import Tokenizer


@dataclass(frozen=True)
class DataConfig(Settings):
    """The texts that a run reads."""

    data: str | tuple[str, ...] = setting(
        "synth:2MB", ANY, "training text: a file, all files of a pattern such as 'books/*.txt', or as much of the "
        "embedded corpus as synth:SIZE[:SEED] says; may be given several times, each with =WEIGHT behind it: a "
        "sequence comes from a text with a chance proportional to weight × tokens", flag="data", kind=TEXTS)
    val_data: str | None = setting(None, ANY, "validation text, as one --data without a weight; not given: about a "
                                   "tenth of the documents of each --data, its last tenth where there are no two",
                                   flag="val-data")
    format: str = setting("auto", one_of(*FORMATS), "form of the texts: text, as it is; chat, conversations with marks "
                          "or in ChatML; jsonl, records with text, messages, conversations or prompt and completion; "
                          "auto, what a text looks like", flag="format")
    tokenizer: str | None = setting(None, ANY, "vocabulary to use instead of training one: a tokenizer.json or the "
                                    "directory of a run; vocab_size follows from it", flag="tokenizer")


@dataclass(frozen=True)
class TrainConfig(Settings):
    """How a run trains, and what it writes on the way."""

    backend: str = setting("auto", one_of("auto", *BACKENDS), "what computes: vulkan, cpu_ref (numpy, slow), or "
                           "auto: vulkan, and where it has no device cpu_ref, with a warning", flag="backend",
                           bits=False)
    device: str | None = setting(None, ANY, "Vulkan device: its index in helios-info or part of its name; not given: a "
                                 "GPU before a CPU", flag="device", bits=False)
    precision: str = setting(PRECISIONS[0], one_of(*PRECISIONS), "number format: f32, or mixed, where products and "
                             "attention take float16 and all else stays f32", flag="precision",
                             gene=any_of(*PRECISIONS, part="runtime"))
    # The device's name, and so a run's fingerprint, tells lavapipe's width.
    simd_width: str = setting("auto", one_of("auto", *WIDTHS), "bits of lavapipe's vectors, the same for all that a "
                              "process computes; auto: what LP_NATIVE_VECTOR_WIDTH says, else 512 with AVX-512",
                              bits=False, gene=any_of(*WIDTHS, part="runtime"))
    tiles: str = setting("tuned", one_of("tuned", "default"), "tiles of matrix products, which change no bit: tuned, "
                         "those that helios-bench tune found on this device, or the kernels' own", bits=False,
                         gene=any_of("tuned", "default", part="runtime"))
    seed: int = setting(0, Range("from 0 to 2⁶³-1", lambda x: 0 <= x < 2**63), "seed of all that is random: weights, "
                        "batches, dropout, samples, a search's choices", flag="seed")
    init_from: str | None = setting(None, ANY, "run or checkpoint whose weights a new run begins with, and whose model "
                                    "and vocabulary it has where nothing else is given; docs/morph.md has the rules",
                                    flag="init-from", bits=False)
    morph: str = setting(MODES[0], one_of(*MODES), "what may differ from --init-from: exact, no tensor; prefix, the "
                         "number of blocks and positions, and tokens at the vocabulary's end; project, anything",
                         flag="morph", bits=False)
    steps: int = setting(500, COUNT, "optimizer steps, those of a search not counted", flag="steps")
    batch_size: int = setting(8, COUNT, "sequences in a micro-step", flag="batch",
                             gene=in_steps(1, 2, 4, 8, 16, 32, 64, part="runtime"))
    accum: int = setting(1, COUNT, "micro-steps in a step, which uses the mean of their gradients", flag="accum",
                        gene=in_steps(1, 2, 4, 8, part="runtime"))
    lr: float = setting(3e-4, POSITIVE, "highest learning rate, reached at the end of the warm-up", flag="lr",
                       gene=log(1e-5, 1e-2))
    lr_min: float = setting(3e-5, NATURAL, "learning rate at the beginning and at the end", flag="lr-min",
                           gene=log(1e-7, 1e-3, fits=lambda x, values: min(x, values["lr"])))
    warmup: int = setting(50, NATURAL, "steps from --lr-min to --lr, linearly; a cosine back follows", flag="warmup",
                         gene=log(1, 2000, whole=True))
    beta1: float = setting(0.9, SHARE, "AdamW: decay of the mean of gradients, for each step", flag="beta1",
                          gene=of_rest(0.5, 0.99))
    beta2: float = setting(0.95, SHARE, "AdamW: decay of the mean of squared gradients, for each step", flag="beta2",
                          gene=of_rest(0.9, 0.9995))
    eps: float = setting(1e-8, POSITIVE, "AdamW: added to the root of the mean square, which divides", flag="eps",
                        gene=log(1e-10, 1e-5))
    weight_decay: float = setting(0.1, NATURAL, "AdamW: decay of matrices, times the learning rate in each step; "
                                  "embeddings and vectors have none", flag="weight-decay", gene=log(1e-3, 1))
    grad_clip: float = setting(1.0, NATURAL, "gradient norm that larger ones are scaled to; 0: none", flag="grad-clip",
                              gene=log(0.1, 10))
    spike_threshold: float = setting(0.0, NATURAL, "gradient norm above which the update is skipped; 0: never",
                                     flag="spike-threshold", gene=in_steps(2.0, 5.0, 10.0, 20.0, 50.0, 0.0))
    eval_interval: int = setting(100, NATURAL, "steps between evaluations; the last step has one, too; 0: none at all",
                                 flag="eval-interval")
    eval_iters: int = setting(8, COUNT, "batches in an evaluation, the same ones each time", flag="eval-iters")
    eval_batch: int | None = setting(None, COUNT, "sequences in each of them; auto: --batch")
    log: str = setting("none", one_of("none", "tensorboard"), "further log of the run, or none", flag="log", bits=False)
    sample_interval: int = setting(0, NATURAL, "steps between samples of what the model writes; 0: at the end only",
                                   flag="sample-interval", bits=False)
    checkpoint_interval: int = setting(100, NATURAL, "steps between checkpoints; 0: at the end only",
                                       flag="checkpoint-interval", bits=False)
    keep: int = setting(3, NATURAL, "latest checkpoints to keep, besides the best one; 0: all", flag="keep", bits=False)
    keep_every: int = setting(0, NATURAL, "keep the checkpoints at multiples of this many steps, too; 0: none of them",
                              flag="keep-every", bits=False)
    retries: int = setting(0, NATURAL, "how often to go on from the last checkpoint after the device was lost",
                           flag="retries", bits=False)
    report: str = setting("none", Range(f"{ADDRESS}; or none", lambda x: x == "none" or is_address(x)), "board to send "
                          "the run to as it trains; its token is in the environment variable HELIOS_TOKEN",
                          flag="report", bits=False)


@dataclass(frozen=True)
class Config:
    """All settings of a run. Raises UserError where some cannot be used together."""

    model: GPTConfig = field(default_factory=GPTConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    challenge: ChallengeConfig = field(default_factory=ChallengeConfig)

    def __post_init__(self) -> None:
        for wrong, message in (*_clashes(self), *(_search_clashes(self) if self.search else ()),
                               *self.challenge.clashes(self.search, self.monitor, self.train.eval_interval)):
            if wrong:
                raise UserError(message)

    def replaced(self, section: str, **values: Any) -> Config:
        """Return these settings with other values in one section."""
        return replace(self, **{section: getattr(self, section).replaced(**values)})

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return the sections as config.json holds them; "search" and "challenge" are there only in runs that do it."""
        there = {"search": self.search or self.challenged, "challenge": self.challenged}
        return {name: getattr(self, name).to_dict() for name in SECTIONS if there.get(name, True)}

    @property
    def challenged(self) -> bool:
        """Return whether challengers may be trained beside the run's model."""
        return self.search.continuous or self.monitor.branches

    @property
    def eval_batch(self) -> int:
        """Return how many sequences are in a batch of an evaluation."""
        return self.train.eval_batch or self.train.batch_size

    def fingerprint(self, device: Mapping[str, str], weights: str = "") -> str:
        """Return 32 hex digits that name all that the bits of a training depend on, but for the texts, which have a
        hash of their own. device: what device_kind() returns. weights: a hash of those that it begins with, where they
        are not the seed's."""
        sections = self.to_dict()
        ignored = {s.key for s in SETTINGS if not s.bits}
        if not (self.search or self.challenged or self.monitor.acts):  # nothing is decided by evaluations
            ignored |= {"eval_interval", "eval_iters", "eval_batch"}
            del sections["monitor"]
        elif not self.monitor.actions:  # which did not exist
            del sections["monitor"]["actions"]
        del sections["data"]
        sections["train"] = {key: value for key, value in sections["train"].items() if key not in ignored}
        begun = {"weights": weights} if weights else {}
        return hashlib.sha256(canonical({**sections, "device": dict(device), **begun}).encode()).hexdigest()[:32]


PRESETS = resources.files("helios.train") / "presets"
SECTIONS: Mapping[str, type[Settings]] = {
    "model": GPTConfig, "train": TrainConfig, "data": DataConfig, "search": SearchConfig, "monitor": MonitorConfig,
    "challenge": ChallengeConfig}
SETTINGS = tuple(s for section, cls in SECTIONS.items() for s in declared(cls, section))
BY_KEY = {s.key: s for s in SETTINGS}
# A setting also answers to its flag's name: `--set layers=4`.
BY_NAME = {s.flag.replace("-", "_"): s for s in SETTINGS if s.flag} | BY_KEY
# Names that other trainers use, for the hint on an unknown key.
ELSEWHERE = {"learning_rate": "lr", "max_iters": "steps", "d_model": "n_embd", "gradient_accumulation_steps": "accum"}


def presets() -> list[str]:
    """Return the names of the presets."""
    return sorted(file.name.removesuffix(".toml") for file in PRESETS.iterdir())


def resolve(preset: str | None = None, file: str | Path | Mapping[str, Any] | None = None,
            assignments: Iterable[str] = (), flags: Mapping[str, Any] | None = None,
            base: Mapping[str, Any] | None = None, search_file: str | Path | None = None, origin: str = "") -> Config:
    """Return the settings of a run.

    file: a TOML file, or the tables of the one that messages call `origin`. assignments: "key=value" each. flags:
    values by key, None where not given. base: the sections of a run to resume, instead of the defaults. search_file:
    another TOML file, which also asks for a search. The model's settings begin with those of the run in init_from. The
    size of a vocabulary that is given, or of that run's, wins over a preset's. Formulas that a file names are known to
    every source. Raises UserError for unknown names, and for wrong types and values.
    """
    values: dict[str, Any] = {}
    own: dict[str, str] = {}  # activations
    before = {} if base is None else _flatten(base, "config.json", own)
    if preset is not None:
        values |= _preset(preset, own)
    size = values.pop("vocab_size", None)
    if file is not None:
        tables, name = (file, origin) if isinstance(file, Mapping) else (read_toml(file), str(file))
        values |= _flatten(tables, name, own)
    if search_file is not None:
        values |= {"mode": "ffn-activation"} | _flatten(read_toml(search_file), str(search_file), own)
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: expected key=value")
        named = _named(key.strip(), "--set")
        values[named.key] = named.read(value.strip(), f"--set {key.strip()}")
    for key, value in (flags or {}).items():
        if value is not None:
            named = _named(key, "flags")
            values[named.key] = named.read(value, f"--{named.flag}" if named.flag else key)
    if own:
        values |= {key: spelt_out(key, value, own) for key, value in values.items()
                   if BY_KEY[key].kind in (ACTIVATIONS, GENOMES)}
    if base is None and values.get("init_from"):
        theirs = GPTConfig.from_dict(parent(values["init_from"])[0].state["model"]).to_dict()
        size, values = theirs.pop("vocab_size"), theirs | values
    if base is None and values.get("tokenizer"):
        size = Tokenizer.of(values["tokenizer"]).vocab_size
    if size is not None:
        values = {"vocab_size": size} | values
    if before.get("mode") == "continuous" and values.get("mode") == "none":  # what opened windows goes with the search
        before = {key: value for key, value in before.items() if key not in OPENING}
    new = base is None or "actions" in values  # a run of before keeps its rules, whatever they are worth
    given, values = values, before | values
    if not values.keys().isdisjoint(OPENING):  # asking for windows asks for the search that has them
        values = {"mode": "continuous"} | values
    if values.keys() & {s.key for s in declared(SearchConfig)} - {"max_cost"}:  # setting up a search asks for one
        values = {"mode": "ffn-activation"} | values
    sections: dict[str, Any] = {section: cls(**{s.key: values[s.key] for s in declared(cls) if s.key in values})
                                for section, cls in SECTIONS.items()}
    found = Config(**sections)
    for s in declared(ChallengeConfig):
        if s.key in given and not found.challenged and getattr(found.challenge, s.key) != s.default:
            raise UserError(f"{s.key} is of windows of challengers, and nothing opens one; give --search continuous or "
                            "a rule that branches, or leave it out")
    for wrong, message in found.monitor.idle(found.train.backend, found.train.batch_size) if new else ():
        if wrong:
            raise UserError(message)
    return found


def _preset(name: str, own: dict[str, str]) -> dict[str, Any]:
    if name not in presets():
        raise UserError(f"unknown preset {name!r}{nearest(name, presets())}; there are {', '.join(presets())}")
    return _flatten(tomllib.loads(PRESETS.joinpath(f"{name}.toml").read_text("utf-8")), f"preset {name}", own)


def _flatten(tables: Mapping[str, Any], origin: str, own: dict[str, str]) -> dict[str, Any]:
    """Return {key: value} of the tables [model], [train], … and of bare keys; [activations] goes into `own`."""
    values = {}
    for name, content in tables.items():
        # By its type, for `data` is the name of a table and of a setting.
        if isinstance(content, Mapping):
            if name == "activations":
                own |= own_formulas(origin, content)
                continue
            if name not in SECTIONS:
                known = *SECTIONS, "activations"
                raise UserError(f"{origin}: unknown table [{name}]{nearest(name, known)}; "
                                f"there are {', '.join(f'[{s}]' for s in known)}")
            entries, section = content, name
        else:
            entries, section = {name: content}, ""
        for key, value in entries.items():
            named = _named(f"{section}.{key}" if section else key, origin)
            if named.key in values:
                raise UserError(f"{origin}: {key} is given twice, under one name or two, bare or in its table; "
                                "leave one out")
            values[named.key] = named.read(value, f"{origin}: {key}")
    return values


def _named(name: str, origin: str) -> Setting:
    section, dot, key = name.rpartition(".")
    found = BY_NAME.get(key.replace("-", "_"))
    if found is None:
        near = nearest(key, BY_NAME, ELSEWHERE) or "; helios-info --settings lists them"
        raise UserError(f"{origin}: unknown key {shown(key)}{near}")
    if dot and section != found.section:
        raise UserError(f"{origin}: {key} belongs in [{found.section}], not in [{section}]")
    return found


def _clashes(config: Config) -> Iterable[tuple[bool, str]]:
    """Yield (whether a rule on several settings is broken, the message), rule by rule."""
    t, m = config.train, config.monitor
    yield from m.clashes(t.batch_size, t.accum, t.grad_clip, t.eval_interval)
    yield t.lr_min > t.lr, f"--lr-min {t.lr_min:g} is above --lr {t.lr:g}; give one at most as high"
    yield (m.dynamic_lr == "entropy" and not (config.search and m.track_population_metrics),
           "dynamic_lr = entropy goes by the population of a search before the training, with "
           "track_population_metrics; give cusum, or --search ffn-activation")


def _search_clashes(config: Config) -> Iterable[tuple[bool, str]]:
    """Yield the same for the rules on a search."""
    s, t, m = config.search, config.train, config.monitor
    for genome in split_genomes(s.genomes):
        parsed("genomes", genome)  # raises UserError, as does the next
        model = replace(config.model, activation=genome)
        yield (len(set(model.activations)) > 1 and s.genome != "per_block",
               f"genomes: {genome} differs by block; set genome = per_block")
    fitness_coefficients(s.fitness, s.coefficients)  # raises UserError
    yield "memory_mb" in formula(s.fitness).needs, "fitness: memory_mb is not measured in a search; leave it out"
    pool = parsed("activation_pool", s.activation_pool)
    yield len({act.key for act in pool}) < len(pool), f"activation_pool: {s.activation_pool} names an activation twice"
    yield (s.genome == "formula" and not any(act.formula for act in pool),
           f"activation_pool: {s.activation_pool} has no formula, and genome = formula needs one; add gelu, say")
    free = s.genome in ("formula", "operators")
    yield s.selection == "random" and not free, "selection = random draws formulas: set genome = formula or operators"
    yield s.selection == "exhaustive" and free, "selection = exhaustive: formulas have no end"
    yield (s.early_stop and m.acts, "early_stop needs a constant rate and batch; leave adaptive_batch, dynamic_lr and "
           "actions off")
    yield (m.varies_batch and s.budget == "steps",
           f"{'adaptive_batch' if m.adaptive_batch else 'batch in actions'} makes steps of different sizes: set "
           "budget = tokens")
    for what in m.changes.keys() & {"stop", "branch"}:
        yield True, f"actions: {what}: a search has many trainings, and its budget ends them; leave {what} out"
    yield m.dynamic_lr == "entropy" and s.reuses, "dynamic_lr = entropy: generations differ in rate; set reuse = false"
    yield ("run" in (s.candidate_schedule, s.after_schedule) and (s.budget != "steps" or s.reuses or s.early_stop),
           "a schedule of the run through the search must know the search's length: it needs budget = steps, reuse = "
           "false and no early_stop")
    yield (s.candidate_lr is not None and s.candidate_lr < t.lr_min,
           f"candidate_lr {s.candidate_lr} is below --lr-min {t.lr_min:g}")
    yield (s.match == "params" and config.model.ffn_dim not in (None, "matched"),
           "match = params chooses the MLPs' width itself; leave --ffn-dim out")
    yield (s.early_stop and (s.rank_by != "val_loss" or s.candidate_schedule != "constant" or s.budget != "steps"),
           "early_stop bounds the validation loss of a training at a constant rate and known length: it needs rank_by "
           "= val_loss, candidate_schedule = constant and budget = steps")
    yield (s.after == "continue" and s.after_schedule == "run",
           "after = continue goes on from the winner's weights, with a schedule of its own; leave after_schedule out")
    yield t.init_from is not None, "--init-from: the candidates of a search begin with new weights; give one of both"
    yield t.eval_interval == 0, "--eval-interval 0: a search ranks by evaluations; give an interval"
