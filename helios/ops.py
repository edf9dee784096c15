"""The differentiable functions, under torch's names where torch has one.

Each checks its arguments, computes through a primitive of its tensors' backend and records itself on the tape.
Shapes that do not fit raise ValueError, wrong dtypes TypeError, both before any device work.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from helios.backends.backend import ACTIVATIONS, Array
from helios.tape import Node
from helios.tensor import Tensor


def _record(op: str, tensors: tuple[Tensor | None, ...], outputs: tuple[Array, ...], **attrs: Any) -> Tensor:
    backend = next(t.backend for t in tensors if t is not None)
    node = None
    if any(t is not None and t.requires_grad for t in tensors):
        inputs = tuple(None if t is None else t.data for t in tensors)
        node = Node(op, tensors, inputs, outputs, attrs)
    return Tensor(outputs[0], backend, node is not None, node)


def _check(op: str, *tensors: Tensor | None) -> None:
    """One backend, and floating point."""
    given = [t for t in tensors if t is not None]
    for t in given:
        if t.backend is not given[0].backend:
            raise ValueError(f"{op}: tensors on {given[0].backend.name} and on {t.backend.name}")
        if not np.issubdtype(t.dtype, np.floating):
            raise TypeError(f"{op}: expected floating point, got {t.dtype}")


def _same(op: str, *tensors: Tensor) -> None:
    _check(op, *tensors)
    if len({t.shape for t in tensors}) > 1:
        raise ValueError(f"{op}: shapes must be equal, got {', '.join(str(t.shape) for t in tensors)}")


def _index(op: str, name: str, t: Tensor, beside: Tensor, shape: tuple[int, ...] | None = None) -> None:
    """int32, of that shape, on the backend of `beside`."""
    if t.backend is not beside.backend:
        raise ValueError(f"{op}: tensors on {beside.backend.name} and on {t.backend.name}")
    if t.dtype != np.int32:
        raise TypeError(f"{op}: {name} must be int32, got {t.dtype}")
    if shape is not None and t.shape != shape:
        raise ValueError(f"{op}: {name} must have shape {shape}, got {t.shape}")


def _vector(op: str, name: str, t: Tensor, x: Tensor) -> None:
    """One value for each element of x's last axis."""
    if not x.shape:
        raise ValueError(f"{op}: the first argument needs at least one axis")
    if t.shape != x.shape[-1:]:
        raise ValueError(f"{op}: {name} must have shape {x.shape[-1:]}, got {t.shape}")


def _elementwise(op: str, *tensors: Tensor, **attrs: Any) -> Tensor:
    _same(op, *tensors)
    out = getattr(tensors[0].backend, op)(*(t.data for t in tensors), **attrs)
    return _record(op, tensors, (out,), **attrs)


def add(x: Tensor, y: Tensor) -> Tensor:
    _same("add", x, y)
    return _record("add", (x, y), (x.backend.axpby(x.data, y.data, 1.0, 1.0),))


def sub(x: Tensor, y: Tensor) -> Tensor:
    _same("sub", x, y)
    return _record("sub", (x, y), (x.backend.axpby(x.data, y.data, 1.0, -1.0),))


def mul(x: Tensor, y: Tensor) -> Tensor:
    return _elementwise("mul", x, y)


def scale(x: Tensor, alpha: float) -> Tensor:
    return _elementwise("scale", x, alpha=alpha)


def gelu(x: Tensor) -> Tensor:
    """½x(1 + tanh(√(2/π)(x + 0.044715x³)))"""
    return _elementwise("gelu", x)


def silu(x: Tensor) -> Tensor:
    """x/(1 + e⁻ˣ)"""
    return _elementwise("silu", x)


def relu(x: Tensor) -> Tensor:
    """max(x, 0); the gradient at 0 is 0."""
    return _elementwise("relu", x)


def softcap(x: Tensor, cap: float) -> Tensor:
    """cap·tanh(x/cap), cap > 0."""
    if not cap > 0:
        raise ValueError(f"softcap: cap must be positive, got {cap}")
    return _elementwise("softcap", x, cap=cap)


def swiglu(h: Tensor) -> Tensor:
    """silu(gate)·up [..., F]; h [..., 2F] has the gates, then the ups."""
    if not h.shape or h.shape[-1] % 2:
        raise ValueError(f"swiglu: the last axis must have an even length, got shape {h.shape}")
    return _elementwise("swiglu", h)


