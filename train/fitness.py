"""The fitness of a candidate of a search, and the diversity of a population."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from helios.errors import UserError, nearest


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
    """The measurements of one training; None where there is none.

    clip_rate: share of steps whose gradient was clipped, 0 to 1. instability: share of steps in trouble, as trouble.py
    defines it, 0 to 1. tokens_per_sec: mean over the training.
    """

    best_val_loss: float | None = None
    tokens_per_sec: float | None = None
    clip_rate: float | None = None
    max_grad_norm: float | None = None
    instability: float | None = None
    parameters: int | None = None
    free_energy: float | None = None


class Formula(NamedTuple):
    """A fitness: a function of the coefficients by name and, in order, of the Measurements that it needs."""

    value: Callable[..., float]
    needs: tuple[str, ...]
    coefficients: Mapping[str, float]


def _quality(c: Mapping[str, float], loss: float, norm: float, clipped: float, speed: float) -> float:
    return -loss - c["grad_norm"] * math.log1p(norm) - c["clip_rate"] * clipped + c["speed"] * math.log(speed)


def _efficiency(c: Mapping[str, float], speed: float, loss: float, unstable: float, parameters: float) -> float:
    return (c["speed"] * math.log(speed) - c["loss"] * loss - c["instability"] * unstable
            - c["parameters"] * math.log(parameters))


def _wall(c: Mapping[str, float], loss: float, unstable: float, speed: float) -> float:
    return -loss - c["instability"] * unstable + c["speed"] * math.log(speed)


def _bounded(c: Mapping[str, float], loss: float, parameters: int) -> float:
    return c["alpha"] / (1 + loss) - c["complexity_weight"] * complexity("parameters", parameters)


_QUALITY = ("best_val_loss", "max_grad_norm", "clip_rate", "tokens_per_sec")

# quality and phase10 compare trainings of equally many tokens; efficiency and phase10_wall, of equal time.
FITNESS: Mapping[str, Formula] = MappingProxyType({
    "inverse": Formula(lambda c, energy: 1 / energy, ("free_energy",), {}),
    "bounded": Formula(_bounded, ("best_val_loss", "parameters"), {"alpha": 1.0, "complexity_weight": 0.01}),
    "quality": Formula(_quality, _QUALITY, {"grad_norm": 0.05, "clip_rate": 0.2, "speed": 0.02}),
    "efficiency": Formula(_efficiency, ("tokens_per_sec", "best_val_loss", "instability", "parameters"),
                          {"speed": 0.5, "loss": 0.5, "instability": 0.25, "parameters": 0.05}),
    "phase10": Formula(_quality, _QUALITY, {"grad_norm": 0.05, "clip_rate": 0.15, "speed": 0.03}),
    "phase10_wall": Formula(_wall, ("best_val_loss", "instability", "tokens_per_sec"),
                            {"instability": 0.1, "speed": 0.08}),
})


def fitness_coefficients(name: str, given: Mapping[str, float]) -> dict[str, float]:
    """Return the formula's coefficients, with the `given` ones replaced. Raises UserError for unknown names."""
    if name not in FITNESS:
        raise UserError(f"unknown fitness {name!r}{nearest(name, FITNESS)}; there are {', '.join(FITNESS)}")
    own = FITNESS[name].coefficients
    for key in given:
        if key not in own:
            known = f"it has {', '.join(own)}" if own else "it has none"
            raise UserError(f"fitness {name} has no coefficient {key!r}{nearest(key, own)}; {known}")
    return {**own, **given}


def fitness(name: str, measurements: Measurements, coefficients: Mapping[str, float]) -> float:
    """Return the fitness, of which more is better; -inf where an input or the result is not finite.
    Raises UserError for an unknown formula or coefficient, ValueError for a needed input that is None."""
    c, formula = fitness_coefficients(name, coefficients), FITNESS[name]
    inputs = [_needed(need, getattr(measurements, need)) for need in formula.needs]
    if not all(map(math.isfinite, inputs)):
        return -math.inf
    try:
        value = formula.value(c, *inputs)
    except (ArithmeticError, ValueError):  # a speed of 0 has no logarithm, a free energy of 0 no inverse
        return -math.inf
    return value if math.isfinite(value) else -math.inf
