"""Genomes of genome = operators: an activation and what steadies the model, together."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios.model.config import NORMS, GPTConfig
from helios.model.gpt import initial_state
from helios.train.config import SearchConfig
from helios.train.device import memory_needed
from helios.train.search import operators
from helios.train.search.births import genome_key
from helios.train.search.budget import candidate_model, models
from helios.train.search.evolution import trainings
from helios.train.search.mutations import Draws
from helios.train.search.operators import PLACES, POLICIES, Genome, child, drawn, mutated, steadying

from .runs import configured, first_generation, next_generation
from .test_evolution import restored, search
from .test_formula_search import by_formula

POOL = ("gelu", "relu2", "swiglu", "universal", "kan_bspline", "mine: x*sigmoid(1.702*x)")
MODEL = GPTConfig(n_layer=2)
GENES, VARIED = steadying(MODEL, POOL).genes, frozenset(steadying(MODEL, POOL).own)
CAPS, COUNT = (5.0, 15.0, 30.0, 0.0), 1 + len(GENES)
searches = st.builds(
    SearchConfig, mode=st.just("ffn-activation"), genome=st.just("operators"),
    selection=st.sampled_from(["topk", "tournament", "random"]), population_size=st.integers(1, 9),
    generations=st.integers(1, 4), elitism=st.booleans(), mutation_rate=st.sampled_from([0.0, 0.5, 1.0]),
    crossover_rate=st.sampled_from([0.0, 0.5, 1.0]), match=st.sampled_from(["rule", "params"]),
    activation_pool=st.lists(st.sampled_from(POOL), min_size=1, unique=True).map("|".join))
bases = st.fixed_dictionaries({
    "activation": st.sampled_from(["gelu", "x*sin(x)", "relu2|kan_bspline|swiglu", "1.0*gelu(x)"]),
    "norm": st.sampled_from(list(NORMS)), "softcap": st.sampled_from([0.0, 12.5, 30.0]),
    "logit_softcap": st.sampled_from([0.0, 50.0]), "dropout": st.sampled_from([0.0, 0.1, 0.3]),
    "attn_dropout": st.sampled_from([None, 0.2])})


class Other(NamedTuple):
    name: str
    genome: Genome


SPACE = steadying(MODEL, ["gelu", "relu2"])


def operators_config(**more: Any) -> SearchConfig:
    return SearchConfig(**{"mode": "ffn-activation", "genome": "operators", "activation_pool": "gelu|relu2"} | more)


def in_effect(model: GPTConfig) -> dict[str, Any]:
    dropouts = {f"{place}_dropout": p for place, p in model.dropouts._asdict().items()}
    return model.to_dict() | dropouts


def numbers(seed: int) -> Draws:
    random = np.random.default_rng(seed)
    return Draws(iter(random.random, None))


# -- candidates -------------------------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(searches, bases, st.integers(0, 2**63 - 1))
def test_candidates_are_sound(cfg: SearchConfig, base: dict[str, Any], seed: int) -> None:
    model = GPTConfig(n_layer=3, **base)
    found, own = search(cfg, 3, seed, by_formula, **base), in_effect(model)
    assert len(found) == cfg.population_size * cfg.generations and trainings(cfg, 3) == cfg.replicates * len(found)
    by_id = {c.id: c for c in found}
    known = {gene.settings: {*gene.values, gene.of(own)} for gene in GENES}
    for c in found:
        built = in_effect(candidate_model(model, cfg, c))  # which raises nothing
        assert built["activation"] == GPTConfig(n_layer=3, activation=c.activation).activation
        assert {name: value for name, value in built.items() if value != own[name] and name in VARIED} == c.settings
        assert all(gene.of(built) in known[gene.settings] for gene in GENES)
        assert {name for name in built if built[name] != own[name]} <= VARIED | {"activation", "ffn_dim"}
        assert c.settings == restored(c).settings and genome_key(restored(c)) == genome_key(c)
        if cfg.selection == "random":
            assert c.parent_id is None and str(c.mutation).startswith("from ")
        elif c.generation:
            same = genome_key(c) == genome_key(by_id[str(c.parent_id)])
            assert (c.mutation is None) == same and (not same or c.genome == by_id[str(c.parent_id)].genome)
            assert cfg.mutation_rate < 1 or cfg.crossover_rate or not same
    if cfg.selection != "random":
        assert genome_key(found[0]) == operators.key(Genome(model.activation)) and found[0].settings == {}
        first = [c for c in found if c.generation == 0]
        plain = {operators.key(Genome(text)) for text in (model.activation, *cfg.pool)}
        assert len({genome_key(c) for c in first[:len(plain)]}) == min(len(first), len(plain))
        assert all(c.settings == {} for c in first[:len(plain)]) and all(c.mutation is None for c in first)
        for generation in range(1, cfg.generations):
            new = [genome_key(c) for c in found if c.generation == generation and c.mutation]
            assert len(set(new)) == len(new)


@settings(max_examples=20, deadline=None)
@given(searches, bases, st.integers(0, 2**63 - 1))
def test_same_seed_same_genomes_also_from_files_and_from_the_population_alone(
        cfg: SearchConfig, base: dict[str, Any], seed: int) -> None:
    found = search(cfg, 3, seed, by_formula, **base)
    assert search(cfg, 3, seed, by_formula, restored, **base) == found
    if (last := cfg.generations - 1) > 0:
        parents = {c.parent_id for c in found if c.generation == last - 1} if cfg.elitism else set()
        living = [c for c in found if c.generation == last - 1 or c.id in parents]
        unmeasured = [replace(c, val_loss_mean=None, fitness=None, status=None) for c in found if c.generation == last]
        assert [replace(c, bonus=0.0) for c in next_generation(cfg, 3, living, last, seed, **base)] == [
            replace(c, bonus=0.0) for c in unmeasured]


def test_a_larger_population_begins_with_the_smaller_one() -> None:
    cfg = operators_config(population_size=20)
    first = first_generation(cfg, 2, 7)
    assert first[:5] == first_generation(replace(cfg, population_size=5), 2, 7)
    assert first[5:] != first_generation(cfg, 2, 8)[5:] and len({genome_key(c) for c in first}) > 15
    assert [c.id for c in first[:3]] == ["gen0_gelu_1", "gen0_relu2_2", first[2].id] and first[2].settings


def test_random_genomes_do_not_look_at_losses() -> None:
    cfg = operators_config(selection="random", generations=3)
    one, other = search(cfg, 1, 4, by_formula), search(cfg, 1, 4, lambda c: replace(c, status="diverged"))
    assert [(c.id, c.genome) for c in one] == [(c.id, c.genome) for c in other]
    assert len({genome_key(c) for c in one}) == len(one)


def test_every_model_fits_in_what_was_checked() -> None:
    """The largest ones are those that memory is asked for."""
    for base in ({"norm": "rms"}, {"activation": "swiglu"}):
        config = configured(**{"genome": "operators", "activation_pool": "gelu|relu2", "generations": 4} | base)
        most = max(memory_needed(model, 8) for model in models(config))
        found = search(config.search, 2, 3, by_formula, **base)
        assert all(memory_needed(candidate_model(config.model, config.search, c), 8) <= most for c in found)
        assert operators.largest(steadying(config.model, ()), config.model)["norm"] == "layer"


# -- genes ------------------------------------------------------------------------------------------------------------
def test_a_model_has_one_genome() -> None:
    key = operators.key
    assert key(Genome("silu")) == key(Genome("x*sigmoid(x)")) == key(Genome("silu|silu"))
    one = Genome("silu", {"softcap": 0.0, "norm": "rms"})
    assert key(one) == key(Genome("one: sigmoid(x)*x", {"norm": "rms", "softcap": 0.0}))
    assert len({key(one), key(Genome("silu")), key(Genome("silu", {"softcap": 5.0})), key(Genome("gelu", {}))}) == 4


@pytest.mark.parametrize(("given", "expected"), [
    ({}, ""), ({"softcap": 0.0}, "softcap 0"), ({"norm": "rms", "softcap": 12.5}, "norm rms, softcap 12.5"),
    ({"qk_norm": True, "softcap": 5.0}, "qk_norm on, softcap 5"), ({"qk_norm": False}, "qk_norm off"),
    ({"attn_dropout": 0.1, "softcap": 5.0, "embd_dropout": 0.1}, "softcap 5, attn+embd dropout 0.1"),
    ({"attn_dropout": 0.0, "resid_dropout": 0.1}, "attn dropout 0, resid dropout 0.1")])
def test_settings_in_short(given: dict[str, Any], expected: str) -> None:
    assert operators.shown(given) == expected
    assert operators.described("gelu", given) == ("gelu" if not given else f"gelu with {expected}")


def test_a_setting_becomes_a_gene_by_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "STEADYING", ("zero_init_outputs",))
    for base, word in ((False, "on"), (True, "off")):
        model, flipped = replace(MODEL, zero_init_outputs=base), {"zero_init_outputs": not base}
        space = steadying(model, ["gelu"])
        there, back = ([mutated(space, Genome("gelu", given), numbers(seed))[:2] for seed in range(40)]
                       for given in ({}, flipped))
        assert (Genome("gelu", flipped), [f"zero_init_outputs {word}"]) in there
        assert Genome("gelu") in [genome for genome, _ in back]


def near(hits: int, of: int, p: float) -> bool:
    return abs(hits - of * p) < 4 * math.sqrt(of * p * (1 - p))


def test_a_mutation_changes_one_gene_or_more_each_as_often() -> None:
    own, changed, n = in_effect(MODEL), Counter[str](), 3000
    for seed in range(n):
        made, words, _ = mutated(steadying(MODEL, ["gelu", "swiglu"]), Genome("gelu"), numbers(seed))
        assert words and (made.activation != "gelu" or made.settings)
        changed["activation"] += made.activation != "gelu"
        changed["swapped"] += made.activation == "swiglu"
        for gene in GENES:
            changed[gene.settings[0]] += gene.of(own | dict(made.settings)) != gene.of(own)
    often = 1 / COUNT + (1 - 1 / COUNT) / COUNT
    assert all(near(changed[name], n, often) for name in ("activation", *(gene.settings[0] for gene in GENES)))
    assert near(changed["swapped"], changed["activation"], 0.5)


@pytest.mark.parametrize(("own", "order"), [(30.0, CAPS), (12.5, (5.0, 12.5, 15.0, 30.0, 0.0))])
def test_softcaps_go_in_steps_and_all_else_anywhere(own: float, order: tuple[float, ...]) -> None:
    model, seen = replace(MODEL, softcap=own), dict[str, set[tuple[Any, Any]]]()
    for seed in range(4000):
        space = steadying(model, ["gelu"])
        before = drawn(space, numbers(seed))
        made, *_ = mutated(space, before, numbers(seed + 10**6))
        for gene in GENES:
            pair = tuple(gene.of(in_effect(model) | dict(genome.settings)) for genome in (before, made))
            seen.setdefault(gene.settings[0], set()).add(pair)
    steps = {(order[i], order[j]) for i in range(len(order)) for j in range(len(order)) if abs(i - j) <= 1}
    assert {(a, b) for (a,), (b,) in seen["softcap"]} == steps
    assert {(a, b) for (a,), (b,) in seen["norm"]} == {(a, b) for a in NORMS for b in NORMS}
    assert {a for a, _ in seen["attn_dropout"]} == {b for _, b in seen["attn_dropout"]} == {*map(tuple, POLICIES)}
    assert len(seen["attn_dropout"]) == len(POLICIES) ** 2


def test_families_cross_the_line_between_gated_and_not() -> None:
    found = {mutated(steadying(MODEL, ["gelu", "swiglu", "kan_bspline"]), Genome(text), numbers(seed))[1][0]
             for text in ("gelu", "gelu|relu", "kan_bspline") for seed in range(300)}
    assert {"gelu→swiglu", "gelu→kan_bspline", "gelu|relu→swiglu", "kan_bspline→gelu"} <= found
    assert any(word.startswith("inject_gate ") for word in found)


def test_crossover_takes_each_gene_from_either_parent() -> None:
    one = Genome("gelu", {"norm": "rms", "softcap": 5.0})
    other = Genome("swiglu", {"softcap": 0.0, "logit_softcap": 15.0, **dict(zip(PLACES, POLICIES[-1], strict=True))})
    cfg = operators_config(mutation_rate=0.0, crossover_rate=1.0)
    made = [child(SPACE, one, [Other("Sw-Beta", other)], (), cfg, numbers(seed)) for seed in range(2000)]
    assert {tuple(born.changes) for born in made} == {("crossover with Sw-Beta",)}
    own, shares = in_effect(MODEL), Counter[str]()
    assert {(born.operator, born.other) for born in made} == {("crossover", 0)}
    for genome, *_ in made:
        now = own | dict(genome.settings)
        assert genome.activation in ("gelu", "swiglu") and now["softcap"] in (0.0, 5.0)
        assert tuple(now[name] for name in PLACES) in (POLICIES[0], POLICIES[-1])
        shares += Counter({"swiglu": genome.activation == "swiglu", "layer": now["norm"] == "layer",
                           "dropout": now["mlp_dropout"] > 0, "softcap": now["softcap"] == 0})
    # A child as its first parent is drawn again: of 32, one is not there.
    assert all(near(n, len(made), 16 / 31) for n in shares.values()) and len(shares) == 4
    assert len({operators.key(genome) for genome, *_ in made}) == 31


def test_rates_and_what_is_taken() -> None:
    own, n = Genome("gelu"), 2000
    cfg = operators_config(mutation_rate=0.3, crossover_rate=1.0)
    made = [child(SPACE, own, [], (), cfg, numbers(seed)) for seed in range(n)]
    assert near(sum(bool(words) for _, _, words, *_ in made), n, 0.3)  # nobody to cross with
    assert all((genome == own) == (not words) for genome, _, words, *_ in made)
    cfg = operators_config(mutation_rate=1.0)
    for seed in range(50):
        taken = set[str]()
        for _ in range(4):
            genome, _, words, *_ = child(SPACE, own, [Other("R", Genome("relu"))], taken, cfg, numbers(seed))
            assert words and operators.key(genome) not in taken | {operators.key(own)}
            taken.add(operators.key(genome))
    # where nothing else can be, a child is as its parent
    cfg = operators_config(mutation_rate=0.0, crossover_rate=1.0)
    assert child(SPACE, own, [Other("G", Genome("1.0*gelu(x)"))], (), cfg, numbers(0)) == (own, "clone", (), 0, None)


# -- initial values ---------------------------------------------------------------------------------------------------
def test_what_candidates_share_starts_alike() -> None:
    base = GPTConfig(vocab_size=40, block_size=8, n_layer=2, n_head=2, n_embd=8)
    first = initial_state(base, 3)
    for gene in GENES:
        for values in gene.values:
            other = initial_state(replace(base, **dict(zip(gene.settings, values, strict=True))), 3)
            shared = [name for name in first if name in other and first[name].shape == other[name].shape]
            lost = {name for name in first if name.endswith(".bias")} if "rms" in values else set()
            assert {*first} - {*shared} == lost and (not lost or len(lost) == 5)
            for name in shared:
                np.testing.assert_array_equal(first[name], other[name])
