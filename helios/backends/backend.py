"""The contract of a device: the primitives that the gradient table and the model are built on.

An Array is whatever a backend computes with (numpy.ndarray, VkArray): it has `.shape` and `.dtype`. Primitives never
modify their arguments, except those under "in place". float32 throughout (cpu_ref also computes in float64); indices
are int32, and one out of range gives NaN or raises IndexError. A primitive that a backend lacks raises, naming it:
nothing falls back to another backend.

With precision "mixed", matmul, linear, attention and attention_backward round the matrices they are given (a, b; x, w;
qkv, qk, g) to the nearest float16, ties to even, beyond its range to infinity. Arrays, sums, scores, probabilities and
everything else stay as they are; a kernel for matrix units may round its probabilities and their gradients, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from helios.formula import Formula

Array = Any
Shape = tuple[int, ...]

STATS = ("grad_norm", "clip_coef", "skipped", "updates", "correction1", "correction2", "loss", "grad_coef",
         "loss_scale", "good_updates", "overflows")
SPLINE_POINTS, SPLINE_REACH = 16, 4.0
QK_EPS = 1e-5  # of qk_norm, added to mean squares
PRECISIONS = ("f32", "mixed")  # what matmul, linear and attention round their inputs to: nothing, float16

RECORDED_UPLOAD = ("upload: it would happen at once, and in no replay of the function that is being recorded; "
                   "make the value an input of the function, and assign() it")

# Of the loss scale: a power of two, so that scaling loses no bit.
SCALE_START, SCALE_MIN, SCALE_MAX = 2.0**15, 2.0, 2.0**24
SCALE_PATIENCE = 200  # good updates in a row after which it doubles


def host_array(value: Any, float_dtype: np.dtype) -> np.ndarray:
    """Return `value` as every backend takes it: contiguous, floats as `float_dtype`, integers and booleans as int32.

    Raises ValueError for integers that int32 does not hold, TypeError for what is no real number.
    """
    value = np.asarray(value)
    if value.dtype.kind not in "fiub":
        raise TypeError(f"expected real numbers, got {value.dtype}")
    dtype = float_dtype if value.dtype.kind == "f" else np.dtype(np.int32)
    if dtype.kind == "i" and value.dtype != dtype and value.size and not np.array_equal(value.astype(dtype), value):
        raise ValueError(f"integers must fit int32, got {value.min()} to {value.max()}")
    return np.ascontiguousarray(value, dtype).reshape(value.shape)  # which makes a scalar [1]


class Dispatch(NamedTuple):
    """One device operation of a program, measured: its kernel, the variant of that, its milliseconds."""

    kernel: str
    defines: Mapping[str, Any]
    ms: float


class Program(Protocol):
    """A recorded function. Where nothing is recorded, counts are 0 and lists are empty."""

    kernels: Sequence[str]  # the name of each device operation in a replay, in order
    dispatches: int  # how many they are
    barriers: int  # between groups of them
    arena_bytes: int  # for what a replay computes and nothing outside refers to; all programs share them
    phases: dict[str, float]  # milliseconds of the last finished replay, by mark()

    def submit(self, inputs: Sequence[np.ndarray]) -> Callable[[], tuple[np.ndarray, ...]]:
        """Start one replay; the returned function waits for it and gives the outputs."""
        ...

    def profile(self) -> list[Dispatch]:
        """Run each device operation alone, on the last inputs, and time it. It changes what a replay changes."""
        ...


class Backend(Protocol):
    """A device that computes the primitives below."""

    name: str  # "vulkan" or "cpu_ref"
    device_name: str
    driver: str
    others: Sequence[str]  # further devices that the backend could compute on, each as "[index] name"
    float_dtype: np.dtype  # has .type
    precision: str  # one of PRECISIONS

    @property
    def recording(self) -> bool:
        """Return whether a function runs that is being recorded: what it does on the host may happen only once."""
        ...

    @property
    def device_type(self) -> str:
        """Return "discrete", "integrated", "virtual", "cpu" or "other"."""
        ...

    @property
    def kind(self) -> str:
        """Return the kind of device that its kernels are made for: "cpu", "simt" or "coopmat"."""
        ...

    @property
    def max_allocation(self) -> int:
        """Return the most bytes that one array can have."""
        ...

    @property
    def submits(self) -> int:
        """Return how many times work was given to the device so far: once for each replay."""
        ...

    @property
    def waited(self) -> float:
        """Return the seconds that the host has spent waiting for the device so far."""
        ...

    # -- data ---------------------------------------------------------------------------------------------------------
    def array(self, value: np.ndarray) -> Array:
        """Return a copy on the device of what host_array() makes of `value`."""
        ...

    def numpy(self, x: Array) -> np.ndarray:
        """Return a copy on the host, after waiting for the device."""
        ...

    def zeros(self, shape: Shape) -> Array: ...
    def reshape(self, x: Array, shape: Shape) -> Array:
        """Return a view of the same elements under another shape; one length may be -1."""
        ...

    def view(self, x: Array, start: int, shape: Shape) -> Array:
        """Return a contiguous view of `x` from its flat element `start` on; writing to it writes to `x`."""
        ...

    def record(self, fn: Callable[..., Sequence[Array]], inputs: Sequence[tuple[Shape, np.dtype]]) -> Program:
        """Record `fn`, a function of Arrays, for replay with inputs of these shapes."""
        ...

    def mark(self, phase: str) -> None:
        """Count the work that follows, in timings, as of `phase` ("fwd", "bwd", …)."""
        ...

    def memory(self) -> dict[str, int]:
        """Return how many bytes are "used" by arrays, in the "pool" taken from the device, had in "total" by the device
        and "available" still."""
        ...

    # -- in place -----------------------------------------------------------------------------------------------------
    def assign(self, target: Array, value: Array, take: bool = False) -> None:
        """Copy `value` into `target`, of the same shape. take: nothing else will use `value`, which may become a view
        of `target`."""
        ...

    def upload(self, target: Array, value: np.ndarray) -> None:
        """Copy `value` from the host into `target`, of the same shape. Raises RuntimeError while recording, for it
        happens at once and not in each replay."""
        ...

    def clip_stats(self, grad: Array, stats: Array, loss: Array | None, *, clip: float, spike: float,
                   beta1: float, beta2: float, scaling: bool = False) -> None:
        """Decide this update, in `stats` [11] (see STATS): the L2 norm of `grad`/loss_scale [n] (sum of squares in a
        fixed order), clip_coef = min(1, clip/norm) (1 where clip is 0), grad_coef = clip_coef/loss_scale, skipped = 1
        where norm or loss is not finite or spike > 0 and norm > spike; unless skipped, updates += 1 and
        correction_i = 1 - beta_i^updates.

        With `scaling`, for the next update: where only the norm is not finite, overflows += 1 and loss_scale is halved
        (down to SCALE_MIN); after SCALE_PATIENCE good_updates in a row it doubles (up to SCALE_MAX). A spike or a loss
        that is not finite changes neither."""
        ...

    def adamw(self, w: Array, grad: Array, m: Array, v: Array, stats: Array, lr: Array, *, beta1: float, beta2: float,
              eps: float, weight_decay: float, n_decay: int) -> None:
        """Update flat arrays [n] as AdamW does, unless stats says skipped; the first `n_decay` elements decay. lr: [1].
        g = grad·grad_coef; m, v as usual; w ← w - lr·weight_decay·w (decaying) - lr·(m/c1)/(√(v/c2) + eps)."""
        ...

    def qk_norm_backward(self, qkv: Array, q_weight: Array, k_weight: Array, dqkv: Array, n_head: int
                         ) -> tuple[Array, Array]:
        """Turn the gradients by what qk_norm gives, which take the places of q and k in dqkv [B, T, 3·D], into those by
        q and k; return those by the weights."""
        ...

    # -- element by element (same shapes) -----------------------------------------------------------------------------
    def axpby(self, x: Array, y: Array, alpha: float, beta: float) -> Array: ...
    def mul(self, x: Array, y: Array) -> Array: ...
    def scale(self, x: Array, alpha: float) -> Array: ...
    def activation(self, formula: Formula, h: Array, *coefficients: Array) -> Array:
        """Return the formula's value at h [..., F]; where gated, h [..., 2F] has the gates, then the values. Each
        coefficient is [F]."""
        ...

    def activation_backward(self, formula: Formula, h: Array, *coefficients_and_g: Array) -> tuple[Array, ...]:
        """Return the gradients of h and of each coefficient."""
        ...

    def softcap(self, x: Array, cap: float) -> Array: ...
    def softcap_backward(self, x: Array, g: Array, cap: float) -> Array: ...
    def spline(self, h: Array, points: Array) -> Array:
        """Return a cubic B-spline's value at h [..., F], one of its own for each column, points [SPLINE_POINTS, F]: on
        uniform knots over ±SPLINE_REACH, straight beyond."""
        ...

    def spline_backward(self, h: Array, points: Array, g: Array) -> tuple[Array, Array]: ...
    def dropout(self, h: Array, rng: Array, p: float, site: int, residual: Array | None = None) -> Array:
        """Return residual + mask·h/(1-p), the mask from helios.random at (rng, site); without residual it is its own
        backward pass. rng: int32 [3], seed low, seed high, step."""
        ...

    # -- matrices -----------------------------------------------------------------------------------------------------
    def matmul(self, a: Array, b: Array, ta: bool = False, tb: bool = False) -> Array:
        """Return op(a)·op(b), op transposing the last two axes where ta, tb; a [..., M, K], b [K, N] or with a's
        leading axes. Leading axes of a are folded into M where b has two axes and a is not transposed."""
        ...

    def linear(self, x: Array, w: Array, activation: Formula | None) -> tuple[Array, Array | None]:
        """Return (f(x·wᵀ), x·wᵀ), f a plain formula, with x [..., K], w [N, K]; without one the second is None."""
        ...

    # -- rows ---------------------------------------------------------------------------------------------------------
    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, Array, Array]:
        """Return (y, mean, 1/√(var + eps)) over the last axis; the last two have a value for each row, shape
        x.shape[:-1]."""
        ...

    def layer_norm_backward(self, x: Array, weight: Array, mean: Array, rstd: Array, g: Array
                            ) -> tuple[Array, Array, Array]: ...
    def rms_norm(self, x: Array, weight: Array, eps: float) -> tuple[Array, Array]:
        """Return (x·rstd·weight, rstd = 1/√(avg(x²) + eps)) over the last axis; the second has shape x.shape[:-1]."""
        ...

    def rms_norm_backward(self, x: Array, weight: Array, rstd: Array, g: Array) -> tuple[Array, Array]: ...
    def embedding(self, table: Array, index: Array, positions: Array | None = None) -> Array:
        """Return table[index] (+ positions[t] for the last axis t of index); table [V, D], index int [..., T]."""
        ...

    def embedding_backward(self, index: Array, g: Array, rows: int) -> Array:
        """Return [rows, D]: for each row the sum of g over the places where index is that row, in order of place."""
        ...

    def positions_backward(self, g: Array, rows: int) -> Array:
        """Return [rows, D]: g [..., T, D] summed over the leading axes, zero from row T on."""
        ...

    def qk_norm(self, qkv: Array, q_weight: Array, k_weight: Array, n_head: int) -> Array:
        """Return [B, T, 2·D]: x/√(mean(x²) + QK_EPS)·weight for each head of q and k in qkv [B, T, 3·D], the mean over
        the head; weights [D/n_head], for all heads of q and for all of k."""
        ...

    def attention(self, qkv: Array, rng: Array | None, n_head: int, cap: float, p: float, site: int,
                  qk: Array | None = None) -> tuple[Array, Array]:
        """Return causal attention, [B, T, D], and the log-sum-exp of each row's capped scores, [B, n_head, T].
        qkv [B, T, 3·D], in order q, k, v, heads contiguous within each; qk [B, T, 2·D]: the q and k to take instead;
        cap 0: no soft cap; p: dropout on the weights."""
        ...

    def attention_backward(self, qkv: Array, out: Array, lse: Array, g: Array, rng: Array | None, n_head: int,
                           cap: float, p: float, site: int, qk: Array | None = None) -> Array:
        """Return [B, T, 3·D]: the gradients by the q and k that were taken, and by v."""
        ...

    # -- reductions ---------------------------------------------------------------------------------------------------
    def sum(self, x: Array) -> Array:
        """Return the sum of all elements, in a fixed order, of shape ()."""
        ...

    def expand(self, g: Array, shape: Shape) -> Array:
        """Return g, of shape (), repeated."""
        ...

    def cross_entropy(self, logits: Array, targets: Array, cap: float = 0.0) -> tuple[Array, Array]:
        """Return the mean over rows of lse - logits[target], shape (), and lse [rows], in nats; logits [..., V],
        targets int [...]. cap: the soft cap that logits go through first; 0: none."""
        ...

    def cross_entropy_backward(self, logits: Array, targets: Array, lse: Array, g: Array, cap: float = 0.0) -> Array:
        """Return (exp(logits - lse) - onehot(target))·g/rows, with g of shape (), of capped logits y times
        1 - (y/cap)²."""
        ...
