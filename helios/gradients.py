"""The whole of differentiation: op → rule.

A rule gets the backend, the node (arrays `inputs` and `outputs`, `attrs`) and the gradient of the first output; it
returns one gradient for each input, None where there is none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from helios.backends.backend import Array, Backend

# The backend is Any here: mypy counts `*n.inputs, g` as too many arguments for a Backend.
Rule = Callable[[Any, Any, Array], tuple[Array | None, ...]]


def _matmul(be: Backend, n: Any, g: Array) -> tuple[Array, Array]:
    (a, b), ta, tb = n.inputs, n.attrs["ta"], n.attrs["tb"]
    da = be.matmul(b, g, tb, True) if ta else be.matmul(g, b, False, not tb)
    if len(b.shape) == 2 < len(a.shape):  # one b for all of a's rows
        a, g = _rows(be, a), _rows(be, g)
    db = be.matmul(g, a, True, ta) if tb else be.matmul(a, g, not ta, False)
    return da, db


def _linear(be: Backend, n: Any, g: Array) -> tuple[Array, Array]:
    (x, w), activation = n.inputs, n.attrs["activation"]
    if activation:
        (g,) = be.activation_backward(activation, n.outputs[1], g)
    return be.matmul(g, w), be.matmul(_rows(be, g), _rows(be, x), True, False)


def _rows(be: Backend, x: Array) -> Array:
    return be.reshape(x, (-1, x.shape[-1]))


def _embedding(be: Backend, n: Any, g: Array) -> tuple[Array | None, ...]:
    table, index, positions = n.inputs
    return (be.embedding_backward(index, g, table.shape[0]), None,
            None if positions is None else be.positions_backward(g, positions.shape[0]))


def _dropout(be: Backend, n: Any, g: Array) -> tuple[Array | None, ...]:
    _, rng, residual = n.inputs
    return be.dropout(g, rng, **n.attrs), None, None if residual is None else g


def _attention(be: Backend, n: Any, g: Array) -> tuple[Array | None, ...]:
    (qkv, rng, *weights), (out, lse, qk) = n.inputs, n.outputs
    dqkv = be.attention_backward(qkv, out, lse, g, rng, **n.attrs, qk=qk)
    if not weights:
        return dqkv, None
    q_weight, k_weight = weights
    return dqkv, None, *be.qk_norm_backward(qkv, q_weight, k_weight, dqkv, n.attrs["n_head"])


GRADIENTS: dict[str, Rule] = {
    "add": lambda be, n, g: (g, g),
    "sub": lambda be, n, g: (g, be.scale(g, -1.0)),
    "mul": lambda be, n, g: (be.mul(g, n.inputs[1]), be.mul(g, n.inputs[0])),
    "scale": lambda be, n, g: (be.scale(g, n.attrs["alpha"]),),
    "reshape": lambda be, n, g: (be.reshape(g, n.inputs[0].shape),),
    "sum": lambda be, n, g: (be.expand(g, n.inputs[0].shape),),
    "activation": lambda be, n, g: be.activation_backward(n.attrs["formula"], *n.inputs, g),
    "spline": lambda be, n, g: be.spline_backward(*n.inputs, g),
    "softcap": lambda be, n, g: (be.softcap_backward(*n.inputs, g, n.attrs["cap"]),),
    "dropout": _dropout,
    "matmul": _matmul,
    "linear": _linear,
    "layer_norm": lambda be, n, g: be.layer_norm_backward(*n.inputs[:2], *n.outputs[1:], g),
    "rms_norm": lambda be, n, g: be.rms_norm_backward(*n.inputs, n.outputs[1], g),
    "embedding": _embedding,
    "attention": _attention,
    "cross_entropy": lambda be, n, g: (be.cross_entropy_backward(*n.inputs, n.outputs[1], g, **n.attrs), None),
}
