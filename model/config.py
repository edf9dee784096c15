"""What a GPT is made of, checked before anything is built."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from helios.errors import UserError, nearest


@dataclass(frozen=True)
class MLP:
    """A kind of feed-forward network, fc2·act(fc1·x): fc1 [parts·F, D], fc2 [D, F], F = ffn_dim. With two parts, the
    first F values of fc1·x are gates of the others."""

    parts: int = 1
    coefficients: Mapping[str, float] = field(default_factory=dict)  # name → initial value; [ffn_dim] each

    @property
    def matrices(self) -> int:
        """Return how many there are, of D·F weights each."""
        return self.parts + 1

    def width(self, n_embd: int) -> int:
        """Return the default ffn_dim: 4·D, and where gated about as many weights in all, 8/3·D, up to a multiple of
        64."""
        return 4 * n_embd if self.parts == 1 else 64 * math.ceil(8 * n_embd / (3 * 64))

    def matched(self, n_embd: int) -> int:
        """Return the ffn_dim with which it has as many parameters as two matrices of 4·D have, 8·D²: the multiple of
        16 if one is within 1 %."""
        each = self.matrices * n_embd + len(self.coefficients)
        width = 8 * n_embd**2 / each
        even = 16 * round(width / 16)
        return even if abs(even - width) <= 0.01 * width else max(1, round(width))


MLPS: Mapping[str, MLP] = MappingProxyType({
    "gelu": MLP(),
    "silu": MLP(),
    "relu": MLP(),
    "swiglu": MLP(parts=2),
    "universal": MLP(coefficients={"a": 1.0, "b": 0.0}),
    "kan_spline": MLP(coefficients={"c0": 0.5, "c1": 0.0, "c2": 0.5, "c3": 0.0, "c4": 0.0}),
})


@dataclass(frozen=True)
class GPTConfig:
    """A GPT's shape. Raises UserError where a value cannot be used.

    activation: a name of MLPS for all blocks, or one per block, as a sequence or separated by commas; kept as a string.
    ffn_dim: the MLPs' width; None: by each block's kind; "matched": so that every kind has as many parameters.
    softcap: c of c·tanh(s/c) on the scores; 0: none.
    """

    vocab_size: int = 4000
    block_size: int = 256
    n_layer: int = 6
    n_head: int = 8
    n_embd: int = 256
    ffn_dim: int | str | None = None
    activation: str | Sequence[str] = "gelu"
    dropout: float = 0.0
    softcap: float = 30.0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "ffn_dim"):
            n = getattr(self, name)
            if name == "ffn_dim" and n in (None, "matched"):
                continue
            if not isinstance(n, int) or isinstance(n, bool) or n < 1:
                raise UserError(f"{name}: given {n!r}, expected a whole number from 1 on")
        if self.n_embd % self.n_head:
            near = max(1, round(self.n_embd / self.n_head)) * self.n_head
            raise UserError(f"n_embd: given {self.n_embd}, expected a multiple of n_head {self.n_head}, as {near}")
        for name, below in (("dropout", 1.0), ("softcap", math.inf)):
            x = getattr(self, name)
            if not isinstance(x, int | float) or isinstance(x, bool) or not 0.0 <= x < below:
                raise UserError(f"{name}: given {x!r}, expected a number in [0, {below:g})")
            object.__setattr__(self, name, float(x))
        given = self.activation.split(",") if isinstance(self.activation, str) else list(self.activation)
        names = [str(name).strip() for name in given]
        for name in names:
            if name not in MLPS:
                raise UserError(f"activation: given {name!r}, expected one of {', '.join(MLPS)}{nearest(name, MLPS)}")
        if len(names) not in (1, self.n_layer):
            raise UserError(f"activation: given {len(names)} names, expected one, or one for each of the {self.n_layer}"
                            " blocks")
        object.__setattr__(self, "activation", ",".join(names))

    @property
    def activations(self) -> tuple[str, ...]:
        """Return one name for each block."""
        names = tuple(str(self.activation).split(","))
        return names * self.n_layer if len(names) == 1 else names

    @property
    def ffn_dims(self) -> tuple[int, ...]:
        """Return one width for each block."""
        if isinstance(self.ffn_dim, int):
            return (self.ffn_dim,) * self.n_layer
        width = MLP.width if self.ffn_dim is None else MLP.matched
        return tuple(width(MLPS[name], self.n_embd) for name in self.activations)

    def parameters(self) -> int:
        """Return how many there are: 2VD + TD + 2D + Σ over blocks (4D² + 4D + {2 or 3}DF + {coefficients}F)."""
        v, t, d = self.vocab_size, self.block_size, self.n_embd
        mlps = zip((MLPS[name] for name in self.activations), self.ffn_dims, strict=True)
        ffn = sum(mlp.matrices * d * f + len(mlp.coefficients) * f for mlp, f in mlps)
        return 2 * v * d + t * d + 2 * d + self.n_layer * (4 * d * d + 4 * d) + ffn

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, numbers, strings and None only."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GPTConfig:
        """Return the config of what to_dict() gave. Raises UserError for other names, too."""
        names = [f.name for f in dataclasses.fields(cls)]
        for name in values:
            if name not in names:
                raise UserError(f"model: given {name!r}, expected some of {', '.join(names)}{nearest(name, names)}")
        return cls(**values)
