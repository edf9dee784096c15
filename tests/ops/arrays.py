"""What samples of an operation's arguments are, and the arrays in them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Rng = np.random.Generator


@dataclass(frozen=True)
class Sample:
    """Arguments of one call: arrays (float32 or int32; float ones are differentiable) or None, and keywords."""

    inputs: tuple[np.ndarray | None, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    terms: int = 1  # at most so many are summed into one value of the result or of a gradient
    exponent: float = 0.0  # the largest |x| in an e^x
    scale: float = 0.0  # the size of the terms whose difference a result or gradient is, where it can be far smaller
    differences: bool = True  # smooth and small enough for finite differences

    def __repr__(self) -> str:
        shapes = "_".join("none" if x is None else "x".join(map(str, x.shape)) or "scalar" for x in self.inputs)
        return "-".join([shapes, *(f"{k}={v}" for k, v in self.kwargs.items())])

    @property
    def differentiable(self) -> tuple[int, ...]:
        return tuple(i for i, x in enumerate(self.inputs) if x is not None and x.dtype == np.float32)


@dataclass(frozen=True)
class Bad:
    """Arguments that must raise."""

    inputs: tuple[np.ndarray | None, ...]
    kwargs: dict[str, Any]
    raises: type[Exception]
    match: str


SCALAR: tuple[int, ...] = ()
SMALL = [SCALAR, (1,), (7,), (3, 5), (2, 3, 7), (1, 1, 1)]
LARGE = [(33, 65), (2, 31, 129), (70001, 3)]  # no multiples of a tile; more rows than one grid axis may have
EXTREME = np.array([-1e4, -300, -89, -20, -1e-6, 0, 1e-30, 20, 89, 300, 1e4], np.float32)  # e^x overflows
HUGE = (65_535 * 64 + 129,)  # more elements than one grid axis of workgroups of 64
BATCH = 1_100 if os.environ.get("HELIOS_TEST_BACKEND", "").startswith("simt") else 66_000  # see conftest.SIMT_GROUPS


def normal(rng: Rng, *shape: int, spread: float = 1.0) -> np.ndarray:
    return np.asarray(rng.standard_normal(shape) * spread, np.float32)


def off_zero(rng: Rng, *shape: int) -> np.ndarray:
    """Values at least 0.05 away from 0, where relu has a kink."""
    x = normal(rng, *shape)
    return np.asarray(x + np.copysign(0.05, x), np.float32)


def integers(rng: Rng, high: int, *shape: int) -> np.ndarray:
    return np.asarray(rng.integers(0, high, shape), np.int32)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def ints(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.int32)
