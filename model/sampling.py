"""Continuing prompts: one batch, one recorded forward pass per padded length."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from helios import random
from helios.capture import Capture
from helios.model.gpt import GPT
from helios.tensor import Tensor

SHORTEST = 32  # tokens; shorter contexts are padded to it, to record fewer lengths
STREAM = int.from_bytes(b"sampling", "little")  # of random numbers, apart from those of weights and batches


class Sampler:
    """Continues prompts; keeps the recorded forward passes between calls, one for each batch size and padded length."""

    def __init__(self, model: GPT) -> None:
        self.model = model
        self.capture = Capture(self._forward, model.backend)
        self.homes = [w.data for w in model.weights.values()]  # the arrays it was recorded with

    def __call__(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, temperature: float = 0.8,
                 top_k: int | None = 40, seed: int = 0, stop: Collection[int] = ()) -> list[list[int]]:
        """Return the new tokens of each prompt, the `stop` token that ended it included.

        temperature 0 takes the likeliest token; top_k None or 0 draws from all. A prompt's context is its last
        block_size tokens. Equal arguments give equal tokens; a row's draws do not depend on the other rows. Raises
        FloatingPointError where the logits are not finite, as with weights that are too large.
        """
        if any(not prompt for prompt in prompts):
            raise ValueError("sample: a prompt needs at least one token")
        if temperature < 0 or max_new_tokens < 0 or (top_k or 0) < 0:
            raise ValueError(f"sample: temperature, max_new_tokens and top_k must not be negative, "
                             f"got {temperature}, {max_new_tokens}, {top_k}")
        rows = [list(prompt) for prompt in prompts]
        running = [max_new_tokens > 0] * len(rows)
        draws = [random.uniform(max_new_tokens, seed, STREAM, row) for row in range(len(rows))]
        for n in range(max_new_tokens):
            if not any(running):
                break
            with np.errstate(all="ignore"):  # cpu_ref's warnings, for what is judged below
                found = self.next_logits(rows)
            for i, logits in enumerate(found):
                if running[i]:
                    if not np.isfinite(logits).all():
                        raise FloatingPointError("sample: the logits are not finite")
                    rows[i].append(choose(logits, temperature, top_k, draws[i][n]))
                    running[i] = rows[i][-1] not in stop
        return [row[len(prompt):] for row, prompt in zip(rows, prompts, strict=True)]

    def next_logits(self, rows: Sequence[Sequence[int]], pad: int = 0) -> np.ndarray:
        """Return the logits [B, V] after the last token of each row; padding is to the right, where causality hides
        it."""
        size = self.model.config.block_size
        rows = [row[-size:] for row in rows]
        width = min(size, max(SHORTEST, 1 << (max(map(len, rows)) - 1).bit_length()))
        tokens = np.full((len(rows), width), pad, np.int32)
        for row, ids in zip(tokens, rows, strict=True):
            row[:len(ids)] = ids
        if tokens.min() < 0 or tokens.max() >= self.model.config.vocab_size:
            raise ValueError(f"sample: token ids must lie in [0, {self.model.config.vocab_size})")
        last = np.array([i * width + len(ids) - 1 for i, ids in enumerate(rows)], np.int32)
        homes = [w.data for w in self.model.weights.values()]
        if any(a is not b for a, b in zip(homes, self.homes, strict=True)):  # an optimizer has moved them
            self.capture, self.homes = Capture(self._forward, self.model.backend), homes
        return self.capture(tokens, last)[0]

    def _forward(self, tokens: Tensor, rows: Tensor) -> tuple[Tensor]:
        with self.model.no_grad():
            return (self.model.head(self.model.hidden(tokens), rows),)


def choose(logits: np.ndarray, temperature: float, top_k: int | None, u: float) -> int:
    """Return a token of logits [V] by a draw u, uniform in [0, 1): of softmax(logits/temperature) over the top_k
    likeliest, equal ones by their id."""
    if temperature == 0:
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")[:top_k or None]
    scores = logits[order].astype(np.float64) / temperature
    p = np.exp(scores - scores[0])
    return int(order[np.searchsorted(np.cumsum(p), u * p.sum(), side="right").clip(max=len(order) - 1)])


def sample(model: GPT, prompts: Sequence[Sequence[int]], max_new_tokens: int, temperature: float = 0.8,
           top_k: int | None = 40, seed: int = 0, stop: Collection[int] = ()) -> list[list[int]]:
    """Continue prompts with the model's own Sampler; see there."""
    if model.sampler is None:
        model.sampler = Sampler(model)
    return model.sampler(prompts, max_new_tokens, temperature, top_k, seed, stop)
