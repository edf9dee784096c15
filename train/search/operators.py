"""Genomes, and the operators that make new ones: mutation, crossover, fusion.

A genome is an activation of the MLPs and settings, of which it holds only those that are not as the base has them, so
that one config has one genome. What may vary, and from where, is a Space.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from helios.formula import Formula
from helios.model.activations import TABLE, activation, joined, parsed, split
from helios.model.config import Dropouts, GPTConfig
from helios.model.genes import Gene
from helios.train.config import BY_KEY
from helios.train.records.rows import canonical
from helios.train.search.mutations import TRIES, Draws, mutate

PLACES = tuple(f"{place}_dropout" for place in Dropouts._fields)
POLICIES = tuple(map(tuple, (Dropouts(), Dropouts(attn=0.1), Dropouts(resid=0.1, mlp=0.1), Dropouts(embd=0.1),
                             *(Dropouts(p, p, p, p) for p in (0.05, 0.1, 0.2)))))
# Genes of several settings; a setting's own stands beside it.
COMBINED = {"dropouts": Gene("set", values=POLICIES, settings=PLACES, part="architecture")}
STEADYING = ("qk_norm", "norm", "softcap", "logit_softcap", "dropouts")  # the genes of genome = operators
LEAST, MOST = 0.05, 0.25  # of a gene's range, the move of a number
NEAREST, FARTHEST = 0.25, 0.75  # of the way from one parent to the other, where a number is fused


class Genome(NamedTuple):
    """What makes a candidate of the base: an activation, as GPTConfig takes it, and settings of its own."""

    activation: str
    settings: Mapping[str, Any] = MappingProxyType({})


class Born(NamedTuple):
    """A genome with its birth: the operators, the other parent by position, what changed in words, and how many
    formulas were refused since they explode."""

    genome: Genome
    operator: str
    changes: Sequence[str] = ()
    refused: int = 0
    other: int | None = None


class Parent(Protocol):
    """Whom a child may have its genes from."""

    @property
    def name(self) -> str: ...

    @property
    def genome(self) -> Genome: ...


class Rates(Protocol):
    """How often children differ from their parents."""

    @property
    def mutation_rate(self) -> float: ...

    @property
    def crossover_rate(self) -> float: ...


class Space(NamedTuple):
    """Where genomes come from. own: the base's values of all settings that vary or must fit those that do. pool:
    activations, as they are spelt; none where these do not vary. formulas: whether activations mutate as formulas, too,
    else only to others of the pool. fitted: genes that are made to go with the others. fuses: whether two parents may
    also meet half way. per_block: whether each block has an activation of its own; `own` has n_layer then."""

    genes: tuple[Gene, ...]
    own: Mapping[str, Any]
    activation: str
    pool: Sequence[str] = ()
    formulas: bool = True
    fitted: tuple[Gene, ...] = ()
    fuses: bool = False
    per_block: bool = False

    @property
    def size(self) -> int:
        """Return the number of genes, the activation being one."""
        return len(self.genes) + bool(self.pool)

    def values(self, genome: Genome) -> dict[str, Any]:
        """Return the values of all its settings."""
        return {**self.own, **genome.settings}

    def genome(self, text: str, values: Mapping[str, Any]) -> Genome:
        """Return the genome of an activation and values, which are first made to fit."""
        now = dict(values)
        for gene in self.fitted:
            assert gene.fits
            now[gene.name] = gene.fits(now[gene.name], now)
        if self.per_block:
            text = alike(self.blocks(text, now["n_layer"]))
        return Genome(text, {name: now[name] for name, own in self.own.items() if now[name] != own})

    def blocks(self, text: str, n_layer: int) -> list[str]:
        """Return an activation for each of the blocks; what there is too few of, the last goes on."""
        found = list(split(text))
        return [*found, *found[-1:] * n_layer][:n_layer]


def gene(name: str) -> Gene | None:
    """Return the gene of a setting, or of several, as the tables declare it; None where they declare none."""
    if name in COMBINED:
        return COMBINED[name]._replace(name=name)
    found = BY_KEY[name].gene
    return found and found._replace(name=name, settings=(name,), part=found.part or part_of(name))


def part_of(name: str) -> str:
    """Return the part that the gene of a setting belongs to, where it does not say."""
    return "architecture" if BY_KEY[name].section == "model" else "dynamics"


def steadying(model: GPTConfig, pool: Sequence[str]) -> Space:
    """Return the space of genome = operators: activations and what steadies the run's model."""
    genes = tuple(found for name in STEADYING if (found := gene(name)))
    own = {name: values_in_effect(model)[name] for found in genes for name in found.settings}
    return Space(tuple(found.with_values(found.of(own)) for found in genes), own, model.activation, pool)


def values_in_effect(model: GPTConfig) -> dict[str, Any]:
    """Return a model's settings, dropouts as they are in effect."""
    return model.to_dict() | dict(zip(PLACES, model.dropouts, strict=True))


