"""The differentiable functions, under torch's names where torch has one.

Each checks its arguments, computes through a primitive of its tensors' backend and is recorded on the tape (tensor.py,
which has those of Tensor's operators). Shapes that do not fit raise ValueError, wrong dtypes TypeError, both before any
device work.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from helios.backends.backend import SPLINE_POINTS
from helios.formula import Formula
from helios.tensor import Tensor, check, check_same, elementwise, record


def _index(op: str, name: str, t: Tensor, beside: Tensor, shape: tuple[int, ...] | None = None) -> None:
    """Raise unless t is int32, of that shape, on the backend of `beside`."""
    if t.backend is not beside.backend:
        raise ValueError(f"{op}: tensors on {beside.backend.name} and on {t.backend.name}")
    if t.dtype != np.int32:
        raise TypeError(f"{op}: {name} must be int32, got {t.dtype}")
    if shape is not None and t.shape != shape:
        raise ValueError(f"{op}: {name} must have shape {shape}, got {t.shape}")


def _vector(op: str, name: str, t: Tensor, x: Tensor) -> None:
    """Raise unless t has one value for each element of x's last axis."""
    if not x.shape:
        raise ValueError(f"{op}: the first argument needs at least one axis")
    if t.shape != x.shape[-1:]:
        raise ValueError(f"{op}: {name} must have shape {x.shape[-1:]}, got {t.shape}")


def add(x: Tensor, y: Tensor) -> Tensor:
    """Return x + y."""
    return x + y


def sub(x: Tensor, y: Tensor) -> Tensor:
    """Return x - y."""
    return x - y


def mul(x: Tensor, y: Tensor) -> Tensor:
    """Return x·y, element by element."""
    return x * y


def scale(x: Tensor, alpha: float) -> Tensor:
    """Return alpha·x."""
    return x * alpha


