"""Candidates of a search, and how one generation of them follows from another.

Everything here is a pure function of the settings, the seed and the candidates measured so far, so a search that was
killed goes on as it would have.

A genome is the activation of all blocks or, with genome = per_block, one for each; with genome = operators settings of
the model belong to it, too. The same activation in all blocks is written once, so that equal genomes of names are equal
texts; formulas may be written in several ways (see genome_key).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from helios import random
from helios.model import GPTConfig
from helios.model.activations import activation, is_name, parsed, short_name, split, split_genomes
from helios.train.config import SearchConfig
from helios.train.search import operators
from helios.train.search.mutations import NUMBERS, Draws, mutate
from helios.train.search.operators import Genome, alike, spelt

GREEK = ("Alpha", "Beta", "Gamma", "Delta", "Epsilon", "Zeta", "Eta", "Theta", "Iota", "Kappa", "Lambda", "Mu", "Nu",
         "Xi", "Omicron", "Pi", "Rho", "Sigma", "Tau", "Upsilon", "Phi", "Chi", "Psi", "Omega")
DECAYS = {"none": lambda p: 1.0, "linear": lambda p: 1.0 - p, "cosine": lambda p: 0.5 * (1.0 + math.cos(math.pi * p))}
STREAM = int.from_bytes(b"genomes", "little")  # of random numbers, apart from those of batches and weights
CHILD, TOURNAMENT, MUTATION = 0, 1, 2  # purposes of a draw

Genes = tuple[str, ...]


@dataclass(frozen=True)
class _Record:
    """A record of plain values, None for numbers that are not finite, so that reading back gives what was written."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            object.__setattr__(self, name, _plain(value))

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return dataclasses.asdict(self)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_plain(v) for v in value)
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Replicate(_Record):
    """One training of a candidate. Losses are in nats; None: not finite or not measured."""

    seed: int
    val_loss: float | None  # of the last evaluation
    best_val_loss: float | None
    train_loss: float | None  # mean of the last tenth of the steps
    fitness: float | None
    steps: int
    tokens: int
    evaluations: list[tuple[int, float | None]]  # step of this training, loss
    spikes: int
    skipped: int
    clip_rate: float  # share of the steps that were clipped, 0 to 1
    max_grad_norm: float | None
    tokens_per_sec_mean: float | None
    cusum_alerts: int  # steps with an alert, not counting those of the speed alone
    seconds: float
    trouble: int = 0  # steps in trouble, as monitors/trouble.py defines it


@dataclass(frozen=True)
class Candidate(_Record):
    """A genome, its descent and, in `parameters` and below, what was measured over its replicates."""

    id: str
    name: str
    activation: str  # as GPTConfig takes it
    generation: int
    seed: int  # of the search
    parent_id: str | None = None
    parent_name: str | None = None
    lineage: list[str] = field(default_factory=list)  # ids, the eldest first
    mutation: str | None = None  # how it differs from its parent or, of a random formula, from one of the pool; blocks
    # count from 0, as in weights' names
    settings: dict[str, Any] = field(default_factory=dict)  # of the model, those that are not as the run has them
    refused: int = 0  # formulas that were drawn before this one and refused, since they explode
    bonus: float = 0.0  # of a new genome when parents are chosen, in units of the score
    parameters: int | None = None
    steps: int | None = None
    tokens: int | None = None
    train_loss: float | None = None
    best_val_loss: float | None = None
    val_loss_mean: float | None = None
    val_loss_se: float | None = None
    fitness: float | None = None
    spikes: int | None = None
    skipped: int | None = None
    clip_rate: float | None = None
    max_grad_norm: float | None = None
    tokens_per_sec_mean: float | None = None
    cusum_alerts: int | None = None
    trouble: int | None = None
    status: str | None = None  # complete, reused, stopped or diverged; None: not measured yet
    replicates: list[Replicate] = field(default_factory=list)

    @property
    def genome(self) -> Genome:
        """Return what its model differs in from the run's."""
        return Genome(self.activation, self.settings)

    def named(self, text: str) -> str:
        """Return the activation's name, as `text` says it, with the settings, if there are any."""
        return operators.described(text, self.settings)


