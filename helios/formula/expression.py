"""Expressions of formulas: the table of functions, trees and their text, read and written."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any, NoReturn

from helios.errors import UserError, nearest

VARIABLES = ("x", "g", "u")
MAX_LENGTH = 4000  # of a text, characters
MAX_NODES = 150  # of a tree
MAX_POWER = 4
LIMIT = 1e18  # of a number, and 1/LIMIT the smallest


@dataclass(frozen=True)
class Function:
    """What is known of a function of {0} (and {1}), once and for all languages.

    slopes: its derivative by each argument, a formula in the arguments x and y and the value f. means: a formula in x
    that it is short for, instead of all else; expands: its normal form is that formula's. symmetry: "odd", "even", or
    "scales" where f(k·x) = k·f(x) for k > 0. bounded: |f| ≤ 1; else |f| ≤ |x| + |y| + 1. public: a user may write it.
    """

    glsl: str = ""
    numpy: str = ""
    torch: str = ""
    slopes: tuple[str, ...] = ()
    means: str = ""
    expands: bool = False
    symmetry: str = ""
    bounded: bool = False
    public: bool = True

    @property
    def arity(self) -> int:
        """Return how many arguments it takes."""
        return max(1, len(self.slopes))


# Slopes at kinks are 0 in relu and abs, half of each side's where max or min have a tie, and that of the left side in
# leaky_relu. The GLSL functions are in kernels/lib/functions.glsl.
FUNCTIONS: dict[str, Function] = {
    "sigmoid": Function("sigmoid({0})", "(1 / (1 + np.exp(-({0}))))", "torch.sigmoid({0})", ("f*(1-f)",), bounded=True),
    "tanh": Function("tanh1({0})", "np.tanh({0})", "torch.tanh({0})", ("1-f*f",), symmetry="odd", bounded=True),
    "softplus": Function("softplus({0})", "np.logaddexp({0}, 0.0)", "F.softplus({0}, threshold=50.0)", ("sigmoid(x)",)),
    "erf": Function("erf1({0})", "special.erf({0})", "torch.erf({0})", ("1.1283791670955126*gauss(x)",),
                    symmetry="odd", bounded=True),
    "relu": Function("max({0}, 0.0)", "np.maximum({0}, 0.0)", "torch.relu({0})", ("step(x)",), symmetry="scales"),
    "abs": Function("abs({0})", "np.abs({0})", "torch.abs({0})", ("sign(x)",), symmetry="even scales"),
    "min": Function("min({0}, {1})", "np.minimum({0}, {1})", "torch.minimum({0}, {1})",
                    ("0.5-0.5*sign(x-y)", "0.5+0.5*sign(x-y)")),
    "max": Function("max({0}, {1})", "np.maximum({0}, {1})", "torch.maximum({0}, {1})",
                    ("0.5+0.5*sign(x-y)", "0.5-0.5*sign(x-y)")),
    "sin": Function("sin1({0})", "np.sin({0})", "torch.sin({0})", ("cos(x)",), symmetry="odd", bounded=True),
    "cos": Function("cos1({0})", "np.cos({0})", "torch.cos({0})", ("-sin(x)",), symmetry="even", bounded=True),
    "elu": Function("elu({0})", "np.where({0} > 0, {0}, np.expm1(np.minimum({0}, 0.0)))", "F.elu({0})",
                    ("1-relu(-f)",)),
    "leaky_relu": Function("({0} > 0.0 ? {0} : 0.01 * {0})", "np.maximum({0}, 0.01 * {0})", "F.leaky_relu({0})",
                           ("0.01+0.99*step(x)",), symmetry="scales"),
    "identity": Function(means="x", expands=True),
    "square": Function(means="x**2", expands=True),
    "silu": Function(means="x*sigmoid(x)"),
    # ½x(1 + tanh v) = x·sigmoid(2v), v = √(2/π)·(x + 0.044715x³)
    "gelu": Function(means="x*sigmoid(1.5957691216057308*(x+0.044715*x**3))"),
    "gelu_exact": Function(means="0.5*x*(1+erf(0.7071067811865476*x))"),
    # Only derivatives have these.
    "step": Function("({0} > 0.0 ? 1.0 : 0.0)", "np.sign(np.maximum({0}, 0.0))", "torch.sign(torch.relu({0}))",
                     bounded=True, public=False),
    "sign": Function("sign({0})", "np.sign({0})", "torch.sign({0})", symmetry="odd", bounded=True, public=False),
    "gauss": Function("exp(-({0} * {0}))", "np.exp(-np.square({0}))", "torch.exp(-torch.square({0}))", symmetry="even",
                      bounded=True, public=False),
    "saturate": Function("clamp({0}, -3e38, 3e38)", "np.clip({0}, -3e38, 3e38)", "torch.clamp({0}, -3e38, 3e38)",
                         public=False),
}
PUBLIC = [name for name, function in FUNCTIONS.items() if function.public]


@dataclass(frozen=True, repr=False)
class Node:
    """An expression: op is "number" (args: its Fraction), "name" (args: the name), an operator ("neg" has one operand)
    or a function."""

    op: str
    args: tuple[Any, ...]

    @cached_property
    def _hash(self) -> int:
        return hash((self.op, self.args))

    def __hash__(self) -> int:
        return self._hash

    @property
    def operands(self) -> tuple[Node, ...]:
        """Return the nodes right below."""
        return () if self.op in ("number", "name") else self.args

    @cached_property
    def names(self) -> frozenset[str]:
        """Return the variables and coefficients in it."""
        return frozenset(self.args) if self.op == "name" else frozenset().union(*(n.names for n in self.operands))

    @cached_property
    def size(self) -> int:
        """Return how many nodes it has, itself included; a sum of three counts as two sums, and x**8 as x**4*x**4."""
        if self.op == "**" and self.args[1].op == "number":
            parts = max(1, -(-int(self.args[1].args[0]) // MAX_POWER))
            return parts * (self.args[0].size + 3) - 1
        return max(1, len(self.operands) - 1) + sum(n.size for n in self.operands)

    @cached_property
    def depth(self) -> int:
        """Return how many nodes the longest way down to a leaf has, both ends included."""
        return 1 + max((n.depth for n in self.operands), default=0)

    def walk(self, path: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Node]]:
        """Yield each node with its path, the indices of operands that lead to it, parents first."""
        yield path, self
        for i, operand in enumerate(self.operands):
            yield from operand.walk((*path, i))

    def replace(self, path: tuple[int, ...], new: Node) -> Node:
        """Return the tree with `new` at the path."""
        if not path:
            return new
        first, *rest = path
        args = list(self.operands)
        args[first] = args[first].replace(tuple(rest), new)
        return Node(self.op, tuple(args))

    def substitute(self, /, **given: Node) -> Node:
        """Return the tree with nodes in place of names."""
        if self.op == "name":
            return given.get(self.args[0], self)
        operands = self.operands
        return Node(self.op, tuple(n.substitute(**given) for n in operands)) if operands else self

    @cached_property
    def _text(self) -> tuple[str, int]:
        """Return the text, and how tightly it holds together: 1 a sum, 2 a product, 3 a power, 4 an atom."""
        if self.op == "number":
            value = float(self.args[0])
            whole = value == int(value) and abs(value) < 1e15
            return str(int(value)) if whole else repr(value), 4 if value >= 0 else 2
        if self.op == "name":
            return self.args[0], 4
        inner = lambda n, level: n._text[0] if n._text[1] >= level else f"({n._text[0]})"
        if self.op == "neg":
            return "-" + inner(self.args[0], 3), 1
        if self.op == "+":
            parts = [inner(n, 1 if i == 0 else 2) for i, n in enumerate(self.args)]
            return "".join(p if i == 0 or p[0] == "-" else f"+{p}" for i, p in enumerate(parts)), 1
        if self.op == "-":
            left, right = inner(self.args[0], 1), inner(self.args[1], 2)
            return f"{left}-({right})" if right[0] == "-" else f"{left}-{right}", 1
        if self.op in "*/":
            minus = self.op == "*" and self.args[0] == number(-1)
            parts = [inner(n, 2 if i == 0 else 3) for i, n in enumerate(self.args[minus:])]
            return "-" * minus + self.op.join(parts), 2
        if self.op == "**":
            base, power = inner(self.args[0], 4), int(self.args[1].args[0])
            if power <= MAX_POWER:
                return f"{base}**{power}", 3
            fours, rest = divmod(power, MAX_POWER)
            last = [] if rest == 0 else [base] if rest == 1 else [f"{base}**{rest}"]
            return "*".join([f"{base}**{MAX_POWER}"] * fours + last), 2
        return f"{self.op}({', '.join(n._text[0] for n in self.args)})", 4

    def __str__(self) -> str:
        return self._text[0]

    def __repr__(self) -> str:
        return f"Node({self})"


def number(value: Fraction | int | float) -> Node:
    """Return a number, exactly as a float is written; one with very many digits is rounded."""
    size: Any = abs(value)
    if value and not 1e-300 < size < 1e300:  # nor a NaN
        raise UserError("its numbers come to one that is not between 1e-300 and 1e300, nor 0")
    value = Fraction(repr(value)) if isinstance(value, float) else Fraction(value)
    if value.denominator.bit_length() + value.numerator.bit_length() > 4096:
        value = Fraction(repr(float(value)))
    return Node("number", (value,))


def name(text: str) -> Node:
    """Return a variable or a coefficient."""
    return Node("name", (text,))


# -- reading ---------------------------------------------------------------------------------------------------------

OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**"}


@dataclass
class Reader:
    """Reads expressions out of a text.

    names: each name that is not a function's, with where it is first. constants: what must fold to a number (divisors
    and powers), with where it is. functions: those that it may have.
    """

    text: str
    functions: Sequence[str] = tuple(PUBLIC)
    names: dict[str, int] = field(default_factory=dict)
    constants: list[tuple[str, Node, int]] = field(default_factory=list)

    def fail(self, at: int, message: str) -> NoReturn:
        """Raise a UserError that points at a place of the text."""
        start = max(0, at - 30) if len(self.text) > 80 else 0
        shown = ("…" if start else "") + self.text[start:start + 80] + ("…" if start + 80 < len(self.text) else "")
        raise UserError(f"formula {shown!r}, column {at + 1}: {message}")

    def read(self, start: int, end: int) -> Node:
        """Return the expression between two places."""
        tree, piece, start = self.syntax(start, end)
        return self._convert(tree, piece, start)

    def syntax(self, start: int, end: int) -> tuple[ast.expr, str, int]:
        """Return Python's tree of the text between two places, the text without blanks around it, and its place. The
        tree may hold anything that Python has and these characters can spell. Raises UserError."""
        piece = self.text[start:end]
        start += len(piece) - len(piece.lstrip())
        piece = piece.strip()
        if not piece:
            self.fail(start, "an expression is missing here")
        if odd := re.search(r"[^\w\s.+*/(),-]", piece, re.ASCII):
            self.fail(start + odd.start(), f"{odd[0]!r} cannot be part of a formula")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(piece, mode="eval").body
        except SyntaxError as error:
            offset = error.offset - 1 if error.offset else len(piece)  # 0, where something is missing at the end
            near = repr(piece[offset:offset + 20]) if offset < len(piece) else "the end"
            self.fail(start + offset, f"syntax error at {near}")
        except (RecursionError, MemoryError, ValueError):
            self.fail(start, "too many brackets or signs")
        nodes = (n for n in ast.walk(tree) if isinstance(n, ast.expr) and not isinstance(n, ast.Call))
        ends = sorted(n.end_col_offset or 0 for n in nodes)  # of a call, its function's name counts
        if len(ends) > MAX_NODES:
            self.fail(start + ends[MAX_NODES] - 1, f"more than {MAX_NODES} operations, names and numbers")
        return tree, piece, start

    def _convert(self, e: ast.expr, piece: str, start: int) -> Node:
        at = start + e.col_offset
        written = ast.get_source_segment(piece, e) or ""
        convert = lambda inner: self._convert(inner, piece, start)
        match e:
            case ast.Constant(value=bool()):
                pass
            case ast.Constant(value=int() | float() as value):
                zero = not re.search("[1-9]", written.lower().partition("e")[0])  # and not 1e-999, which Python rounds
                if not zero and not 1 / LIMIT <= abs(value) <= LIMIT:
                    self.fail(at, f"{written[:40]} is not a number between {1 / LIMIT:g} and {LIMIT:g}, or 0")
                return number(value)
            case ast.Name(id=text) if not text.startswith("_"):
                if text in FUNCTIONS:
                    self.fail(at, f"{text} is a function: write {text}(x)")
                self.names.setdefault(text, at)
                return name(text)
            case ast.UnaryOp(op=ast.UAdd(), operand=inner):
                return convert(inner)
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                operand = convert(inner)
                return number(-operand.args[0]) if operand.op == "number" else Node("neg", (operand,))
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in OPERATORS:
                op = OPERATORS[type(operator)]
                args = convert(left), convert(right)
                if op in ("/", "**"):
                    self.constants.append((op, args[1], start + right.col_offset))
                return Node(op, args)
            case ast.Call(func=ast.Name(id=text), args=given, keywords=[]) if not text.startswith("_"):
                if text not in self.functions:
                    self.fail(at, f"unknown function {text!r}{nearest(text, self.functions)}")
                if len(given) != (arity := FUNCTIONS[text].arity):
                    self.fail(at, f"{text} takes {arity} argument{'s' * (arity > 1)}, given {len(given)}")
                return Node(text, tuple(map(convert, given)))
            case ast.Tuple(elts=[first, *_]) if written == piece != f"({piece[1:-1]})":
                self.fail(start + (first.end_col_offset or 0), "a comma parts names only; put | between activations")
        self.fail(at, f"{written[:40]!r} cannot be part of a formula")
