"""The genes of an experiment: where they come from, what narrows them, and that every config of a space can be made."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios.bench.planted import question
from helios.errors import UserError
from helios.train.config import BY_KEY, SETTINGS
from helios.train.evolve.config import asked, experiments
from helios.train.evolve.driver import experiment_of
from helios.train.evolve.space import configured, described, space_of
from helios.train.evolve.space import given as given_genomes
from helios.train.search import births, operators
from helios.train.search.operators import COMBINED, Genome, gene

ALL = ",".join([*(s.key for s in SETTINGS if s.gene and not s.key.endswith("dropout") and s.key not in (
    "batch_size", "accum")), "activation", "micro_batch", *COMBINED])


# -- every genome is a config -----------------------------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**63 - 1), st.sampled_from(["formula", "global", "per_block"]))
def test_whatever_is_born_can_be_trained(seed: int, activations: str) -> None:
    found = question(ALL, activations=activations)
    space = space_of(found)
    parents = [operators.drawn(space, births.draws(seed, 0, i)) for i in range(4)]
    own = Genome(space.activation)
    for i in range(12):
        others = [births.founder(genome, 0, 0, 0) for genome in parents[1:]]
        made, *_ = operators.child(space, parents[0], others, (), found.evolve, births.draws(seed, 1, i))
        parents = [*parents[1:], made]
    for genome in [own, *parents]:
        config = configured(found.base, genome)  # which raises nothing
        values = operators.values_in_effect(config.model) | config.train.to_dict() | config.monitor.to_dict()
        assert config.model.n_embd % config.model.n_head == 0 and config.train.lr_min <= config.train.lr
        assert config.train.batch_size * config.train.accum == found.base.train.batch_size * found.base.train.accum
        assert {key: values[key] for key in genome.settings} == dict(genome.settings)
        assert all(values[key] != space.own[key] for key in genome.settings)
        for one in space.genes:
            value = one.of(values)
            assert one.low <= value[0] <= one.high or value == one.of(space.own) if one.numeric else value in one.values


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([s.key for s in SETTINGS if s.gene]), st.floats(0, 1), st.floats(0, 1))
def test_places_and_values(key: str, a: float, b: float) -> None:
    one = gene(key)
    assert one is not None
    if not one.numeric:
        assert [one.place(value) for value in one.values] == [
            None if one.kind == "set" else i / (len(one.values) - 1) for i in range(len(one.values))]
        return
    low, high = sorted((a, b))
    assert one.low <= one.at(low)[0] <= one.at(high)[0] <= one.high and one.at(0)[0] == one.low
    assert one.at(1)[0] == one.high
    place = one.place(one.at(a))
    assert place is not None and one.at(place) == one.at(a) and (one.whole or math.isclose(place, a, abs_tol=0.02))
    BY_KEY[key].read(one.at(a)[0], key)


def test_heads_are_the_nearest_divisor() -> None:
    fits = gene("n_head").fits  # type: ignore[union-attr]
    assert fits
    for width in range(1, 50):
        divisors = [n for n in range(1, width + 1) if width % n == 0]
        for heads in range(1, 60):
            assert fits(heads, {"n_embd": width}) == min(divisors, key=lambda n: (abs(n - heads), n))
    assert fits(10**5, {"n_embd": 10**12}) == 10**5  # in far less than as many tries


def test_decays_are_read_from_one() -> None:
    one = gene("beta2")
    assert one is not None and one.at(0.5) == (0.99293,)  # half way from 0.9 to 0.9995 by the ratio of what is left


# -- what narrows them ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("text", "kind", "low", "high", "values"), [
    ("lr", "log", 1e-5, 1e-2, ()), ("lr=1e-4..1e-3", "log", 1e-4, 1e-3, ()),
    ("beta2=0.9..0.99", "of_rest", 0.9, 0.99, ()),
    ("softcap=5|0|30", "steps", 0, 0, ((5.0,), (30.0,), (0.0,))), ("layers=2..4", "linear", 2, 4, ()),
    ("qk-norm", "set", 0, 0, ((False,), (True,))), ("precision", "set", 0, 0, (("f32",), ("mixed",))),
    ("weight_decay=0..0.2", "linear", 0, 0.2, ()), ("plateau_evals=2..9", "linear", 2, 9, ()),
    ("ffn_dim=64..256", "linear", 64, 256, ()),
    ("micro_batch", "steps", 0, 0, ((1, 4), (2, 2), (4, 1)))])
def test_genes_by_text(text: str, kind: str, low: float, high: float, values: tuple[Any, ...]) -> None:
    (one,) = space_of(question(text)).genes
    assert (one.kind, one.low, one.high) == (kind, low, high) and set(values) <= set(one.values)
    assert described(one)["name"] == one.name and one.part in ("architecture", "dynamics", "runtime")


@pytest.mark.parametrize(("genes", "message"), [
    ("lrr", r"unknown gene 'lrr'; did you mean lr\?; there are"), ("ffn_dim", "gene ffn_dim has no range of its own"),
    ("lr=1..0.1", "gene lr: the range 1..0.1 is empty"),
    ("beta2=0.9..1.5", "gene beta2: expected at least 0 and less than 1"),
    ("lr=0.1", "gene lr: '0.1' is one value; give several"), ("lr=a..b", "gene lr: expected a number, got 'a'"),
    ("precision=f32..mixed", "is a range, and precision is no number"), ("dropout,dropouts=1|2", "takes no range"),
    ("batch,micro_batch", "both vary batch_size"), ("dropout,dropouts", "genes dropout and dropouts both vary attn_"),
    ("steps=2..9", "gene steps: candidates are compared by trainings that are alike in it; leave it out"),
    *((f"{name}=2..9", f"gene {name}: candidates") for name in ("seed", "eval_iters", "vocab_size", "keep")),
    ("dynamic_lr=none|entropy", "gene dynamic_lr: dynamic_lr = entropy goes by the population"),
    ("data", "unknown gene 'data'"),
    ("n_embd=100..1000000000", "gene n_embd: expected from 1 to 1,000,000, got '1000000000'"),
    ("activation=gelo|relu", "gene activation: given 'gelo', expected one of")])
def test_bad_genes(genes: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        space_of(question(genes))


@pytest.mark.parametrize("text", ["3", "false", "[]", "[1, 2]"])
def test_activations_in_a_file(text: str, tmp_path: Path) -> None:
    ask = lambda: asked("tiny", None, tmp_path / "x.toml", [], {"val_data": "synth:64KB"}, None)
    (tmp_path / "x.toml").write_text('[genes]\nactivation = ["gelu", "x*sigmoid(2*x)"]\n')
    assert space_of(ask()).pool == ("gelu", "x*sigmoid(2*x)")
    (tmp_path / "x.toml").write_text(f"[genes]\nactivation = {text}\n")
    with pytest.raises(UserError, match="gene activation: expected activations, as "):
        space_of(ask())


def test_a_warm_up_ends_in_time() -> None:
    (one,) = space_of(question("warmup", per_candidate=6400)).genes  # 100 steps of 64 tokens
    assert (one.low, one.high) == (1, 50)
    with pytest.raises(UserError, match="gene warmup: its range begins at 60"):
        space_of(question("warmup=60..90", per_candidate=6400))


def test_no_genes() -> None:
    with pytest.raises(UserError, match="no gene to vary; give --genes"):
        space_of(asked("tiny", None, None, [], {"val_data": "synth:64KB"}, None))


@pytest.mark.parametrize(("genes", "settings", "message"), [
    ("micro_batch", {"batch_size": 1}, "a step of one sequence has no other parts"),
    ("batch", {"adaptive_batch": "true", "batch_max": 16}, "gene batch_size: batch_size 32 is not between batch_min"),
    ("activation,layers=2..4", {"activation": "gelu|relu"}, "gene n_layer: activation: given 2, expected one, or")])
def test_genes_that_the_base_does_not_allow(genes: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        space_of(question(genes, **settings))


def test_a_number_beside_a_base_without_one() -> None:
    space = space_of(question("ffn_dim=64..256"))
    made = [operators.mutated(space, Genome("gelu"), births.draws(0, 0, i))[0] for i in range(9)]
    assert all(64 <= genome.settings["ffn_dim"] <= 256 and type(genome.settings["ffn_dim"]) is int for genome in made)
    other = births.founder(made[0], 0, 0, 0)
    for i in range(9):
        operators.child(space, Genome("gelu"), [other], (), question().evolve, births.draws(0, 1, i))


# -- where what is asked for comes from -------------------------------------------------------------------------------
@pytest.mark.parametrize("name", experiments())
def test_the_experiments_that_come_along(name: str) -> None:
    found = experiment_of(asked("historic-6l", name, None, [], {"val_data": "synth:64KB:1"}, None), "x")
    assert len(found.space.genes) >= 3
    for i in range(50):
        configured(found.asked.base, operators.drawn(found.space, births.draws(0, 0, i)))


def test_a_file_wins_over_an_experiment_and_flags_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text('[train]\nlr = 0.002\n[evolve]\nper-candidate = 5000\nreplicates = 3\n'
                                     '[genes]\nlr = [1e-4, 1e-3]\nbeta2 = "0.9..0.99"\n')
    found = asked("tiny", "stability-9", tmp_path / "x.toml", ["population=5"],
                  {"replicates": "4", "val_data": "synth:64KB", "seed": "3"}, None)
    assert (found.base.train.lr, found.base.train.seed) == (0.002, 3)
    evolve = found.evolve
    assert (evolve.per_candidate, evolve.replicates, evolve.population_size, evolve.generations) == (5000, 4, 5, 5)
    assert [one.name for one in space_of(found).genes] == ["lr", "beta2"]
    assert type(found).from_dict(found.to_dict()) == found


def test_a_fitness_or_objectives(tmp_path: Path) -> None:
    """Who says both says nothing; whose source wins over another's may say the other."""
    (tmp_path / "x.toml").write_text('[evolve]\nfitness = "quality"\n[genes]\nlr = true\n')
    (tmp_path / "y.toml").write_text('[evolve]\nfitness = "quality"\nobjectives = "val_loss"\n[genes]\nlr = true\n')
    given = {"val_data": "synth:64KB"}
    assert asked("tiny", "stability-9", tmp_path / "x.toml", [], given, None).evolve.fitness == "quality"
    assert asked("tiny", None, tmp_path / "x.toml", [], given | {"objectives": "spikes"}, None).evolve.fitness is None
    for file, flags in (("y.toml", {}), ("x.toml", {"fitness": "quality", "objectives": "val_loss"})):
        with pytest.raises(UserError, match=r"(y\.toml|flags): fitness and objectives are both given"):
            asked("tiny", None, tmp_path / file, [], given | flags, None)


