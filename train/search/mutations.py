"""Mutations of a formula: six operators, how large they may make it, and which formulas are refused.

Where a formula is gated, what follows of x goes for its gate: the largest part of it that is in g alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from helios.errors import UserError
from helios.formula import Formula, Node, expression
from helios.formula.expression import FUNCTIONS, VARIABLES, name, number

DEPTH, NODES = 4, 10  # most of what a mutation makes larger, as `extent` counts
TRIES = 20  # draws of one mutation; after that there is none
DIGITS = 2  # after the point, of numbers that are drawn
# Of VALUE and SLOPE, what grows as the square has room for 2.5 times it; the cube is far outside.
REACH, VALUE, SLOPE = 20.0, 1000.0, 100.0
BASIS = ("identity", "relu", "silu", "gelu", "square", "tanh", "sigmoid", "softplus", "elu", "leaky_relu", "abs", "sin",
         "cos")  # not gelu_exact and erf, which hardly differ from gelu and tanh
GATES = ("silu", "relu", "gelu")
SHIFT, FLOOR = 0.2, 0.01  # of the sizes of numbers

T = TypeVar("T")


class Draws:
    """Choices by random numbers in [0, 1), of which each is used once."""

    def __init__(self, numbers: Iterable[float]) -> None:
        self._numbers = iter(numbers)

    def pick(self, items: Sequence[T]) -> T:
        """Return one of the items, each as likely as the others."""
        return items[int(next(self._numbers) * len(items))]

    def unit(self) -> float:
        """Return a number in [0, 1)."""
        return next(self._numbers)

    def chance(self, p: float) -> bool:
        """Return True with probability p."""
        return next(self._numbers) < p

    def between(self, low: float, high: float) -> float:
        """Return a number with DIGITS digits after the point."""
        return round(low + (high - low) * next(self._numbers), DIGITS)


# -- the operators -----------------------------------------------------------------------------------------------------
# Of a tree, and of the initial values of its coefficients, which they may change. They return a tree and what was done,
# or None where there is nothing to do.

Path = tuple[int, ...]
Values = dict[str, float]
Change = tuple[Node, str] | None


def _inject_residual(tree: Node, values: Values, draws: Draws) -> Change:
    kept = draws.between(0.6, 0.9)
    return _grown(tree, f"{kept:g}*f+{round(1 - kept, DIGITS):g}*", "identity"), f"{kept:g}"


def _inject_gate(tree: Node, values: Values, draws: Draws) -> Change:
    gate = draws.pick(GATES)
    return _grown(tree, "f*", gate), gate


def _add_term(tree: Node, values: Values, draws: Draws) -> Change:
    weight, basis = draws.between(0.05, 0.3), draws.pick(BASIS)
    return _grown(tree, f"f+{weight:g}*", basis), f"{weight:g}*{basis}"


def _swap_basis(tree: Node, values: Values, draws: Draws) -> Change:
    if not (places := _bases(tree)):
        return None
    path, old, inner = draws.pick(places)
    new = draws.pick([basis for basis in BASIS if basis != old])
    return tree.replace(path, expression(_of_x(new)).substitute(x=inner)), f"{old}→{new}"


def _perturb_scale(tree: Node, values: Values, draws: Draws) -> Change:
    powers = {(*path, 1) for path, node in tree.walk() if node.op == "**"}
    places: dict[Path | str, float] = {
        path: float(node.args[0]) for path, node in tree.walk() if node.op == "number" and path not in powers}
    places.update(values)
    if not places:
        return None
    at = draws.pick(list(places))
    size = max(FLOOR, round(abs(places[at]) + draws.between(-SHIFT, SHIFT), DIGITS))
    new = math.copysign(size, places[at])
    done = f"{places[at]:g}→{new:g}"
    if isinstance(at, tuple):
        return tree.replace(at, number(new)), done
    values[at] = new
    return tree, f"{at} {done}"


def _prune(tree: Node, values: Values, draws: Draws) -> Change:
    places = [(path, node, operand) for path, node in tree.walk() if extent(node)[1] > 1 for operand in node.operands
              if _moves(operand)]
    if not places:
        return None
    path, node, operand = draws.pick(places)
    return tree.replace(path, operand), f"{node}→{operand}"


OPERATORS: dict[str, Callable[[Node, Values, Draws], Change]] = {
    "inject_residual": _inject_residual, "inject_gate": _inject_gate, "add_term": _add_term,
    "swap_basis": _swap_basis, "perturb_scale": _perturb_scale, "prune": _prune}


def _grown(tree: Node, text: str, basis: str) -> Node:
    """Return the tree with an expression in place of its part in one variable: `text`, in which that is f, and then a
    basis function of the variable."""
    variable = "x" if "x" in tree.names else "g"
    parts = [(path, node) for path, node in tree.walk() if node.names & {*VARIABLES} == {variable}]
    path, part = max(parts, key=lambda found: found[1].size)  # the first of equals
    return tree.replace(path, expression(text + _of_x(basis)).substitute(f=part, x=name(variable)))


def _of_x(basis: str) -> str:
    return "x" if basis == "identity" else f"{basis}(x)"


def _bases(tree: Node) -> list[tuple[Path, str, Node]]:
    """Return each basis function of a tree: where it is, its name, and what it is of. A power is one, too, and so is a
    variable that stands in neither."""
    found: list[tuple[Path, str, Node]] = []
    inside = set()
    for path, node in tree.walk():
        if node.op == "**" or (node.op in FUNCTIONS and FUNCTIONS[node.op].arity == 1):
            power = f"power {node.args[1]}" if node.op == "**" else node.op
            found.append((path, "square" if power == "power 2" else power, node.args[0]))
            inside.add((*path, 0))
        elif node.op == "name" and path not in inside:
            found.append((path, "identity", node))
    return [place for place in found if _moves(place[2])]


def _moves(node: Node) -> bool:
    """Return whether there is a variable in it."""
    return not node.names.isdisjoint(VARIABLES)


# -- what becomes of them ----------------------------------------------------------------------------------------------

def mutate(formula: Formula, taken: Collection[str], draws: Draws) -> tuple[Formula, str, int]:
    """Return the formula after one operator, what this did, and how many formulas were refused on the way.

    Each operator is as likely as the others. What explodes, is in `taken` (keys), or is deeper than DEPTH or has more
    than NODES, unless the formula did before, is drawn again. After TRIES draws the formula stays as it is, without a
    word.
    """
    refused, limits = 0, [max(pair) for pair in zip(extent(formula.tree), (DEPTH, NODES), strict=True)]
    for _ in range(TRIES):
        operator, values = draws.pick(list(OPERATORS)), dict(formula.coefficients)
        changed = OPERATORS[operator](formula.tree, values, draws)
        if changed is None or any(a > b for a, b in zip(extent(changed[0]), limits, strict=True)):
            continue
        try:
            child = Formula.of(changed[0], values)
        except UserError:  # it lost a variable, or is constant
            continue
        if child == formula or child.key in taken:
            continue
        if not explodes(child):
            return child, f"{operator} {changed[1]}", refused
        refused += 1
    return formula, "", refused


def extent(tree: Node) -> tuple[int, int]:
    """Return the depth and the nodes of a tree as a graph of basis functions, scales, sums and products: one node for a
    variable, also with the function or power that is directly of it, and for each other operation; none for numbers and
    coefficients. So 0.7*gelu(x)+0.3*x has 5 nodes (gelu, a scale, identity, a scale, a sum), and depth 3."""
    inner = [node for node in tree.operands if _moves(node)]
    if not inner:
        return (1, 1) if _moves(tree) else (0, 0)
    if len(inner) == 1 and inner[0].op == "name" and (tree.op in FUNCTIONS or tree.op == "**"):
        return 1, 1
    depths, nodes = zip(*map(extent, inner), strict=True)
    return 1 + max(depths), 1 + sum(nodes)


def explodes(formula: Formula) -> bool:
    """Return whether, with its initial coefficients, |f| is above VALUE or |f'| above SLOPE somewhere in [-20, 20], or
    one is not finite; of a gated formula in the square of that side, and by g and u. It is tried at steps of 0.05, and
    0.25 where gated."""
    side: Any = np.linspace(-REACH, REACH, 161 if formula.gated else 801)
    inputs = [side[:, None], side] if formula.gated else [side]
    given = [*inputs, *map(np.float64, formula.coefficients.values())]
    slopes = formula.slopes(*given)[:len(inputs)]
    return not (np.abs(formula.value(*given)).max() <= VALUE and max(np.abs(s).max() for s in slopes) <= SLOPE)
