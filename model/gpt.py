"""GPT: a pre-norm decoder with learned positions, soft-capped attention scores and an untied output head."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from helios import ops, random
from helios.backends import get_backend
from helios.backends.backend import Backend, Shape
from helios.errors import UserError
from helios.model import files
from helios.model.config import NORMS, Dropouts, GPTConfig
from helios.optim import check_state
from helios.tensor import Tensor

STD = 0.02  # of every matrix at the start
EMBEDDINGS = 2**32 - 1  # site of their dropout's masks, the last there is; block i has 3i, 3i + 1 and 3i + 2


class GPT:
    """The model on one device. Two of equal config and seed start with the same bits on any backend.

    device: "vulkan", "cpu_ref" or a Backend. seed: of the initial weights and of the dropout masks that `loss` draws.
    """

    def __init__(self, config: GPTConfig, device: str | Backend = "vulkan", seed: int = 0) -> None:
        self.config, self.seed = config, seed
        self.backend = get_backend(device)
        self.training = True
        self.draws = 0  # dropout masks drawn so far by loss()
        self.sampler: Any = None  # sampling.py keeps its recorded passes here
        self.weights = {name: Tensor(self.backend.array(value), self.backend, True)
                        for name, value in initial_state(config, seed).items()}

    # -- forward ------------------------------------------------------------------------------------------------------
    def hidden(self, tokens: Tensor, rng: Tensor | None = None) -> Tensor:
        """Return the final norm's output [B, T, D] of int32 tokens [B, T], with dropout where there is an rng,
        int32 [3]."""
        cfg, w = self.config, self.weights
        p = cfg.dropouts if rng is not None else Dropouts()
        x = _drop(ops.embedding(w["wte.weight"], tokens, w["wpe.weight"]), p.embd, rng, EMBEDDINGS)
        for i, act in enumerate(cfg.activations):
            block = partial(self._of_block, i)
            h = self._norm(f"blocks.{i}.ln1", x)
            norms = (block("attn.q_norm.weight"), block("attn.k_norm.weight")) if cfg.qk_norm else None
            h = ops.linear(h, block("attn.qkv.weight"))
            h = ops.attention(h, cfg.n_head, cfg.softcap, p.attn, rng, 3 * i, norms)
            x = _drop(ops.linear(h, block("attn.out.weight")), p.resid, rng, 3 * i + 1, residual=x)
            h = self._norm(f"blocks.{i}.ln2", x)
            h = ops.linear(h, block("mlp.fc1.weight"), act.formula if act.fused else None)
            if not act.fused:
                h = act(h, *(block(f"mlp.act.{name}") for name in act.coefficients))
            x = _drop(ops.linear(h, block("mlp.fc2.weight")), p.mlp, rng, 3 * i + 2, residual=x)
        return self._norm("ln_f", x)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        kind = self.config.norm
        norm: Callable[..., Tensor] = getattr(ops, f"{kind}_norm")
        return norm(x, *(self.weights[f"{name}.{part}"] for part in NORMS[kind]))

    def _of_block(self, i: int, name: str) -> Tensor:
        return self.weights[f"blocks.{i}.{name}"]

    def head(self, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return logits [..., V], soft-capped where the config says so, of hidden [..., D]; with `rows`, int32 [N],
        [N, V] of those rows of hidden, seen as [-1, D]."""
        if rows is not None:
            hidden = ops.embedding(hidden.reshape(-1, self.config.n_embd), rows)
        logits, cap = ops.linear(hidden, self.weights["lm_head.weight"]), self.config.logit_softcap
        return ops.softcap(logits, cap) if cap else logits

    def loss(self, tokens: np.ndarray | Tensor, targets: np.ndarray | Tensor, rng: np.ndarray | Tensor | None = None
             ) -> Tensor:
        """Return the mean cross-entropy in nats, shape (); tokens and targets are ints [B, T], T up to block_size.

        While training with dropout, `rng` (int32 [3], helios.random.state) chooses the masks. Without it every call
        draws new ones from the model's seed. Raises RuntimeError where the function that calls is being recorded and
        `rng` is no tensor: its replays would all have the same masks.
        """
        self.backend.mark("fwd")
        ids, goals = self._ids("tokens", tokens), self._ids("targets", targets)
        if ids.shape != goals.shape:
            raise ValueError(f"loss: tokens {ids.shape} and targets {goals.shape} must have one shape")
        if not (self.training and any(self.config.dropouts)):
            rng = None
        elif self.backend.recording and not isinstance(rng, Tensor):
            raise RuntimeError("loss: a recorded function would repeat these dropout masks; take rng, int32 [3] of "
                               "helios.random.state, as an input of the function")
        elif rng is None:
            rng, self.draws = random.state(self.seed, self.draws), self.draws + 1
        if isinstance(rng, np.ndarray):
            rng = Tensor(self.backend.array(rng), self.backend)
        logits = ops.linear(self.hidden(ids, rng), self.weights["lm_head.weight"])
        return ops.cross_entropy(logits, goals, self.config.logit_softcap)

    def logits(self, tokens: np.ndarray | Tensor, last: np.ndarray | None = None) -> Tensor:
        """Return [B, T, V], without dropout; with `last`, ints [B], a position in each row, [B, V] only there."""
        ids = self._ids("tokens", tokens)
        return self.head(self.hidden(ids), None if last is None else self._rows(last, ids.shape))

    def __call__(self, tokens: np.ndarray | Tensor) -> Tensor:
        return self.logits(tokens)

    def generate(self, tokens: np.ndarray | Sequence[Sequence[int]], max_new_tokens: int, temperature: float = 1.0,
                 top_k: int | None = None, seed: int = 0) -> np.ndarray:
        """Return int32 [B, T + max_new_tokens]: the tokens, ints [B, T], and how the model goes on; see Sampler, which
        also takes prompts of several lengths and ends at a token."""
        from helios.model.sampling import sample  # which builds on this module

        given = np.asarray(tokens)
        if given.ndim != 2 or not np.issubdtype(given.dtype, np.integer):
            raise ValueError(f"generate: expected ints [B, T], got {given.dtype} {given.shape}")
        new = sample(self, given.tolist(), max_new_tokens, temperature, top_k, seed)
        return np.concatenate([given, np.array(new, np.int32).reshape(len(given), -1)], 1, dtype=np.int32)

    def _rows(self, last: np.ndarray, shape: Shape) -> Tensor:
        (b, t), last = shape, np.asarray(last)
        if last.shape != (b,) or last.min() < 0 or last.max() >= t:
            raise ValueError(f"logits: last must be [{b}] positions in [0, {t}), got {last.tolist()}")
        return Tensor(self.backend.array((last + t * np.arange(b)).astype(np.int32)), self.backend)

    def _ids(self, name: str, ids: np.ndarray | Tensor) -> Tensor:
        """Return `ids` on the device. What the host can see of them is checked."""
        values = ids if isinstance(ids, Tensor) else np.asarray(ids)
        if len(values.shape) != 2 or not 1 <= values.shape[1] <= self.config.block_size or not values.shape[0]:
            raise ValueError(f"{name}: expected [B, T] with T from 1 to block_size {self.config.block_size}, "
                             f"got {values.shape}")
        if isinstance(values, Tensor):
            return values
        if not np.issubdtype(values.dtype, np.integer):
            raise TypeError(f"{name}: expected integers, got {values.dtype}")
        for worst in (values.min(), values.max()):
            if not 0 <= worst < self.config.vocab_size:
                raise ValueError(f"{name}: id {worst} is not in [0, {self.config.vocab_size})")
        return Tensor(self.backend.array(values.astype(np.int32)), self.backend)

    # -- modes --------------------------------------------------------------------------------------------------------
    def train(self, mode: bool = True) -> GPT:
        """Compute with dropout from now on, or without; return the model."""
        self.training = mode
        return self

    def eval(self) -> GPT:
        """Compute without dropout from now on; return the model."""
        return self.train(False)

    @contextmanager
    def no_grad(self) -> Iterator[None]:
        """Record nothing for a backward pass within this context: no value is then kept longer than its last use."""
        before = {name: w.requires_grad for name, w in self.weights.items()}
        try:
            for w in self.weights.values():
                w.requires_grad = False
            yield
        finally:
            for name, w in self.weights.items():
                w.requires_grad = before[name]

    # -- parameters ---------------------------------------------------------------------------------------------------
    def named_parameters(self) -> list[tuple[str, Tensor]]:
        """Return every parameter with its name, in the order of the model."""
        return list(self.weights.items())

    def parameters(self) -> list[Tensor]:
        """Return every parameter, in the same order."""
        return list(self.weights.values())

    def num_parameters(self) -> int:
        return sum(w.size for w in self.weights.values())

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return copies on the host, float32; matrices are [out, in]."""
        return {name: w.numpy().astype(np.float32, copy=False) for name, w in self.weights.items()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Write `state` into the weights, in place. Raises UserError where names or shapes are not the model's."""
        check_state(state, {name: w.shape for name, w in self.weights.items()}, "model state")
        for name, w in self.weights.items():
            value = np.asarray(state[name])
            if not np.issubdtype(value.dtype, np.floating):
                raise UserError(f"model state: {name} given as {value.dtype}, expected floating point")
            self.backend.upload(w.data, value.astype(self.backend.float_dtype, copy=False))

    def __deepcopy__(self, memo: dict[int, Any]) -> GPT:
        """Return a model with a copy of the weights, on the same device."""
        copy = GPT(self.config, self.backend, self.seed).train(self.training)
        copy.draws = self.draws
        copy.load_state_dict(self.state_dict())
        return copy

    def save(self, path: str | Path) -> None:
        """Write the config and the weights into a file of safetensors, whole or not at all. Raises OSError."""
        files.save(path, self.config, self.state_dict())

    @classmethod
    def load(cls, path: str | Path, device: str | Backend = "vulkan") -> GPT:
        """Return the model that save() or helios-export wrote. Raises UserError where the file cannot be read, is
        damaged, or was written by something else."""
        config, state, _ = files.load(path)
        model = cls(config, device)
        model.load_state_dict(state)
        return model