def genome_key(candidate: Candidate) -> str:
    """Return the genome as a text, equal for candidates of equal genomes."""
    return operators.key(candidate.genome)


def score(candidate: Candidate, cfg: SearchConfig) -> float:
    """Return what a search ranks by, lower being better: the mean validation loss, or minus the fitness.
    It is infinite for candidates that were not measured, diverged or were stopped."""
    value = candidate.val_loss_mean if cfg.rank_by == "val_loss" else candidate.fitness
    if value is None or candidate.status not in ("complete", "reused"):
        return math.inf
    return value if cfg.rank_by == "val_loss" else -value


def trainings(cfg: SearchConfig, n_layer: int) -> int:
    """Return how many trainings, one a replicate, a search makes at most; `reuse` saves some of them."""
    if cfg.selection == "exhaustive":
        return cfg.replicates * (len(_given(cfg)) or _genomes(cfg, n_layer))
    return cfg.replicates * (_first_size(cfg) + cfg.population_size * (cfg.generations - 1))


def first_generation(cfg: SearchConfig, model: GPTConfig, seed: int) -> list[Candidate]:
    """Return generation 0: the setting `genomes`, if given; with selection = exhaustive, every genome once, in the
    pool's order; else population_size candidates. With selection = random they are random. With genome = operators they
    are the run's own model, the pool's other activations with its settings, and then random genomes. Else they have the
    pool's activations, each in all blocks, in turn or, with genome = per_block, once each and then random genomes.

    model: the run's.
    """
    pool, size, n_layer = cfg.pool, cfg.population_size, model.n_layer
    genomes = _given(cfg)
    if not genomes and cfg.selection == "random":
        return _random_ones(cfg, model, 0, seed)
    if not genomes and cfg.genome == "operators":
        draws = [_draws(operators.COUNT, seed, 0, i) for i in range(size)]
        return [_founder(genome, i, 0, seed) for i, genome in enumerate(operators.founders(pool, model, draws))]
    if not genomes and cfg.selection == "exhaustive":
        genomes = list(itertools.product(pool, repeat=_places(cfg, n_layer)))
    elif not genomes and cfg.genome != "per_block":
        genomes = [(pool[i % len(pool)],) for i in range(size)]
    elif not genomes:
        genomes = [(pool[i],) if i < len(pool) else tuple(_pick(pool, u) for u in _uniform(n_layer, seed, 0, i))
                   for i in range(size)]
    return [_founder(Genome(alike(genes)), i, 0, seed) for i, genes in enumerate(genomes)]


def next_generation(cfg: SearchConfig, model: GPTConfig, population: Sequence[Candidate], generation: int, seed: int
                    ) -> list[Candidate]:
    """Return the population_size children of `generation`, which is at least 1; none with selection = exhaustive, and
    as many random genomes with selection = random.

    model: the run's. population: all candidates so far. Parents are chosen from the generation before and, with
    elitism, from its parents. Child i comes from parent i modulo their number. With genome = per_block and probability
    crossover_rate, it takes each block from that or from another parent, evenly. Then it mutates with probability
    mutation_rate, with genome = per_block each block by itself: to another activation of the pool or, with genome =
    formula, to one whose formula is not yet in its generation; where none is found, it is as its parent. With genome =
    operators it is made as operators.child says.
    """
    if cfg.selection == "exhaustive":
        return []
    if cfg.selection == "random":
        return _random_ones(cfg, model, generation, seed)
    living = _living(cfg, population, generation)
    parents = _parents(cfg, living, generation, seed)
    decayed = cfg.diversity_bonus * DECAYS[cfg.diversity_decay](generation / cfg.generations)
    known = {genome_key(c) for c in living}
    children, taken = list[Candidate](), set[str]()
    for i in range(cfg.population_size):
        parent = parents[i % len(parents)]
        others = [p for p in parents if p is not parent]
        genome, changes, refused = _child(cfg, model, parent, others, taken, (seed, generation, i))
        text, key = genome.activation, operators.key(genome)
        children.append(Candidate(
            id=_id(text, generation, _position(cfg, generation, i) + 1),
            name=f"{_prefix(text)}-{_greek_part(parent)}.{generation}", activation=text, generation=generation,
            seed=seed, parent_id=parent.id, parent_name=parent.name, lineage=[*parent.lineage, parent.id],
            mutation="; ".join(changes) or None, settings=dict(genome.settings), refused=refused,
            bonus=0.0 if key in known else decayed))
        known.add(key)
        taken.add(key)
    return children


