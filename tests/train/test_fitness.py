"""Every formula by hand, what loses, what is refused, and how varied a population is."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios.errors import UserError
from helios.train.fitness import (
    FITNESS,
    Measurements,
    activation_distribution,
    architecture_diversity,
    complexity,
    fitness,
    fitness_coefficients,
    free_energy,
    population_entropy,
)

ALL = Measurements(best_val_loss=4.0, tokens_per_sec=7000.0, clip_rate=0.25, max_grad_norm=3.0, instability=0.1,
                   parameters=10**6, free_energy=5.0)
SPEED = math.log(7000)
EXPECTED = {
    "inverse": 1 / 5,
    "bounded": 1 / 5 - 0.01 * 6,
    "quality": -4 - 0.05 * math.log(4) - 0.2 * 0.25 + 0.02 * SPEED,
    "efficiency": 0.5 * SPEED - 0.5 * 4 - 0.25 * 0.1 - 0.05 * math.log(1e6),
    "phase10": -4 + 0.03 * SPEED - 0.15 * 0.25 - 0.05 * math.log(4),
    "phase10_wall": -4 - 0.1 * 0.1 + 0.08 * SPEED,
}


@pytest.mark.parametrize("name", FITNESS)
def test_formulas_by_hand(name: str) -> None:
    assert fitness(name, ALL, {}) == pytest.approx(EXPECTED[name], rel=1e-12)


@pytest.mark.parametrize(("name", "coefficient"), [(n, c) for n, f in FITNESS.items() for c in f.coefficients])
def test_every_coefficient_counts(name: str, coefficient: str) -> None:
    own = fitness_coefficients(name, {})
    changes = [fitness(name, ALL, {coefficient: own[coefficient] + x}) - EXPECTED[name] for x in (0.5, 1.0)]
    assert changes[1] == pytest.approx(2 * changes[0]) and changes[0] != 0
    assert fitness(name, ALL, own) == fitness(name, ALL, {})


def test_better_is_more() -> None:
    better = {"best_val_loss": 3.9, "tokens_per_sec": 8000.0, "clip_rate": 0.2, "max_grad_norm": 2.0,
              "instability": 0.0, "parameters": 10**5, "free_energy": 4.9}
    for name, formula in FITNESS.items():
        for need in formula.needs:
            assert fitness(name, ALL._replace(**{need: better[need]}), {}) > EXPECTED[name]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_loses(bad: float) -> None:
    for name, formula in FITNESS.items():
        for need in formula.needs:
            assert fitness(name, ALL._replace(**{need: bad}), {}) == -math.inf


@pytest.mark.parametrize(("name", "values"), [
    ("quality", {"tokens_per_sec": 0.0}), ("inverse", {"free_energy": 0.0}), ("bounded", {"best_val_loss": -1.0}),
    ("phase10", {"max_grad_norm": -1.0}), ("inverse", {"free_energy": 5e-324}),
])
def test_what_has_no_value_loses(name: str, values: dict[str, float]) -> None:
    assert fitness(name, ALL._replace(**values), {}) == -math.inf


@given(st.sampled_from(sorted(FITNESS)), st.fixed_dictionaries(dict.fromkeys(Measurements._fields, st.floats())))
def test_no_number_raises(name: str, values: dict[str, Any]) -> None:
    assert not math.isnan(fitness(name, Measurements(**values), {}))


def test_what_was_not_measured() -> None:
    for name, formula in FITNESS.items():
        for need in formula.needs:
            with pytest.raises(ValueError, match=f"{need} was not measured"):
                fitness(name, ALL._replace(**{need: None}), {})
        rest: dict[str, Any] = {field: None for field in ALL._fields if field not in formula.needs}
        assert fitness(name, ALL._replace(**rest), {}) == pytest.approx(EXPECTED[name])


def test_unknown_names() -> None:
    with pytest.raises(UserError, match="unknown fitness 'qualty'; did you mean quality"):
        fitness("qualty", ALL, {})
    with pytest.raises(UserError, match=r"fitness quality has no coefficient 'sped'; did you mean speed\?; it has"):
        fitness("quality", ALL, {"sped": 1.0})
    with pytest.raises(UserError, match="fitness inverse has no coefficient 'alpha'; it has none"):
        fitness_coefficients("inverse", {"alpha": 1.0})
    assert fitness_coefficients("bounded", {"alpha": 2.0}) == {"alpha": 2.0, "complexity_weight": 0.01}


def test_free_energy() -> None:
    assert free_energy(8.262, 1.87, 0.01) == pytest.approx(8.2807)


def test_complexity() -> None:
    assert complexity("parameters", 10**6) == 6
    assert complexity("entropy", 10**6, 4.0) == 4
    assert complexity("description", 10**6, 4.0) == pytest.approx(math.log10(4e6))
    assert complexity("description", 10**6, 0.0) == 0
    with pytest.raises(UserError, match="unknown complexity 'size'; there are parameters, entropy, description"):
        complexity("size", 10)
    for mode in ("entropy", "description"):
        with pytest.raises(ValueError, match="weight_entropy was not measured"):
            complexity(mode, 10)


@pytest.mark.parametrize(("names", "bits", "diversity"), [
    (["gelu"] * 4, 0, 1 / 4), (["gelu", "silu"], 1, 1), (["relu", "gelu", "silu", "swiglu"], 2, 1),
    (["gelu", "gelu", "silu", "relu"], 1.5, 3 / 4), ([], 0, 0),
])
def test_populations(names: list[str], bits: float, diversity: float) -> None:
    assert population_entropy(names) == pytest.approx(bits)
    assert population_entropy(names[::-1]) == population_entropy(names)
    assert math.copysign(1, population_entropy(names)) == 1
    assert architecture_diversity(names) == diversity
    shares = activation_distribution(names)
    assert list(shares) == sorted(set(names)) and all(shares[n] == names.count(n) / len(names) for n in names)
