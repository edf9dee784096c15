"""Genomes: an activation of the MLPs and, with genome = operators, settings of the model that steady it.

A genome holds only settings that are not as the run has them, so that one model has one genome. GENES is the table of
what varies: another setting of the model is a line there.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

from helios.formula import Formula
from helios.model.activations import TABLE, activation, joined, parsed, split
from helios.model.config import NORMS, Dropouts, GPTConfig
from helios.train.config import SearchConfig, canonical
from helios.train.search.mutations import NUMBERS, TRIES, Draws, mutate


class Genome(NamedTuple):
    """What makes a candidate's model of the run's: an activation, as GPTConfig takes it, and settings of its own."""

    activation: str
    settings: Mapping[str, Any] = MappingProxyType({})


class Gene(NamedTuple):
    """Settings of the model that vary as one.

    values: each a tuple with one for each of the settings; the run's own values are always among them. steps: whether
    a mutation goes to a neighbour, else to any other.
    """

    settings: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]
    steps: bool = False

    def of(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return those of its settings."""
        return tuple(values[name] for name in self.settings)


def _one(name: str, *values: Any, steps: bool = False) -> Gene:
    return Gene((name,), tuple((value,) for value in values), steps)


CAPS = (5.0, 15.0, 30.0, 0.0)  # from the tightest to none
PLACES = tuple(f"{place}_dropout" for place in Dropouts._fields)
POLICIES = (Dropouts(), Dropouts(attn=0.1), Dropouts(resid=0.1, mlp=0.1), Dropouts(embd=0.1),
            *(Dropouts(p, p, p, p) for p in (0.05, 0.1, 0.2)))
GENES = (
    _one("qk_norm", False, True),
    _one("norm", *NORMS),
    _one("softcap", *CAPS, steps=True),
    _one("logit_softcap", *CAPS, steps=True),
    Gene(PLACES, POLICIES),
)
VARIED = frozenset(name for gene in GENES for name in gene.settings)

COUNT = 1 + len(GENES)  # of genes, the activation being one; and random numbers of a random genome
MUTATION = NUMBERS + 2 * COUNT  # most random numbers of a mutation
CHILD = 2 + TRIES * (1 + COUNT + MUTATION)  # and of a child


# -- texts ------------------------------------------------------------------------------------------------------------

def key(genome: Genome) -> str:
    """Return a text that is the same for genomes of equal models."""
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
    return ("off", "on")[value] if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


# -- what is tried ----------------------------------------------------------------------------------------------------
# pool: activations, as the search spells them. model: the run's.

def founders(pool: Sequence[str], model: GPTConfig, draws: Sequence[Draws]) -> list[Genome]:
    """Return a genome for each of the draws: the run's own model, the other activations of the pool with the run's
    settings, then random ones."""
    untouched = list({key(genome): genome for genome in map(Genome, (model.activation, *pool))}.values())
    return [untouched[i] if i < len(untouched) else drawn(pool, model, numbers) for i, numbers in enumerate(draws)]


def drawn(pool: Sequence[str], model: GPTConfig, draws: Draws) -> Genome:
    """Return a random genome: each activation of the pool, and each value of a gene, is as likely as the others."""
    text, own, now = draws.pick(pool), _own(model), dict[str, Any]()
    for gene in GENES:
        now |= zip(gene.settings, draws.pick(_values(gene, gene.of(own))), strict=True)
    return Genome(text, _differing(now, own))


def child(genome: Genome, others: Sequence[tuple[str, Genome]], taken: Collection[str], cfg: SearchConfig,
          model: GPTConfig, draws: Draws) -> tuple[Genome, list[str], int]:
    """Return a child's genome, how it differs from its parent's in words, and how many formulas were refused.

    With probability crossover_rate it takes each gene from that or from another parent, evenly; with probability
    mutation_rate it mutates. What equals its parent or is in `taken` (keys) is drawn again, at most TRIES times; then
    it is as its parent. others: names and genomes of the other parents.
    """
    pool, refused = cfg.pool, 0
    mutates, crosses = draws.chance(cfg.mutation_rate), bool(others) and draws.chance(cfg.crossover_rate)
    for _ in range(TRIES if mutates or crosses else 0):
        made, words, changes = genome, list[str](), list[str]()
        if crosses:
            name, other = draws.pick(others)
            made, words = _crossed(genome, other, model, draws), [f"crossover with {name}"]
        if mutates:
            made, changes, more = mutated(made, pool, model, draws)
            refused += more
        if (changes or not mutates) and key(made) not in {key(genome), *taken}:
            return made, words + changes, refused
    return genome, [], refused


