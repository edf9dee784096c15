"""Generations of candidates: what is tried, who has children, and that nothing but the seed decides it."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios.model.activations import TABLE, activation
from helios.model.config import GPTConfig
from helios.train.config import SearchConfig
from helios.train.search.births import Candidate, Replicate, genome_key
from helios.train.search.evolution import score, trainings

from .runs import first_generation, next_generation

POOL = tuple(TABLE)[:6]
WORST = "relu"  # the planted loser

counts = st.integers(1, 9)
PORTIONS = st.integers(0, 1000).map(lambda n: n / 1000)
settings = st.builds(
    SearchConfig, genome=st.sampled_from(["global", "per_block"]), population_size=counts,
    generations=st.integers(1, 4), selection=st.sampled_from(["topk", "tournament"]), tournament_size=counts,
    elitism=st.booleans(), mutation_rate=PORTIONS, crossover_rate=PORTIONS,
    diversity_bonus=st.sampled_from([0.0, 0.05, 10.0]), diversity_decay=st.sampled_from(["none", "linear", "cosine"]),
    rank_by=st.sampled_from(["val_loss", "fitness"]),
    activation_pool=st.sampled_from([",".join(POOL), "gelu,relu", "relu", "swiglu,relu,gelu,silu"]))


def genes_of(text: str, n_layer: int) -> tuple[str, ...]:
    return tuple(act.text for act in GPTConfig(n_layer=n_layer, activation=text).activations)


def measured(candidate: Candidate, loss: float | None, status: str = "complete") -> Candidate:
    return replace(candidate, val_loss_mean=loss, fitness=None if loss is None else -loss, status=status)


def planted(candidate: Candidate) -> Candidate:
    """Each block counts, relu most of all; equal genomes measure the same."""
    names = candidate.activation.split(",")
    return measured(candidate, sum(5 + 0.01 * POOL.index(n) + 3 * (n == WORST) for n in names) / len(names))


def search(cfg: SearchConfig, n_layer: int, seed: int, measure: Callable[[Candidate], Candidate] = planted,
           through: Callable[[Candidate], Candidate] = lambda c: c, **model: object) -> list[Candidate]:
    """All candidates; `through` is done to each between generations."""
    found = [through(measure(c)) for c in first_generation(cfg, n_layer, seed, **model)]
    for generation in range(1, cfg.generations):
        found += [through(measure(c)) for c in next_generation(cfg, n_layer, found, generation, seed, **model)]
    return found


def restored(candidate: Candidate) -> Candidate:
    return msgspec.convert(json.loads(json.dumps(candidate.to_json(), allow_nan=False)), Candidate)


def replicate(seed: int = 0, **more: object) -> Replicate:
    values = {"seed": seed, "val_loss": 5.0, "best_val_loss": 5.0, "train_loss": 5.0, "fitness": 0.1, "steps": 10,
              "tokens": 100, "evaluations": [(5, 6.0), (10, 5.0)], "spikes": 0, "skipped": 0, "clip_rate": 0.0,
              "max_grad_norm": 1.0, "tokens_per_sec_mean": 1.0, "cusum_alerts": 0, "seconds": 1.0}
    return Replicate(**values | more)


# -- what is written is what is read ----------------------------------------------------------------------------------
@given(st.floats(), st.floats(), st.integers(0, 2**63), st.text())
def test_round_trip(a: float, b: float, n: int, text: str) -> None:
    kept = replicate(n, val_loss=a, evaluations=[(1, b), (2, a)], max_grad_norm=np.float32(1.5), steps=np.int64(7))
    candidate = Candidate("gen0_gelu_1", "G-Alpha", "gelu", 0, n, mutation=text, val_loss_mean=b, replicates=[kept])
    assert restored(candidate) == candidate
    assert kept.val_loss == (a if math.isfinite(a) else None) and kept.evaluations[0] == (
        1, b if math.isfinite(b) else None)
    assert type(kept.max_grad_norm) is float and type(kept.steps) is int


# -- the first generation ---------------------------------------------------------------------------------------------
def test_global_cycles_the_pool() -> None:
    first = first_generation(SearchConfig(population_size=8), 3, seed=1)
    assert [c.activation for c in first] == [*POOL, *POOL[:2]]
    assert [c.id for c in first][::5] == ["gen0_gelu_1", "gen0_kan_spline_6"] and first[7].id == "gen0_silu_8"
    assert [c.name for c in first] == ["G-Alpha", "S-Beta", "R-Gamma", "Sw-Delta", "U-Epsilon", "K-Zeta", "G-Eta",
                                       "S-Theta"]
    assert all(c.generation == 0 and c.bonus == 0 and c.parent_id is None and c.status is None for c in first)


def test_greek_goes_round() -> None:
    names = [c.name for c in first_generation(SearchConfig(population_size=50, activation_pool="gelu"), 1, 0)]
    assert names[23:25] == ["G-Omega", "G-Alpha2"] and names[48] == "G-Alpha3" and len(set(names)) == 50


def test_every_activation_has_a_prefix() -> None:
    prefixes = [activation(name).prefix for name in TABLE] + ["M", activation("x*sin(x)").prefix]  # M: blocks differ
    assert len(set(prefixes)) == len(prefixes)


def test_per_block_starts_uniform_then_random() -> None:
    cfg = SearchConfig(genome="per_block", population_size=60)
    first = first_generation(cfg, 4, seed=1)
    assert [c.activation for c in first[:6]] == list(POOL)
    rest = [genes_of(c.activation, 4) for c in first[6:]]
    assert {name for genes in rest for name in genes} == set(POOL) and len(set(rest)) > 50
    assert first == first_generation(cfg, 4, seed=1)
    assert first[6:] != first_generation(cfg, 4, seed=2)[6:]
    assert first[10].id == "gen0_mixed_11" and first[10].name == "M-Lambda"
    # a larger population begins with the smaller one
    assert first[:20] == first_generation(replace(cfg, population_size=20), 4, seed=1)


def test_exhaustive_is_every_genome_once() -> None:
    cfg = SearchConfig(selection="exhaustive", activation_pool="silu,gelu,relu", population_size=1, generations=5)
    assert [c.activation for c in first_generation(cfg, 2, 0)] == ["silu", "gelu", "relu"]
    cfg = replace(cfg, genome="per_block")
    first = first_generation(cfg, 2, 0)
    assert [c.activation for c in first] == ["silu", "silu,gelu", "silu,relu", "gelu,silu", "gelu", "gelu,relu",
                                             "relu,silu", "relu,gelu", "relu"]
    assert first[1].id == "gen0_mixed_2" and first[4].id == "gen0_gelu_5"
    assert next_generation(cfg, 2, [planted(c) for c in first], 1, 0) == []
    assert len({genome_key(c) for c in first_generation(cfg, 5, 0)}) == 3**5


# -- parents ----------------------------------------------------------------------------------------------------------
def parents_of(children: list[Candidate]) -> list[str]:
    return list(dict.fromkeys(str(c.parent_id) for c in children))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.sampled_from(["val_loss", "fitness"]))
def test_topk_is_the_better_half_by_brute_force(losses: list[int], rank_by: str) -> None:
    cfg = SearchConfig(population_size=len(losses), rank_by=rank_by)
    first = [measured(c, 5.0 + x) for c, x in zip(first_generation(cfg, 1, 0), losses, strict=True)]
    half = -(-len(losses) // 2)
    # the best set of that size, the first in order of creation among equals
    best = min(itertools.combinations(range(len(losses)), half), key=lambda s: (sum(losses[i] for i in s), s))
    children = next_generation(cfg, 1, first, 1, 0)
    assert {int(p.rpartition("_")[2]) - 1 for p in parents_of(children)} == set(best)
    assert len(children) == len(losses) and [c.parent_id for c in children[half:]] == [
        c.parent_id for c in children[:len(losses) - half]]


def test_tournaments() -> None:
    cfg = SearchConfig(selection="tournament", population_size=8, tournament_size=3)
    first = [measured(c, 5.0 + i) for i, c in enumerate(first_generation(cfg, 1, 0))]
    wins = Counter(p for seed in range(300) for p in parents_of(next_generation(cfg, 1, first, 1, seed)))
    order = [wins[c.id] for c in first]
    assert len(parents_of(next_generation(cfg, 1, first, 1, 0))) == 4
    assert order == sorted(order, reverse=True) and order[0] > 250 and 0 < order[5] < 150
    assert order[6] == order[7] == 0  # there are always two worse ones among three drawn
    # one drawn: chance alone; all drawn: the better half, as topk
    cfg = replace(cfg, tournament_size=1)
    wins = Counter(p for seed in range(300) for p in parents_of(next_generation(cfg, 1, first, 1, seed)))
    assert all(110 < wins[c.id] < 190 for c in first)
    cfg = replace(cfg, tournament_size=99)
    assert parents_of(next_generation(cfg, 1, first, 1, 0)) == [c.id for c in first[:4]]


def test_without_a_score_there_are_no_children() -> None:
    cfg = SearchConfig(population_size=4)
    first = first_generation(cfg, 1, 0)
    lost = [measured(first[0], None, "diverged"), measured(first[1], 1.0, "stopped"), measured(first[2], 9.0), first[3]]
    assert [score(c, cfg) for c in lost] == [math.inf, math.inf, 9.0, math.inf]
    assert parents_of(next_generation(cfg, 1, lost, 1, 0)) == [first[2].id]
    # where none has one, the search goes on from anywhere
    assert len(next_generation(cfg, 1, [measured(c, None, "diverged") for c in first], 1, 0)) == 4


def test_elitism_keeps_parents_in_the_population() -> None:
    """The best is of generation 0; its children are bad. Only with elitism it has grandchildren of its own again."""
    best = lambda c: measured(c, 1.0 if c.generation == 0 and c.activation == "gelu" else 5.0 + c.generation)
    for elitism in (True, False):
        found = search(SearchConfig(generations=4, elitism=elitism, mutation_rate=1.0, diversity_bonus=0.0), 1, 3, best)
        parents = [{c.parent_id for c in found if c.generation == g} for g in range(1, 4)]
        assert [("gen0_gelu_1" in p) for p in parents] == [True, elitism, elitism]
        if not elitism:
            assert all(p and p <= {c.id for c in found if c.generation == g} for g, p in enumerate(parents))


# -- the bonus for what is new ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(("decay", "expected"), [
    ("none", [1, 1, 1]), ("linear", [0.75, 0.5, 0.25]),
    ("cosine", [(2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4])])
def test_bonus_decays(decay: str, expected: list[float]) -> None:
    cfg = SearchConfig(activation_pool="gelu,silu,relu", population_size=1, generations=4, mutation_rate=1.0,
                       diversity_bonus=0.2, diversity_decay=decay, elitism=False)
    found = search(cfg, 1, 0)
    assert [c.bonus for c in found] == pytest.approx([0, *(0.2 * x for x in expected)])


@given(settings, st.integers(0, 2**63 - 1))
def test_bonus_is_for_new_genomes_only(cfg: SearchConfig, seed: int) -> None:
    cfg = replace(cfg, generations=2, diversity_decay="none")
    found = search(cfg, 3, seed)
    known = {genome_key(c) for c in found if c.generation == 0}
    for child in (c for c in found if c.generation == 1):
        assert child.bonus == (0 if genome_key(child) in known else cfg.diversity_bonus)
        known.add(genome_key(child))


@pytest.mark.parametrize(("bonus", "chosen"), [(0.0, False), (0.05, False), (0.2, True)])
@pytest.mark.parametrize("rank_by", ["val_loss", "fitness"])
@pytest.mark.parametrize("selection", ["topk", "tournament"])
def test_bonus_counts_in_the_choice_of_parents(selection: str, rank_by: str, bonus: float, chosen: bool) -> None:
    cfg = SearchConfig(population_size=2, selection=selection, tournament_size=9, rank_by=rank_by)
    old, new = first_generation(cfg, 1, 0)
    population = [measured(old, 5.0), replace(measured(new, 5.1), bonus=bonus)]
    children = next_generation(cfg, 1, population, 1, 0)
    assert parents_of(children) == [(new if chosen else old).id]
    assert score(population[1], cfg) == 5.1  # never in the score


# -- children ---------------------------------------------------------------------------------------------------------
@given(settings, st.integers(1, 5), st.integers(0, 2**63 - 1))
def test_children_are_sound(cfg: SearchConfig, n_layer: int, seed: int) -> None:
    found = search(cfg, n_layer, seed)
    by_id = {c.id: c for c in found}
    assert len(by_id) == len(found) == cfg.population_size * cfg.generations
    assert [int(c.id.rpartition("_")[2]) for c in found] == list(range(1, len(found) + 1))
    for c in found:
        names = genes_of(c.activation, n_layer)
        assert set(names) <= set(cfg.pool)
        assert c.activation == (names[0] if len(set(names)) == 1 else ",".join(names))
        kind = names[0] if len(set(names)) == 1 else "mixed"
        prefix = activation(kind).prefix if kind in TABLE else "M"
        assert c.id.startswith(f"gen{c.generation}_{kind}_") and c.name.startswith(f"{prefix}-")
        if c.parent_id is None:
            continue
        parent = by_id[c.parent_id]
        assert parent.generation < c.generation and parent.name == c.parent_name
        assert c.lineage == [*parent.lineage, parent.id]
        assert c.name.partition("-")[2] == parent.name.partition("-")[2].partition(".")[0] + f".{c.generation}"
        if c.mutation is None:
            assert genome_key(c) == genome_key(parent)
        elif "crossover" not in c.mutation:
            assert genome_key(c) != genome_key(parent)
        if cfg.genome == "global" and c.mutation is not None:
            assert c.mutation == f"{parent.activation}→{c.activation}"


def test_mutation_always_changes_and_a_pool_of_one_clones() -> None:
    cfg = SearchConfig(mutation_rate=1.0, population_size=12)
    first = [planted(c) for c in first_generation(cfg, 1, 0)]
    children = [c for seed in range(60) for c in next_generation(cfg, 1, first, 1, seed)]
    by_id = {c.id: c.activation for c in first}
    pairs = Counter((by_id[str(c.parent_id)], c.activation) for c in children)
    assert all(a != b for a, b in pairs)
    assert {b for a, b in pairs if a == "gelu"} == set(POOL) - {"gelu"}
    for genome in ("global", "per_block"):
        cfg = SearchConfig(mutation_rate=1.0, activation_pool="silu", genome=genome, generations=3)
        found = search(cfg, 3, 0)
        assert all(c.activation == "silu" and not (c.mutation or "").count("→") for c in found)


def test_a_mutation_is_to_another_activation_than_an_equal_one() -> None:
    cfg = SearchConfig(mutation_rate=1.0, activation_pool="gelu,silu", genomes="gelu(x)", population_size=20)
    assert {c.activation for c in search(cfg, 1, 0, lambda c: measured(c, 5.0)) if c.generation} == {"silu"}


def test_rates() -> None:
    """Shares of 3,000 draws, each within four standard deviations of its probability."""
    def near(hits: int, of: int, p: float) -> bool:
        return abs(hits - of * p) < 4 * math.sqrt(of * p * (1 - p))

    cfg = SearchConfig(mutation_rate=0.3, population_size=10)
    first = [planted(c) for c in first_generation(cfg, 1, 0)]
    children = [c for seed in range(300) for c in next_generation(cfg, 1, first, 1, seed)]
    assert near(sum(c.mutation is not None for c in children), 3000, 0.3)
    targets = Counter(c.activation for c in children if (c.mutation or "").startswith("gelu→"))
    assert set(targets) == set(POOL) - {"gelu"} and all(near(n, targets.total(), 0.2) for n in targets.values())
    # per block: each block by itself
    cfg = SearchConfig(genome="per_block", mutation_rate=0.3, crossover_rate=0.0, population_size=10)
    first = [planted(c) for c in first_generation(cfg, 5, 0)]
    children = [c for seed in range(60) for c in next_generation(cfg, 5, first, 1, seed)]
    assert near(sum((c.mutation or "").count("→") for c in children), 3000, 0.3)
    for block in range(5):
        assert near(sum(f"block {block}: " in (c.mutation or "") for c in children), 600, 0.3)
    assert near(sum(c.mutation is None for c in children), 600, 0.7**5)
    cfg = replace(cfg, mutation_rate=0.0, crossover_rate=0.7)
    children = [c for seed in range(300) for c in next_generation(cfg, 5, first, 1, seed)]
    assert near(sum((c.mutation or "").startswith("crossover with ") for c in children), 3000, 0.7)


def test_crossover_takes_each_block_from_either_parent() -> None:
    cfg = SearchConfig(genome="per_block", activation_pool="gelu,silu", mutation_rate=0.0, crossover_rate=1.0,
                       population_size=4)
    first = [measured(c, float(i)) for i, c in enumerate(first_generation(cfg, 6, 0))]  # gelu, silu, two random ones
    children = [c for seed in range(50) for c in next_generation(cfg, 6, first, 1, seed)]
    blocks = [genes_of(c.activation, 6) for c in children]
    assert {c.mutation for c in children} == {"crossover with G-Alpha", "crossover with S-Beta"}
    assert {c.parent_id for c in children} == {"gen0_gelu_1", "gen0_silu_2"}
    share = [sum(genes[i] == "gelu" for genes in blocks) / len(blocks) for i in range(6)]
    assert all(0.35 < s < 0.65 for s in share) and len(set(blocks)) > 40
    # a single parent has nobody to cross with
    cfg = replace(cfg, population_size=1)
    (only,) = next_generation(cfg, 6, first[:1], 1, 0)
    assert only.mutation is None and only.activation == "gelu"


def test_what_was_done_is_told_in_words() -> None:
    cfg = SearchConfig(genome="per_block", activation_pool="gelu,silu", mutation_rate=1.0, crossover_rate=1.0,
                       population_size=4)
    first = [measured(c, float(i)) for i, c in enumerate(first_generation(cfg, 2, 0))]
    child = next_generation(cfg, 2, first, 1, 0)[0]
    cross, *rest = str(child.mutation).split("; ")
    assert cross == "crossover with S-Beta"
    flip = {"gelu": "silu", "silu": "gelu"}
    genes = genes_of(child.activation, 2)
    assert rest == [f"block {i}: {flip[g]}→{g}" for i, g in enumerate(genes)]


def test_names_and_lineage_over_three_generations() -> None:
    cfg = SearchConfig(activation_pool="gelu,swiglu", population_size=1, generations=3, mutation_rate=1.0,
                       elitism=False)
    assert [(c.id, c.name, c.parent_name, c.lineage, c.mutation) for c in search(cfg, 2, 7)] == [
        ("gen0_gelu_1", "G-Alpha", None, [], None),
        ("gen1_swiglu_2", "Sw-Alpha.1", "G-Alpha", ["gen0_gelu_1"], "gelu→swiglu"),
        ("gen2_gelu_3", "G-Alpha.2", "Sw-Alpha.1", ["gen0_gelu_1", "gen1_swiglu_2"], "swiglu→gelu")]


# -- the search as a whole --------------------------------------------------------------------------------------------
@given(settings, st.integers(1, 4), st.integers(0, 2**63 - 1))
def test_same_seed_same_search_also_from_files_and_from_the_population_alone(cfg: SearchConfig, n_layer: int,
                                                                             seed: int) -> None:
    found = search(cfg, n_layer, seed)
    assert search(cfg, n_layer, seed, through=restored) == found
    if cfg.generations > 1:
        last = cfg.generations - 1
        children = [c for c in found if c.generation == last]
        # a search killed in the middle of a generation has some of it already
        assert next_generation(cfg, n_layer, found, last, seed) == [
            replace(c, val_loss_mean=None, fitness=None, status=None) for c in children]
        parents = {c.parent_id for c in found if c.generation == last - 1} if cfg.elitism else set()
        population = [c for c in found if c.generation == last - 1 or c.id in parents]
        assert [c.id for c in next_generation(cfg, n_layer, population, last, seed)] == [c.id for c in children]


def test_another_seed_is_another_search() -> None:
    cfg = SearchConfig(population_size=6, generations=3)
    assert len({tuple(c.activation for c in search(cfg, 1, seed)) for seed in range(20)}) > 15


@given(settings, st.booleans(), st.integers(1, 4), st.integers(0, 2**63 - 1))
def test_a_crippled_activation_never_wins(cfg: SearchConfig, exhaustive: bool, n_layer: int, seed: int) -> None:
    cfg = replace(cfg, activation_pool="relu,gelu,silu", population_size=max(2, cfg.population_size))
    if exhaustive:
        cfg = replace(cfg, selection="exhaustive")
    found = search(cfg, n_layer, seed)
    assert any(WORST in c.activation for c in found)  # it was tried
    assert WORST not in min(found, key=lambda c: score(c, cfg)).activation.split(",")


@given(settings, st.booleans(), st.booleans(), st.integers(1, 4))
def test_trainings_bounds_what_a_search_needs(cfg: SearchConfig, exhaustive: bool, reuse: bool, n_layer: int) -> None:
    cfg = replace(cfg, replicates=2, selection="exhaustive" if exhaustive else cfg.selection)
    genomes = [genome_key(c) for c in search(cfg, n_layer, 5)]
    done = 2 * len(set(genomes) if reuse else genomes)
    assert done <= trainings(cfg, n_layer)
    if not reuse or exhaustive:
        assert done == trainings(cfg, n_layer)


def test_trainings_of_an_astronomic_space() -> None:
    cfg = SearchConfig(selection="exhaustive", genome="per_block", replicates=3)
    assert trainings(cfg, 96) == 3 * 6**96
    assert trainings(replace(cfg, genome="global"), 96) == 18
    assert trainings(replace(cfg, selection="topk", population_size=5, generations=4), 96) == 60


def test_genomes_can_be_given() -> None:
    cfg = SearchConfig(selection="exhaustive", genomes="gelu;relu,gelu;relu,relu", replicates=3)
    found = first_generation(cfg, 2, 0)
    assert [c.activation for c in found] == ["gelu", "relu,gelu", "relu"]
    assert [c.id for c in found] == ["gen0_gelu_1", "gen0_mixed_2", "gen0_relu_3"]
    assert trainings(cfg, 2) == 9
    cfg = SearchConfig(genome="per_block", genomes="gelu;relu,gelu", population_size=4, generations=3)
    assert trainings(cfg, 2) == cfg.replicates * (2 + 4 + 4)
