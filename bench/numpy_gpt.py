"""The numpy peer: the same GPT, loss and update, with its backward pass written by hand.

Weights have helios.model.GPT's names and shapes. Dropout draws its masks from numpy's generator, and spikes are not
skipped. Only blocks with gelu and layer norm.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from helios.errors import UserError
from helios.model.config import GPTConfig
from helios.model.gpt import initial_state
from helios.train.config import TrainConfig

Array = np.ndarray
EPS = 1e-5  # of a norm
GELU = math.sqrt(2 / math.pi), 0.044715


def check(cfg: GPTConfig) -> None:
    """Raise UserError for a model that this peer does not have."""
    if {act.text for act in cfg.activations} != {"gelu"} or cfg.norm != "layer" or cfg.qk_norm or cfg.logit_softcap:
        raise UserError("--peer numpy has models with gelu and layer norm, without qk_norm and logit_softcap")


class Training:
    """A whole training step: loss, backward, clipping, AdamW."""

    def __init__(self, cfg: GPTConfig, t: TrainConfig) -> None:
        check(cfg)
        self.cfg, self.t, self.updates = cfg, t, 0
        self.w = initial_state(cfg, t.seed)
        self.m, self.v = ({name: np.zeros_like(w) for name, w in self.w.items()} for _ in range(2))
        self.draws = np.random.default_rng(t.seed)

    def step(self, tokens: Array, targets: Array) -> float:
        """Make a step on tokens and targets, ints [B, T] each, and return its loss."""
        loss, grads = self.gradients(tokens, targets)
        norm = math.sqrt(sum(float(np.vdot(g, g)) for g in grads.values()))
        clip = self.t.grad_clip / norm if norm > self.t.grad_clip > 0 else 1.0
        self.updates += 1
        t, c1, c2 = self.t, 1 - self.t.beta1**self.updates, 1 - self.t.beta2**self.updates
        for name, w in self.w.items():
            g, m, v = grads[name] * clip, self.m[name], self.v[name]
            m += (1 - t.beta1) * (g - m)
            v += (1 - t.beta2) * (g * g - v)
            if w.ndim > 1 and name not in self.cfg.no_decay:
                w *= 1 - t.lr * t.weight_decay
            w -= t.lr / c1 * m / (np.sqrt(v / c2) + t.eps)
        return loss

    def gradients(self, tokens: Array, targets: Array) -> tuple[float, dict[str, Array]]:
        """Return the mean loss in nats, and its gradient by each weight."""
        cfg, w, p, grads = self.cfg, self.w, self.cfg.dropouts, dict[str, Array]()
        b, t = tokens.shape
        x = (w["wte.weight"][tokens] + w["wpe.weight"][:t]).reshape(b * t, -1)
        x, embedded = self._drop(x, p.embd)
        passes = []
        for i in range(cfg.n_layer):
            own = {name: w[f"blocks.{i}.{name}"] for name in (
                "ln1.weight", "ln1.bias", "attn.qkv.weight", "attn.out.weight", "ln2.weight", "ln2.bias",
                "mlp.fc1.weight", "mlp.fc2.weight")}
            h1, hat1, r1 = norm(x, own["ln1.weight"], own["ln1.bias"])
            qkv = h1 @ own["attn.qkv.weight"].T
            a, kept = self._attention(qkv, b, t)
            o, drop1 = self._drop(a @ own["attn.out.weight"].T, p.resid)
            x = x + o
            h2, hat2, r2 = norm(x, own["ln2.weight"], own["ln2.bias"])
            z = h2 @ own["mlp.fc1.weight"].T
            f, tanh = gelu(z)
            o, drop2 = self._drop(f @ own["mlp.fc2.weight"].T, p.mlp)
            x = x + o
            passes.append((own, h1, hat1, r1, a, kept, drop1, h2, hat2, r2, z, f, tanh, drop2))
        h, hat, r = norm(x, w["ln_f.weight"], w["ln_f.bias"])
        logits = h @ w["lm_head.weight"].T
        logits -= logits.max(-1, keepdims=True)
        d = np.exp(logits)
        total = d.sum(-1, keepdims=True)
        rows, goals = np.arange(b * t), targets.reshape(-1)
        loss = float(np.mean(np.log(total[:, 0]) - logits[rows, goals]))

        d /= total
        d[rows, goals] -= 1
        d /= b * t
        grads["lm_head.weight"] = d.T @ h
        dx, grads["ln_f.weight"], grads["ln_f.bias"] = norm_back(d @ w["lm_head.weight"], w["ln_f.weight"], hat, r)
        for i in reversed(range(cfg.n_layer)):
            own, h1, hat1, r1, a, kept, drop1, h2, hat2, r2, z, f, tanh, drop2 = passes.pop()
            new = dict[str, Array]()
            g = dx * drop2
            new["mlp.fc2.weight"] = g.T @ f
            g = gelu_back(z, tanh, g @ own["mlp.fc2.weight"])
            new["mlp.fc1.weight"] = g.T @ h2
            g = g @ own["mlp.fc1.weight"]
            g, new["ln2.weight"], new["ln2.bias"] = norm_back(g, own["ln2.weight"], hat2, r2)
            dx = dx + g
            g = dx * drop1
            new["attn.out.weight"] = g.T @ a
            g = self._attention_backward(g @ own["attn.out.weight"], kept, b, t)
            new["attn.qkv.weight"] = g.T @ h1
            g = g @ own["attn.qkv.weight"]
            g, new["ln1.weight"], new["ln1.bias"] = norm_back(g, own["ln1.weight"], hat1, r1)
            dx = dx + g
            grads |= {f"blocks.{i}.{name}": value for name, value in new.items()}
        dx = dx * embedded
        grads["wpe.weight"] = np.zeros_like(w["wpe.weight"])
        grads["wpe.weight"][:t] = dx.reshape(b, t, -1).sum(0)
        grads["wte.weight"] = np.zeros_like(w["wte.weight"])
        np.add.at(grads["wte.weight"], tokens.reshape(-1), dx)
        return loss, grads

    def _attention(self, qkv: Array, b: int, t: int) -> tuple[Array, tuple[Any, ...]]:
        heads, cap = self.cfg.n_head, self.cfg.softcap
        q, k, v = qkv.reshape(b, t, 3, heads, -1).transpose(2, 0, 3, 1, 4)
        scale = 1 / math.sqrt(q.shape[-1])
        scores = q @ k.transpose(0, 1, 3, 2) * scale
        tanh = np.tanh(scores / cap) if cap else None
        scores = scores if tanh is None else cap * tanh
        scores[..., np.triu(np.ones((t, t), bool), 1)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        dropped, mask = self._drop(weights, self.cfg.dropouts.attn)
        return merged(dropped @ v), (q, k, v, tanh, weights, dropped, mask, scale)

    def _attention_backward(self, g: Array, kept: tuple[Any, ...], b: int, t: int) -> Array:
        q, k, v, tanh, weights, dropped, mask, scale = kept
        g = g.reshape(b, t, self.cfg.n_head, -1).transpose(0, 2, 1, 3)
        dw = g @ v.transpose(0, 1, 3, 2) * mask
        ds = weights * (dw - (dw * weights).sum(-1, keepdims=True)) * scale
        if tanh is not None:
            ds *= 1 - tanh * tanh
        parts = ds @ k, ds.transpose(0, 1, 3, 2) @ q, dropped.transpose(0, 1, 3, 2) @ g
        return np.concatenate([merged(part) for part in parts], -1)

    def _drop(self, x: Array, p: float) -> tuple[Array, Any]:
        if not p:
            return x, 1.0
        mask = (self.draws.random(x.shape, np.float32) >= p) * np.float32(1 / (1 - p))
        return x * mask, mask


def merged(x: Array) -> Array:
    """Return [B·T, H·DH] of [B, H, T, DH]."""
    b, heads, t, head = x.shape
    return x.transpose(0, 2, 1, 3).reshape(b * t, heads * head)


def norm(x: Array, weight: Array, bias: Array) -> tuple[Array, Array, Array]:
    """Return the layer norm of rows, and what its backward pass needs."""
    centred = x - x.mean(-1, keepdims=True)
    r = 1 / np.sqrt((centred * centred).mean(-1, keepdims=True) + np.float32(EPS))
    hat = centred * r
    return hat * weight + bias, hat, r


def norm_back(g: Array, weight: Array, hat: Array, r: Array) -> tuple[Array, Array, Array]:
    """Return the gradients by the rows, the weight and the bias."""
    d = g * weight
    dx = r * (d - d.mean(-1, keepdims=True) - hat * (d * hat).mean(-1, keepdims=True))
    return dx, (g * hat).sum(0), g.sum(0)


def gelu(z: Array) -> tuple[Array, Array]:
    """Return gelu by its tanh, and the tanh."""
    a, b = GELU
    tanh = np.tanh(a * (z + b * z * z * z))
    return 0.5 * z * (1 + tanh), tanh


def gelu_back(z: Array, tanh: Array, g: Array) -> Array:
    a, b = GELU
    return g * (0.5 * (1 + tanh) + 0.5 * z * (1 - tanh * tanh) * a * (1 + 3 * b * z * z))