def universal(h: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """silu(h)·a + h·b; h [..., F], a and b [F]."""
    return _per_feature("universal", h, a, b)


def kan_spline(h: Tensor, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, c4: Tensor) -> Tensor:
    """c0·silu(h) + c1·relu(h) + c2·gelu(h) + c3·h + c4·h²; h [..., F], each c [F]."""
    return _per_feature("kan_spline", h, c0, c1, c2, c3, c4)


def _per_feature(op: str, h: Tensor, *coefficients: Tensor) -> Tensor:
    _check(op, h, *coefficients)
    for i, c in enumerate(coefficients):
        _vector(op, f"coefficient {i}", c, h)
    tensors = (h, *coefficients)
    return _record(op, tensors, (getattr(h.backend, op)(*(t.data for t in tensors)),))


def reshape(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The same elements in row-major order under another shape; one length may be -1."""
    if -1 in shape:
        rest = -int(np.prod(shape, dtype=np.int64))
        shape = tuple(x.size // rest if n == -1 and rest else n for n in shape)
    if int(np.prod(shape, dtype=np.int64)) != x.size or min(shape, default=1) < 0:
        raise ValueError(f"reshape: {x.shape} does not fit {shape}")
    return _record("reshape", (x,), (x.backend.reshape(x.data, shape),))


def sum(x: Tensor) -> Tensor:
    """Of all elements, in a fixed order."""
    _check("sum", x)
    return _record("sum", (x,), (x.backend.sum(x.data),))


def dropout(h: Tensor, p: float, rng: Tensor, site: int, residual: Tensor | None = None) -> Tensor:
    """residual + mask·h/(1-p); the mask is that of helios.random at (rng, site). rng: int32 [3], see helios.random."""
    if not 0.0 <= p < 1.0:
        raise ValueError(f"dropout: p must lie in [0, 1), got {p}")
    _same("dropout", *(t for t in (h, residual) if t is not None))
    _index("dropout", "rng", rng, h, (3,))
    if p == 0.0:
        return h if residual is None else add(residual, h)
    out = h.backend.dropout(h.data, rng.data, p, site, None if residual is None else residual.data)
    return _record("dropout", (h, rng, residual), (out,), p=p, site=site)


def matmul(a: Tensor, b: Tensor, ta: bool = False, tb: bool = False) -> Tensor:
    """op(a)·op(b), op transposing the last two axes where asked; a [..., M, K], b [K, N] or with a's leading axes."""
    _check("matmul", a, b)
    what = f"matmul: {a.shape}{'ᵀ' * ta} · {b.shape}{'ᵀ' * tb}"
    if len(a.shape) < 2 or len(b.shape) < 2:
        raise ValueError(f"{what}: both need at least two axes")
    if a.shape[-2 if ta else -1] != b.shape[-1 if tb else -2]:
        raise ValueError(f"{what}: the inner lengths differ")
    if b.shape[:-2] not in ((), a.shape[:-2]) or (ta and b.shape[:-2] != a.shape[:-2]):
        raise ValueError(f"{what}: the leading axes differ")
    return _record("matmul", (a, b), (a.backend.matmul(a.data, b.data, ta, tb),), ta=ta, tb=tb)


def linear(x: Tensor, weight: Tensor, activation: str | None = None) -> Tensor:
    """f(x·weightᵀ), f one of gelu, silu, relu or nothing, in one pass; x [..., K], weight [N, K]."""
    _check("linear", x, weight)
    if len(weight.shape) != 2 or not x.shape or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"linear: x {x.shape} does not fit weight {weight.shape} ([out, in])")
    if activation not in (None, *ACTIVATIONS):
        raise ValueError(f"linear: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    return _record("linear", (x, weight), x.backend.linear(x.data, weight.data, activation), activation=activation)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """(x - mean)/√(var + eps)·weight + bias over the last axis, population variance; weight and bias [D]."""
    _check("layer_norm", x, weight, bias)
    _vector("layer_norm", "weight", weight, x)
    _vector("layer_norm", "bias", bias, x)
    outputs = x.backend.layer_norm(x.data, weight.data, bias.data, eps)
    return _record("layer_norm", (x, weight, bias), outputs, eps=eps)


def embedding(table: Tensor, index: Tensor, positions: Tensor | None = None) -> Tensor:
    """table[index] (+ positions[t], t the place along index's last axis); table [V, D], index int32 [..., T]."""
    _check("embedding", table, positions)
    _index("embedding", "index", index, table)
    if len(table.shape) != 2 or not index.shape:
        raise ValueError(f"embedding: table {table.shape} must be [V, D] and index {index.shape} [..., T]")
    if positions is not None and (len(positions.shape) != 2 or positions.shape[1] != table.shape[1]
                                  or positions.shape[0] < index.shape[-1]):
        raise ValueError(f"embedding: positions {positions.shape} must be [≥ {index.shape[-1]}, {table.shape[1]}]")
    out = table.backend.embedding(table.data, index.data, None if positions is None else positions.data)
    return _record("embedding", (table, index, positions), (out,))


def attention(qkv: Tensor, n_head: int, cap: float = 0.0, p: float = 0.0, rng: Tensor | None = None, site: int = 0
              ) -> Tensor:
    """Causal self-attention of the fused projection qkv [B, T, 3D] (q, k, v; heads contiguous in each) → [B, T, D].

    Scores q·kᵀ/√(D/n_head), soft-capped by cap·tanh(s/cap) unless cap is 0, masked, softmax, dropout p on the weights
    with the mask of helios.random at (rng, site).
    """
    _check("attention", qkv)
    if n_head < 1 or len(qkv.shape) != 3 or qkv.shape[2] % (3 * n_head):
        raise ValueError(f"attention: qkv must be [B, T, 3·D] with D a multiple of {n_head} heads, got {qkv.shape}")
    if cap < 0 or not 0.0 <= p < 1.0:
        raise ValueError(f"attention: cap must be ≥ 0 and p in [0, 1), got {cap} and {p}")
    if p:
        if rng is None:
            raise ValueError("attention: dropout needs rng")
        _index("attention", "rng", rng, qkv, (3,))
    attrs: dict[str, Any] = {"n_head": n_head, "cap": cap, "p": p, "site": site}
    outputs = qkv.backend.attention(qkv.data, None if rng is None else rng.data, **attrs)
    return _record("attention", (qkv, rng), outputs, **attrs)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over all rows of -log softmax(logits)[target], in nats; logits [..., V], targets int32 [...]."""
    _check("cross_entropy", logits)
    if not logits.shape:
        raise ValueError("cross_entropy: logits need at least one axis, the classes")
    _index("cross_entropy", "targets", targets, logits, logits.shape[:-1])
    return _record("cross_entropy", (logits, targets), logits.backend.cross_entropy(logits.data, targets.data))
