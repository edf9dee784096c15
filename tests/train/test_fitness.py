"""Every formula by hand, what loses, what is refused, and how varied a population is."""

from __future__ import annotations

import contextlib
import math
import re
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
from helios.train.fitness import formula as read

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
    with pytest.raises(UserError, match=r"unknown fitness 'val_loss'; there are .*, such as -val_loss"):
        read("val_loss")  # more would be better
    with pytest.raises(UserError, match="fitness -val_loss has no coefficient 'speed'; it has none"):
        fitness("-val_loss", OWN, {"speed": 1.0})
    assert fitness_coefficients("bounded", {"alpha": 2.0}) == {"alpha": 2.0, "complexity_weight": 0.01}


OWN = ALL._replace(val_loss=4.5, train_loss=4.0, spikes=0.0, skipped=0.0, alerts=0.25, seconds=60.0, tokens=10**6,
                   memory_mb=100.0)


@pytest.mark.parametrize(("text", "expected"), [
    ("-val_loss + 0.02*log(tokens_per_sec) - 0.2*clip_rate", -4.5 + 0.02 * SPEED - 0.2 * 0.25),
    ("-val_loss\n  - alerts ** 2", -4.5 - 0.25**2), ("-(val_loss)", -4.5), ("+seconds - -2", 62.0),
    ("min(train_loss, val_loss, 9) + max(spikes, -1)", 4.0), ("abs(-tokens)/1e6", 1.0), ("2**-2 * seconds", 15.0),
    ("exp(-skipped) + sqrt(memory_mb) + log1p(spikes) + log10(parameters)", 17.0), ("val_loss**-1", 1 / 4.5),
    ("max(100, seconds)", 100.0), ("1/skipped", -math.inf), ("(-seconds)**0.5", -math.inf),  # no complex number
    ("log(spikes)", -math.inf),
    ("exp(parameters)", -math.inf), ("parameters**100", -math.inf), ("1e308*seconds - 1e308*seconds", -math.inf),
])
def test_own_formulas(text: str, expected: float) -> None:
    assert fitness(text, OWN, {}) == pytest.approx(expected, rel=1e-15) and type(fitness(text, OWN, {})) is float
    needs = read(text).needs
    assert sorted(needs) == sorted(name for name in OWN._fields if re.search(rf"\b{name}\b", text))
    for name in needs:
        assert fitness(text, OWN._replace(**{name: math.nan}), {}) == -math.inf
        with pytest.raises(ValueError, match=f"{name} was not measured"):
            fitness(text, OWN._replace(**{name: None}), {})


@pytest.mark.parametrize(("text", "at", "message"), [
    ("-val_los", 2, "nothing measured is called 'val_los'; did you mean val_loss?; there are best_val_loss, "),
    ("-val_loss + c_speed*tokens", 13, "nothing measured is called 'c_speed'"), ("val_loss + log", 12, "called 'log'"),
    ("-val_loss + ln(tokens)", 13, "unknown function 'ln'; there are log, "), ("2 - max(tokens)", 5, "max takes two"),
    ("log(tokens, 2)", 1, "log takes one argument, given 2"), ("-val_loss +", 12, "syntax error at the end"),
    ("-val_loss - -", 14, "syntax error at the end"), (" ", 1, "an expression is missing here"),
    ("__import__('os')", 12, '"\'" cannot be part of a formula'), ("__import__(os)", 1, "unknown function '__import"),
    ("tokens.__class__", 1, "'tokens.__class__' cannot be part"), ("val_loss < 3", 10, "'<' cannot be part"),
    ("tokens if seconds else 1", 1, "cannot be part"), ("seconds and tokens", 1, "cannot be part"),
    ("True + tokens", 1, "'True' cannot be part"), ("2j*tokens", 1, "'2j' cannot be part"), ("seconds // 2", 1, "part"),
    ("min(*tokens, 1)", 5, "'*tokens' cannot be part"), ("tokens, seconds", 1, "cannot be part"),
    ("(lambda)(tokens)", 8, "syntax error"), ("log(tokens)(2)", 1, "cannot be part"), ("val_loss(2)", 1, "unknown f"),
    ("max(1, 2, **tokens)", 1, "'max(1, 2, **tokens)' cannot be part"),
    ("tokens**101", 9, "a power of 101 is too large; give one up to 100"), ("tokens**(2*-60)", 10, "a power of -120"),
    ("(9**9)**101 + tokens", 9, "a power of 101"), ("tokens + 9**9**9", 13, "a power of 3.8742e+08 is too large"),
    ("tokens + 1e99**99", 10, "this has no value, or one that is too large"), ("tokens/(1 - 1)**-1", 8, "no value"),
    ("tokens*1e999", 8, "this has no value, or one that is too large"), ("tokens + " + "9" * 400, 10, "no value"),
    ("2 + 2", 1, "it has nothing measured in it"), ("+".join(["tokens"] * 200), 531, "more than 150 operations"),
    ("1 -" + " -tokens" * 700, 4001, "longer than 4000 characters"),
])
def test_what_is_no_formula(text: str, at: int, message: str) -> None:
    with pytest.raises(UserError) as error:
        read(text)
    assert message in str(error.value) and f", column {at}: " in str(error.value) and "\n" not in str(error.value)


@given(st.text("()+-*/., 0123456789elogmaxt_nksv", max_size=30))
def test_any_text_is_a_formula_or_refused(text: str) -> None:
    with contextlib.suppress(UserError):
        assert not math.isnan(fitness(text, OWN, {}))


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