def _living(cfg: SearchConfig, candidates: Sequence[Candidate], generation: int) -> list[Candidate]:
    """Return the generation before this one and, with elitism, its parents."""
    last = max(c.generation for c in candidates if c.generation < generation)
    parents = {c.parent_id for c in candidates if c.generation == last} if cfg.elitism else set()
    return [c for c in candidates if c.generation == last or c.id in parents]


def _parents(cfg: SearchConfig, population: Sequence[Candidate], generation: int, seed: int) -> list[Candidate]:
    """Return ⌈population_size/2⌉ candidates of finite score, all if there are fewer, or any where none has one.
    topk: the best. tournament: each is the best of tournament_size drawn from those that have not won yet."""
    finite = [c for c in population if math.isfinite(score(c, cfg))] or population
    best_first = sorted(finite, key=lambda c: score(c, cfg) - c.bonus)
    count = min(math.ceil(cfg.population_size / 2), len(best_first))
    if cfg.selection == "topk":
        return best_first[:count]
    winners = []
    for i in range(count):
        drawn = np.argsort(_uniform(len(best_first), seed, generation, i, TOURNAMENT))[:cfg.tournament_size]
        winners.append(best_first.pop(int(drawn.min())))
    return winners


def _child(cfg: SearchConfig, model: GPTConfig, parent: Candidate, others: Sequence[Candidate],
           taken: Collection[str], at: tuple[int, int, int]) -> tuple[Genome, list[str], int]:
    """Return a child's genome, the changes to the parent's in words, and how many formulas were refused.
    taken: the keys of its siblings. at: seed, generation and index."""
    if cfg.genome == "operators":
        return operators.child(parent.genome, [(c.name, c.genome) for c in others], taken, cfg, model,
                               _draws(operators.CHILD, *at))
    draws = _uniform(2 + 3 * model.n_layer, *at)
    old = activation(parent.activation).formula if cfg.genome == "formula" else None
    if old is None:
        genes, changes = _vary(cfg, model.n_layer, parent, others, draws)
        return Genome(alike(genes)), changes, 0
    if draws[0] >= cfg.mutation_rate:
        return parent.genome, [], 0
    new, words, refused = mutate(old, taken, _draws(NUMBERS, *at))
    return (Genome(spelt(new, cfg.pool)), [words], refused) if words else (parent.genome, [], refused)


def _vary(cfg: SearchConfig, n_layer: int, parent: Candidate, others: Sequence[Candidate], draws: Sequence[float]
          ) -> tuple[Genes, list[str]]:
    """Return a child's genes, and the changes to the parent's in words. draws: 2 + 3·n_layer, used by position."""
    places, changes = _places(cfg, n_layer), []
    genes = _genes(parent, places)
    chosen, mutates, which = (draws[2 + k * n_layer:][:places] for k in range(3))
    if cfg.genome == "per_block" and others and draws[0] < cfg.crossover_rate:
        other = others[int(draws[1] * len(others))]
        genes = tuple(a if u < 0.5 else b for a, b, u in zip(genes, _genes(other, places), chosen, strict=True))
        changes.append(f"crossover with {other.name}")
    child = []
    for i, gene in enumerate(genes):
        rest = [name for name in cfg.pool if activation(name).key != activation(gene).key]
        if rest and mutates[i] < cfg.mutation_rate:
            child.append(_pick(rest, which[i]))
            changes.append(f"block {i}: " * (cfg.genome == "per_block") + f"{gene}→{child[-1]}")
        else:
            child.append(gene)
    return tuple(child), changes


