"""What a GPT is made of, checked before anything is built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from helios.errors import UserError
from helios.model.activations import ACTIVATIONS, TABLE, Activation, joined, parsed
from helios.model.genes import SWITCH, any_of, in_steps, linear
from helios.model.settings import ANY, BLOCKS, CHANNELS, COUNT, NATURAL, SHARE, WIDTH, Range, Settings, one_of, setting

# The vectors of a norm, by its kind.
NORMS: Mapping[str, tuple[str, ...]] = MappingProxyType({"layer": ("weight", "bias"), "rms": ("weight",)})


CAPS = in_steps(5.0, 15.0, 30.0, 0.0)  # from the tightest to none


def _divisor(heads: int, values: Mapping[str, Any]) -> int:
    width: int = values["n_embd"]
    small = [h for h in range(1, math.isqrt(width) + 1) if width % h == 0]
    return min((n for h in small for n in (h, width // h)), key=lambda h: (abs(h - heads), h))


class Dropouts(NamedTuple):
    """Probabilities of dropout, by place."""

    attn: float = 0.0  # attention weights
    resid: float = 0.0  # what attention adds to the residual stream
    mlp: float = 0.0  # what MLPs add to it
    embd: float = 0.0  # what it begins with


@dataclass(frozen=True)
class GPTConfig(Settings):
    """A GPT's shape. Raises UserError where a value cannot be used.

    activation: one for all blocks, or one for each, as a sequence or as a text (see activations.py); kept as a text.
    ffn_dim: the MLPs' width; None: by each block's kind; "matched": so that every kind has as many parameters.
    """

    vocab_size: int = setting(4000, COUNT, "tokens in the vocabulary, V", flag="vocab-size")
    block_size: int = setting(256, COUNT, "tokens in a training sequence and the longest context, T", flag="block",
                              gene=in_steps(16, 32, 64, 128, 256, 512, 1024))
    n_layer: int = setting(6, BLOCKS, "transformer blocks, L", flag="layers",
                           gene=linear(1, 16, whole=True))
    n_head: int = setting(8, COUNT, "attention heads in a block, H; they divide --dim", flag="heads",
                          gene=in_steps(1, 2, 4, 6, 8, 12, 16, fits=_divisor))
    n_embd: int = setting(256, CHANNELS, "width of the residual stream, D", flag="dim",
                          gene=in_steps(32, 64, 96, 128, 192, 256, 384, 512, 768))
    ffn_dim: int | str | None = setting(
        None, Range("at least 1", lambda x: x == "matched" or x >= 1), "width of the MLPs, F; auto: 4D, where gated "
        "8D/3 rounded up to a multiple of 64; matched: as wide as 8D² parameters allow", flag="ffn-dim", kind=WIDTH)
    activation: str = setting(
        "gelu", ANY, f"activation of the MLPs, for all blocks, or one for each with | between: {', '.join(TABLE)}; or "
        "a formula in x, or in a gate g and a value u, as 'x*sigmoid(1.702*x)'", flag="activation", kind=ACTIVATIONS)
    norm: str = setting("layer", one_of(*NORMS), "norm before attention, MLPs and the head: layer; or rms, by the "
                        "root mean square, without mean or bias", flag="norm", gene=any_of(*NORMS))
    dropout: float = setting(0.0, SHARE, "probability of dropout on attention weights and residual branches; 0: none",
                             flag="dropout", gene=linear(0, 0.3))
    attn_dropout: float | None = setting(None, SHARE, "dropout on attention weights; auto: --dropout",
                                         flag="attn-dropout", gene=linear(0, 0.3))
    resid_dropout: float | None = setting(None, SHARE, "dropout on what attention adds to the residual stream; auto: "
                                          "--dropout", flag="resid-dropout", gene=linear(0, 0.3))
    mlp_dropout: float | None = setting(None, SHARE, "dropout on what MLPs add to the residual stream; auto: --dropout",
                                        flag="mlp-dropout", gene=linear(0, 0.3))
    embd_dropout: float = setting(0.0, SHARE, "dropout on the sum of token and position embeddings, which --dropout "
                                  "leaves alone", flag="embd-dropout", gene=linear(0, 0.3))
    softcap: float = setting(30.0, NATURAL, "bound c on attention scores s, which become c·tanh(s/c); 0: no bound",
                             flag="softcap", gene=CAPS)
    logit_softcap: float = setting(0.0, NATURAL, "bound c on logits z, which become c·tanh(z/c); 0: no bound",
                                   flag="logit-softcap", gene=CAPS)
    qk_norm: bool = setting(False, ANY, "RMS norm of each head's q and k, with weights of their own, before the scores",
                            flag="qk-norm", gene=SWITCH)
    zero_init_outputs: bool = setting(False, ANY, "start the matrices whose products are added to the residual "
                                      "stream at 0", flag="zero-init-outputs", gene=SWITCH)

    def check(self) -> None:
        if self.n_embd % self.n_head:
            near = max(1, round(self.n_embd / self.n_head)) * self.n_head
            raise UserError(f"n_embd: given {self.n_embd}, expected a multiple of n_head {self.n_head}, as {near}")
        texts = [act.text for act in parsed("activation", self.activation)]
        if len(texts) not in (1, self.n_layer):
            raise UserError(f"activation: given {len(texts)}, expected one, or one for each of the {self.n_layer} "
                            "blocks")
        # One spelling for one model.
        object.__setattr__(self, "activation", texts[0] if len(set(texts)) == 1 else joined(texts))

    @property
    def activations(self) -> tuple[Activation, ...]:
        """Return one for each block."""
        found = tuple(parsed("activation", self.activation))
        return found * self.n_layer if len(found) == 1 else found

    @property
    def ffn_dims(self) -> tuple[int, ...]:
        """Return one width for each block."""
        if isinstance(self.ffn_dim, int):
            return (self.ffn_dim,) * self.n_layer
        width = Activation.width if self.ffn_dim is None else Activation.matched
        return tuple(width(act, self.n_embd) for act in self.activations)

    @property
    def dropouts(self) -> Dropouts:
        """Return the probabilities of dropout, each its own where it is given."""
        attn, resid, mlp = (self.dropout if p is None else p
                            for p in (self.attn_dropout, self.resid_dropout, self.mlp_dropout))
        return Dropouts(attn, resid, mlp, self.embd_dropout)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return every parameter's name and shape, in the model's order; a matrix leads from its second axis to its
        first. Counts and memory follow from this table."""
        d = self.n_embd
        attn = {f"attn.{x}_norm.weight": (d // self.n_head,) for x in "qk" if self.qk_norm}
        norm = lambda name: {f"{name}.{part}": (d,) for part in NORMS[self.norm]}
        found: dict[str, tuple[int, ...]] = {"wte.weight": (self.vocab_size, d), "wpe.weight": (self.block_size, d)}
        for i, (act, f) in enumerate(zip(self.activations, self.ffn_dims, strict=True)):
            block: dict[str, tuple[int, ...]] = {
                **norm("ln1"), "attn.qkv.weight": (3 * d, d), **attn, "attn.out.weight": (d, d),
                **norm("ln2"), "mlp.fc1.weight": (act.parts * f, d),
                **{f"mlp.act.{name}": (*value.shape, f) for name, value in act.coefficients.items()},
                "mlp.fc2.weight": (d, f),
            }
            found |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
        return found | norm("ln_f") | {"lm_head.weight": (self.vocab_size, d)}

    @property
    def no_decay(self) -> list[str]:
        """Return the matrices that weight decay should spare: tables and control points, not products."""
        return [name for name in self.shapes() if name.endswith(("wte.weight", "wpe.weight", "mlp.act.points"))]

    def parameters(self) -> int:
        """Return how many there are."""
        return sum(math.prod(shape) for shape in self.shapes().values())
