"""Formulas for tests: strategies that draw them, rewritings that do not change them, and how far float32 may be off."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import numpy as np
from hypothesis import strategies as st

from helios.errors import UserError
from helios.formula import Formula, expression
from helios.formula.expression import FUNCTIONS, PUBLIC, Node, name, number
from helios.formula.normal import expanded

EPS = 2.0**-23
NUMBERS = [-2.0, -1.0, -0.5, 0.0, 0.1, 1 / 3, 1.0, 1.702, 3.0, 10.0]
VALUES = {"a": 1.0, "b": -0.3}
UNARY = [f for f in PUBLIC if FUNCTIONS[f].arity == 1]
# those of the tables of activations, and what is peculiar of others
EXAMPLES = [
    "x", "relu(x)", "relu(x)**2", "x*sigmoid(1.702*x)", "gelu(x)", "gelu_exact(x)", "silu(x)", "tanh(x)", "sigmoid(x)",
    "leaky_relu(x)", "elu(x)", "softplus(x)", "x*tanh(softplus(x))", "sin(x)**2+x", "cos(3*x)", "abs(x)", "erf(x)",
    "max(x, 0.1*x**2)", "min(x, 1)", "silu(g)*u", "gelu(g)*u", "relu(g)*u", "max(g, u)", "a*silu(x)+b*x; a=1, b=0",
    "c0*silu(x)+c1*relu(x)+c2*gelu(x)+c3*x+c4*x**2; c0=.5, c1=0, c2=.5, c3=0, c4=0", "a*tanh(g)*u+b*u**3; a=1, b=.1",
    "(x**4)**4*sigmoid(x)", "tanh(x**4*x**4*x**4)", "gelu(x**4*x**4*x**4)", "x-x**4*x**4*x**4*(1-sigmoid(x))",
    "sin(x**4)", "elu(x**4*x**4*x**4)*erf(x)", "x**2/3-(1-x)/(2/5)",
]


def grown(draw: random.Random, leaves: int, variables: tuple[str, ...], coefficients: tuple[str, ...] = ()) -> Node:
    """A random expression with so many leaves."""
    grow = lambda n: grown(draw, n, variables, coefficients)
    if leaves == 1:
        kind = draw.random()
        leaf = name(draw.choice(variables)) if kind < 0.7 else number(draw.choice(NUMBERS))
        leaf = name(draw.choice(coefficients)) if coefficients and kind < 0.2 else leaf
        return Node(draw.choice(UNARY), (leaf,)) if draw.random() < 0.3 else leaf
    kind, left = draw.random(), draw.randint(1, leaves - 1)
    if kind < 0.3:
        return Node(draw.choice([*UNARY, "neg"]), (grow(leaves),))
    if kind < 0.4:
        return Node("/", (grow(leaves - 1), number(draw.choice([-4, 0.3, 2]))))
    if kind < 0.5:
        return Node("**", (grow(leaves - 1), number(draw.randint(1, 4))))
    return Node(draw.choice(["+", "+", "-", "*", "*", "min", "max"]), (grow(left), grow(leaves - left)))


def trees(leaves: int = 6, variables: tuple[str, ...] = ("x",), coefficients: tuple[str, ...] = ()
          ) -> st.SearchStrategy[Node]:
    """Expressions with at most so many leaves. They grow from a seed, for what Hypothesis itself would build is small
    and much alike."""
    return st.integers(0, 2**40).map(lambda seed: grown(draw := random.Random(seed), draw.randint(1, leaves), variables,
                                                        coefficients))


def _formula(tree: Node, gated: bool) -> Formula | None:
    for missing in sorted({"g", "u"} - tree.names if gated else {"x"} - tree.names):
        tree = Node("*", (name(missing), tree))
    try:
        return Formula.of(tree, VALUES)
    except UserError:  # too large, or constant
        return None


def formulas(leaves: int = 6, gated: bool | None = None) -> st.SearchStrategy[Formula]:
    """Formulas with up to two coefficients, gated or not."""
    drawn = {kind: trees(leaves, ("g", "u") if kind else ("x",), ("a", "b")).map(
        lambda tree, kind=kind: _formula(tree, kind)) for kind in (False, True)}
    chosen = st.one_of(*drawn.values()) if gated is None else drawn[gated]
    return chosen.filter(lambda formula: formula is not None)  # type: ignore[return-value]


# -- rewriting -------------------------------------------------------------------------------------------------------

def _ways(e: Node) -> list[Node]:
    """The same expression in other words."""
    f = {"f": e}
    said = lambda text, **given: expression(text).substitute(**given)
    ways = [said(text, **f) for text in ("f+0", "0+f", "f*1", "1*f", "f-0", "identity(f)", "-(-f)", "f/1", "2*f/2",
                                         "3*f-2*f", "f**1", "(f-3)+3", "0.1*f+0.9*f", "max(f, f)")]
    if len(e.operands) == 2 and e.op not in ("/", "**"):
        a, b = e.args
        if e.op == "-":
            ways += [said("a+(-b)", a=a, b=b), said("-b+a", a=a, b=b), said("-(b-a)", a=a, b=b)]
        else:
            ways.append(Node(e.op, (b, a)))
            if a.op == e.op:
                ways.append(Node(e.op, (a.args[0], Node(e.op, (a.args[1], b)))))
    if e.op == "**":
        base, n = e.args[0], int(e.args[1].args[0])
        ways.append(said("*".join(["f"] * n), f=base))
        ways += [said("square(f)", f=base)] * (n == 2)
    other = {"square": "f**2", "silu": "sigmoid(f)*f", "relu": "max(0, f)", "tanh": "-tanh(-f)", "cos": "cos(-f)",
             "abs": "abs(-f)", "/": "f*g", "leaky_relu": "leaky_relu(2*f)/2"}.get(e.op)
    if e.op == "/":
        ways.append(Node("*", (Node("/", (number(1), e.args[1])), e.args[0])))
    elif other:
        ways.append(said(other, f=e.args[0]))
    return ways


def rewritten(tree: Node, seed: int, times: int = 4) -> Node:
    """The tree after some rewritings at random places."""
    draw = random.Random(seed)
    for _ in range(times):
        path, node = draw.choice([(p, n) for p, n in tree.walk() if n.op != "number"])
        if tree.size < 70:
            tree = tree.replace(path, draw.choice(_ways(node)))
    return tree


# -- errors of float32 -----------------------------------------------------------------------------------------------

def bound(e: Node, given: Mapping[str, np.ndarray], known: dict[Node, tuple] | None = None
          ) -> tuple[np.ndarray, np.ndarray]:
    """A normal form's value in float64, and how far float32 may be off: 8 roundings of each result, and what errors of
    operands become, to the second order. Where a step or sign may fall on either side, that is all of it."""
    known = {} if known is None else known
    if e in known:
        return known[e]
    if e.op in FUNCTIONS and FUNCTIONS[e.op].means:
        return bound(expanded(e), given, known)
    parts = [bound(n, given, known) for n in e.operands]
    if e.op == "number":
        value, error = np.float64(float(e.args[0])), EPS * np.float64(abs(float(e.args[0])))
    elif e.op == "name":
        value, error = given[e.args[0]].astype(np.float64), np.float64(0.0)
    elif e.op == "+":
        value, error = sum(v for v, _ in parts), sum(d + EPS * len(parts) * np.abs(v) for v, d in parts)
    elif e.op == "**":
        n, (base, d) = int(e.args[1].args[0]), parts[0]
        value, error = base**n, n * np.abs(base) ** (n - 1) * d * (1 + np.abs(d))
    elif e.op == "*":
        value, error = np.float64(1.0), np.float64(0.0)
        for v, d in parts:
            value, error = value * v, error * np.abs(v) + d * np.abs(value) + d * error
    elif e.op in ("min", "max"):
        (a, da), (b, db) = parts
        value, error = (np.minimum if e.op == "min" else np.maximum)(a, b), np.maximum(da, db)
    else:
        ((inner, d),) = parts
        value = _of(e.op, inner)
        if e.op in ("step", "sign"):
            error = np.where(np.abs(inner) <= d, 2.0, 0.0)
        elif e.op in ("relu", "abs", "leaky_relu"):
            error = d
        elif e.op == "gauss":
            error = 2 * np.abs(inner) * value * d + 2 * d * d
        else:
            slope = eval(FUNCTIONS[e.op].slopes[0], {f: lambda x, f=f: _of(f, x) for f in FUNCTIONS}, {
                "x": inner, "f": value})
            error = np.abs(slope) * d + 2 * d * d + 4 * EPS
            if e.op in ("sin", "cos"):  # beyond 1e4 they are only bounded
                error = np.where(np.abs(inner) > 1e4, 2.0, error)
        if FUNCTIONS[e.op].bounded:
            error = np.minimum(error, 2.0)
    if e.op not in ("number", "name", "step", "sign"):
        error = error + 8 * EPS * np.abs(value)
    known[e] = value, error
    return known[e]


def _of(function: str, x: np.ndarray) -> np.ndarray:
    from scipy import special

    form = FUNCTIONS[function].numpy.format("x", "x")
    with np.errstate(over="ignore"):
        return np.asarray(eval(form, {"np": np, "special": special, "x": x}))


# -- what Python says of a tree --------------------------------------------------------------------------------------

PYTHON = {
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)) if x > -700 else 0.0, "tanh": math.tanh, "erf": math.erf,
    "softplus": lambda x: max(x, 0) + math.log1p(math.exp(-abs(x))), "relu": lambda x: max(x, 0.0), "abs": abs,
    "min": min, "max": max, "sin": math.sin, "cos": math.cos, "square": lambda x: x * x, "identity": lambda x: x,
    "gelu": lambda x: x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_exact": lambda x: x / 2 * math.erfc(-x / math.sqrt(2)),
    "silu": lambda x: x * PYTHON["sigmoid"](x), "elu": lambda x: x if x > 0 else math.expm1(x),
    "leaky_relu": lambda x: x if x > 0 else 0.01 * x,
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b,
    "**": lambda a, n: a**int(n), "neg": lambda a: -a,
}


def python(e: Node, given: Mapping[str, float]) -> float:
    """A tree's value as it was written, by Python's own functions."""
    if e.op == "number":
        return float(e.args[0])
    return given[e.args[0]] if e.op == "name" else PYTHON[e.op](*(python(n, given) for n in e.args))


def grid(formula: Formula, reach: float, count: int = 200, seed: int = 0) -> dict[str, np.ndarray]:
    """Points for each parameter: inputs of all sizes up to `reach` of either sign, and 0; coefficients near 1."""
    draw = np.random.default_rng(seed)
    sizes = np.concatenate([[0, reach, -reach, 1, -1], draw.uniform(-reach, reach, count),
                            10.0 ** draw.uniform(-4, math.log10(reach), count) * draw.choice([-1, 1], count)])
    points = lambda: np.asarray(draw.permutation(sizes), np.float32)
    return {n: points() if n in formula.inputs else np.asarray(draw.normal(1, 1, len(sizes)), np.float32)
            for n in formula.parameters}
