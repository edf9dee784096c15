"""The space that an experiment's configs come from: which settings vary, in what ranges, from which run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from helios.errors import UserError, nearest
from helios.model.activations import joined, parsed, split
from helios.model.genes import Gene, any_of, in_steps
from helios.model.settings import SWITCH, Setting, shown
from helios.train.config import BY_KEY, BY_NAME, SETTINGS, Config
from helios.train.evolve.config import Asked
from helios.train.search.operators import COMBINED, Genome, Space, gene, part_of, values_in_effect

ACTIVATION = "activation"
MICRO_BATCH = "micro_batch"  # the gene of batch and accum together, whose product stays
OWN = frozenset((ACTIVATION, MICRO_BATCH, *COMBINED))
SECTIONS = ("model", "train", "monitor")  # whose settings may vary
# But for these, which say what a candidate is given and how it is measured.
FIXED = frozenset(("seed", "steps", "eval_interval", "eval_iters", "eval_batch", "vocab_size", "adaptive_batch"))
SPAN = re.compile(r"\s*[\d.]+(e[-+]?\d+)?\s*[-–:,]\s*[\d.]+(e[-+]?\d+)?\s*")  # how others write a range
# Settings that also say what others are, where these are not given.
IMPLIED = {"dropout": ("attn_dropout", "resid_dropout", "mlp_dropout")}


def space_of(asked: Asked) -> Space:
    """Return the space of an experiment. Raises UserError for a gene that is unknown, out of its range or without one,
    and where two vary the same setting."""
    base, evolve = asked.base, asked.evolve
    own = values_of(base)
    genes = [_gene(name, narrowed, own) for name, narrowed in asked.genes.items() if _name(name) != ACTIVATION]
    genes = [_in_time(one, asked) for one in genes]
    by_setting: dict[str, str] = {}
    for one in genes:
        for key in (*one.settings, *IMPLIED.get(one.name, ())):
            if key in by_setting:
                raise UserError(f"genes {by_setting[key]} and {one.name} both vary {key}; leave one out")
            by_setting[key] = one.name
    if not asked.genes:
        raise UserError("no gene to vary; give --genes, as lr,beta2,weight_decay")
    fitted = tuple(found for s in SETTINGS if s.gene and s.gene.fits and (found := gene(s.key)))
    needed = {*by_setting, *(one.name for one in fitted), "n_embd", "lr", "n_layer"}
    pool: tuple[str, ...] = ()
    narrowed = {_name(name): value for name, value in asked.genes.items()}
    if ACTIVATION in narrowed:
        text = evolve.activation_pool if narrowed[ACTIVATION] is True else narrowed[ACTIVATION]
        text = joined(text) if isinstance(text, list) and text and all(isinstance(x, str) for x in text) else text
        if not isinstance(text, str):
            raise UserError(f"gene activation: expected activations, as A|B, got {shown(text)}")
        acts = parsed("gene activation", text)
        pool = tuple(act.text for act in acts)
        if evolve.activations != "formula" and len({act.key for act in (*base.model.activations, *acts)}) == 1:
            raise UserError(f"gene activation: {text} alone leaves nothing to vary; give others, as A|B")
    space = Space(tuple(one if one.numeric else one.with_values(one.of(own)) for one in genes),
                  {key: value for key, value in own.items() if key in needed}, base.model.activation, pool,
                  formulas=evolve.activations == "formula", fitted=fitted, fuses=True,
                  per_block=bool(pool) and evolve.activations == "per_block")
    _check(base, space)
    return space


def _check(base: Config, space: Space) -> None:
    """Raise UserError where a gene has a value that the base cannot have, every other setting being its own."""
    for one in space.genes:
        for value in (one.at(0.0), one.at(1.0)) if one.numeric else one.values:
            now = {**space.own, **dict(zip(one.settings, value, strict=True))}
            try:
                configured(base, space.genome(space.activation, now))
            except UserError as error:
                raise UserError(f"gene {one.name}: {error}") from error


def configured(base: Config, genome: Genome, **train: Any) -> Config:
    """Return a genome's config: the base's with its activation and settings, and these of the training. Raises
    UserError where they cannot be used together."""
    found = {section: dict[str, Any]() for section in SECTIONS} | {"train": train}
    for key, value in genome.settings.items():
        found[BY_KEY[key].section][key] = value
    if genome.activation != base.model.activation:
        found["model"][ACTIVATION] = genome.activation
    for section, values in found.items():
        if values:
            base = base.replaced(section, **values)
    return base


def given(asked: Asked, space: Space) -> list[Genome]:
    """Return the genomes of the runs that the first candidates are as, as far as it varies in the space."""
    found, vary = [], {key for one in space.genes for key in one.settings}
    for values in asked.given:
        now = {key: values.get(key, own) if key in vary else own for key, own in space.own.items()}
        text = values[ACTIVATION] if space.pool else space.activation
        if len(split(text)) > 1 and space.pool and not space.per_block:
            raise UserError(f"--seed-from: a run has the activations {text}, by block; give --set "
                            "activations=per_block")
        found.append(space.genome(text, now))
    return found


def described(one: Gene) -> dict[str, Any]:
    """Return a gene as plain values, for the journal."""
    return {"name": one.name, "kind": one.kind, "part": one.part, "low": one.low, "high": one.high,
            "values": [*map(plain, one.values)],
            "settings": list(one.settings)}


def plain(value: tuple[Any, ...]) -> Any:
    """Return a gene's value as plain values: that of its setting, or a list for several."""
    return list(value) if len(value) > 1 else value[0]


