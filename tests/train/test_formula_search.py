"""Searches whose formulas mutate, and random ones: candidates, runs that are killed, and what is said of them."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import replace
from pathlib import Path

import matplotlib.colors
import matplotlib.image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios.backends.backend import Backend
from helios.cli.train import main as train
from helios.model import activations
from helios.model.activations import TABLE, activation
from helios.model.config import GPTConfig
from helios.train.config import SearchConfig, resolve
from helios.train.search import births, files, mutations, plots, report
from helios.train.search.births import Candidate, genome_key
from helios.train.search.budget import models
from helios.train.search.evolution import trainings
from helios.train.search.mutations import OPERATORS

from ..commands import invoke
from . import made_up
from .runs import Make, candidates, configured, first_generation, next_generation, rows, summary
from .test_evolution import measured, restored, search

POOL = ("gelu", "relu2", "swiglu", "universal", "kan_spline", "kan_bspline", "mine: x*sigmoid(1.702*x)")
searches = st.builds(
    SearchConfig, genome=st.just("formula"), selection=st.sampled_from(["topk", "tournament", "random"]),
    population_size=st.integers(1, 7), generations=st.integers(1, 4), elitism=st.booleans(),
    mutation_rate=st.sampled_from([0.0, 0.5, 1.0]), activation_pool=st.lists(
        st.sampled_from(POOL), min_size=1, unique=True).filter(lambda pool: pool != ["kan_bspline"]).map("|".join))


def by_formula(candidate: Candidate) -> Candidate:
    """Equal formulas measure the same; else losses have nothing to do with them."""
    return measured(candidate, 5 + zlib.crc32(genome_key(candidate).encode()) / 2**32)


# -- candidates -------------------------------------------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(searches, st.integers(0, 2**63 - 1))
def test_candidates_are_sound(cfg: SearchConfig, seed: int) -> None:
    found = search(cfg, 3, seed, by_formula)
    pool, by_id = [activation(text) for text in cfg.pool], {c.id: c for c in found}
    spelt = {act.key: act.text for act in [*map(activation, TABLE), *pool]}
    assert [int(c.id.rpartition("_")[2]) for c in found] == list(range(1, len(found) + 1))
    assert len(found) == cfg.population_size * cfg.generations and trainings(cfg, 3) == cfg.replicates * len(found)
    for c in found:
        act = activation(c.activation)
        assert act.text == c.activation == spelt.get(act.key, c.activation)
        kind = c.activation if c.activation in TABLE else "mine" if c.activation.startswith("mine:") else "formula"
        assert c.id.startswith(f"gen{c.generation}_{kind}_") and c.name.startswith(f"{act.prefix}-")
        assert GPTConfig(n_layer=2, activation=c.activation).activations == (act, act)
        if cfg.selection == "random":
            assert c.parent_id is None and not c.lineage
            assert 1 <= str(c.mutation).count("; ") <= max(1, cfg.generations - 1)
            assert any(str(c.mutation).startswith(f"from {p.text}; ") for p in pool if p.formula)
        elif c.generation == 0:
            assert c.activation in cfg.pool and c.refused == 0
        else:
            parent = by_id[str(c.parent_id)]
            assert (c.mutation is None) == (genome_key(c) == genome_key(parent))
            if parent.activation == "kan_bspline":
                assert c.mutation in (None, f"kan_bspline→{c.activation}") and c.activation in cfg.pool
            elif c.mutation:
                assert c.mutation.partition(" ")[0] in OPERATORS
            else:
                assert c.activation == parent.activation
    for generation in range(cfg.generations):
        made = [genome_key(c) for c in found if c.generation == generation
                and (c.mutation or "").removeprefix("from ").partition(" ")[0] in OPERATORS]
        assert len(set(made)) == len(made)


@settings(max_examples=20, deadline=None)
@given(searches, st.integers(0, 2**63 - 1))
def test_same_seed_same_formulas_also_from_files_and_from_the_population_alone(cfg: SearchConfig, seed: int) -> None:
    found = search(cfg, 2, seed, by_formula)
    assert search(cfg, 2, seed, by_formula, restored) == found
    if (last := cfg.generations - 1) > 0:
        parents = {c.parent_id for c in found if c.generation == last - 1} if cfg.elitism else set()
        living = [c for c in found if c.generation == last - 1 or c.id in parents]
        unmeasured = [replace(c, val_loss_mean=None, fitness=None, status=None) for c in found if c.generation == last]
        assert [replace(c, bonus=0.0) for c in next_generation(cfg, 2, living, last, seed)] == [
            replace(c, bonus=0.0) for c in unmeasured]


def test_rates_and_variety() -> None:
    cfg = SearchConfig(genome="formula", activation_pool="gelu,silu,mish", population_size=10, mutation_rate=0.3)
    first = [by_formula(c) for c in first_generation(cfg, 1, 0)]
    assert [c.activation for c in first[:4]] == ["gelu", "silu", "mish", "gelu"]
    children = [c for seed in range(100) for c in next_generation(cfg, 1, first, 1, seed)]
    assert abs(sum(c.mutation is not None for c in children) - 300) < 4 * math.sqrt(1000 * 0.3 * 0.7)
    assert len({c.activation for c in children}) > 100
    cfg = replace(cfg, selection="random", generations=4)
    found = search(cfg, 1, 0, by_formula)
    assert len({genome_key(c) for c in found}) > 30  # of 40
    assert {str(c.mutation).count("; ") for c in found} == {1, 2, 3}
    assert {str(c.mutation).partition(";")[0] for c in found} == {"from gelu", "from silu", "from mish"}


def test_random_formulas_do_not_look_at_losses() -> None:
    cfg = SearchConfig(genome="formula", selection="random", activation_pool="gelu,swiglu", generations=3)
    one, other = search(cfg, 1, 4, by_formula), search(cfg, 1, 4, lambda c: measured(c, None, "diverged"))
    assert [(c.id, c.activation) for c in one] == [(c.id, c.activation) for c in other]
    third = search(cfg, 1, 5, by_formula)
    assert sum(a.activation != b.activation for a, b in zip(one, third, strict=True)) > len(one) // 2
    cfg = replace(cfg, genomes="relu;silu")
    assert [c.activation for c in first_generation(cfg, 1, 4)] == ["relu", "silu"]
    assert [c.id.rpartition("_")[2] for c in next_generation(cfg, 1, [], 1, 4)] == ["3", "4", "5", "6", "7", "8"]


# -- runs -------------------------------------------------------------------------------------------------------------
FORMULA = {"genome": "formula", "mutation_rate": 1.0, "activation_pool": "relu2|swiglu|gelu", "generations": 3,
           "replicates": 1, "steps_per_candidate": 4, "candidate_eval_interval": 4}


def test_equal_formulas_are_trained_once(search: Make, cpu_ref: Backend) -> None:
    t = search(cpu_ref, genome="formula", generations=1,
               genomes="silu||x*sigmoid(x)||one: sigmoid(x)*x||a*silu(x); a=1||a*silu(x); a=0.9||1.0*x*sigmoid(x)")
    assert t.run()
    found = candidates(t)
    assert [c["status"] for c in found] == ["complete", "reused", "reused", "complete", "complete", "reused"]
    assert {c["val_loss_mean"] for c in found if c["status"] == "reused"} == {found[0]["val_loss_mean"]}
    # which is right, since their bits are the same
    alone = search(cpu_ref, "alone", genome="formula", generations=1, genomes="1.0*sigmoid(x)*x")
    assert alone.run() and candidates(alone)[0]["val_loss_mean"] == found[0]["val_loss_mean"]


def test_what_was_refused_is_counted(search: Make, cpu_ref: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    real = mutations.explodes
    monkeypatch.setattr(mutations, "explodes", lambda f: bool(seen.append(str(f)) or real(f) or "tanh" in str(f)))
    t = search(cpu_ref, **FORMULA)
    assert t.run()
    found, told = candidates(t), summary(t)
    drawn = sum(c["mutation"] is not None for c in found)
    assert told["refused"] == sum(c["refused"] for c in found) == len(seen) - drawn > 0
    assert (f"Refused before training, since values or slopes explode on [-20, 20]: {told['refused']} formula"
            in " ".join(told["reasons"]))
    assert not any("tanh" in str(r.get("symbio_candidate_activation")) for r in rows(t))


def test_gelu_search_refuses_nothing(search: Make, cpu_ref: Backend) -> None:
    t = search(cpu_ref, **FORMULA | {"activation_pool": "gelu", "population_size": 2, "generations": 2})
    assert t.run() and summary(t)["refused"] == 0 and "Refused" not in " ".join(summary(t)["reasons"])
    old = files.read(t.records.path)[1]
    del old["refused"]  # as searches wrote it before
    (t.records.path / "search" / files.SUMMARY).write_text(json.dumps(old))
    assert files.read(t.records.path)[1] == old


def test_models_of_genomes_with_coefficients() -> None:
    config = configured(mode="ffn-activation", activation_pool="gelu", genomes="relu||a*silu(x)+b*x; a=1, b=0")
    assert [model.activation for model in models(config)] == ["gelu", "relu", "a*silu(x)+b*x; a=1, b=0"]


def test_the_page_has_settings_that_can_be_given(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "search.md").read_text()
    (tmp_path / "formulas.toml").write_text(page.partition("```toml\n")[2].partition("```")[0])
    cfg = resolve("tiny", search_file=tmp_path / "formulas.toml").search
    assert (cfg.genome, cfg.mutation_rate, len(cfg.pool)) == ("formula", 1.0, 5)
    assert all(f"| `{operator}` |" in page for operator in OPERATORS)


def test_from_the_command_line(tmp_path: Path, each_backend: Backend) -> None:
    """A search that finds formulas, trains the winner, and says in full what it is."""
    (tmp_path / "search.toml").write_text("""
        genome = "formula"
        activation_pool = ["gelu", "swiglu", "mine: 0.5*relu(x)**2+0.125*x+0.0625*tanh(x)"]
        population_size = 3
        generations = 3
        mutation_rate = 1
        replicates = 1
        steps_per_candidate = 4
        candidate_eval_interval = 4
        """)
    done = invoke(train, "--preset", "tiny", "--search-config", tmp_path / "search.toml", "--steps", "2",
                  "--run-dir", tmp_path / "run", "--backend", each_backend.name)
    assert done.exit_code == 0, done.output
    found, told = files.read(tmp_path / "run")
    won = str(told["winner_activation"])
    assert len(found) == 9 and sum(c.mutation is not None for c in found) == 6
    assert f"winner {told['winner_name']} ({won})" in done.stdout.splitlines()[-1]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["symbio_winner"] == won and config["search"]["genome"] == "formula"
    page = (tmp_path / "run" / "search" / "report.md").read_text().replace("\\", "")
    assert all(f"| {activation(c.activation).formula} " in page for c in found)
    assert {p.name for p in (tmp_path / "run" / "search").glob("*.png")} == {
        "loss.png", "speed.png", "lineage.png", "activations.png"}


# -- what is said of them ---------------------------------------------------------------------------------------------
LONG = "0.75*gelu(x)+0.25*x+0.125*softplus(x)"
ALIKE = [f"{LONG}+{i / 100:g}*tanh(x)" for i in range(1, 13)]


def plan(texts: list[str]) -> list[tuple]:
    return [(f"F-{births.GREEK[i]}", text, 0, None, 3.3 + i / 100) for i, text in enumerate(texts)]


def test_long_formulas_are_told_apart(made: made_up.Make) -> None:
    run = made(plan([*ALIKE, "gelu"]), genome="formula")
    found, _ = files.read(run.run)
    rates = plots.speeds(found, files.tracks(run.run, found))
    assert len(rates) == 13 and all(len(x) == 3 * (made_up.STEPS - plots.PREPARING) for x in rates.values())
    page = report.write(run.run).read_text()
    assert f"* The formula of F-Alpha is {ALIKE[0]}." in page.replace("\\", "") and page.count("**") == 0
    assert page.splitlines()[0].startswith("# 0\\.75\\*gelu(x)+0.25\\*x+0.125\\*softp… (F-Alpha) came first")
    for text in ALIKE:
        assert f"| {text} " in page.replace("\\", "")


def test_short_formulas_are_said_once(made: made_up.Make) -> None:
    page = report.write(made(plan(["x*sin(x)", "gelu"]), genome="formula").run, plots=False).read_text()
    assert "| x\\*sin(x) " in page and "| formula" not in page and "The formula of" not in page


def test_pictures_of_many_formulas_have_short_legends(made: made_up.Make) -> None:
    run = made(plan([*(f"{i / 100:g}*{LONG}" for i in range(1, 13)), "gelu", "mine: x*sin(x)"]), genome="formula")
    assert plots._kinds(run.candidates) == ["gelu", "mine", "formulas"]
    assert plots._kinds(run.candidates[:8]) == [activations.short_name(c.activation) for c in run.candidates[:8]]
    image = matplotlib.image.imread(report.write(run.run).parent / "activations.png")[..., :3]
    colours = {name: matplotlib.colors.to_rgb(activations.colour(name)) for name in plots._kinds(run.candidates)}
    area = {name: int((abs(image - colour) < 1e-3).all(axis=2).sum()) for name, colour in colours.items()}
    assert area["gelu"] > 1000 and area["mine"] > 1000 and area["formulas"] > 8 * area["gelu"]
