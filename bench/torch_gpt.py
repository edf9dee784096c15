"""The PyTorch peer: the same GPT, loss and update, written as is usual there.

Parameters have helios.model.GPT's names and shapes, so its state_dict fits. Two things differ: dropout draws its masks
from PyTorch's generator, and spikes are not skipped, since the host would have to wait for the norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helios.backends.backend import QK_EPS, SPLINE_REACH
from helios.model.activations import Activation
from helios.model.config import GPTConfig
from helios.train.config import TrainConfig


def causal_mask(length: int, device: Any = None) -> Tensor:
    """Return a mask [T, T], True above the diagonal, where a query must not look."""
    return torch.ones(length, length, dtype=torch.bool, device=device).triu(1)


def attention(qkv: Tensor, mask: Tensor, n_head: int, cap: float, p: float, norms: Sequence[nn.Module] = ()) -> Tensor:
    """Compute what helios.ops.attention does, by PyTorch's fused kernel where there is no soft cap, which it lacks.
    norms: of q and of k."""
    b, length, width = qkv.shape
    head = width // 3 // n_head
    q, k, v = qkv.view(b, length, 3, n_head, head).permute(2, 0, 3, 1, 4)
    if norms:
        q, k = (norm(x) for norm, x in zip(norms, (q, k), strict=True))
    if cap == 0.0:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=p)
    else:
        scores = cap * torch.tanh((q @ k.transpose(-1, -2)) * (1.0 / (math.sqrt(head) * cap)))
        weights = torch.softmax(scores.masked_fill(mask[:length, :length], -torch.inf), -1)
        out = F.dropout(weights, p) @ v
    return out.transpose(1, 2).reshape(b, length, width // 3)


def norm(cfg: GPTConfig) -> nn.Module:
    return (nn.RMSNorm if cfg.norm == "rms" else nn.LayerNorm)(cfg.n_embd, eps=1e-5)


class Attention(nn.Module):
    def __init__(self, cfg: GPTConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.qkv = nn.Linear(cfg.n_embd, 3 * cfg.n_embd, bias=False)
        self.out = nn.Linear(cfg.n_embd, cfg.n_embd, bias=False)
        if cfg.qk_norm:
            self.q_norm, self.k_norm = (nn.RMSNorm(cfg.n_embd // cfg.n_head, eps=QK_EPS) for _ in "qk")
        self.register_buffer("mask", causal_mask(cfg.block_size), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        p = self.cfg.dropouts.attn if self.training else 0.0
        norms = (self.q_norm, self.k_norm) if self.cfg.qk_norm else ()
        return self.out(attention(self.qkv(x), self.mask, self.cfg.n_head, self.cfg.softcap, p, norms))


FASTER: dict[str, Callable[[Tensor], Tensor]] = {  # what PyTorch has in one operation
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_exact": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
}


def activate(act: Activation, h: Tensor, *coefficients: Tensor) -> Tensor:
    """Compute what `act` does, [..., F] of h [..., parts·F]."""
    if act.text in FASTER:
        return FASTER[act.text](h)
    if act.formula is None:
        return spline(h, *coefficients)
    return act.formula.torch(*h.chunk(act.parts, -1), *coefficients)


def spline(h: Tensor, points: Tensor) -> Tensor:
    """Compute what helios.ops.spline does, by de Boor's algorithm, and beyond the knots along the curve's tangent."""
    count, reach = len(points), SPLINE_REACH
    u = (h.clamp(-reach, reach) + reach) * (count - 3) / (2 * reach)
    cell = u.floor().clamp(max=count - 4)
    t, columns = u - cell, torch.arange(h.shape[-1], device=h.device)
    p = [points[cell.long() + k, columns] for k in range(4)]
    for degree in (3, 2, 1):
        ends = p
        p = [p[k] + (p[k + 1] - p[k]) * (t + degree - 1 - k) / degree for k in range(degree)]
    slope = 3 * (ends[1] - ends[0]) * (count - 3) / (2 * reach)
    return p[0] + (h - h.clamp(-reach, reach)) * slope


class MLP(nn.Module):
    def __init__(self, act: Activation, width: int, hidden: int) -> None:
        super().__init__()
        self.activation = act
        self.fc1 = nn.Linear(width, act.parts * hidden, bias=False)
        self.act = nn.Module()
        for name, value in act.coefficients.items():  # which may be called as methods are: register_parameter refuses
            start = torch.from_numpy(value[..., None]).expand(*value.shape, hidden).clone()
            self.act._parameters[name] = nn.Parameter(start)
        self.fc2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(activate(self.activation, self.fc1(x), *self.act.parameters()))


class Block(nn.Module):
    def __init__(self, cfg: GPTConfig, i: int) -> None:
        super().__init__()
        self.ln1, self.attn = norm(cfg), Attention(cfg)
        self.ln2, self.mlp = norm(cfg), MLP(cfg.activations[i], cfg.n_embd, cfg.ffn_dims[i])
        self.drop1, self.drop2 = nn.Dropout(cfg.dropouts.resid), nn.Dropout(cfg.dropouts.mlp)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop1(self.attn(self.ln1(x)))
        return x + self.drop2(self.mlp(self.ln2(x)))


class GPT(nn.Module):
    def __init__(self, cfg: GPTConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(cfg.vocab_size, cfg.n_embd)
        self.wpe = nn.Embedding(cfg.block_size, cfg.n_embd)
        self.drop = nn.Dropout(cfg.dropouts.embd)
        self.blocks = nn.ModuleList(Block(cfg, i) for i in range(cfg.n_layer))
        if cfg.zero_init_outputs:
            for block in self.blocks:
                nn.init.zeros_(block.attn.out.weight), nn.init.zeros_(block.mlp.fc2.weight)
        self.ln_f = norm(cfg)
        self.lm_head = nn.Linear(cfg.n_embd, cfg.vocab_size, bias=False)
        self.cap = cfg.logit_softcap

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss in nats of tokens and targets, int64 [B, T] each."""
        x = self.drop(self.wte(tokens) + self.wpe.weight[:tokens.shape[1]])
        for block in self.blocks:
            x = block(x)
        logits = self.lm_head(self.ln_f(x))
        if self.cap:
            logits = self.cap * torch.tanh(logits / self.cap)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def adamw(groups: Sequence[dict[str, Any]], lr: float, beta1: float, beta2: float, eps: float) -> torch.optim.Optimizer:
    """Return PyTorch's fastest AdamW, of one kernel for each dtype and device."""
    return torch.optim.AdamW(groups, lr=lr, betas=(beta1, beta2), eps=eps, fused=True)


