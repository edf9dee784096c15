"""The table of what is measured: each row has its arguments, arithmetic and traffic, and the same work in PyTorch.

A row runs a primitive on a backend. Its numpy peer is the same primitive on cpu_ref; its PyTorch peer returns a prefix
of the row's outputs. Arithmetic is what the formula needs, an exp, a root or a division counting as one operation, even
where a kernel computes something twice; traffic is every argument read once and every result written once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from helios import random
from helios.backends.backend import QK_EPS, STATS, Array, Backend
from helios.backends.cpu_ref import CpuRef
from helios.model.activations import Activation, activation
from helios.model.config import GPTConfig

Rng = np.random.Generator
Draw = Callable[[Rng], np.ndarray]
# Takes torch and the arguments as tensors, integers as int64; returns the function that is timed.
Prepare = Callable[..., Callable[[], Any]]
REF = CpuRef()
EPS = 1e-5
ADAM = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-6, "weight_decay": 0.1}


@dataclass(frozen=True)
class Sizes:
    """The sizes in a training step."""

    batch: int
    block: int
    n_embd: int
    n_head: int
    vocab: int
    ffn: int  # width of an MLP without gates
    gated: int  # width of one with gates
    parameters: int
    dropout: float
    softcap: float

    @classmethod
    def of(cls, config: GPTConfig, batch: int) -> Sizes:
        ffn, gated = (replace(config, activation=name).ffn_dims[0] for name in ("gelu", "swiglu"))
        return cls(batch, config.block_size, config.n_embd, config.n_head, config.vocab_size, ffn, gated,
                   config.parameters(), config.dropout, config.softcap)

    @property
    def rows(self) -> int:
        return self.batch * self.block


@dataclass(frozen=True)
class Row:
    op: str  # its name in --only and the JSON
    primitive: str
    shape: str
    args: Sequence[Draw]
    call: Callable[..., Any]  # (backend, *arguments) → an array or a tuple of them, of which None is no output
    flops: float  # arithmetic operations
    torch: Prepare
    traffic: int | None = None  # bytes, where not all of an argument is read
    derive: Callable[..., Sequence[np.ndarray]] = field(default=lambda *args: args)  # from what is drawn

    def arguments(self) -> list[np.ndarray]:
        rng = np.random.default_rng(0)
        return list(self.derive(*(draw(rng) for draw in self.args)))

    def outputs(self, result: Any) -> list[Array]:
        return [x for x in (result if isinstance(result, tuple) else (result,)) if x is not None]

    def bytes(self, arguments: Sequence[np.ndarray], outputs: Sequence[Array]) -> int:
        return self.traffic or 4 * sum(math.prod(x.shape) for x in (*arguments, *outputs))


# -- arguments -------------------------------------------------------------------------------------------------------

def normal(*shape: int) -> Draw:
    return lambda rng: rng.standard_normal(shape, np.float32)


def integers(high: int, *shape: int) -> Draw:
    return lambda rng: rng.integers(0, high, shape).astype(np.int32)


def constant(value: np.ndarray) -> Draw:
    return lambda rng: value.copy()


KEY, ONE = constant(random.state(7, 3)), constant(np.ones((), np.float32))


# -- PyTorch ---------------------------------------------------------------------------------------------------------

def forward(fn: Callable[..., Any]) -> Prepare:
    """Time fn(torch, *arguments)."""
    return lambda t, *args: lambda: fn(t, *args)


def gradient(fn: Callable[..., tuple[Any, Sequence[Any]]]) -> Prepare:
    """Time the backward pass from the result to the leaves that fn(torch, *arguments) returns; the last argument is the
    gradient of the result, which fn does not get."""
    def prepare(t: Any, *args: Any) -> Callable[[], Any]:
        out, leaves = fn(t, *args[:-1])
        return lambda: t.autograd.grad(out, leaves, args[-1], retain_graph=True)
    return prepare


def of_all(fn: Callable[..., Any]) -> Prepare:
    """Time the backward pass of fn, to all of its arguments."""
    return gradient(lambda t, *args: (fn(t, *(x.requires_grad_() for x in args)), args))


MEASURED = ("gelu", "silu", "relu", "swiglu", "universal", "kan_spline", "kan_bspline")  # of the activations


def _activate(name: str) -> Callable[..., Any]:
    def run(t: Any, h: Any, *coefficients: Any) -> Any:
        from helios.bench.torch_gpt import activate

        return activate(activation(name), h, *coefficients)
    return run


def arithmetic(act: Activation) -> tuple[int, int]:
    """Return the operations an element of an activation, forward and backward."""
    f = act.formula
    if f is None:
        return 4 * 9, 4 * 14  # four splines reach an element, each with a cubic and its slope
    count = lambda outputs: len(re.findall(r"[a-z]\w*\(| [-+*] ", f.source("numpy", outputs).partition("\n")[2]))
    return count(["value"]), count(f.parameters) + len(f.parameters)


def _attention(s: Sizes) -> Callable[..., Any]:
    def run(t: Any, qkv: Any) -> Any:
        from helios.bench.torch_gpt import attention, causal_mask

        return attention(qkv, causal_mask(s.block, qkv.device), s.n_head, s.softcap, s.dropout)
    return run


def _qk_norm(t: Any, qkv: Any, weights: Sequence[Any], n_head: int) -> list[Any]:
    """Return q, k, v, of which q and k are normed."""
    q, k, v = qkv.chunk(3, -1)
    heads = ((x.unflatten(-1, (n_head, -1)), w) for x, w in zip((q, k), weights, strict=True))
    return [*(t.nn.functional.rms_norm(x, w.shape, w, QK_EPS).flatten(-2) for x, w in heads), v]


def _clip_stats(t: Any, grad: Any) -> Any:
    norm = t.linalg.vector_norm(grad)
    return t.stack((norm, t.clamp(1 / norm, max=1.0)))


def _adamw(t: Any, w: Any, grad: Any, m: Any, v: Any, stats: Any, lr: Any) -> Callable[[], Any]:
    from helios.bench.torch_gpt import adamw

    p = t.nn.Parameter(w)
    p.grad = grad
    optimizer = adamw([{"params": [p], "weight_decay": ADAM["weight_decay"]}], lr.item(), ADAM["beta1"], ADAM["beta2"],
                      ADAM["eps"])

    def run() -> Any:
        optimizer.step()
        return p.detach()
    return run


# -- the table -------------------------------------------------------------------------------------------------------

def rows(s: Sizes) -> list[Row]:
    """Return a row for each primitive of a training step of these sizes."""
    return [*_elementwise(s), *_matrices(s), *_normalised(s), *_embeddings(s), *_attentions(s), *_losses(s),
            *_optimizer(s)]


def _text(*shape: int) -> str:
    return "x".join(map(str, shape)) or "1"


def _primitive(name: str, *first: Any) -> Callable[..., Any]:
    return lambda be, *args: getattr(be, name)(*first, *args)


def _elementwise(s: Sizes) -> Iterator[Row]:
    for name in MEASURED:
        act, fn = activation(name), _activate(name)
        there, back = arithmetic(act)
        shape = (s.rows, s.ffn if act.parts == 1 else s.gated)
        given = (s.rows, act.parts * shape[1])
        args = [normal(*given), *(normal(*value.shape, shape[1]) for value in act.coefficients.values())]
        n, primitive, formula = math.prod(shape), *(("activation", [act.formula]) if act.formula else ("spline", []))
        yield Row(name, primitive, _text(*given), args, _primitive(primitive, *formula), there * n, forward(fn))
        yield Row(f"{name}_backward", f"{primitive}_backward", _text(*given), [*args, normal(*shape)],
                  _primitive(f"{primitive}_backward", *formula), back * n, of_all(fn))
    wide, x = (s.rows, s.ffn), [normal(s.rows, s.ffn)]
    n, cap = math.prod(wide), s.softcap or 30.0
    capped = lambda t, x: cap * t.tanh(x / cap)
    yield Row("softcap", "softcap", _text(*wide), x, lambda be, x: be.softcap(x, cap), 7 * n, forward(capped))
    yield Row("softcap_backward", "softcap_backward", _text(*wide), x * 2,
              lambda be, x, g: be.softcap_backward(x, g, cap), 9 * n, of_all(capped))
    yield Row("mul", "mul", _text(*wide), x * 2, _primitive("mul"), n, forward(lambda t, x, y: x * y))
    yield Row("scale", "scale", _text(*wide), x, lambda be, x: be.scale(x, 0.5), n, forward(lambda t, x: x * 0.5))
    stream = (s.batch, s.block, s.n_embd)
    h, n = normal(*stream), math.prod(stream)
    yield Row("axpby", "axpby", _text(*stream), [h, h], lambda be, x, y: be.axpby(x, y, 1.0, 1.0), 3 * n,
              forward(lambda t, x, y: x + y))
    drop = lambda t, h: t.nn.functional.dropout(h, s.dropout)
    yield Row("dropout", "dropout", _text(*stream), [h, KEY], lambda be, h, rng: be.dropout(h, rng, s.dropout, 1),
              2 * n, forward(lambda t, h, rng: drop(t, h)))
    yield Row("dropout+residual", "dropout", _text(*stream), [h, KEY, h],
              lambda be, h, rng, x: be.dropout(h, rng, s.dropout, 1, x), 3 * n,
              forward(lambda t, h, rng, x: x + drop(t, h)))


LAYOUTS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {  # of a product, on a backend and in PyTorch
    "nt": (lambda be, a, b: be.matmul(a, b, False, True), lambda t, a, b: a @ b.T),
    "nn": (lambda be, a, b: be.matmul(a, b), lambda t, a, b: a @ b),
    "tn": (lambda be, a, b: be.matmul(a, b, True), lambda t, a, b: a.T @ b),
}


def product(layout: str, m: int, n: int, k: int) -> Row:
    """Return the row of the product [m, k] × [k, n], where an operand whose letter in `layout` is t is transposed."""
    call, fn = LAYOUTS[layout]
    args = [normal(k, m) if layout[0] == "t" else normal(m, k), normal(n, k) if layout[1] == "t" else normal(k, n)]
    return Row(f"matmul_{layout}", "matmul", _text(m, n, k), args, call, 2 * m * n * k, forward(fn))


def _matrices(s: Sizes) -> Iterator[Row]:
    """Yield the products of linear layers [N, K] on M rows: forward (nt), gradients of input (nn) and weight (tn)."""
    d, m = s.n_embd, s.rows
    layers = [(3 * d, d), (d, d), (s.ffn, d), (d, s.ffn), (2 * s.gated, d), (d, s.gated), (s.vocab, d)]
    for n, k in dict.fromkeys(layers):
        yield from (product("nt", m, n, k), product("nn", m, k, n), product("tn", n, k, m))
    n, k = s.ffn, d
    yield Row("linear", "linear", _text(m, n, k), [normal(m, k), normal(n, k)], lambda be, x, w: be.linear(x, w, None),
              2 * m * n * k, forward(lambda t, x, w: t.nn.functional.linear(x, w)))
    for act in (activation(name) for name in MEASURED):
        if act.fused:
            def with_activation(t: Any, x: Any, w: Any, name: str = act.text) -> Any:
                z = t.nn.functional.linear(x, w)
                return _activate(name)(t, z), z

            yield Row(f"linear+{act.text}", "linear", _text(m, n, k), [normal(m, k), normal(n, k)],
                      lambda be, x, w, f=act.formula: be.linear(x, w, f), (2 * k + arithmetic(act)[0]) * m * n,
                      forward(with_activation))


def _normalised(s: Sizes) -> Iterator[Row]:
    d = s.n_embd
    shape = (s.batch, s.block, d)
    n = math.prod(shape)
    norm = lambda t, x, weight, bias: t.nn.functional.layer_norm(x, (d,), weight, bias, EPS)

    def back(t: Any, x: Any, weight: Any, mean: Any, rstd: Any) -> Any:
        leaves = [x.requires_grad_(), weight.requires_grad_(), t.zeros_like(weight).requires_grad_()]
        return norm(t, *leaves), leaves

    yield Row("layer_norm", "layer_norm", _text(*shape), [normal(*shape), normal(d), normal(d)],
              lambda be, x, w, b: be.layer_norm(x, w, b, EPS), 8 * n, forward(norm))
    yield Row("layer_norm_backward", "layer_norm_backward", _text(*shape), [normal(*shape), normal(d), normal(*shape)],
              _primitive("layer_norm_backward"), 14 * n, gradient(back),
              derive=lambda x, w, g: (x, w, *REF.layer_norm(x, w, w, EPS)[1:], g))
    rms = lambda t, x, weight: t.nn.functional.rms_norm(x, (d,), weight, EPS)
    yield Row("rms_norm", "rms_norm", _text(*shape), [normal(*shape), normal(d)],
              lambda be, x, w: be.rms_norm(x, w, EPS), 4 * n, forward(rms))
    yield Row("rms_norm_backward", "rms_norm_backward", _text(*shape), [normal(*shape), normal(d), normal(*shape)],
              _primitive("rms_norm_backward"), 9 * n,
              gradient(lambda t, x, w, rstd: (rms(t, x.requires_grad_(), w.requires_grad_()), [x, w])),
              derive=lambda x, w, g: (x, w, REF.rms_norm(x, w, EPS)[1], g))


def _embeddings(s: Sizes) -> Iterator[Row]:
    d, v = s.n_embd, s.vocab
    index = integers(v, s.batch, s.block)
    shape = (s.batch, s.block, d)
    n = math.prod(shape)
    look_up = lambda t, table, index, positions: t.nn.functional.embedding(index, table) + positions

    def back(t: Any, index: Any) -> Any:
        table = t.zeros(v, d, device=index.device, requires_grad=True)
        return t.nn.functional.embedding(index, table), [table]

    yield Row("embedding", "embedding", f"{_text(v, d)}[{_text(s.batch, s.block)}]",
              [normal(v, d), index, normal(s.block, d)], _primitive("embedding"), n, forward(look_up),
              traffic=4 * (2 * n + s.rows + s.block * d))
    yield Row("embedding_backward", "embedding_backward", f"{_text(*shape)}→{_text(v, d)}", [index, normal(*shape)],
              lambda be, index, g: be.embedding_backward(index, g, v), n, gradient(back))
    yield Row("positions_backward", "positions_backward", _text(*shape), [normal(*shape)],
              lambda be, g: be.positions_backward(g, s.block), n, forward(lambda t, g: g.sum(0)))


def _attentions(s: Sizes) -> Iterator[Row]:
    d, shape = s.n_embd, (s.batch, s.block, 3 * s.n_embd)
    how: dict[str, Any] = {"n_head": s.n_head, "cap": s.softcap, "p": s.dropout, "site": 0}
    products = 2 * s.batch * d * s.block * (s.block + 1) // 2  # in one product of all heads, on and below the diagonal
    run = _attention(s)
    # Two products forward; five backward: the scores again, and the gradients of the weights, q, k and v.
    head, n = d // s.n_head, 2 * s.rows * d  # elements of q and k
    args = [normal(*shape), *[constant(np.ones(head, np.float32))] * 2]  # the backward pass is repeated, in place
    norms = lambda t, qkv, *weights: _qk_norm(t, qkv, weights, s.n_head)

    def in_place(be: Backend, qkv: Array, q_weight: Array, k_weight: Array, dqkv: Array) -> tuple[Array, ...]:
        return dqkv, *be.qk_norm_backward(qkv, q_weight, k_weight, dqkv, s.n_head)

    yield Row("qk_norm", "qk_norm", _text(*shape), args, lambda be, *args: be.qk_norm(*args, s.n_head), 4 * n,
              forward(lambda t, *args: t.cat(norms(t, *args)[:2], -1)), traffic=4 * (2 * n + 2 * head))
    yield Row("qk_norm_backward", "qk_norm_backward", _text(*shape), [*args, normal(*shape)], in_place, 11 * n,
              of_all(lambda t, *args: t.cat(norms(t, *args), -1)), traffic=4 * (3 * n + 4 * head))
    yield Row("attention", "attention", _text(*shape), [normal(*shape), KEY],
              lambda be, qkv, rng: be.attention(qkv, rng, **how), 2 * products,
              forward(lambda t, qkv, rng: run(t, qkv)))
    yield Row("attention_backward", "attention_backward", _text(*shape), [normal(*shape), KEY, normal(*shape[:2], d)],
              lambda be, qkv, out, lse, rng, g: be.attention_backward(qkv, out, lse, g, rng, **how), 5 * products,
              gradient(lambda t, qkv, out, lse, rng: (run(t, qkv.requires_grad_()), [qkv])),
              derive=lambda qkv, rng, g: (qkv, *REF.attention(qkv, rng, **how), rng, g))


def _cross_entropy(s: Sizes, name: str, cap: float, there: int, back: int) -> Iterator[Row]:
    """Yield the rows of the loss of logits soft-capped by `cap`, with their operations an element."""
    shape, n = (s.rows, s.vocab), s.rows * s.vocab
    logits, targets = normal(*shape), integers(s.vocab, s.rows)

    def loss(t: Any, logits: Any, targets: Any) -> Any:
        return t.nn.functional.cross_entropy(cap * t.tanh(logits / cap) if cap else logits, targets)

    yield Row(f"cross_entropy{name}", "cross_entropy", _text(*shape), [logits, targets],
              lambda be, *args: be.cross_entropy(*args, cap), there * n, forward(loss))
    yield Row(f"cross_entropy_backward{name}", "cross_entropy_backward", _text(*shape), [logits, targets, ONE],
              lambda be, *args: be.cross_entropy_backward(*args, cap), back * n,
              gradient(lambda t, logits, targets, lse: (loss(t, logits.requires_grad_(), targets), [logits])),
              derive=lambda logits, targets, g: (logits, targets, REF.cross_entropy(logits, targets, cap)[1], g))


def _losses(s: Sizes) -> Iterator[Row]:
    yield from _cross_entropy(s, "", 0.0, 4, 4)
    yield from _cross_entropy(s, "+softcap", 30.0, 11, 14)
    stream = (s.batch, s.block, s.n_embd)
    yield Row("sum", "sum", _text(*stream), [normal(*stream)], _primitive("sum"), math.prod(stream),
              forward(lambda t, x: x.sum()))
    yield Row("expand", "expand", _text(*stream), [ONE], lambda be, g: be.expand(g, stream), 0,
              forward(lambda t, g: g.expand(stream).contiguous()))


def _optimizer(s: Sizes) -> Iterator[Row]:
    n, moment = s.parameters, constant(np.zeros(s.parameters, np.float32))
    after_one = {"clip_coef": 1.0, "grad_coef": 1.0, "loss_scale": 1.0, "updates": 1.0,
                 "correction1": 1 - ADAM["beta1"], "correction2": 1 - ADAM["beta2"]}
    stats = np.array([after_one.get(name, 0.0) for name in STATS], np.float32)

    def decide(be: Backend, grad: Array, stats: Array) -> Array:
        be.clip_stats(grad, stats, None, clip=1.0, spike=0.0, beta1=ADAM["beta1"], beta2=ADAM["beta2"])
        return be.view(stats, 0, (2,))

    def update(be: Backend, w: Array, grad: Array, m: Array, v: Array, stats: Array, lr: Array) -> tuple[Array, ...]:
        be.adamw(w, grad, m, v, stats, lr, n_decay=n, **ADAM)
        return w, m, v

    yield Row("clip_stats", "clip_stats", _text(n), [normal(n), constant(stats)], decide, 2 * n,
              forward(lambda t, grad, stats: _clip_stats(t, grad)))
    yield Row("adamw", "adamw", _text(n), [normal(n), normal(n), moment, moment, constant(stats),
                                           constant(np.array([3e-4], np.float32))], update, 16 * n, _adamw)
