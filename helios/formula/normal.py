"""One normal form for equal expressions, and its derivatives.

It is a sum of products of powers with exact rational numbers. Its trees are the same Nodes, with `+` and `*` of any
number of operands, a product's number first and a sum's last. It recognises
* sums and products in any order and nesting, like terms and like factors collected: `x+x` = `2*x`, `x*x` = `x**2`,
  `x-x` = `0`, and so `x+0`, `x*1`, `x*0`, double negation, division by a number, numbers folded;
* a number times a sum: `2*(x+1)` = `2*x+2`, also within products and powers: `(2*x+2)*y` = `2*y*(x+1)`,
  `(y-x)**2` = `(x-y)**2`; powers of products and powers;
* `identity(x)` = `x`, `square(x)` = `x**2`, `x*sigmoid(x)` = `silu(x)`, and what `symmetry` of FUNCTIONS says:
  `tanh(-x)` = `-tanh(x)`, `cos(-x)` = `cos(x)`, `relu(2*x)` = `2*relu(x)`; and functions of numbers;
* min and max in any order and nesting, `max(x, x)` = `x`, `max(x, 0)` = `relu(x)`, `min(x, 0)` = `-relu(-x)`, and relu
  and abs of what is not negative by its name: `relu(abs(x))` = `abs(x)`.
Nothing else: not a product with a sum (`a*(x+1)` ≠ `a*x+a`), not gelu's own formula, no theorem on sigmoid, tanh and
the like.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import Any

from helios.errors import UserError
from helios.formula.expression import FUNCTIONS, Node, Reader, number

# Of any normal form; a formula's own is smaller, which leaves room for its derivatives'.
MAX_SIZE = 5000  # nodes
MAX_TOTAL = 1000  # power of a factor, of all its powers of powers together

ZERO, ONE, MINUS = number(0), number(1), number(-1)


def _order(item: tuple[Node, Any]) -> tuple[int, str]:
    return item[0].size, str(item[0])


def split(e: Node) -> tuple[Fraction, Node]:
    """Return k and r, e = k·r: the number of a product and the rest of it."""
    if e.op == "number":
        return e.args[0], ONE
    if e.op == "*" and e.args[0].op == "number":
        k, *rest = e.args
        return k.args[0], rest[0] if len(rest) == 1 else Node("*", tuple(rest))
    return Fraction(1), e


def scaled(k: Fraction, e: Node) -> Node:
    """Return k·e of an e without a number of its own."""
    if k == 1 or e == ONE:
        return e if k == 1 else number(k)
    return Node("*", (number(k), *(e.args if e.op == "*" else (e,))))


def add(*terms: Node) -> Node:
    """Return the normal form of a sum of normal forms."""
    found: dict[Node, Fraction] = {}
    for term in terms:
        for part in term.args if term.op == "+" else (term,):
            k, rest = split(part)
            found[rest] = found.get(rest, Fraction(0)) + k
    constant = found.pop(ONE, Fraction(0))
    parts = [scaled(k, rest) for rest, k in sorted(found.items(), key=_order) if k]
    if constant or not parts:
        parts.append(number(constant))
    return parts[0] if len(parts) == 1 else Node("+", tuple(parts))


def mul(*factors: Node) -> Node:
    """Return the normal form of a product of normal forms."""
    k, powers = Fraction(1), dict[Node, int]()

    def take(e: Node, n: int) -> None:
        nonlocal k
        if e.op == "number":
            k = number(k * number(e.args[0] ** n).args[0]).args[0]
        elif e.op == "*":
            for factor in e.args:
                take(factor, n)
        elif e.op == "**":
            take(e.args[0], n * int(e.args[1].args[0]))
        elif e.op == "silu":
            take(e.args[0], n)
            take(Node("sigmoid", e.args), n)
        else:
            lead = _content(e)
            take(number(lead), n)
            base = _times(1 / lead, e)
            powers[base] = powers.get(base, 0) + n
            if powers[base] > MAX_TOTAL:
                raise UserError(f"the powers of {base} multiply to more than {MAX_TOTAL}")

    for factor in factors:
        take(factor, 1)
    if k == 0:
        return ZERO
    for base, n in sorted(powers.items(), key=_order):
        needed = _factors(base.args[0]) if base.op == "sigmoid" and _content(base.args[0]) == 1 else {}
        if needed and (n := min(n, *(powers.get(f, 0) // m for f, m in needed.items()))):  # f·sigmoid(f) = silu(f)
            for f, m in ((base, 1), *needed.items()):
                powers[f] -= n * m
            powers[Node("silu", base.args)] = n
    powers = {base: n for base, n in powers.items() if n}
    parts = [base if n == 1 else Node("**", (base, number(n))) for base, n in sorted(powers.items(), key=_order)]
    if not parts:
        return number(k)
    return _times(k, parts[0] if len(parts) == 1 else Node("*", tuple(parts)))


def _factors(e: Node) -> dict[Node, int]:
    """Return the factors of a normal form without a number, with their powers."""
    parts = e.args if e.op == "*" else (e,)
    return dict((f.args[0], int(f.args[1].args[0])) if f.op == "**" else (f, 1) for f in parts)


def _content(e: Node) -> Fraction:
    """Return the number that mul would take out of a factor."""
    return split(e.args[0] if e.op == "+" else e)[0]


def _times(k: Fraction, e: Node) -> Node:
    """Return k·e of an e that is a sum or has no number of its own."""
    if e.op == "+" and k != 1:
        parts = (split(part) for part in e.args)
        return Node("+", tuple(scaled(k * own, rest) for own, rest in parts))
    return scaled(k, e)


def power(base: Node, n: int) -> Node:
    """Return the normal form of baseⁿ."""
    return mul(*[base] * n)


def apply(function: str, *args: Node) -> Node:
    """Return the normal form of a function of normal forms."""
    known, first = FUNCTIONS[function], args[0]
    if function == "silu" and (first.op == "number" or _content(first) != 1):
        return mul(first, apply("sigmoid", first))
    if known.expands or (known.means and first.op == "number"):
        return expanded(Node(function, args))
    if all(arg.op == "number" for arg in args):
        return number(evaluate(function, *(float(arg.args[0]) for arg in args)))
    if function in ("max", "min"):
        return _extreme(function, args)
    if function in ("relu", "abs") and first.op in ("relu", "abs", "sigmoid", "softplus"):
        return first
    k = _content(first)
    outside, inside = Fraction(1), Fraction(1)  # f(e) = outside·f(inside·e)
    if "scales" in known.symmetry:
        outside, inside = abs(k), 1 / abs(k)
    if k < 0 and ("odd" in known.symmetry or "even" in known.symmetry):
        outside, inside = outside if "even" in known.symmetry else -outside, -inside
    return Node(function, args) if inside == 1 else mul(number(outside), apply(function, mul(number(inside), first)))


def _extreme(function: str, args: tuple[Node, ...]) -> Node:
    """Return the normal form of max or min."""
    best, others, sign = None, dict[Node, None](), Fraction(1 if function == "max" else -1)
    pick = max if function == "max" else min

    def take(e: Node) -> None:
        nonlocal best
        k, rest = split(e)
        if e.op == "number":
            best = e.args[0] if best is None else pick(best, e.args[0])
        elif e.op == function:
            for arg in e.args:
                take(arg)
        elif rest.op == "relu" and k == sign:  # max(e, 0), or -max(-e, 0) = min(e, 0)
            take(mul(number(k), rest.args[0]))
            take(ZERO)
        else:
            others[e] = None

    for arg in args:
        take(arg)
    parts = [e for e, _ in sorted(others.items(), key=_order)]
    if best:
        parts.append(number(best))
    found = parts[0]
    for part in parts[1:]:
        found = Node(function, (found, part))
    return mul(number(sign), apply("relu", mul(number(sign), found))) if best == 0 else found


def evaluate(function: str, *args: float) -> float:
    """Return a function's value at numbers, in float64."""
    import numpy as np
    from scipy import special

    with np.errstate(over="ignore"):
        return float(eval(FUNCTIONS[function].numpy.format(*map(repr, args)), {"np": np, "special": special}))