def _random_ones(cfg: SearchConfig, model: GPTConfig, generation: int, seed: int) -> list[Candidate]:
    """Return candidates of which each comes from one of the pool's formulas or, with genome = operators, from a random
    genome by mutations in a row: one, or more, up to as many as the last children of a search may have behind them.
    What was measured is not looked at."""
    most, found, taken = max(1, cfg.generations - 1), list[Candidate](), set[str]()
    for i in range(cfg.population_size):
        if cfg.genome == "operators":
            draws = _draws(1 + operators.COUNT + most * operators.MUTATION, seed, generation, i)
            genome, changes, refused = _random_genome(cfg, model, most, draws)
        else:
            draws = _draws(2 + most * NUMBERS, seed, generation, i)
            genome, changes, refused = _random_formula(cfg, taken, most, draws)
        taken.add(operators.key(genome))
        found.append(dataclasses.replace(_founder(genome, _position(cfg, generation, i), generation, seed),
                                         mutation="; ".join(changes), refused=refused))
    return found


def _random_genome(cfg: SearchConfig, model: GPTConfig, most: int, draws: Draws) -> tuple[Genome, list[str], int]:
    genome, refused = operators.drawn(cfg.pool, model, draws), 0
    changes = [f"from {operators.described(*genome)}"]
    for _ in range(draws.pick(range(1, most + 1))):
        genome, words, more = operators.mutated(genome, cfg.pool, model, draws)
        changes, refused = changes + words, refused + more
    return genome, changes, refused


def _random_formula(cfg: SearchConfig, taken: Collection[str], most: int, draws: Draws
                    ) -> tuple[Genome, list[str], int]:
    begun, refused = draws.pick([act for act in parsed("activation_pool", cfg.activation_pool) if act.formula]), 0
    formula, changes = begun.formula, [f"from {begun.text}"]
    assert formula
    for _ in range(draws.pick(range(1, most + 1))):
        formula, words, more = mutate(formula, taken, draws)
        changes, refused = [*changes, words] if words else changes, refused + more
    return Genome(spelt(formula, cfg.pool)), changes, refused


def _founder(genome: Genome, position: int, generation: int, seed: int) -> Candidate:
    """position: among all candidates of the search, from 0 on."""
    lap, text = position // len(GREEK), genome.activation
    greek = GREEK[position % len(GREEK)] + (str(lap + 1) if lap else "")
    return Candidate(id=_id(text, generation, position + 1), name=f"{_prefix(text)}-{greek}", activation=text,
                     generation=generation, seed=seed, settings=dict(genome.settings))


def _greek_part(candidate: Candidate) -> str:
    return candidate.name.partition("-")[2].partition(".")[0]


def _places(cfg: SearchConfig, n_layer: int) -> int:
    return n_layer if cfg.genome == "per_block" else 1


def _given(cfg: SearchConfig) -> list[Genes]:
    return [tuple(act.text for act in parsed("genomes", genome)) for genome in split_genomes(cfg.genomes)]


def _first_size(cfg: SearchConfig) -> int:
    return len(_given(cfg)) or cfg.population_size


def _position(cfg: SearchConfig, generation: int, index: int) -> int:
    """Return how many candidates the search had before this one."""
    return index + (generation and _first_size(cfg) + (generation - 1) * cfg.population_size)


def _genomes(cfg: SearchConfig, n_layer: int) -> int:
    return len(cfg.pool) ** _places(cfg, n_layer)


def _genes(candidate: Candidate, places: int) -> Genes:
    genes = split(candidate.activation)
    return genes * places if len(genes) == 1 else genes


def _id(genome: str, generation: int, number: int) -> str:
    """Return a candidate's id, which also names files."""
    genes = split(genome)
    kind = "mixed" if len(genes) > 1 else short_name(genome)
    return f"gen{generation}_{kind if is_name(kind) else 'formula'}_{number}"


def _prefix(genome: str) -> str:
    genes = split(genome)
    return "M" if len(genes) > 1 else activation(genes[0]).prefix


def _pick(names: Sequence[str], u: float) -> str:
    return names[int(u * len(names))]


def _draws(count: int, seed: int, generation: int, index: int) -> Draws:
    return Draws(_uniform(count, seed, generation, index, MUTATION))


def _uniform(count: int, seed: int, generation: int, index: int, purpose: int = CHILD) -> list[float]:
    """Return `count` numbers in [0, 1), a pure function of the arguments."""
    return random.uniform(count, seed, STREAM, index, generation, purpose).tolist()
