"""Genes: what an evolution may make of settings. A setting's own stands beside its range, where it is declared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

Scale = tuple[Callable[[float], float], Callable[[float], float]]  # to where steps are alike, and back
# By kind. of_rest: of numbers just below 1, such as decays, whose distance from 1 counts.
SCALES: Mapping[str, Scale] = MappingProxyType({
    "linear": (lambda x: x, lambda y: y),
    "log": (math.log, math.exp),
    "of_rest": (lambda x: -math.log1p(-x), lambda y: -math.expm1(-y)),
})
DIGITS = 3  # of numbers that are drawn, so that they can be read, and equal ones met again

PARTS = ("architecture", "dynamics", "runtime")  # what a model is; how it learns; how it is computed


class Gene(NamedTuple):
    """Settings that vary as one, nearly always a single one.

    kind: log, linear or of_rest, numbers from `low` to `high`, multiples of `whole` unless that is 0; steps or set, one
    of `values`, where a step goes to a neighbour, 0 (for none) being the last. Values are tuples, one for each setting.
    fits: given a value and the values of all settings that vary, the value nearest to it that goes with them.
    """

    kind: str
    low: float = 0.0
    high: float = 0.0
    whole: int = 0
    values: tuple[tuple[Any, ...], ...] = ()
    fits: Callable[[Any, Mapping[str, Any]], Any] | None = None
    part: str = ""
    settings: tuple[str, ...] = ()
    name: str = ""

    def of(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return those of its settings."""
        return tuple(values[name] for name in self.settings)

    def ends(self, setting: str) -> tuple[Any, ...]:
        """Return the values that one of its settings may have, of a range the ends; none of another's setting."""
        at = [i for i, name in enumerate(self.settings) if name == setting]
        values = (self.at(0.0), self.at(1.0)) if self.numeric else self.values
        return tuple(value[i] for value in values for i in at)

    @property
    def numeric(self) -> bool:
        """Return whether its values are numbers of a range."""
        return self.kind in SCALES

    def place(self, value: tuple[Any, ...]) -> float | None:
        """Return where a value lies, from 0, the lowest, to 1; outside where it is; None where there is no order."""
        if self.numeric:
            to, _ = SCALES[self.kind]
            low, high = to(self.low), to(self.high)
            if not isinstance(value[0], int | float):  # an ffn_dim of auto
                return None
            try:
                return (to(value[0]) - low) / (high - low)
            except ValueError:  # log 0
                return 0.0
        if self.kind == "set" or value not in self.values:
            return None
        return self.values.index(value) / max(1, len(self.values) - 1)

    def at(self, place: float) -> tuple[Any, ...]:
        """Return the number at a place from 0 to 1, rounded."""
        to, back = SCALES[self.kind]
        low, high = to(self.low), to(self.high)
        x = min(self.high, max(self.low, back(low + (high - low) * place)))
        if self.whole:
            return (round(x / self.whole) * self.whole,)
        return (min(self.high, max(self.low, self._rounded(x))),)

    def _rounded(self, x: float) -> float:
        if self.kind == "linear":
            return round(x, DIGITS - math.floor(math.log10(self.high - self.low)))
        if self.kind == "of_rest":
            return round(1 - float(f"{1 - x:.{DIGITS}g}"), 12)
        return float(f"{x:.{DIGITS}g}")

    def with_values(self, *more: tuple[Any, ...]) -> Gene:
        """Return the gene with these among its values, each once; steps in order."""
        found = list(dict.fromkeys((*self.values, *more)))
        return self._replace(values=tuple(sorted(found, key=_step) if self.kind == "steps" else found))


def _step(value: tuple[Any, ...]) -> float:
    return value[0] or math.inf


def log(low: float, high: float, **more: Any) -> Gene:
    """Return the gene of numbers whose ratio counts."""
    return Gene("log", low, high, **more)


def linear(low: float, high: float, **more: Any) -> Gene:
    """Return the gene of numbers whose difference counts."""
    return Gene("linear", low, high, **more)


def of_rest(low: float, high: float, **more: Any) -> Gene:
    """Return the gene of numbers below 1 whose distance from 1 counts, by ratios."""
    return Gene("of_rest", low, high, **more)


def in_steps(*values: Any, **more: Any) -> Gene:
    """Return the gene of values in order."""
    return Gene("steps", values=tuple((v,) for v in values), **more)


def any_of(*values: Any, **more: Any) -> Gene:
    """Return the gene of values without an order."""
    return Gene("set", values=tuple((v,) for v in values), **more)


SWITCH = any_of(False, True)