OPERATORS: dict[str, Callable[..., Node]] = {
    "+": add,
    "-": lambda a, b: add(a, mul(MINUS, b)),
    "neg": lambda a: mul(MINUS, a),
    "*": mul,
}


def simplify(e: Node) -> Node:
    """Return the normal form of any expression. Raises UserError where it divides by what is not a number, or has a
    power that is not a whole one."""
    if e.op in ("number", "name"):
        return e
    args = [simplify(n) for n in e.args]
    if e.op in ("/", "**"):
        by = args[1].args[0] if args[1].op == "number" else None
        if e.op == "/" and by:
            return mul(args[0], number(1 / by))
        if e.op == "**" and by is not None and by.denominator == 1 and 0 <= by <= MAX_TOTAL:
            return power(args[0], int(by))
        raise UserError(f"{e} is not a division by a number, nor a whole power")
    found = OPERATORS[e.op](*args) if e.op in OPERATORS else apply(e.op, *args)
    if found.size > MAX_SIZE:  # silu(2*silu(2*…)) doubles each time
        raise UserError(f"simplified, it has more than {MAX_SIZE} operations, names and numbers")
    return found


def expanded(e: Node) -> Node:
    """Return what a function of a normal form means; not in normal form, in which silu is one function."""
    if e.op == "silu":
        return Node("*", (*e.args, Node("sigmoid", e.args)))
    return simplify(read(FUNCTIONS[e.op].means).substitute(x=e.args[0]))


def rounded(e: Node) -> Node:
    """Return the normal form that a normal form's text stands for, with numbers as float64 has them."""
    def text(n: Node) -> Node:
        return number(float(n.args[0])) if n.op == "number" else Node(n.op, tuple(map(text, n.operands)) or n.args)

    return simplify(text(e))


@cache
def read(text: str) -> Node:
    """Return an expression of the table's."""
    return Reader(text, tuple(FUNCTIONS)).read(0, len(text))


# -- derivatives -----------------------------------------------------------------------------------------------------

def slope(e: Node, by: str) -> Node:
    """Return the derivative of a normal form."""
    if by not in e.names:
        return ZERO
    if e.op == "name":
        return ONE
    if e.op == "+":
        return add(*(slope(part, by) for part in e.args))
    if e.op == "*":
        moving = [f for f in e.args if by in f.names]
        parts = (mul(slope(f, by), *moving[:i], *moving[i + 1:]) for i, f in enumerate(moving))
        return mul(*(f for f in e.args if by not in f.names), add(*parts))
    if e.op == "**":
        base, n = e.args[0], int(e.args[1].args[0])
        return mul(number(n), power(base, n - 1), slope(base, by))
    given = dict(zip("xy", e.args, strict=False)) | {"f": e}
    return add(*(mul(simplify(by_x.substitute(**given)), slope(inner, by))
                 for by_x, inner in zip(outer(e.op), e.args, strict=True)))


@cache
def outer(function: str) -> tuple[Node, ...]:
    """Return a function's derivative by each argument, in x, y and its value f."""
    known = FUNCTIONS[function]
    return (slope(read(known.means), "x"),) if known.means else tuple(map(read, known.slopes))
