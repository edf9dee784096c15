"""Candidates of a search, and how one generation of them follows from another.

Everything here is a pure function of the settings, the seed and the candidates measured so far, so a search that was
killed goes on as it would have.

A genome is the activation of all blocks or, with genome = per_block, one for each; with genome = operators settings of
the model belong to it, too. The same activation in all blocks is written once, so that equal genomes of names are equal
texts; formulas may be written in several ways (see genome_key).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence

from helios.model import GPTConfig
from helios.model.activations import activation, parsed, split, split_genomes
from helios.train.config import SearchConfig
from helios.train.search import operators
from helios.train.search.births import (
    DECAYS,
    Candidate,
    bred,
    children,
    draws,
    founder,
    living_before,
    tournaments,
    uniform,
)
from helios.train.search.mutations import Draws, mutate
from helios.train.search.operators import Born, Genome, Space, alike, spelt, steadying

Genes = tuple[str, ...]


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
        numbers = (draws(seed, 0, i) for i in range(size))
        return [founder(genome, i, 0, seed) for i, genome in enumerate(
            operators.founders(steadying(model, pool), numbers))]
    if not genomes and cfg.selection == "exhaustive":
        genomes = list(itertools.product(pool, repeat=_places(cfg, n_layer)))
    elif not genomes and cfg.genome != "per_block":
        genomes = [(pool[i % len(pool)],) for i in range(size)]
    elif not genomes:
        genomes = [(pool[i],) if i < len(pool) else tuple(_pick(pool, u) for u in uniform(n_layer, seed, 0, i))
                   for i in range(size)]
    return [founder(Genome(alike(genes)), i, 0, seed) for i, genes in enumerate(genomes)]


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
    living = living_before(generation, population, cfg.elitism)
    parents = _parents(cfg, living, generation, seed)
    decayed = cfg.diversity_bonus * DECAYS[cfg.diversity_decay](generation / cfg.generations)
    space = steadying(model, cfg.pool) if cfg.genome == "operators" else None

    def born(parent: Candidate, others: Sequence[Candidate], taken: Collection[str], i: int) -> Born:
        if space:
            return bred(space, cfg)(parent, others, taken, draws(seed, generation, i))
        return _child(cfg, model, parent, others, taken, (seed, generation, i))

    before = _position(cfg, generation, 0)
    return children(parents, living, cfg.population_size, before, generation, seed, decayed, born)


def _parents(cfg: SearchConfig, population: Sequence[Candidate], generation: int, seed: int) -> list[Candidate]:
    """Return ⌈population_size/2⌉ candidates of finite score, all if there are fewer, or any where none has one.
    topk: the best. tournament: each is the best of tournament_size drawn from those that have not won yet."""
    finite = [c for c in population if math.isfinite(score(c, cfg))] or population
    best_first = sorted(finite, key=lambda c: score(c, cfg) - c.bonus)
    count = min(math.ceil(cfg.population_size / 2), len(best_first))
    if cfg.selection == "topk":
        return best_first[:count]
    return tournaments(best_first, count, cfg.tournament_size, generation, seed)


def _child(cfg: SearchConfig, model: GPTConfig, parent: Candidate, others: Sequence[Candidate],
           taken: Collection[str], at: tuple[int, int, int]) -> Born:
    """Return a child. taken: the keys of its siblings. at: seed, generation and index."""
    numbers = uniform(2 + 3 * model.n_layer, *at)
    old = activation(parent.activation).formula if cfg.genome == "formula" else None
    if old is None:
        genes, other, changes = _vary(cfg, model.n_layer, parent, others, numbers)
        operator = "+".join(["crossover"] * (other is not None) + ["mutation"] * (len(changes) > (other is not None)))
        return Born(Genome(alike(genes)), operator or "clone", changes, 0, other)
    if numbers[0] >= cfg.mutation_rate:
        return Born(parent.genome, "clone")
    new, words, refused = mutate(old, taken, draws(*at))
    if not words:
        return Born(parent.genome, "clone", (), refused)
    return Born(Genome(spelt(new, cfg.pool)), words.split()[0], [words], refused)


def _vary(cfg: SearchConfig, n_layer: int, parent: Candidate, others: Sequence[Candidate], draws: Sequence[float]
          ) -> tuple[Genes, int | None, list[str]]:
    """Return a child's genes, its other parent by position, and the changes to the parent's in words. draws: 2 +
    3·n_layer, used by position."""
    places, changes, met = _places(cfg, n_layer), list[str](), None
    genes = _genes(parent, places)
    chosen, mutates, which = (draws[2 + k * n_layer:][:places] for k in range(3))
    if cfg.genome == "per_block" and others and draws[0] < cfg.crossover_rate:
        met = int(draws[1] * len(others))
        other = others[met]
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
    return tuple(child), met, changes


def _random_ones(cfg: SearchConfig, model: GPTConfig, generation: int, seed: int) -> list[Candidate]:
    """Return candidates of which each comes from one of the pool's formulas or, with genome = operators, from a random
    genome by mutations in a row: one, or more, up to as many as the last children of a search may have behind them.
    What was measured is not looked at."""
    most, found, taken = max(1, cfg.generations - 1), list[Candidate](), set[str]()
    space = steadying(model, cfg.pool)
    for i in range(cfg.population_size):
        numbers = draws(seed, generation, i)
        genome, changes, refused = (_random_genome(space, most, numbers) if cfg.genome == "operators" else
                                    _random_formula(cfg, taken, most, numbers))
        taken.add(operators.key(genome))
        found.append(founder(genome, _position(cfg, generation, i), generation, seed, "random",
                             mutation="; ".join(changes), refused=refused))
    return found


def _random_genome(space: Space, most: int, draws: Draws) -> tuple[Genome, list[str], int]:
    genome, refused = operators.drawn(space, draws), 0
    changes = [f"from {operators.described(*genome)}"]
    for _ in range(draws.pick(range(1, most + 1))):
        genome, words, more = operators.mutated(space, genome, draws)
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


def _pick(names: Sequence[str], u: float) -> str:
    return names[int(u * len(names))]
