"""Mutations of formulas: each operator by hand, and what holds for any of them on any formula."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios.formula import Formula
from helios.model.activations import TABLE, activation
from helios.train.search import mutations
from helios.train.search.mutations import DEPTH, NODES, OPERATORS, TRIES, Draws, explodes, extent, mutate

from ..ops.formulas import formulas

FORMULAS = [activation(name).formula for name in TABLE if activation(name).formula]
NUMBERS = 3 * TRIES  # most random numbers of one mutation
DRAWN = st.lists(st.floats(0, 1, exclude_max=True), min_size=NUMBERS, max_size=NUMBERS)
REFUSABLE = ["x**3", "relu(x)**3", "x**4*x**4", "3*x**2", "sin(101*x)", "1001+tanh(x)", "silu(g)*silu(g)*u", "g*u**2",
             "a*x**2; a=2.6"]


# -- each by itself ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("operator", "formula", "drawn", "expected", "words"), [
    ("inject_residual", "gelu(x)", [0.4], "0.72*gelu(x)+0.28*x", "0.72"),
    ("inject_residual", "gelu(x)", [0.0], "0.6*gelu(x)+0.4*x", "0.6"),
    ("inject_residual", "gelu(x)", [0.999999], "0.9*gelu(x)+0.1*x", "0.9"),
    ("inject_residual", "a*x; a=2", [0.5], "0.75*(a*x)+0.25*x; a=2", "0.75"),
    ("inject_residual", "silu(g)*u", [0.5], "(0.75*silu(g)+0.25*g)*u", "0.75"),
    ("inject_gate", "x*tanh(x)", [0.0], "x*tanh(x)*silu(x)", "silu"),
    ("inject_gate", "x+tanh(x)", [0.5], "(x+tanh(x))*relu(x)", "relu"),
    ("inject_gate", "sigmoid(g)*u+g", [0.9], "sigmoid(g)*gelu(g)*u+g", "gelu"),
    ("add_term", "gelu(x)", [0.0, 0.4], "gelu(x)+0.05*tanh(x)", "0.05*tanh"),
    ("add_term", "silu(x)", [0.9999, 0.0], "silu(x)+0.3*x", "0.3*identity"),
    ("add_term", "b*g*u+tanh(g); b=1", [0.5, 0.4], "(b*g+0.17*tanh(g))*u+tanh(g); b=1", "0.17*tanh"),
    ("swap_basis", "gelu(x)", [0.0, 0.0], "x", "gelu→identity"),
    ("swap_basis", "x*tanh(softplus(x))", [0.0, 0.1], "silu(x)*tanh(softplus(x))", "identity→silu"),
    ("swap_basis", "x*tanh(softplus(x))", [0.4, 0.1], "x*relu(softplus(x))", "tanh→relu"),
    ("swap_basis", "x*tanh(softplus(x))", [0.9, 0.1], "x*tanh(relu(x))", "softplus→relu"),
    ("swap_basis", "relu(x)**2", [0.0, 0.0], "relu(x)", "square→identity"),
    ("swap_basis", "gelu(x)*x**3", [0.9, 0.3], "gelu(x)*gelu(x)", "power 3→gelu"),
    ("swap_basis", "silu(g)*u", [0.9, 0.1], "silu(g)*silu(u)", "identity→silu"),
    ("perturb_scale", "x*sigmoid(1.702*x)", [0.0, 0.0], "x*sigmoid(1.5*x)", "1.702→1.5"),
    ("perturb_scale", "0.05*x+sin(x)", [0.0, 0.0], "0.01*x+sin(x)", "0.05→0.01"),
    ("perturb_scale", "sin(x)-0.4*x", [0.0, 0.75], "sin(x)-0.5*x", "0.4→0.5"),
    ("perturb_scale", "sin(x)*-0.4", [0.0, 0.75], "sin(x)*-0.5", "-0.4→-0.5"),
    ("perturb_scale", "a*silu(x)+b*x; a=1, b=0", [0.0, 0.25], "a*silu(x)+b*x; a=0.9, b=0", "a 1→0.9"),
    ("perturb_scale", "a*silu(x)+b*x; a=1, b=0", [0.9, 0.1], "a*silu(x)+b*x; a=1, b=0.01", "b 0→0.01"),
    ("perturb_scale", "b*x+sin(x)**2; b=-1", [0.9, 0.99], "b*x+sin(x)**2; b=-1.2", "b -1→-1.2"),
    ("prune", "0.72*gelu(x)+0.28*x", [0.0], "0.72*gelu(x)", "0.72*gelu(x)+0.28*x→0.72*gelu(x)"),
    ("prune", "0.72*gelu(x)+0.28*x", [0.6], "gelu(x)+0.28*x", "0.72*gelu(x)→gelu(x)"),
    ("prune", "relu(x)**2", [0.0], "relu(x)", "relu(x)**2→relu(x)"),
])
def test_operators(operator: str, formula: str, drawn: list[float], expected: str, words: str) -> None:
    given, wanted = Formula.parse(formula), Formula.parse(expected)
    values = dict(given.coefficients)
    changed = OPERATORS[operator](given.tree, values, Draws(drawn))
    assert changed is not None
    made = Formula.of(changed[0], values)
    assert (str(made), made, changed[1]) == (str(wanted), wanted, words)
    assert dict(given.coefficients) == dict(Formula.parse(formula).coefficients)  # the parent is as it was


@pytest.mark.parametrize(("operator", "formula"), [
    ("perturb_scale", "gelu(x)"), ("perturb_scale", "relu(x)**2"), ("prune", "gelu(x)"), ("prune", "x**2")])
def test_where_there_is_nothing_to_do(operator: str, formula: str) -> None:
    assert OPERATORS[operator](Formula.parse(formula).tree, {}, Draws([0.5] * 4)) is None


@pytest.mark.parametrize(("formula", "depth", "nodes"), [
    ("x", 1, 1), ("gelu(x)", 1, 1), ("x**2", 1, 1), ("0.7*gelu(x)", 2, 2), ("gelu(x)/2", 2, 2),
    ("0.7*gelu(x)+0.3*x", 3, 5), ("gelu(x)*silu(x)", 2, 3), ("tanh(softplus(x))", 2, 2), ("x*tanh(softplus(x))", 3, 4),
    ("relu(x)**2", 2, 2), ("a*silu(x)+b*x; a=1, b=0", 3, 5), ("silu(g)*u", 2, 3), ("max(x, 0.1*x)", 3, 4),
    ("gelu(x)+2*(1-0.4)", 2, 2), ("gelu(2*x+1)", 4, 4)])
def test_depth_and_nodes(formula: str, depth: int, nodes: int) -> None:
    assert extent(Formula.parse(formula).tree) == (depth, nodes)


# -- what explodes ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", REFUSABLE)
def test_what_explodes(text: str) -> None:
    assert explodes(Formula.parse(text))


def test_what_does_not_explode() -> None:
    for formula in (*FORMULAS, *map(Formula.parse, ("2.4*x**2", "sin(99*x)", "999+tanh(x)", "a*x**4; a=0", "g*u"))):
        assert not explodes(formula), str(formula)


@settings(max_examples=60, deadline=None)
@given(formulas(5))
def test_bounds_are_those_of_dense_points(formula: Formula) -> None:
    """What is let through is within twice the bounds at points that were not tried, but for narrow peaks of slopes."""
    if explodes(formula):
        return
    points = np.random.default_rng(0).uniform(-20, 20, (len(formula.inputs), 4000))
    value = formula.value(*points, *map(np.float64, formula.coefficients.values()))
    assert np.isfinite(value).all() and np.abs(value).max() <= 2 * mutations.VALUE


def test_refused_ones_are_counted_and_drawn_again() -> None:
    relu2 = Formula.parse("relu(x)**2")
    gate = [(list(OPERATORS).index("inject_gate") + 0.5) / len(OPERATORS), 0.5]  # relu(x)**2*relu(x), a cube
    assert mutate(relu2, (), Draws(gate * TRIES)) == (relu2, "", TRIES)
    child, words, refused = mutate(relu2, (), Draws([*gate * 3, 0.0, 0.5]))
    assert (str(child), words, refused) == ("0.75*relu(x)**2+0.25*x", "inject_residual 0.75", 3)


# -- what holds for all -----------------------------------------------------------------------------------------------
def sound(parent: Formula, child: Formula, words: str) -> None:
    operator, _, done = words.partition(" ")
    assert operator in OPERATORS and done, words
    assert child != parent and child.inputs == parent.inputs and not explodes(child)
    assert {*child.coefficients} <= {*parent.coefficients}
    assert all(now <= max(before, most) for now, before, most in zip(
        extent(child.tree), extent(parent.tree), (DEPTH, NODES), strict=True))
    text = str(child)
    assert "\n" not in text and len(text) < 4000
    again = activation(text)
    assert again.text == text and again.formula == child and str(again.formula) == text
    canonical = Formula.parse(child.canonical)
    assert (canonical.canonical, canonical.key) == (child.canonical, child.key)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(FORMULAS) | formulas(5), st.lists(DRAWN, min_size=1, max_size=6))
def test_any_mutations_of_any_formula(formula: Formula, drawn: list[list[float]]) -> None:
    for numbers in drawn:
        child, words, refused = mutate(formula, (), Draws(numbers))
        assert 0 <= refused <= TRIES and mutate(formula, (), Draws(numbers)) == (child, words, refused)
        if not words:
            assert child is formula
            continue
        sound(formula, child, words)
        formula = child


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([f for f in FORMULAS if len(str(f)) < 40]), st.lists(DRAWN, min_size=1, max_size=5))
def test_texts_stay_readable(formula: Formula, drawn: list[list[float]]) -> None:
    for numbers in drawn:
        formula, _, _ = mutate(formula, (), Draws(numbers))
    text = str(formula)
    assert len(text) <= 120 and not re.search(r"\d\.\d{3}", text), text


@pytest.mark.parametrize("name", ["gelu", "mish", "universal", "kan_spline", "swiglu"])
def test_each_operator_comes_that_can(name: str) -> None:
    formula = activation(name).formula
    assert formula
    random = np.random.default_rng(1)
    made = [mutate(formula, (), Draws(random.random(NUMBERS))) for _ in range(300)]
    never = {"gelu": {"perturb_scale", "prune"}, "mish": {"inject_residual", "perturb_scale"},
             "universal": {"inject_residual"},  # which adds 2 to a depth of 3
             "kan_spline": {"inject_residual", "inject_gate", "add_term"},  # larger than the caps as it is
             "swiglu": {"inject_gate", "perturb_scale", "prune"}}[name]  # a cube; no number; no g or no u
    assert {words.partition(" ")[0] for _, words, _ in made} == OPERATORS.keys() - never
    assert (sum(refused for *_, refused in made) > 0) == (name == "swiglu")


@given(DRAWN)
def test_what_is_taken_is_drawn_again(numbers: list[float]) -> None:
    gelu, taken = Formula.parse("gelu(x)"), set[str]()
    for _ in range(4):
        child, words, _ = mutate(gelu, taken, Draws(numbers))
        assert child.key not in taken
        if not words:
            break
        taken.add(child.key)