# -- texts ------------------------------------------------------------------------------------------------------------

def key(genome: Genome) -> str:
    """Return a text that is the same for genomes of equal configs."""
    text = alike([act.key for act in parsed("genome", genome.activation)])
    return f"{text} {canonical(dict(genome.settings))}" if genome.settings else text


def alike(genes: Sequence[str]) -> str:
    """Return activations of blocks in one text, the same in all blocks once."""
    return genes[0] if len(set(genes)) == 1 else joined(genes)


def spelt(formula: Formula, pool: Sequence[str]) -> str:
    """Return a formula as the pool or the table spells it, else its text."""
    return next((name for name in (*pool, *TABLE) if activation(name).key == formula.key), str(formula))


def shown(settings: Mapping[str, Any]) -> str:
    """Return the settings in short form, as "softcap 0, qk_norm on, attn+resid dropout 0.1"."""
    return ", ".join(_said({name: _word(value) for name, value in settings.items()}))


def described(text: str, settings: Mapping[str, Any]) -> str:
    """Return an activation's text with the settings, if there are any."""
    return f"{text} with {shown(settings)}" if settings else text


def _said(words: Mapping[str, str]) -> list[str]:
    """Return each name with its word; the dropouts with the same word are put together."""
    places: dict[str, list[str]] = {}
    for name, word in words.items():
        if name in PLACES:
            places.setdefault(word, []).append(name.removesuffix("_dropout"))
    return [*(f"{name} {word}" for name, word in words.items() if name not in PLACES),
            *(f"{'+'.join(names)} dropout {word}" for word, names in places.items())]


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return ("off", "on")[value]
    return "auto" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return _said({name: _word(value) if isinstance(value, bool) else f"{_word(before[name])}→{_word(value)}"
                  for name, value in now.items() if value != before[name]})


# -- operators --------------------------------------------------------------------------------------------------------

def founders(space: Space, draws: Iterable[Draws]) -> list[Genome]:
    """Return a genome for each of the draws: the base's own, the other activations of the pool with the base's
    settings, then random ones."""
    untouched = list({key(genome): genome for genome in map(Genome, (space.activation, *space.pool))}.values())
    return [untouched[i] if i < len(untouched) else drawn(space, numbers) for i, numbers in enumerate(draws)]


def drawn(space: Space, draws: Draws) -> Genome:
    """Return a random genome: each activation of the pool, each value of a gene and each part of a range, in its scale,
    is as likely as the others."""
    text = draws.pick(space.pool) if space.pool else space.activation
    now = dict(space.own)
    for one in space.genes:
        value = one.at(draws.unit()) if one.numeric else draws.pick(one.values)
        now |= zip(one.settings, value, strict=True)
    if space.pool and space.per_block:
        text = joined([draws.pick(space.pool) for _ in range(now["n_layer"])])
    return space.genome(text, now)


def child(space: Space, genome: Genome, others: Sequence[Parent], taken: Collection[str], rates: Rates,
          draws: Draws) -> Born:
    """Return a child of a genome.

    With probability crossover_rate it has another parent, too, and takes each gene from either, evenly, or, where the
    space fuses and as often, a value between both; with probability mutation_rate it mutates. What equals its parent or
    is in `taken` (keys) is drawn again, at most TRIES times; then it is as its parent. others: the other
    parents.
    """
    refused, met = 0, None
    mutates, crosses = draws.chance(rates.mutation_rate), bool(others) and draws.chance(rates.crossover_rate)
    for _ in range(TRIES if mutates or crosses else 0):
        made, words, changes, operators = genome, list[str](), list[str](), list[str]()
        if crosses:
            met = draws.pick(range(len(others)))
            other = others[met]
            operators = ["fusion" if space.fuses and draws.chance(0.5) else "crossover"]
            made = (_fused if operators == ["fusion"] else _crossed)(space, genome, other.genome, draws)
            words = [f"{operators[0]} with {other.name}"]
        if mutates:
            made, changes, more = mutated(space, made, draws)
            refused += more
            operators.append("mutation")
        if (changes or not mutates) and (now := key(made)) not in taken and now != key(genome):
            return Born(made, "+".join(operators), words + changes, refused, met)
    return Born(genome, "clone")


def mutated(space: Space, genome: Genome, draws: Draws, alone: bool = False) -> tuple[Genome, list[str], int]:
    """Return the genome with a change of one gene, each as likely as the others and the activation being one of them,
    and, unless it is to change alone, of any further one with a probability of one over their number; the changes in
    words; and how many formulas were refused. A number moves by LEAST to MOST of its range, in its scale."""
    text, words, refused = genome.activation, list[str](), 0
    before = space.values(genome)
    now, first = dict(before), draws.pick(range(space.size))
    for i, one in enumerate((*((None,) if space.pool else ()), *space.genes)):
        if i != first and (alone or not draws.chance(1 / space.size)):
            continue
        if one is None:
            text, said, refused = _other_block(text, space, before, draws) or _family(text, space, draws)
            words += [said] if said else []
        else:
            now |= zip(one.settings, _moved(one, one.of(now), draws), strict=True)
    made = space.genome(text, now)
    return made, words + _changed(before, space.values(made)), refused


