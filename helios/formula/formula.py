"""An activation as a formula: `x*sigmoid(1.702*x)`, `a*silu(x)+b*x; a=1, b=0`, or of gates g and values u, `gelu(g)*u`.

From the text come its derivatives by x (or g and u) and by each coefficient, and the code of both, with common parts
computed once, in GLSL, numpy and PyTorch. Code depends on the formula's normal form alone (see normal.py), in which
coefficients are c0, c1, … by their names' order: equal formulas have the same code, and so one kernel.

Nothing overflows for |x| ≤ 1e4 and coefficients up to 1e3: a part that may pass float32's range there is clamped to
±3e38, so that no 0·∞ or ∞-∞ arises. Slopes at kinks are said in expression.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any

from helios.errors import UserError, nearest
from helios.formula.codegen import Lowering, write
from helios.formula.expression import FUNCTIONS, LIMIT, MAX_LENGTH, MAX_POWER, VARIABLES, Node, Reader, number
from helios.formula.normal import rounded, simplify, slope

MAX_NORMAL = 100  # nodes of a normal form
MAX_COEFFICIENTS = 5  # more arguments of activation_backward.comp would not fit the 128 bytes that all devices have
VALUE = "value"  # the output that is no derivative


@dataclass(frozen=True, eq=False)
class Formula:
    """A formula, made by `parse` or `of`. Two are equal if their canonical texts are.

    tree: as it was written, but for coefficients that fall away in the normal form; they are numbers in it.
    coefficients: the others' initial values, by name in alphabetical order. inputs: ("x",), or ("g", "u") of a gated
    one. parameters: inputs, then coefficients.
    """

    tree: Node
    normal: Node
    coefficients: Mapping[str, float]

    @staticmethod
    def parse(text: str) -> Formula:
        """Read a formula. Raises UserError, which points at the place, where it is none."""
        return _parse(text)

    @staticmethod
    def of(tree: Node, values: Mapping[str, float] = MappingProxyType({})) -> Formula:
        """Return the formula of a tree, with the initial values of (at least) its coefficients. Raises UserError."""
        return _parse(_text(tree, {k: v for k, v in values.items() if k in tree.names}))

    def __str__(self) -> str:
        return _text(self.tree, self.coefficients)

    @cached_property
    def canonical(self) -> str:
        """The text that all equal formulas share, which parses to an equal one."""
        return _text(self.normal, self.coefficients)

    @cached_property
    def key(self) -> str:
        """A short name of `canonical`, the same in every process."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Formula) and self.canonical == other.canonical

    def __hash__(self) -> int:
        return hash(self.canonical)

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("x",) if "x" in self.normal.names else ("g", "u")

    @property
    def gated(self) -> bool:
        return len(self.inputs) == 2

    @property
    def plain(self) -> bool:
        """Whether it is in x alone."""
        return self.parameters == ("x",)

    @property
    def parameters(self) -> tuple[str, ...]:
        return *self.inputs, *self.coefficients

    def slope(self, by: str) -> Node:
        """Return the derivative by one of `parameters`, in normal form."""
        return slope(self.normal, by)

    def code(self, language: str, outputs: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
        """Return temporaries, as pairs of name and expression, and one expression for each output: "value", or the
        parameter that it is the derivative by. Names are x, g, u, c0, c1, … and t0, t1, …."""
        lowered = Lowering(self.coefficients)
        results = [lowered(self.normal if out == VALUE else self.slope(out)) for out in outputs]
        return write(language, results, {old: new for new, old in self._arguments.items()})

    @property
    def _arguments(self) -> dict[str, str]:
        """Return each parameter's name in code, with its own."""
        return {**{n: n for n in self.inputs}, **{f"c{i}": n for i, n in enumerate(self.coefficients)}}

    @cached_property
    def glsl(self) -> str:
        """GLSL functions over float, on one line, for a #define; they need lib/functions.glsl.

        `float act(float x, float c0, …)`, `void act_grads(float x, float c0, …, out float dx, out float dc0, …)`, with
        g and u in place of x where gated; and where there is but x, `float act_grad(float x)`.
        """
        given = ", ".join(f"float {n}" for n in self._arguments)
        lines = lambda code: "".join(f"float {n} = {e}; " for n, e in code[0])
        value, grads = self.code("glsl", [VALUE]), self.code("glsl", self.parameters)
        text = f"float act({given}) {{ {lines(value)}return {value[1][0]}; }}"
        if len(self.parameters) == 1:
            text += f" float act_grad({given}) {{ {lines(grads)}return {grads[1][0]}; }}"
        out = ", ".join(f"out float d{n}" for n in self._arguments)
        stores = "".join(f"d{n} = {e}; " for n, e in zip(self._arguments, grads[1], strict=True))
        return f"{text} void act_grads({given}, {out}) {{ {lines(grads)}{stores}}}"

    def source(self, language: str, outputs: Sequence[str]) -> str:
        """Return the text of a function of the parameters, in "numpy" or "torch", that returns a tuple of outputs."""
        temporaries, results = self.code(language, outputs)
        lines = [f"{n} = {e}" for n, e in temporaries] + [f"return {', '.join(results)},"]
        return "\n    ".join([f"def formula({', '.join(self._arguments)}):", *lines]) + "\n"

    def value(self, *given: Any) -> Any:
        """Return the value at numpy arrays, one for each of `parameters`, of one floating type; they are broadcast."""
        return _function(self, "numpy", (VALUE,))(*given)[0]

    def slopes(self, *given: Any) -> tuple[Any, ...]:
        """Return the derivatives by each of `parameters`, element by element, at numpy arrays."""
        return _function(self, "numpy", self.parameters)(*given)

    def torch(self, *given: Any) -> Any:
        """Return the value at PyTorch tensors, through which autograd can go."""
        return _function(self, "torch", (VALUE,))(*given)[0]

    def torch_slopes(self, *given: Any) -> tuple[Any, ...]:
        """Return the derivatives by each of `parameters` at PyTorch tensors."""
        return _function(self, "torch", self.parameters)(*given)


def expression(text: str) -> Node:
    """Return an expression in any names, as 0.7*f+0.3*x; see Node.substitute. Raises UserError."""
    reader = Reader(text)
    tree = reader.read(0, len(text))
    _check_constants(reader)
    return tree


# -- from text and to text -------------------------------------------------------------------------------------------

def _text(tree: Node, values: Mapping[str, float]) -> str:
    given = ", ".join(f"{k}={number(v)}" for k, v in sorted(values.items()))
    return f"{tree}; {given}" if given else str(tree)


@lru_cache(4096)
def _parse(text: str) -> Formula:
    text = " ".join(text.splitlines()).replace("\t", " ")
    reader = Reader(text)
    if not text.strip():
        reader.fail(0, "it is empty; write one in x, as x*sigmoid(x)")
    if len(text) > MAX_LENGTH:
        reader.fail(MAX_LENGTH, f"longer than {MAX_LENGTH} characters")
    end = text.find(";") if ";" in text else len(text)
    tree = reader.read(0, end)
    values, places = _values(text, end + 1, tree.names) if end < len(text) else ({}, {})
    for at, known in sorted((at, known) for known, at in reader.names.items() if known not in VARIABLES):
        if known not in values:
            near = nearest(known, (*VARIABLES, *values))
            reader.fail(at, f"{known!r} has no value; give it one at the end, as ;{known}=1{near}")
    _check_variables(reader, tree.names)
    for known, at in places.items():
        if known not in tree.names:
            reader.fail(at, f"the formula has no {known!r}")
    _check_constants(reader)
    found = _simplified(reader, tree, 0)
    if found.size > MAX_NORMAL:
        reader.fail(0, f"simplified, it has more than {MAX_NORMAL} operations, names and numbers")
    for _, node in found.walk():
        if node.op == "number" and node.args[0] and not 1 / LIMIT <= abs(node.args[0]) <= LIMIT:
            reader.fail(0, f"its numbers multiply to {float(node.args[0]):g}, expected 0 or {1 / LIMIT:g} to {LIMIT:g}")
    found = rounded(found)
    lost = [v for v in VARIABLES if v in tree.names - found.names]
    if lost:
        reader.fail(reader.names[lost[0]], f"{lost[0]} falls away: the formula equals {found}")
    tree = tree.substitute(**{k: number(v) for k, v in values.items() if k not in found.names})
    return Formula(tree, found, MappingProxyType({k: v for k, v in sorted(values.items()) if k in found.names}))


def _values(text: str, at: int, names: frozenset[str]) -> tuple[dict[str, float], dict[str, int]]:
    """Return the coefficients after the semicolon, and where each is."""
    values: dict[str, float] = {}
    places: dict[str, int] = {}
    for piece in text[at:].split(","):
        reader = Reader(text)
        left, equals, right = piece.partition("=")
        known, place = left.strip(), at + len(left) - len(left.lstrip())
        if not equals or not known.isidentifier() or not known.isascii() or known.startswith("_"):
            reader.fail(place, f"expected coefficient=number, given {piece.strip()!r}")
        if known in FUNCTIONS or known in VARIABLES:
            kind = "function" if known in FUNCTIONS else "variable"
            reader.fail(place, f"{known!r} is a {kind}; choose another name")
        if known in values:
            reader.fail(place, f"{known!r} has a value already")
        if len(values) == MAX_COEFFICIENTS:
            reader.fail(place, f"{known!r} is one too many: a formula has at most {MAX_COEFFICIENTS} coefficients")
        start = at + len(left) + 1
        value = reader.read(start, at + len(piece))
        if value.names:
            reader.fail(start, f"the value of {known!r} must be a number, given {right.strip()!r}")
        _check_constants(reader)
        values[known], places[known] = float(_simplified(reader, value, start).args[0]), place
        at += len(piece) + 1
    return values, places


def _simplified(reader: Reader, tree: Node, at: int) -> Node:
    try:
        return simplify(tree)
    except UserError as error:
        reader.fail(at, str(error))


def _check_constants(reader: Reader) -> None:
    for op, node, at in reader.constants:
        value = None if node.names else _simplified(reader, node, at).args[0]
        if op == "/" and not value:
            reader.fail(at, f"division by {node}, expected a number other than 0")
        if op == "**" and (value is None or value.denominator != 1 or not 0 <= value <= MAX_POWER):
            reader.fail(at, f"power {node}, expected a whole number from 0 to {MAX_POWER}")


def _check_variables(reader: Reader, names: frozenset[str]) -> None:
    used = [v for v in VARIABLES if v in names]
    if not used:
        reader.fail(0, "it has no variable: a formula is in x, or, if gated, in g and u")
    if used[0] == "x" and len(used) > 1:
        reader.fail(max(reader.names[v] for v in used), "x does not go with g and u: a formula is in x, or, if gated, "
                    "in g and u")
    if used in (["g"], ["u"]):
        other = "u" if used == ["g"] else "g"
        reader.fail(reader.names[used[0]], f"{used[0]} needs {other}: a gated formula is in the gate g and the value u")


@lru_cache(4096)
def _function(formula: Formula, language: str, outputs: tuple[str, ...]) -> Callable[..., tuple[Any, ...]]:
    """Return a function of the parameters, whose results have the shape that these have together."""
    if language == "numpy":
        import numpy as np
        from scipy import special

        space: dict[str, Any] = {"np": np, "special": special}
    else:
        import torch
        from torch.nn import functional

        space = {"torch": torch, "F": functional}
    exec(formula.source(language, outputs), space)
    inner = space["formula"]
    if language == "torch":
        def run(*given: Any) -> tuple[Any, ...]:
            like = torch.broadcast_tensors(*given)[0]
            return tuple(torch.as_tensor(r, dtype=like.dtype, device=like.device).expand_as(like)
                         for r in inner(*given))
    else:
        def run(*given: Any) -> tuple[Any, ...]:
            shape = np.broadcast_shapes(*(x.shape for x in given))
            with np.errstate(over="ignore", under="ignore"):
                return tuple(np.broadcast_to(np.asarray(r, given[0].dtype), shape) for r in inner(*given))
    return run