def _drop(h: Tensor, p: float, rng: Tensor | None, site: int, residual: Tensor | None = None) -> Tensor:
    """Return drop(h), or the residual connection residual + drop(h)."""
    if rng is not None:
        return ops.dropout(h, p, rng, site, residual)
    return h if residual is None else residual + h


OUTPUTS = ("attn.out.weight", "mlp.fc2.weight")  # what adds to the residual


def initial_state(config: GPTConfig, seed: int) -> dict[str, np.ndarray]:
    """Return the state_dict that a new model of this seed has, float32."""
    return {name: _initial(name, shape, config, seed) for name, shape in config.shapes().items()}


def _initial(name: str, shape: Shape, cfg: GPTConfig, seed: int) -> np.ndarray:
    """Draw from the seed and the name alone, so that a parameter starts the same whatever the rest of the model is."""
    _, _, last = name.rpartition(".")
    if ".mlp.act." in name:
        value = cfg.activations[int(name.split(".")[1])].coefficients[last]
        return np.broadcast_to(value[..., None], shape).copy()
    if len(shape) == 1:  # of a norm
        return np.full(shape, 1.0 if last == "weight" else 0.0, np.float32)
    if cfg.zero_init_outputs and name.endswith(OUTPUTS):
        return np.zeros(shape, np.float32)
    stream = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    std = STD / math.sqrt(2 * cfg.n_layer) if name.endswith(OUTPUTS) else STD
    return random.normal(math.prod(shape), seed, stream).reshape(shape) * np.float32(std)