def test_a_misspelt_table(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text('[stop]\nstop_spikes = 0.2\n')
    with pytest.raises(UserError, match=r"x\.toml: unknown table \[stop\]; did you mean stops\?; .*\[genes\]"):
        asked("tiny", None, tmp_path / "x.toml", [], {}, "lr")


@pytest.mark.parametrize("text", ["0.001-0.01", "1e-4 - 1e-3", "0.001:0.01", "0.001,0.01"])
def test_a_range_in_another_spelling(text: str) -> None:
    found = question()
    with pytest.raises(UserError, match=r"a range is LOW\.\.HIGH"):
        space_of(type(found)(found.base, found.evolve, {"lr": text}))


def test_seeds_from_runs() -> None:
    found = question("lr,dropouts")
    other = found.base.replaced("train", lr=0.0005, lr_min=0.0001).replaced("model", dropout=0.2, norm="rms")
    values = operators.values_in_effect(other.model) | other.train.to_dict()
    space = space_of(found)
    found = type(found)(found.base, found.evolve, found.genes, [values])
    assert given_genomes(found, space) == [Genome("gelu", {
        "lr": 0.0005, "lr_min": 0.0005, "attn_dropout": 0.2, "resid_dropout": 0.2, "mlp_dropout": 0.2})]


def test_a_seed_with_an_activation_for_each_block() -> None:
    found = question("lr,activation")
    values = operators.values_in_effect(found.base.replaced("model", activation="gelu|relu").model)
    found = type(found)(found.base, found.evolve, found.genes, [values])
    with pytest.raises(UserError, match="by block; give --set activations=per_block"):
        given_genomes(found, space_of(found))
