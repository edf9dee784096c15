"""What can be set: one table, by whose rules the command line, TOML files and --set are all read."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from helios.backends.backend import PRECISIONS
from helios.errors import UserError, nearest
from helios.model.config import MLPS
from helios.train.monitors.fitness import FITNESS

Check = tuple[str, Callable[[Any], bool]]  # what is expected, in words, and the test for it
ANY: Check = ("", lambda x: True)
COUNT: Check = ("at least 1", lambda x: x >= 1)
NATURAL: Check = ("at least 0", lambda x: x >= 0)
POSITIVE: Check = ("greater than 0", lambda x: x > 0)
PORTION: Check = ("from 0 to 1", lambda x: 0 <= x <= 1)
SHARE: Check = ("at least 0 and less than 1", lambda x: 0 <= x < 1)


def one_of(*names: str) -> Check:
    return ("one of " + ", ".join(names), lambda x: x in names)


def _listed(value: Any) -> Any:
    """A text that is a list in JSON, as that list: --set takes what a file takes."""
    return json.loads(value) if isinstance(value, str) and value.lstrip().startswith("[") else value


def _names(value: Any) -> str:
    """Names with commas between, or a list of them; GPTConfig knows which there are."""
    value = _listed(value)
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise ValueError
    return ",".join(part.strip() for name in names for part in name.split(","))


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


def _genomes(value: Any) -> str:
    """Genomes with semicolons between, or a list of them; "" for none."""
    value = _listed(value)
    given = value.split(";") if isinstance(value, str) else value
    if not isinstance(given, list):
        raise ValueError
    return ";".join(_names(genome) for genome in given if genome)


def _switch(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or value.lower() not in ("true", "false"):
        raise ValueError
    return value.lower() == "true"


def _terms(value: Any) -> str:
    """"a=1.0,b=2.0" in alphabetic order, from such a text or a table."""
    if isinstance(value, str):
        value = dict(term.partition("=")[::2] for term in value.split(",") if term.strip())
    if not isinstance(value, dict):
        raise ValueError
    return ",".join(f"{name.strip()}={_number(x)}" for name, x in sorted(value.items()))


class Kind(NamedTuple):
    words: str  # in messages
    metavar: str
    parse: Callable[[Any], Any]  # raises ValueError


INT = Kind("a whole number", "N", _integer)
FLOAT = Kind("a number", "X", _number)
TEXT = Kind("text", "TEXT", _text)
COUNT_OR_AUTO = Kind("a whole number or auto", "N", lambda x: None if x == "auto" else _integer(x))
WIDTH = Kind("a whole number, auto or matched", "N",
             lambda x: None if x == "auto" else x if x == "matched" else _integer(x))
RATE = Kind("a number or auto", "X", lambda x: None if x == "auto" else _number(x))
SWITCH = Kind("true or false", "BOOL", _switch)
GENOMES = Kind("genomes with semicolons between, or a list of them", "GENOME[;GENOME…]", _genomes)
TERMS = Kind("NAME=NUMBER, several with commas between", "NAME=X[,NAME=X…]", _terms)
NAMES = Kind("a name or several with commas between", "NAME[,NAME…]", _names)


class Setting(NamedTuple):
    flag: str  # "" where there is none
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
    Setting("ffn-dim", "model", "ffn_dim", WIDTH, ("at least 1", lambda x: not isinstance(x, int) or x >= 1),
            "Width of the MLP, F; auto: 4D, for swiglu 8D/3 rounded up to 64; matched: 8D² parameters in all."),
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
    Setting("search", "search", "mode", TEXT, one_of("none", "ffn-activation"),
            "ffn-activation: search for the MLP's activation first, then train with the winner."),
    Setting("max-cost", "search", "max_cost", FLOAT, POSITIVE, "Refuse a search of more training tokens than this."),

    # -- the search, in the table [search] of a file or by --set ------------------------------------------------------
    Setting("", "search", "activation_pool", NAMES, ANY, "what may be tried"),
    Setting("", "search", "genome", TEXT, one_of("global", "per_block"), "one activation for all blocks, or one each"),
    Setting("", "search", "genomes", GENOMES, ANY, "what generation 0 is made of, in the place of the pool's"),
    Setting("", "search", "population_size", INT, COUNT, "candidates in a generation"),
    Setting("", "search", "generations", INT, COUNT, ""),
    Setting("", "search", "replicates", INT, COUNT, "seeds for each candidate; from two on the noise is known"),
    Setting("", "search", "budget", TEXT, one_of("steps", "tokens", "seconds"), "of which all candidates have as much"),
    Setting("", "search", "steps_per_candidate", INT, COUNT, "the budget in steps, of each replicate"),
    Setting("", "search", "tokens_per_candidate", INT, COUNT, "the budget in tokens"),
    Setting("", "search", "seconds_per_candidate", FLOAT, POSITIVE, "the budget in seconds of training"),
    Setting("", "search", "candidate_eval_interval", INT, NATURAL,
            "steps between a candidate's evaluations; 0: at its end only"),
    Setting("", "search", "selection", TEXT, one_of("topk", "tournament", "exhaustive"),
            "parents: the better half; winners of tournaments; or no children, but all genomes"),
    Setting("", "search", "tournament_size", INT, COUNT, ""),
    Setting("", "search", "elitism", SWITCH, ANY, "parents stay in the population with their results"),
    Setting("", "search", "mutation_rate", FLOAT, PORTION, "how likely a child (per_block: each block) mutates"),
    Setting("", "search", "crossover_rate", FLOAT, PORTION, "per_block: how likely a child has two parents"),
    Setting("", "search", "diversity_bonus", FLOAT, NATURAL, "in units of the score, for a child of a new genome"),
    Setting("", "search", "diversity_decay", TEXT, one_of("none", "linear", "cosine"), "of the bonus over generations"),
    Setting("", "search", "rank_by", TEXT, one_of("val_loss", "fitness"), ""),
    Setting("", "search", "fitness", TEXT, one_of(*FITNESS), "the formula, where rank_by is fitness"),
    Setting("", "search", "fitness_coefficients", TERMS, ANY, "those that differ from the formula's own"),
    Setting("", "search", "match", TEXT, one_of("rule", "params"),
            "MLP width by the activation's rule, or so that all have as many parameters"),
    Setting("", "search", "shared_init", SWITCH, ANY, "the same initial values for all candidates"),
    Setting("", "search", "shared_batches", SWITCH, ANY, "the same batches in the same order for all candidates"),
    Setting("", "search", "reuse", SWITCH, ANY, "a genome that was measured is not trained again"),
    Setting("", "search", "candidate_schedule", TEXT, one_of("constant", "run"),
            "warm-up, then constant, for each candidate; or the run's schedule on through all of them"),
    Setting("", "search", "candidate_lr", RATE, ("greater than 0", lambda x: x is None or x > 0), "auto: the run's lr"),
    Setting("", "search", "candidate_warmup", COUNT_OR_AUTO, ("at least 0", lambda x: x is None or x >= 0),
            "steps; auto: half of the budget, at most the run's warmup"),
    Setting("", "search", "early_stop", SWITCH, ANY, "end candidates that cannot win any more"),
    Setting("", "search", "after", TEXT, one_of("restart", "continue", "none"),
            "train the winner from fresh weights, from its own, or not at all"),
    Setting("", "search", "after_schedule", TEXT, one_of("own", "run"),
            "after the search: a warm-up and cosine of its own, or the rest of the run's"),

    # -- monitors and controls, in the table [monitor] ----------------------------------------------------------------
    Setting("", "monitor", "cusum", SWITCH, ANY, "watch gradient norm, clipping, speed and validation loss"),
    Setting("", "monitor", "cusum_sensitivity", FLOAT, POSITIVE, "alarm threshold in standard deviations"),
    Setting("", "monitor", "cusum_slack", FLOAT, NATURAL, "drift that is let pass, in standard deviations"),
    Setting("", "monitor", "cusum_window", INT, ("at least 2", lambda x: x >= 2), "values that make a baseline"),
    Setting("", "monitor", "cusum_grace", INT, NATURAL, "values left out before a baseline"),
    Setting("", "monitor", "metrics_interval", INT, NATURAL, "steps between looks at the weights; 0: never"),
    Setting("", "monitor", "track_weight_entropy", SWITCH, ANY, ""),
    Setting("", "monitor", "track_effective_rank", SWITCH, ANY, ""),
    Setting("", "monitor", "track_free_energy", SWITCH, ANY, ""),
    Setting("", "monitor", "track_layer_grads", SWITCH, ANY, ""),
    Setting("", "monitor", "track_mi_profiles", SWITCH, ANY, "mutual information of input, representation and output"),
    Setting("", "monitor", "track_population_metrics", SWITCH, ANY, ""),
    Setting("", "monitor", "free_energy_beta", FLOAT, NATURAL, "weight of the entropy in the free energy"),
    Setting("", "monitor", "complexity", TEXT, one_of("parameters", "entropy", "description"), ""),
    Setting("", "monitor", "plateau_evals", INT, NATURAL, "evaluations that bring no better one; 0: off"),
    Setting("", "monitor", "plateau_delta", FLOAT, NATURAL, "what counts as better, in nats"),
    Setting("", "monitor", "adaptive_batch", SWITCH, ANY, "let alarms change the batch"),
    Setting("", "monitor", "batch_min", INT, COUNT, ""),
    Setting("", "monitor", "batch_max", INT, COUNT, ""),
    Setting("", "monitor", "batch_step", INT, COUNT, "sequences more or fewer at a time"),
    Setting("", "monitor", "calm_steps_before_restore", INT, COUNT, "quiet steps before a control goes back a step"),
    Setting("", "monitor", "dynamic_lr", TEXT, one_of("none", "cusum", "entropy"),
            "let alarms, or the population's entropy, change the learning rate"),
)
SECTIONS = ("model", "train", "data", "search", "monitor")
BY_KEY = {s.key: s for s in SETTINGS}
# A setting also answers to its flag's name: `--set layers=4`.
BY_NAME = {s.flag.replace("-", "_"): s for s in SETTINGS if s.flag} | BY_KEY
# What others call some of them, for the hint on an unknown key.
ELSEWHERE = {"learning_rate": "lr", "max_iters": "steps", "d_model": "n_embd", "gradient_accumulation_steps": "accum"}


def named(name: str, origin: str) -> Setting:
    section, dot, key = name.rpartition(".")
    setting = BY_NAME.get(key.replace("-", "_"))
    if setting is None:
        raise UserError(f"{origin}: unknown key {key!r}{nearest(key, BY_NAME, 0.0, ELSEWHERE)}")
    if dot and section != setting.section:
        raise UserError(f"{origin}: {key} belongs in [{setting.section}], not in [{section}]")
    return setting


def parse(setting: Setting, value: Any, origin: str) -> Any:
    try:
        parsed = setting.kind.parse(value)
    except (ValueError, OverflowError):
        raise UserError(f"{origin}: expected {setting.kind.words}, got {value!r}") from None
    words, accepts = setting.check
    if not accepts(parsed):
        near = nearest(parsed, words.removeprefix("one of ").split(", ")) if setting.kind is TEXT else ""
        raise UserError(f"{origin}: expected {words}, got {value!r}{near}")
    return parsed