def _in_time(one: Gene, asked: Asked) -> Gene:
    """Return the gene, where it is the warm-up with an end within half of the steps that the base has in the budget: a
    longer one would never reach its rate."""
    evolve, t = asked.evolve, asked.base.train
    if one.name != "warmup" or not one.numeric or evolve.budget != "tokens":
        return one
    half = int(evolve.per_candidate / (t.batch_size * t.accum * asked.base.model.block_size)) // 2
    if one.low >= half:
        raise UserError(f"gene warmup: its range begins at {one.low:g}, and half of a training's steps are {half:,}; "
                        "give a lower one, or a higher --per-candidate")
    return one._replace(high=min(one.high, half))


def values_of(base: Config) -> dict[str, Any]:
    """Return the values of all settings that may vary, dropouts as they are in effect."""
    return values_in_effect(base.model) | base.train.to_dict() | base.monitor.to_dict()


def _name(name: str) -> str:
    """Return a gene's own name, for a flag's names it, too."""
    key = name.replace("-", "_")
    return BY_NAME[key].key if key in BY_NAME and key not in OWN else key


def _gene(given: str, narrowed: Any, own: Mapping[str, Any]) -> Gene:
    name = _name(given)
    if name in OWN:
        return _combined(name, narrowed, own)
    if name not in BY_KEY or BY_KEY[name].section not in SECTIONS:
        known = (*(s.key for s in SETTINGS if s.gene), *sorted(OWN))
        raise UserError(f"unknown gene {given!r}{nearest(given, known)}; there are {', '.join(known)}")
    setting, declared = BY_KEY[name], gene(name)
    if name in FIXED or not (setting.bits or declared):
        raise UserError(f"gene {name}: candidates are compared by trainings that are alike in it; leave it out")
    if narrowed is False:
        raise UserError(f"gene {name}: false leaves nothing to vary; leave it out")
    if narrowed is True:
        if declared is None:
            raise UserError(f"gene {name} has no range of its own; give one, as {name}=LOW..HIGH or {name}=A|B")
        return declared
    found = _narrowed(setting, narrowed)
    if declared:  # keeps its scale
        found = found._replace(part=declared.part, fits=declared.fits)
        if found.numeric and declared.numeric and (found.low > 0 or declared.kind != "log"):
            found = found._replace(kind=declared.kind)
    return found._replace(name=name, settings=(name,), part=found.part or part_of(name))


def _combined(name: str, narrowed: Any, own: Mapping[str, Any]) -> Gene:
    if narrowed is not True:
        raise UserError(f"gene {name} is of several settings and has its own values; it takes no range")
    if name in COMBINED:
        found = gene(name)
        assert found
        return found
    product = own["batch_size"] * own["accum"]
    pairs = tuple((n, product // n) for n in range(1, product + 1) if product % n == 0)
    if len(pairs) < 2:
        raise UserError(f"gene {name}: a step of one sequence has no other parts; raise --batch or --accum")
    return Gene("steps", values=pairs, settings=("batch_size", "accum"), part="runtime", name=name)


def _narrowed(setting: Setting, given: Any) -> Gene:
    """Return the gene of a range, "LOW..HIGH", or of values: a list, or a text with | between them."""
    origin = f"gene {setting.key}"
    if isinstance(given, str) and ".." in given:
        ends = [setting.read(end.strip(), origin) for end in given.split("..", 1)]
        if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends):
            raise UserError(f"{origin}: {shown(given)} is a range, and {setting.key} is no number; give values, as A|B")
        low, high = ends
        if low >= high:
            raise UserError(f"{origin}: the range {given} is empty; give the lower end first")
        return Gene("linear", low, high, whole=isinstance(low, int) and isinstance(high, int))
    if isinstance(given, str) and SPAN.fullmatch(given):
        raise UserError(f"{origin}: a range is LOW..HIGH, and values are A|B; {shown(given)} is neither")
    parts = given if isinstance(given, list) else str(given).split("|")
    values = list(dict.fromkeys(setting.read(part.strip() if isinstance(part, str) else part, origin)
                                for part in parts))
    if len(values) < 2:
        raise UserError(f"{origin}: {shown(given)} is one value; give several, as A|B, or a range, as LOW..HIGH")
    ordered = setting.kind is not SWITCH and all(isinstance(value, int | float) for value in values)
    return (in_steps if ordered else any_of)(*values)
