"""Candidates of a search, and how one generation of them follows from another.

Everything here is a pure function of the settings, the seed and the candidates measured so far, so a search that was
killed goes on as it would have.

A genome is the activation of all blocks or, with genome = per_block, one for each. The same in all blocks is written
once, so that equal genomes are equal texts.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from helios import random
from helios.model.activations import activation, is_name, joined, parsed, short_name, split, split_genomes
from helios.train.config import SearchConfig

GREEK = ("Alpha", "Beta", "Gamma", "Delta", "Epsilon", "Zeta", "Eta", "Theta", "Iota", "Kappa", "Lambda", "Mu", "Nu",
         "Xi", "Omicron", "Pi", "Rho", "Sigma", "Tau", "Upsilon", "Phi", "Chi", "Psi", "Omega")
DECAYS = {"none": lambda p: 1.0, "linear": lambda p: 1.0 - p, "cosine": lambda p: 0.5 * (1.0 + math.cos(math.pi * p))}
STREAM = int.from_bytes(b"genomes", "little")  # of random numbers, apart from those of batches and weights
CHILD, TOURNAMENT = 0, 1  # purposes of a draw

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
    mutation: str | None = None  # how it differs from its parent; blocks count from 0, as in weights' names
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


def genome_key(candidate: Candidate) -> str:
    """Return the genome as a text, equal for candidates of equal genomes."""
    return _key(candidate.activation)


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


def first_generation(cfg: SearchConfig, n_layer: int, seed: int) -> list[Candidate]:
    """Return generation 0: the setting `genomes`, if given; with selection = exhaustive, every genome once, in the
    pool's order; else population_size candidates, which have the pool's activations, each in all blocks, in turn or,
    with genome = per_block, once each and then random genomes."""
    pool, size = cfg.pool, cfg.population_size
    genomes = _given(cfg)
    if not genomes and cfg.selection == "exhaustive":
        genomes = list(itertools.product(pool, repeat=_places(cfg, n_layer)))
    elif not genomes and cfg.genome == "global":
        genomes = [(pool[i % len(pool)],) for i in range(size)]
    elif not genomes:
        genomes = [(pool[i],) if i < len(pool) else tuple(_pick(pool, u) for u in _uniform(n_layer, seed, 0, i))
                   for i in range(size)]
    return [_founder(genes, i, seed) for i, genes in enumerate(genomes)]


def next_generation(cfg: SearchConfig, n_layer: int, population: Sequence[Candidate], generation: int, seed: int
                    ) -> list[Candidate]:
    """Return the population_size children of `generation`, which is at least 1; none with selection = exhaustive.

    population: all candidates so far. Parents are chosen from the generation before and, with elitism, from its
    parents. Child i comes from parent i modulo their number. With genome = per_block and probability crossover_rate,
    it takes each block from that or from another parent, evenly. Then it mutates to another activation of the pool with
    probability mutation_rate, with genome = per_block each block by itself.
    """
    if cfg.selection == "exhaustive":
        return []
    living = _living(cfg, population, generation)
    parents = _parents(cfg, living, generation, seed)
    decayed = cfg.diversity_bonus * DECAYS[cfg.diversity_decay](generation / cfg.generations)
    known = {genome_key(c) for c in living}
    children = []
    for i in range(cfg.population_size):
        parent = parents[i % len(parents)]
        draws = _uniform(2 + 3 * n_layer, seed, generation, i)
        genes, changes = _vary(cfg, n_layer, parent, [p for p in parents if p is not parent], draws)
        genome, key = _text(genes), _key(_text(genes))
        number = _first_size(cfg) + (generation - 1) * cfg.population_size + i + 1
        children.append(Candidate(
            id=_id(genome, generation, number), name=f"{_prefix(genome)}-{_greek_part(parent)}.{generation}",
            activation=genome, generation=generation, seed=seed, parent_id=parent.id, parent_name=parent.name,
            lineage=[*parent.lineage, parent.id], mutation="; ".join(changes) or None,
            bonus=0.0 if key in known else decayed))
        known.add(key)
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
        rest = [name for name in cfg.pool if name != gene]
        if rest and mutates[i] < cfg.mutation_rate:
            child.append(_pick(rest, which[i]))
            changes.append(f"block {i}: " * (cfg.genome == "per_block") + f"{gene}→{child[-1]}")
        else:
            child.append(gene)
    return tuple(child), changes


def _founder(genes: Genes, position: int, seed: int) -> Candidate:
    genome, lap = _text(genes), position // len(GREEK)
    greek = GREEK[position % len(GREEK)] + (str(lap + 1) if lap else "")
    return Candidate(id=_id(genome, 0, position + 1), name=f"{_prefix(genome)}-{greek}", activation=genome,
                     generation=0, seed=seed)


def _greek_part(candidate: Candidate) -> str:
    return candidate.name.partition("-")[2].partition(".")[0]


def _places(cfg: SearchConfig, n_layer: int) -> int:
    return 1 if cfg.genome == "global" else n_layer


def _given(cfg: SearchConfig) -> list[Genes]:
    return [tuple(act.text for act in parsed("genomes", genome)) for genome in split_genomes(cfg.genomes)]


def _first_size(cfg: SearchConfig) -> int:
    return len(_given(cfg)) or cfg.population_size


def _genomes(cfg: SearchConfig, n_layer: int) -> int:
    return len(cfg.pool) ** _places(cfg, n_layer)


def _genes(candidate: Candidate, places: int) -> Genes:
    genes = split(candidate.activation)
    return genes * places if len(genes) == 1 else genes


def _text(genes: Sequence[str]) -> str:
    return genes[0] if len(set(genes)) == 1 else joined(genes)


def _key(genome: str) -> str:
    return _text([act.key for act in parsed("genome", genome)])


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


def _uniform(count: int, seed: int, generation: int, index: int, purpose: int = CHILD) -> list[float]:
    """Return `count` numbers in [0, 1), a pure function of the arguments."""
    return random.uniform(count, seed, STREAM, index, generation, purpose).tolist()