def _other_block(text: str, space: Space, values: Mapping[str, Any], draws: Draws) -> tuple[str, str, int] | None:
    """Return the activations with another of the pool in one block, and this in words; None where blocks are alike."""
    if not space.per_block:
        return None
    blocks = space.blocks(text, values["n_layer"])
    at = draws.pick(range(len(blocks)))
    old, rest = blocks[at], [name for name in space.pool if key(Genome(name)) != key(Genome(blocks[at]))]
    if not rest:
        return text, "", 0
    blocks[at] = draws.pick(rest)
    return alike(blocks), f"block {at}: {old}→{blocks[at]}", 0


def _family(text: str, space: Space, draws: Draws) -> tuple[str, str, int]:
    """Return another activation, how it came from that one, and how many formulas were refused: by a mutation of its
    formula or from the pool, each as likely where both can be."""
    rest = [name for name in space.pool if key(Genome(name)) != key(Genome(text))]
    formula = activation(text).formula if space.formulas and len(split(text)) == 1 else None
    if formula and (not rest or draws.chance(0.5)):
        found, words, refused = mutate(formula, (), draws)
        return spelt(found, space.pool) if words else text, words, refused
    if not rest:
        return text, "", 0
    new = draws.pick(rest)
    return new, f"{text}→{new}", 0


def _moved(one: Gene, value: tuple[Any, ...], draws: Draws) -> tuple[Any, ...]:
    if one.numeric:
        step = (LEAST + (MOST - LEAST) * draws.unit()) * (1 if draws.chance(0.5) else -1)
        place = min(1.0, max(0.0, one.place(value) or 0.0))
        new = one.at(place + step if 0 <= place + step <= 1 else place - step)
        if one.whole and new == value:
            new = (value[0] + (one.whole if step > 0 else -one.whole),)
            new = new if one.low <= new[0] <= one.high else (2 * value[0] - new[0],)
        return new
    values = one.with_values(value).values
    at = values.index(value)
    rest = [v for i, v in enumerate(values) if i != at and (one.kind != "steps" or abs(i - at) == 1)]
    return draws.pick(rest) if rest else value


def _crossed(space: Space, genome: Genome, other: Genome, draws: Draws) -> Genome:
    both = [space.values(genome), space.values(other)]
    now = dict(both[0])
    for one in space.genes:
        now |= zip(one.settings, one.of(draws.pick(both)), strict=True)
    return space.genome(_met(space, genome, other, draws), now)


def _fused(space: Space, genome: Genome, other: Genome, draws: Draws) -> Genome:
    """Return a genome between two: numbers are means in their scale, of random weight; of values in steps it has any
    from one parent's to the other's; all else is one parent's."""
    both = [space.values(genome), space.values(other)]
    now = dict(both[0])
    for one in space.genes:
        a, b = (one.of(values) for values in both)
        now |= zip(one.settings, _between(one, a, b, draws), strict=True)
    return space.genome(_met(space, genome, other, draws), now)


def _met(space: Space, genome: Genome, other: Genome, draws: Draws) -> str:
    if not space.per_block:
        return draws.pick((genome, other)).activation
    most = max(space.values(one)["n_layer"] for one in (genome, other))
    pairs = zip(*(space.blocks(one.activation, most) for one in (genome, other)), strict=True)
    return joined([draws.pick(pair) for pair in pairs])


def _between(one: Gene, a: tuple[Any, ...], b: tuple[Any, ...], draws: Draws) -> tuple[Any, ...]:
    if a == b:
        return a
    if one.numeric:
        weight = NEAREST + (FARTHEST - NEAREST) * draws.unit()
        return one.at((1 - weight) * (one.place(a) or 0.0) + weight * (one.place(b) or 0.0))
    if one.kind == "set":
        return draws.pick((a, b))
    values = one.with_values(a, b).values
    low, high = sorted((values.index(a), values.index(b)))
    return draws.pick(values[low:high + 1])


def largest(space: Space, model: GPTConfig) -> dict[str, Any]:
    """Return the settings of the model with which it has most parameters, and takes most memory, each by itself."""
    found: dict[str, Any] = {}
    for one in space.genes:
        ends = (one.at(0.0), one.at(1.0)) if one.numeric else one.values
        each = [dict(zip(one.settings, value, strict=True)) for value in (*ends, one.of(space.own))]
        found |= max(each, key=lambda given: replace(model, **given).parameters())
    return found