class Training:
    """A whole training step: zero_grad, loss, backward, clipping, AdamW with helios.optim's groups.

    Mixed precision is PyTorch's own, autocast to bfloat16, which needs no loss scaling.
    """

    def __init__(self, cfg: GPTConfig, t: TrainConfig, compiled: bool = False, device: str = "cpu") -> None:
        self.model = GPT(cfg).to(device)
        self.loss = torch.compile(self.model) if compiled else self.model
        self.device, self.clip, self.mixed = device, t.grad_clip, t.precision == "mixed"
        parameters = dict(self.model.named_parameters())
        decaying = [n for n, p in parameters.items() if p.ndim > 1 and n not in cfg.no_decay]
        self.optimizer = adamw([
            {"params": [parameters[n] for n in decaying], "weight_decay": t.weight_decay},
            {"params": [p for n, p in parameters.items() if n not in decaying], "weight_decay": 0.0},
        ], t.lr, t.beta1, t.beta2, t.eps)

    def step(self, tokens: Any, targets: Any) -> float:
        """Make a step on tokens and targets, int32 numpy arrays [B, T], and return its loss."""
        x, y = (torch.from_numpy(a).to(self.device, torch.int64) for a in (tokens, targets))
        self.optimizer.zero_grad()
        with torch.autocast(self.device, torch.bfloat16, enabled=self.mixed):
            loss = self.loss(x, y)
        loss.backward()
        if self.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        return loss.item()
