"""The oracle: every primitive in numpy, in float32 or float64. Clear before fast.

Formulas are those of backend.py and helios.ops. Arrays are C-contiguous numpy arrays; results are new arrays except
those of `reshape` and `view`, which share memory with their argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import psutil

from helios import host, random
from helios.backends import heads
from helios.backends.backend import (
    PRECISIONS,
    RECORDED_UPLOAD,
    SCALE_MAX,
    SCALE_MIN,
    SCALE_PATIENCE,
    SPLINE_POINTS,
    SPLINE_REACH,
    STATS,
    Array,
    Shape,
    host_array,
)
from helios.backends.eager import EagerProgram, Marks
from helios.formula import Formula

IN_CACHE = 1 << 15  # elements that are computed together: their temporaries fit


class CpuRef:
    """The primitives of helios.backends.backend.Backend on numpy arrays of `float_dtype` (float32 or float64)."""

    name = "cpu_ref"

    def __init__(self, float_dtype: type[np.floating] = np.float32, precision: str = PRECISIONS[0]) -> None:
        self.float_dtype: np.dtype = np.dtype(float_dtype)
        self.precision = precision
        self.device_name = host.processor()
        self.driver = f"numpy {np.__version__}"
        self.others: Sequence[str] = ()
        self.device_type, self.kind = "cpu", "cpu"
        self.max_allocation = psutil.virtual_memory().total
        self.submits, self.waited = 0, 0.0  # computing is not waiting
        self._marks = Marks()

    def __reduce__(self) -> tuple[Any, ...]:
        return CpuRef, (self.float_dtype.type, self.precision)

    @property
    def recording(self) -> bool:
        return self._marks.starts is not None

    def _float(self, x: Array) -> Array:
        """Return x as an array of float_dtype: numpy gives scalars for operations on shape (), and may widen them."""
        return np.asarray(x, self.float_dtype)

    def _rounded(self, x: Array) -> Array:
        """Return a matrix as it is multiplied: in mixed precision, the nearest float16s."""
        if self.precision != "mixed":
            return x
        with np.errstate(over="ignore"):
            return x.astype(np.float16).astype(self.float_dtype)

    # -- data ---------------------------------------------------------------------------------------------------------
    def array(self, value: np.ndarray) -> Array:
        return np.array(host_array(value, self.float_dtype))

    def numpy(self, x: Array) -> np.ndarray:
        return np.array(x)

    def zeros(self, shape: Shape) -> Array:
        return np.zeros(shape, self.float_dtype)

    def reshape(self, x: Array, shape: Shape) -> Array:
        return np.reshape(x, shape)

    def view(self, x: Array, start: int, shape: Shape) -> Array:
        return x.reshape(-1)[start:start + math.prod(shape)].reshape(shape)

    def record(self, fn: Callable[..., Sequence[Array]], inputs: Sequence[tuple[Shape, np.dtype]]) -> EagerProgram:
        def run(values: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
            self.submits += 1
            # In mixed precision gradients may overflow: what then becomes of the step, clip_stats decides.
            with np.errstate(over="ignore", invalid="ignore") if self.precision == "mixed" else nullcontext():
                return tuple(self.numpy(x) for x in fn(*(self.array(x) for x in values)))

        return EagerProgram(run, [shape for shape, _ in inputs], self._marks)

    def mark(self, phase: str) -> None:
        self._marks(phase)

    def memory(self) -> dict[str, int]:
        resident, machine = psutil.Process().memory_info().rss, psutil.virtual_memory()
        return {"used": resident, "pool": resident, "total": machine.total, "available": machine.available}

    # -- in place -----------------------------------------------------------------------------------------------------
    def assign(self, target: Array, value: Array, take: bool = False) -> None:
        if target.shape != value.shape:
            raise ValueError(f"assign: target {target.shape}, value {value.shape}")
        target[...] = value

    def upload(self, target: Array, value: np.ndarray) -> None:
        if self.recording:
            raise RuntimeError(RECORDED_UPLOAD)
        value = host_array(value, self.float_dtype)
        if value.shape != target.shape or value.dtype != target.dtype:
            raise ValueError(f"upload: {value.dtype} {value.shape} does not fit {target.dtype} {target.shape}")
        target[...] = value

    def clip_stats(self, grad: Array, stats: Array, loss: Array | None, *, clip: float, spike: float, beta1: float,
                   beta2: float, scaling: bool = False) -> None:
        new = dict(zip(STATS, (float(s) for s in stats), strict=True))
        scale, loss_value = new["loss_scale"], 0.0 if loss is None else float(loss)
        with np.errstate(over="ignore", invalid="ignore"):
            norm = math.sqrt(sum(float(np.sum(grad[own] * grad[own])) for own in _parts(grad.size))) / scale
        skipped = not (math.isfinite(norm) and math.isfinite(loss_value)) or norm > spike > 0
        clip_coef = clip / norm if norm > clip > 0 else 1.0
        new.update(grad_norm=norm, clip_coef=clip_coef, grad_coef=clip_coef / scale, skipped=float(skipped),
                   loss=loss_value)
        if scaling:
            overflow, good = not math.isfinite(norm) and math.isfinite(loss_value), new["good_updates"] + 1
            new["overflows"] += overflow
            if overflow:
                new["loss_scale"] = max(scale / 2, SCALE_MIN)
            elif not skipped and good >= SCALE_PATIENCE:
                new["loss_scale"] = min(scale * 2, SCALE_MAX)
            new["good_updates"] = 0 if skipped or good >= SCALE_PATIENCE else good
        if not skipped:
            updates = new["updates"] + 1
            new.update(updates=updates, correction1=1 - beta1**updates, correction2=1 - beta2**updates)
        stats[:] = [new[name] for name in STATS]

    def adamw(self, w: Array, grad: Array, m: Array, v: Array, stats: Array, lr: Array, *, beta1: float, beta2: float,
              eps: float, weight_decay: float, n_decay: int) -> None:
        # each [1], not a scalar: numpy would widen a scalar
        grad_coef, skipped, correction1, correction2 = (
            stats[i:i + 1] for i in map(STATS.index, ("grad_coef", "skipped", "correction1", "correction2")))
        if skipped[0]:
            return
        w[:n_decay] -= lr * weight_decay * w[:n_decay]
        for own in _parts(w.size):
            g = grad[own] * grad_coef
            m[own] = beta1 * m[own] + (1 - beta1) * g
            v[own] = beta2 * v[own] + (1 - beta2) * g * g
            w[own] -= lr * (m[own] / correction1) / (np.sqrt(v[own] / correction2) + eps)

    def qk_norm_backward(self, qkv: Array, q_weight: Array, k_weight: Array, dqkv: Array, n_head: int
                         ) -> tuple[Array, Array]:
        hats, rstd = heads.qk_hats(qkv, n_head)
        g = heads.split(dqkv, n_head)[:2]  # a view
        d = g * heads.qk_weights(q_weight, k_weight)
        dq, dk = map(_columns, g * hats)
        g[...] = rstd * (d - hats * (d * hats).mean(-1, keepdims=True))
        return dq, dk

    # -- element by element -------------------------------------------------------------------------------------------
    def axpby(self, x: Array, y: Array, alpha: float, beta: float) -> Array:
        return self._float(alpha * x + beta * y)

    def mul(self, x: Array, y: Array) -> Array:
        return self._float(x * y)

    def scale(self, x: Array, alpha: float) -> Array:
        return self._float(alpha * x)

    def activation(self, formula: Formula, h: Array, *coefficients: Array) -> Array:
        if formula.plain:
            return _by_parts(formula.value, h)
        return self._float(formula.value(*_inputs(formula, h), *coefficients))

    def activation_backward(self, formula: Formula, h: Array, *coefficients_and_g: Array) -> tuple[Array, ...]:
        *coefficients, g = coefficients_and_g
        if formula.plain:
            return (_by_parts(lambda x, g: formula.slopes(x)[0] * g, h, g),)
        dx, *others = (slope * g for slope in formula.slopes(*_inputs(formula, h), *coefficients))
        if formula.gated:
            dx = np.concatenate((dx, others.pop(0)), -1)
        return self._float(dx), *map(_columns, others)

    def spline(self, h: Array, points: Array) -> Array:
        return self._float(np.sum([c * value for c, (value, _) in zip(points, _bases(h), strict=True)], 0))

    def spline_backward(self, h: Array, points: Array, g: Array) -> tuple[Array, Array]:
        values, slopes = zip(*_bases(h), strict=True)
        dh = g * np.sum([c * slope for c, slope in zip(points, slopes, strict=True)], 0)
        return self._float(dh), self._float([_columns(g * value) for value in values])

    def softcap(self, x: Array, cap: float) -> Array:
        return self._float(cap * np.tanh(x / cap))

    def softcap_backward(self, x: Array, g: Array, cap: float) -> Array:
        return self._float((1 - np.tanh(x / cap) ** 2) * g)

    def dropout(self, h: Array, rng: Array, p: float, site: int, residual: Array | None = None) -> Array:
        kept = np.where(random.keep(h.shape, rng, site, p), h / (1 - p), 0)
        return self._float(kept if residual is None else residual + kept)

    # -- matrices -----------------------------------------------------------------------------------------------------
    def matmul(self, a: Array, b: Array, ta: bool = False, tb: bool = False) -> Array:
        a, b = self._rounded(a), self._rounded(b.swapaxes(-1, -2) if tb else b)
        if b.ndim == 2 and not ta:  # one large product instead of many small ones
            return (a.reshape(-1, a.shape[-1]) @ b).reshape(*a.shape[:-1], b.shape[-1])
        return (a.swapaxes(-1, -2) if ta else a) @ b

    def linear(self, x: Array, w: Array, activation: Formula | None) -> tuple[Array, Array | None]:
        z = self.matmul(x[None], w, tb=True)[0]  # x may have one axis
        return (self.activation(activation, z), z) if activation else (z, None)

    # -- rows ---------------------------------------------------------------------------------------------------------
    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, Array, Array]:
        mean = x.mean(-1, keepdims=True)
        centred = x - mean
        rstd = 1 / np.sqrt((centred * centred).mean(-1, keepdims=True) + eps)
        y = centred * rstd * weight + bias
        return self._float(y), mean.reshape(x.shape[:-1]), rstd.reshape(x.shape[:-1])

    def layer_norm_backward(self, x: Array, weight: Array, mean: Array, rstd: Array, g: Array
                            ) -> tuple[Array, Array, Array]:
        normed = (x - mean[..., None]) * rstd[..., None]
        gw = g * weight
        dx = gw - gw.mean(-1, keepdims=True) - normed * (gw * normed).mean(-1, keepdims=True)
        return self._float(dx * rstd[..., None]), _columns(g * normed), _columns(g)

    def rms_norm(self, x: Array, weight: Array, eps: float) -> tuple[Array, Array]:
        rstd = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
        return self._float(x * rstd * weight), rstd.reshape(x.shape[:-1])

    def rms_norm_backward(self, x: Array, weight: Array, rstd: Array, g: Array) -> tuple[Array, Array]:
        normed, gw = x * rstd[..., None], g * weight
        dx = gw - normed * (gw * normed).mean(-1, keepdims=True)
        return self._float(dx * rstd[..., None]), _columns(g * normed)

    def embedding(self, table: Array, index: Array, positions: Array | None = None) -> Array:
        out = table[index]
        return out if positions is None else out + positions[:index.shape[-1]]

    def embedding_backward(self, index: Array, g: Array, rows: int) -> Array:
        out = self.zeros((rows, g.shape[-1]))
        np.add.at(out, index.reshape(-1), g.reshape(-1, g.shape[-1]))
        return out

    def positions_backward(self, g: Array, rows: int) -> Array:
        t, d = g.shape[-2:]
        out = self.zeros((rows, d))
        out[:t] = g.reshape(-1, t, d).sum(0)
        return out

    def qk_norm(self, qkv: Array, q_weight: Array, k_weight: Array, n_head: int) -> Array:
        normed = heads.qk_hats(qkv, n_head)[0] * heads.qk_weights(q_weight, k_weight)
        return np.concatenate([heads.join(x) for x in normed], -1)

    def _q_k_v(self, qkv: Array, qk: Array | None, n_head: int) -> tuple[Array, Array, Array]:
        q, k, v = heads.split(self._rounded(qkv), n_head)
        return (q, k, v) if qk is None else (*heads.split(self._rounded(qk), n_head, 2), v)

    def attention(self, qkv: Array, rng: Array | None, n_head: int, cap: float, p: float, site: int,
                  qk: Array | None = None) -> tuple[Array, Array]:
        q, k, v = self._q_k_v(qkv, qk, n_head)
        out, lse = np.empty_like(q), np.empty(q.shape[:-1], self.float_dtype)
        for rows, keys, hidden, dropped in heads.blocks(q, rng, p, site):
            scores = heads.scores(q[..., rows, :], k[..., keys, :], cap)
            np.copyto(scores, -np.inf, where=hidden)
            top = scores.max(-1, keepdims=True)
            weights = np.exp(scores - top)
            total = weights.sum(-1, keepdims=True)
            weights /= total
            out[..., rows, :] = dropped(weights) @ v[..., keys, :]
            lse[..., rows] = (top + np.log(total))[..., 0]
        return heads.join(out), lse

    def attention_backward(self, qkv: Array, out: Array, lse: Array, g: Array, rng: Array | None, n_head: int,
                           cap: float, p: float, site: int, qk: Array | None = None) -> Array:
        q, k, v = self._q_k_v(qkv, qk, n_head)
        (g_heads,), (out_heads,) = heads.split(self._rounded(g), n_head, 1), heads.split(out, n_head, 1)
        # softmax backward subtracts Σ dweights·weights of each row, which equals g·out, with dropout too
        delta = (g_heads * out_heads).sum(-1, keepdims=True)
        dq, dk, dv = np.empty_like(q), np.zeros_like(k), np.zeros_like(v)
        for rows, keys, hidden, dropped in heads.blocks(q, rng, p, site):
            q_, g_, k_, v_ = (x[..., part, :] for x, part in ((q, rows), (g_heads, rows), (k, keys), (v, keys)))
            scores = heads.scores(q_, k_, cap)
            weights = scores - lse[..., rows, None]
            np.copyto(weights, -np.inf, where=hidden)
            np.exp(weights, out=weights)
            dscores = weights * (dropped(g_ @ v_.swapaxes(-1, -2)) - delta[..., rows, :])
            if cap:
                dscores *= 1 - (scores / cap) ** 2
            dscores *= 1 / math.sqrt(q.shape[-1])
            dq[..., rows, :] = dscores @ k_
            dk[..., keys, :] += dscores.swapaxes(-1, -2) @ q_
            dv[..., keys, :] += dropped(weights).swapaxes(-1, -2) @ g_
        return np.concatenate([heads.join(part) for part in (dq, dk, dv)], axis=-1)

    # -- reductions ---------------------------------------------------------------------------------------------------
    def sum(self, x: Array) -> Array:
        return self._float(np.sum(x))

    def expand(self, g: Array, shape: Shape) -> Array:
        return np.full(shape, g, self.float_dtype)

    def cross_entropy(self, logits: Array, targets: Array, cap: float = 0.0) -> tuple[Array, Array]:
        rows = self._capped_rows(logits, cap)
        top = rows.max(-1)
        lse = top + np.log(np.exp(rows - top[:, None]).sum(-1))
        picked = rows[np.arange(len(rows)), targets.reshape(-1)]
        return self._float((lse - picked).mean()), lse

    def cross_entropy_backward(self, logits: Array, targets: Array, lse: Array, g: Array, cap: float = 0.0) -> Array:
        rows = self._capped_rows(logits, cap)
        d = np.exp(rows - lse[:, None])
        d[np.arange(len(rows)), targets.reshape(-1)] -= 1
        d *= g / len(rows)
        if cap:
            d *= 1 - (rows / cap) ** 2
        return d.reshape(logits.shape)

    def _capped_rows(self, logits: Array, cap: float) -> Array:
        rows = logits.reshape(-1, logits.shape[-1])
        return self.softcap(rows, cap) if cap else rows


def _by_parts(compute: Callable[..., Array], *arrays: Array) -> Array:
    """Compute something element by element, of arrays of one shape."""
    flat, out = [x.reshape(-1) for x in arrays], np.empty_like(arrays[0])
    for own in _parts(out.size):
        out.reshape(-1)[own] = compute(*(x[own] for x in flat))
    return out


def _parts(size: int) -> Iterator[slice]:
    return (slice(start, start + IN_CACHE) for start in range(0, size, IN_CACHE))


def _inputs(formula: Formula, h: Array) -> list[Array]:
    return np.split(h, 2, -1) if formula.gated else [h]


def _bases(h: Array) -> Iterator[tuple[Array, Array]]:
    """Yield the value and the slope at h of each control point's cubic B-spline."""
    step, inside = 2 * SPLINE_REACH / (SPLINE_POINTS - 3), np.clip(h, -SPLINE_REACH, SPLINE_REACH)
    for centre in range(-1, SPLINE_POINTS - 1):
        d = (inside + SPLINE_REACH) / step - centre
        a, b = np.abs(d), np.maximum(2 - np.abs(d), 0)
        value = np.where(a < 1, 2 / 3 - a * a * (1 - a / 2), b**3 / 6)
        slope = np.where(a < 1, d * (1.5 * a - 2), -0.5 * np.sign(d) * b * b) / step
        yield value + (h - inside) * slope, slope


def _columns(x: Array) -> Array:
    """Return [F], the sum over all rows of [..., F]."""
    return x.reshape(-1, x.shape[-1]).sum(0)