def mutated(genome: Genome, pool: Sequence[str], model: GPTConfig, draws: Draws) -> tuple[Genome, list[str], int]:
    """Return the genome with a change of one gene, each as likely as the others and the activation being one of them,
    and of any further one with a probability of one over their number; the changes in words; and how many formulas
    were refused."""
    text, own, words, refused = genome.activation, _own(model), list[str](), 0
    before = own | dict(genome.settings)
    now, first = dict(before), draws.pick(range(COUNT))
    for i, gene in enumerate((None, *GENES)):
        if i != first and not draws.chance(1 / COUNT):
            continue
        if gene is None:
            text, said, refused = _family(text, pool, draws)
            words += [said] if said else []
        else:
            now |= zip(gene.settings, _moved(gene, gene.of(own), gene.of(now), draws), strict=True)
    words += _said({name: _word(value) if isinstance(value, bool) else f"{_word(before[name])}→{_word(value)}"
                    for name, value in now.items() if value != before[name]})
    return Genome(text, _differing(now, own)), words, refused


def largest(model: GPTConfig) -> dict[str, Any]:
    """Return the settings with which the run's model has most parameters, and takes most memory."""
    found: dict[str, Any] = {}
    for gene in GENES:
        each = [dict(zip(gene.settings, values, strict=True)) for values in _values(gene, gene.of(_own(model)))]
        found |= max(each, key=lambda given: replace(model, **given).parameters())
    return found


def _family(text: str, pool: Sequence[str], draws: Draws) -> tuple[str, str, int]:
    """Return another activation, how it came from that one, and how many formulas were refused: by a mutation of its
    formula or from the pool, each as likely where both can be."""
    rest = [name for name in pool if key(Genome(name)) != key(Genome(text))]
    formula = activation(text).formula if len(split(text)) == 1 else None
    if formula and (not rest or draws.chance(0.5)):
        found, words, refused = mutate(formula, (), draws)
        return spelt(found, pool) if words else text, words, refused
    if not rest:
        return text, "", 0
    new = draws.pick(rest)
    return new, f"{text}→{new}", 0


def _moved(gene: Gene, own: tuple[Any, ...], value: tuple[Any, ...], draws: Draws) -> tuple[Any, ...]:
    values = _values(gene, own, value)
    at = values.index(value)
    return draws.pick([other for i, other in enumerate(values) if i != at and (not gene.steps or abs(i - at) == 1)])


def _crossed(one: Genome, other: Genome, model: GPTConfig, draws: Draws) -> Genome:
    own = _own(model)
    both = [own | dict(genome.settings) for genome in (one, other)]
    now = {name: value for gene in GENES for name, value in zip(
        gene.settings, gene.of(draws.pick(both)), strict=True)}
    return Genome(draws.pick((one, other)).activation, _differing(now, own))


def _values(gene: Gene, *more: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Return the values of a gene and these, each once; those in steps from the tightest cap to none, which is 0."""
    found = list(dict.fromkeys((*gene.values, *more)))
    return sorted(found, key=lambda value: value[0] or math.inf) if gene.steps else found


def _own(model: GPTConfig) -> dict[str, Any]:
    """Return what the model has of the settings that vary, dropouts as they are in effect."""
    dropouts = dict(zip(PLACES, model.dropouts, strict=True))
    return {name: dropouts.get(name, getattr(model, name)) for gene in GENES for name in gene.settings}


def _differing(now: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    return {name: now[name] for name in own if now[name] != own[name]}
