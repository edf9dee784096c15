"""What a GPT is made of, checked before anything is built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from helios.errors import UserError, nearest
from helios.model.settings import ANY, BLOCKS, COUNT, NAMES, NATURAL, SHARE, WIDTH, Range, Settings, setting


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
class GPTConfig(Settings):
    """A GPT's shape. Raises UserError where a value cannot be used.

    activation: a name of MLPS for all blocks, or one per block, as a sequence or separated by commas; kept as a string.
    ffn_dim: the MLPs' width; None: by each block's kind; "matched": so that every kind has as many parameters.
    """

    vocab_size: int = setting(4000, COUNT, "tokens in the vocabulary, V", flag="vocab-size")
    block_size: int = setting(256, COUNT, "tokens in a training sequence and the longest context, T", flag="block")
    n_layer: int = setting(6, BLOCKS, "transformer blocks, L", flag="layers")
    n_head: int = setting(8, COUNT, "attention heads in a block, H; they divide --dim", flag="heads")
    n_embd: int = setting(256, COUNT, "width of the residual stream, D", flag="dim")
    ffn_dim: int | str | None = setting(
        None, Range("at least 1", lambda x: x == "matched" or x >= 1), "width of the MLPs, F; auto: 4D, for swiglu "
        "8D/3 rounded up to a multiple of 64; matched: as wide as 8D² parameters allow", flag="ffn-dim", kind=WIDTH)
    activation: str = setting("gelu", ANY, f"activation of the MLPs, for all blocks or one for each: {', '.join(MLPS)}",
                              flag="activation", kind=NAMES)
    dropout: float = setting(0.0, SHARE, "probability of dropout on attention weights and residual branches; 0: none",
                             flag="dropout")
    softcap: float = setting(30.0, NATURAL, "bound c on attention scores s, which become c·tanh(s/c); 0: no bound",
                             flag="softcap")
    qk_norm: bool = setting(False, ANY, "RMS norm of each head's q and k, with weights of their own, before the scores",
                            flag="qk-norm")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_embd % self.n_head:
            near = max(1, round(self.n_embd / self.n_head)) * self.n_head
            raise UserError(f"n_embd: given {self.n_embd}, expected a multiple of n_head {self.n_head}, as {near}")
        names = self.activation.split(",")
        for name in names:
            if name not in MLPS:
                raise UserError(f"activation: given {name!r}, expected one of {', '.join(MLPS)}{nearest(name, MLPS)}")
        if len(names) not in (1, self.n_layer):
            raise UserError(f"activation: given {len(names)} names, expected one, or one for each of the {self.n_layer}"
                            " blocks")
        if len(set(names)) == 1:  # one spelling for one model
            object.__setattr__(self, "activation", names[0])

    @property
    def activations(self) -> tuple[str, ...]:
        """Return one name for each block."""
        names = tuple(self.activation.split(","))
        return names * self.n_layer if len(names) == 1 else names

    @property
    def ffn_dims(self) -> tuple[int, ...]:
        """Return one width for each block."""
        if isinstance(self.ffn_dim, int):
            return (self.ffn_dim,) * self.n_layer
        width = MLP.width if self.ffn_dim is None else MLP.matched
        return tuple(width(MLPS[name], self.n_embd) for name in self.activations)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return every parameter's name and shape, in the model's order; a matrix leads from its second axis to its
        first. Counts and memory follow from this table."""
        d = self.n_embd
        attn = {f"attn.{x}_norm.weight": (d // self.n_head,) for x in "qk" if self.qk_norm}
        norm = lambda name: {f"{name}.weight": (d,), f"{name}.bias": (d,)}
        found: dict[str, tuple[int, ...]] = {"wte.weight": (self.vocab_size, d), "wpe.weight": (self.block_size, d)}
        for i, (activation, f) in enumerate(zip(self.activations, self.ffn_dims, strict=True)):
            mlp = MLPS[activation]
            block: dict[str, tuple[int, ...]] = {
                **norm("ln1"), "attn.qkv.weight": (3 * d, d), **attn, "attn.out.weight": (d, d),
                **norm("ln2"), "mlp.fc1.weight": (mlp.parts * f, d),
                **{f"mlp.act.{name}": (f,) for name in mlp.coefficients}, "mlp.fc2.weight": (d, f),
            }
            found |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
        return found | norm("ln_f") | {"lm_head.weight": (self.vocab_size, d)}

    def parameters(self) -> int:
        """Return how many there are."""
        return sum(math.prod(shape) for shape in self.shapes().values())