def activation(h: Tensor, formula: Formula, *coefficients: Tensor) -> Tensor:
    """Return the formula's value at h [..., F]; where it is gated, h [..., 2F] has the gates, then the values. Each of
    its coefficients, in the order of `formula.coefficients`, is [F]."""
    check("activation", h, *coefficients)
    if len(coefficients) != len(formula.coefficients):
        raise ValueError(f"activation: {formula} has {len(formula.coefficients)} coefficients, got {len(coefficients)}")
    if formula.gated and (not h.shape or h.shape[-1] % 2):
        raise ValueError(f"activation: {formula} is gated: the last axis must have an even length, got shape {h.shape}")
    features = (h.shape[-1] // len(formula.inputs),) if h.shape else ()
    for name, c in zip(formula.coefficients, coefficients, strict=True):
        if not features or c.shape != features:
            raise ValueError(f"activation: coefficient {name} must have shape {features or '(F,)'}, got {c.shape}")
    tensors = (h, *coefficients)
    out = h.backend.activation(formula, *(t.data for t in tensors))
    return record("activation", tensors, (out,), formula=formula)


def gelu(x: Tensor) -> Tensor:
    """Return ½x(1 + tanh(√(2/π)(x + 0.044715x³))) (Hendrycks & Gimpel, 2016)."""
    return activation(x, Formula.parse("gelu(x)"))


def silu(x: Tensor) -> Tensor:
    """Return x/(1 + e⁻ˣ)."""
    return activation(x, Formula.parse("silu(x)"))


def relu(x: Tensor) -> Tensor:
    """Return max(x, 0); the gradient at 0 is 0."""
    return activation(x, Formula.parse("relu(x)"))


def softcap(x: Tensor, cap: float) -> Tensor:
    """Return cap·tanh(x/cap). Raises ValueError unless cap > 0."""
    if not cap > 0:
        raise ValueError(f"softcap: cap must be positive, got {cap}")
    return elementwise("softcap", x, cap=cap)


def spline(h: Tensor, points: Tensor) -> Tensor:
    """Return a cubic B-spline's value at h [..., F], a curve for each column, as in Kolmogorov-Arnold networks (Liu et
    al., 2024): 16 control points, points [16, F], on uniform knots over [-4, 4], a straight line beyond."""
    check("spline", h, points)
    if not h.shape or points.shape != (SPLINE_POINTS, h.shape[-1]):
        raise ValueError(f"spline: h {h.shape} does not fit points {points.shape}, expected [{SPLINE_POINTS}, F]")
    return record("spline", (h, points), (h.backend.spline(h.data, points.data),))


def reshape(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the same elements in row-major order under another shape; one length may be -1."""
    return x.reshape(*shape)


def sum(x: Tensor) -> Tensor:
    """Return the sum of all elements, in a fixed order, of shape ()."""
    return x.sum()


def dropout(h: Tensor, p: float, rng: Tensor, site: int, residual: Tensor | None = None) -> Tensor:
    """Return residual + mask·h/(1-p), the mask that of helios.random at (rng, site); rng int32 [3], its state()."""
    if not 0.0 <= p < 1.0:
        raise ValueError(f"dropout: p must lie in [0, 1), got {p}")
    check_same("dropout", *(t for t in (h, residual) if t is not None))
    _index("dropout", "rng", rng, h, (3,))
    if p == 0.0:
        return h if residual is None else residual + h
    out = h.backend.dropout(h.data, rng.data, p, site, None if residual is None else residual.data)
    return record("dropout", (h, rng, residual), (out,), p=p, site=site)


def matmul(a: Tensor, b: Tensor, ta: bool = False, tb: bool = False) -> Tensor:
    """Return op(a)·op(b), op transposing the last two axes where ta, tb; a [..., M, K], b [K, N] or with a's leading
    axes."""
    return a.matmul(b, ta, tb)


def linear(x: Tensor, weight: Tensor, activation: Formula | None = None) -> Tensor:
    """Return f(x·weightᵀ), f a plain formula or nothing, in one pass; x [..., K], weight [N, K]."""
    check("linear", x, weight)
    if len(weight.shape) != 2 or not x.shape or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"linear: x {x.shape} does not fit weight {weight.shape} ([out, in])")
    if activation and not activation.plain:
        raise ValueError(f"linear: activation must be a formula in x alone, got {activation}; use ops.activation")
    return record("linear", (x, weight), x.backend.linear(x.data, weight.data, activation), activation=activation)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Return (x - mean)/√(var + eps)·weight + bias over the last axis, var the population's; weight and bias [D]."""
    check("layer_norm", x, weight, bias)
    _vector("layer_norm", "weight", weight, x)
    _vector("layer_norm", "bias", bias, x)
    outputs = x.backend.layer_norm(x.data, weight.data, bias.data, eps)
    return record("layer_norm", (x, weight, bias), outputs, eps=eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Return x/√(avg(x²) + eps)·weight over the last axis, weight [D] (Zhang & Sennrich, 2019)."""
    check("rms_norm", x, weight)
    _vector("rms_norm", "weight", weight, x)
    return record("rms_norm", (x, weight), x.backend.rms_norm(x.data, weight.data, eps), eps=eps)


def embedding(table: Tensor, index: Tensor, positions: Tensor | None = None) -> Tensor:
    """Return table[index] (+ positions[t], t the place along index's last axis); table [V, D], index int32 [..., T]."""
    check("embedding", table, positions)
    _index("embedding", "index", index, table)
    if len(table.shape) != 2 or not index.shape:
        raise ValueError(f"embedding: table {table.shape} must be [V, D] and index {index.shape} [..., T]")
    if positions is not None and (len(positions.shape) != 2 or positions.shape[1] != table.shape[1]
                                  or positions.shape[0] < index.shape[-1]):
        raise ValueError(f"embedding: positions {positions.shape} must be [≥ {index.shape[-1]}, {table.shape[1]}]")
    out = table.backend.embedding(table.data, index.data, None if positions is None else positions.data)
    return record("embedding", (table, index, positions), (out,))


def attention(qkv: Tensor, n_head: int, cap: float = 0.0, p: float = 0.0, rng: Tensor | None = None, site: int = 0,
              qk_norm: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Return causal self-attention [B, T, D] of the projection qkv [B, T, 3D] (q, k, v, heads contiguous in each).

    Scores q·kᵀ/√(D/n_head), soft-capped by cap·tanh(s/cap) unless cap is 0, masked, softmax, dropout p on the weights
    with the mask of helios.random at (rng, site). qk_norm, two weights [D/n_head]: each head's q and k become
    x/√(mean(x²) + 1e-5)·weight before the scores, with the first weight for q and the second for k (RMS norm: Zhang &
    Sennrich, 2019; of q and k: Dehghani et al., 2023).
    """
    weights: tuple[Tensor, ...] = qk_norm or ()
    check("attention", qkv, *weights)
    if n_head < 1 or len(qkv.shape) != 3 or qkv.shape[2] % (3 * n_head):
        raise ValueError(f"attention: qkv must be [B, T, 3·D] with D a multiple of {n_head} heads, got {qkv.shape}")
    if cap < 0 or not 0.0 <= p < 1.0:
        raise ValueError(f"attention: cap must be ≥ 0 and p in [0, 1), got {cap} and {p}")
    if p:
        if rng is None:
            raise ValueError("attention: dropout needs rng")
        _index("attention", "rng", rng, qkv, (3,))
    head, given = qkv.shape[2] // (3 * n_head), [w.shape for w in weights]
    if given and given != [(head,)] * 2:
        raise ValueError(f"attention: qk_norm must be two weights [{head}], got {', '.join(map(str, given))}")
    qk = qkv.backend.qk_norm(qkv.data, qk_norm[0].data, qk_norm[1].data, n_head) if qk_norm else None
    attrs: dict[str, Any] = {"n_head": n_head, "cap": cap, "p": p, "site": site}
    outputs = qkv.backend.attention(qkv.data, None if rng is None else rng.data, **attrs, qk=qk)
    return record("attention", (qkv, rng, *weights), (*outputs, qk), **attrs)


def cross_entropy(logits: Tensor, targets: Tensor, cap: float = 0.0) -> Tensor:
    """Return the mean over all rows of -log softmax(logits)[target], in nats; logits [..., V], targets int32 [...].

    Logits are soft-capped by cap·tanh(logits/cap) first, unless cap is 0.
    """
    check("cross_entropy", logits)
    if not cap >= 0:
        raise ValueError(f"cross_entropy: cap must be ≥ 0, got {cap}")
    if not logits.shape:
        raise ValueError("cross_entropy: logits need at least one axis, the classes")
    _index("cross_entropy", "targets", targets, logits, logits.shape[:-1])
    return record("cross_entropy", (logits, targets), logits.backend.cross_entropy(logits.data, targets.data, cap),
                  cap=cap)
