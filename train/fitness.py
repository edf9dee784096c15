"""The fitness of a candidate of a search, and the diversity of a population.

A fitness is one of a table by name, or any formula of measured names: + - * / **, numbers and the functions below.
"""

from __future__ import annotations

import ast
import math
import operator
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from helios.errors import UserError, nearest
from helios.formula.expression import MAX_LENGTH, Reader


def free_energy(loss: float, entropy: float, beta: float) -> float:
    """Return loss + beta · entropy."""
    return loss + beta * entropy


def _needed(name: str, value: float | None) -> float:
    if value is None:
        raise ValueError(f"{name} was not measured, and this formula needs it")
    return value


def _bits(parameters: int, entropy: float | None) -> float:
    # At least one bit, so that there is a logarithm.
    return math.log10(max(1.0, parameters * _needed("weight_entropy", entropy)))


COMPLEXITY: Mapping[str, Callable[[int, float | None], float]] = MappingProxyType({
    "parameters": lambda parameters, entropy: math.log10(parameters),
    "entropy": lambda parameters, entropy: _needed("weight_entropy", entropy),
    "description": _bits,
})


def complexity(mode: str, parameters: int, entropy: float | None = None) -> float:
    """Return by `mode` log10 of the number of parameters, the entropy of a weight in bits or, for "description", log10
    of the bits of all weights. Raises UserError for another mode, ValueError where the entropy is needed and None."""
    if mode not in COMPLEXITY:
        raise UserError(f"unknown complexity {mode!r}{nearest(mode, COMPLEXITY)}; there are {', '.join(COMPLEXITY)}")
    return COMPLEXITY[mode](parameters, entropy)


def activation_distribution(activations: Sequence[str]) -> dict[str, float]:
    """Return the share of each name, in alphabetical order."""
    return {name: n / len(activations) for name, n in sorted(Counter(activations).items())}


def population_entropy(activations: Sequence[str]) -> float:
    """Return the Shannon entropy of the names in bits: 0 where all are equal, log2 of their number where none are."""
    return math.fsum(-p * math.log2(p) for p in activation_distribution(activations).values())


def architecture_diversity(activations: Sequence[str]) -> float:
    """Return the number of distinct names over that of all, from 1/n to 1; 0 where there is none."""
    return len(set(activations)) / max(1, len(activations))


class Measurements(NamedTuple):
    """The measurements of one training; None where there is none. Losses are in nats.

    val_loss: of the last evaluation. clip_rate, skipped, spikes, alerts, instability: shares of steps, 0 to 1, whose
    gradient was clipped, whose update was skipped, and with a spike, an alert, or trouble of any kind, as trouble.py
    defines it. tokens_per_sec: mean over the training.
    """

    best_val_loss: float | None = None
    tokens_per_sec: float | None = None
    clip_rate: float | None = None
    max_grad_norm: float | None = None
    instability: float | None = None
    parameters: int | None = None
    free_energy: float | None = None
    val_loss: float | None = None
    train_loss: float | None = None
    spikes: float | None = None
    skipped: float | None = None
    alerts: float | None = None
    seconds: float | None = None
    tokens: int | None = None
    memory_mb: float | None = None


# What a formula is made of. ** is that of math: Python's takes long for large integers, and may give complex numbers.
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
             ast.Pow: math.pow, ast.USub: operator.neg, ast.UAdd: operator.pos}
FUNCTIONS = {"log": math.log, "log10": math.log10, "log1p": math.log1p, "exp": math.exp, "sqrt": math.sqrt, "abs": abs,
             "min": min, "max": max}
HIGHEST_POWER = 100
COEFFICIENT = "c_"  # before the name of a coefficient, since some are called as what they weigh


class Formula(NamedTuple):
    """A fitness: a formula of the measurements that it `needs` and of its coefficients, written c_name, by name."""

    text: str
    tree: ast.expr
    needs: tuple[str, ...]
    coefficients: Mapping[str, float]

    @staticmethod
    def of(text: str, **coefficients: float) -> Formula:
        """Read a formula. Raises UserError, which points at the place, where it is none."""
        text = " ".join(text.split())  # lines, too, become one
        reader = Reader(text)
        if len(text) > MAX_LENGTH:
            reader.fail(MAX_LENGTH, f"longer than {MAX_LENGTH} characters")
        tree, *_ = reader.syntax(0, len(text))
        needs = dict.fromkeys(Measurements._fields, False)
        _constant(tree, reader, needs, {COEFFICIENT + name for name in coefficients})
        if not any(needs.values()):
            reader.fail(0, f"it has nothing measured in it; there are {', '.join(needs)}")
        return Formula(text, tree, tuple(n for n in needs if needs[n]), coefficients)


def _constant(e: ast.expr, reader: Reader, needs: dict[str, bool], coefficients: Collection[str]) -> float | None:
    """Return the value of an expression without names, None for one with names, of which the measured ones become true
    in `needs`. Raises UserError for what no formula has."""
    operands: list[ast.expr] = []
    match e:
        case ast.Name(id=name) if name in needs or name in coefficients:
            if name in needs:
                needs[name] = True
            return None
        case ast.Name(id=name):
            reader.fail(e.col_offset, f"nothing measured is called {name!r}{nearest(name, needs)}; there are "
                                      f"{', '.join(needs)}")
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            pass
        case ast.UnaryOp(op=ast.UAdd() | ast.USub(), operand=operand):
            operands = [operand]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            operands = [left, right]
        case ast.Call(func=ast.Name(id=name), args=operands, keywords=[]):
            if name not in FUNCTIONS:
                reader.fail(e.col_offset, f"unknown function {name!r}{nearest(name, FUNCTIONS)}; there are "
                                          f"{', '.join(FUNCTIONS)}")
            some = name in ("min", "max")
            if len(operands) < 2 if some else len(operands) != 1:
                reader.fail(e.col_offset, f"{name} takes {'two arguments or more' if some else 'one argument'}, given "
                                          f"{len(operands)}")
        case _:
            written = ast.get_source_segment(reader.text, e) or ""
            reader.fail(e.col_offset, f"{written[:40]!r} cannot be part of a formula")
    values = [_constant(operand, reader, needs, coefficients) for operand in operands]
    if isinstance(e, ast.BinOp) and isinstance(e.op, ast.Pow) and abs(values[1] or 0) > HIGHEST_POWER:
        reader.fail(e.right.col_offset, f"a power of {values[1]:g} is too large; give one up to {HIGHEST_POWER}")
    if None in values:
        return None
    try:
        value = _evaluated(e, {})
    except (ArithmeticError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        reader.fail(e.col_offset, "this has no value, or one that is too large")
    return value


def _evaluated(e: ast.expr, names: Mapping[str, float]) -> float:
    from simpleeval import SimpleEval
    return float(SimpleEval(OPERATORS, FUNCTIONS, names).eval("", e))


_QUALITY = "-best_val_loss - c_grad_norm*log1p(max_grad_norm) - c_clip_rate*clip_rate + c_speed*log(tokens_per_sec)"

# quality and phase10 compare trainings of equally many tokens; efficiency and phase10_wall, of equal time.
FITNESS: Mapping[str, Formula] = MappingProxyType({
    "inverse": Formula.of("1/free_energy"),
    "bounded": Formula.of("c_alpha/(1 + best_val_loss) - c_complexity_weight*log10(parameters)",
                          alpha=1.0, complexity_weight=0.01),
    "quality": Formula.of(_QUALITY, grad_norm=0.05, clip_rate=0.2, speed=0.02),
    "efficiency": Formula.of("c_speed*log(tokens_per_sec) - c_loss*best_val_loss - c_instability*instability"
                             " - c_parameters*log(parameters)",
                             speed=0.5, loss=0.5, instability=0.25, parameters=0.05),
    "phase10": Formula.of(_QUALITY, grad_norm=0.05, clip_rate=0.15, speed=0.03),
    "phase10_wall": Formula.of("-best_val_loss - c_instability*instability + c_speed*log(tokens_per_sec)",
                               instability=0.1, speed=0.08),
})


@lru_cache(64)
def formula(text: str) -> Formula:
    """Return a formula of FITNESS by its name, or the one that a text such as -val_loss + 0.02*log(tokens_per_sec) is.
    Raises UserError for an unknown name and for a text that is no formula."""
    if text in FITNESS:
        return FITNESS[text]
    if text.isidentifier():
        raise UserError(f"unknown fitness {text!r}{nearest(text, FITNESS)}; there are {', '.join(FITNESS)}, and "
                        "formulas of what is measured, such as -val_loss")
    return Formula.of(text)


def fitness_coefficients(name: str, given: Mapping[str, float]) -> dict[str, float]:
    """Return the formula's coefficients, with the `given` ones replaced. Raises UserError for unknown names."""
    own = formula(name).coefficients
    for key in given:
        if key not in own:
            known = f"it has {', '.join(own)}" if own else "it has none"
            raise UserError(f"fitness {name} has no coefficient {key!r}{nearest(key, own)}; {known}")
    return {**own, **given}


def fitness(name: str, measurements: Measurements, coefficients: Mapping[str, float]) -> float:
    """Return the fitness, of which more is better; -inf where an input or the result is not finite.
    name: as formula() takes it. Raises UserError for an unknown formula or coefficient, ValueError for a needed input
    that is None."""
    c, found = fitness_coefficients(name, coefficients), formula(name)
    inputs = {need: _needed(need, getattr(measurements, need)) for need in found.needs}
    if not all(map(math.isfinite, inputs.values())):
        return -math.inf
    try:
        value = _evaluated(found.tree, inputs | {COEFFICIENT + key: weight for key, weight in c.items()})
    except (ArithmeticError, ValueError):  # a speed of 0 has no logarithm, a free energy of 0 no inverse
        return -math.inf
    return value if math.isfinite(value) else -math.inf
