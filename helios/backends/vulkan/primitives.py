"""The primitives: which kernel computes each, with what arguments, over what grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from helios.backends.backend import QK_EPS, SCALE_MAX, SCALE_MIN, SCALE_PATIENCE, STATS
from helios.backends.vulkan.array import VkArray
from helios.backends.vulkan.pipelines import Kernel
from helios.backends.vulkan.products import Products
from helios.backends.vulkan.variants import BUSY, ELEMENTWISE, NO_EPILOGUE, divide
from helios.random import threshold

PART, MAX_PARTIALS = 4096, 1024  # a sum over everything: elements in a part, at least, and parts, at most
PLACES = {f"STAT_{name.upper()}": i for i, name in enumerate(STATS)}  # of the optimizer's statistics, for its kernels


class Primitives(Products):
    """All primitives of helios.backends.backend.Backend, on the arrays of a Vulkan device."""

    # -- element by element -------------------------------------------------------------------------------------------
    def _elementwise(self, op: str, *inputs: VkArray, alpha: float = 0.0, beta: float = 0.0) -> VkArray:
        out = self.empty(inputs[0].shape)
        defines = {"EXPR": ELEMENTWISE[op], "Y": int(len(inputs) > 1), "PAIRS": self.pairs(out.size, at=inputs)}
        self._each("elementwise", out.size, True, defines, o=out, alpha=alpha, beta=beta,
                   **dict(zip("xy", inputs, strict=False)))
        return out

    def axpby(self, x: VkArray, y: VkArray, alpha: float, beta: float) -> VkArray:
        return self._elementwise("axpby", x, y, alpha=alpha, beta=beta)

    def mul(self, x: VkArray, y: VkArray) -> VkArray:
        return self._elementwise("mul", x, y)

    def scale(self, x: VkArray, alpha: float) -> VkArray:
        return self._elementwise("scale", x, alpha=alpha)

    def gelu(self, x: VkArray) -> VkArray:
        return self._elementwise("gelu", x)

    def gelu_backward(self, x: VkArray, g: VkArray) -> VkArray:
        return self._elementwise("gelu_backward", x, g)

    def silu(self, x: VkArray) -> VkArray:
        return self._elementwise("silu", x)

    def silu_backward(self, x: VkArray, g: VkArray) -> VkArray:
        return self._elementwise("silu_backward", x, g)

    def relu(self, x: VkArray) -> VkArray:
        return self._elementwise("relu", x)

    def relu_backward(self, x: VkArray, g: VkArray) -> VkArray:
        return self._elementwise("relu_backward", x, g)

    def softcap(self, x: VkArray, cap: float) -> VkArray:
        return self._elementwise("softcap", x, alpha=cap)

    def softcap_backward(self, x: VkArray, g: VkArray, cap: float) -> VkArray:
        return self._elementwise("softcap_backward", x, g, alpha=cap)

    def swiglu(self, h: VkArray) -> VkArray:
        return self._swiglu(self.empty((*h.shape[:-1], h.shape[-1] // 2)), h=h)

    def swiglu_backward(self, h: VkArray, g: VkArray) -> VkArray:
        return self._swiglu(self.empty(h.shape), h=h, g=g)

    def _swiglu(self, out: VkArray, **args: VkArray) -> VkArray:
        features = args["h"].shape[-1] // 2
        defines = {"BACKWARD": int("g" in args), "PAIRS": self.pairs(features, at=tuple(args.values()))}
        self._each("swiglu", args["h"].size // 2, True, defines, o=out, features=features, **args)
        return out

    def universal(self, h: VkArray, a: VkArray, b: VkArray) -> VkArray:
        out = self.empty(h.shape)
        self._each("universal", h.size, h=h, a=a, b=b, o=out, features=h.shape[-1])
        return out

    def universal_backward(self, h: VkArray, a: VkArray, b: VkArray, g: VkArray) -> tuple[VkArray, VkArray, VkArray]:
        dh = self.empty(h.shape)
        kernel = self.kernel("universal_backward", self.lanes)
        da, db = self._columns(kernel, h, ("da", "db"), h=h, a=a, b=b, g=g, dh=dh)
        return dh, da, db

    def kan_spline(self, h: VkArray, *c: VkArray) -> VkArray:
        out = self.empty(h.shape)
        args: dict[str, Any] = {f"c{i}": x for i, x in enumerate(c)}
        self._each("kan_spline", h.size, h=h, o=out, features=h.shape[-1], **args)
        return out

    def kan_spline_backward(self, h: VkArray, *c_and_g: VkArray) -> tuple[VkArray, ...]:
        *c, g = c_and_g
        dh, names = self.empty(h.shape), [f"dc{i}" for i in range(5)]
        args: dict[str, Any] = {f"c{i}": x for i, x in enumerate(c)}
        kernel = self.kernel("kan_spline_backward", self.lanes)
        return (dh, *self._columns(kernel, h, names, h=h, g=g, dh=dh, **args))

    def _columns(self, kernel: Kernel, like: VkArray, names: Sequence[str], before: int = 0, **args: Any
                 ) -> list[VkArray]:
        """Run a kernel that sums over the rows of `like`, into arrays [columns] by those names, in parts where it pays;
        `before` workgroups do something else."""
        columns = like.shape[-1]
        rows = like.size // columns
        parts = self.parts(rows, columns)
        partials = [self.empty((parts, columns) if parts > 1 else (columns,)) for _ in names]
        owned = kernel.defines["WG"] * (1 + kernel.defines.get("PAIRS", 0))
        args |= dict(zip(names, partials, strict=True))
        self.dispatch(kernel, before + divide(columns, owned) * parts, rows=rows, columns=columns, parts=parts, **args)
        return partials if parts == 1 else [self._sum_rows(x, parts, (columns,)) for x in partials]

    def dropout(self, h: VkArray, rng: VkArray, p: float, site: int, residual: VkArray | None = None) -> VkArray:
        out = self.empty(h.shape)
        columns = h.shape[-1] if h.shape else 1
        rows = h.size // columns
        extra: dict[str, Any] = {} if residual is None else {"residual": residual}
        kernel = self.kernel("dropout", self.lanes, RESIDUAL=int(residual is not None),
                             PAIRS=self.pairs(columns, at=(h, *extra.values())))
        self.dispatch(kernel, divide(rows * divide(columns, 4), self.lanes), True, h=h, o=out, rng=rng, rows=rows,
                      columns=columns, threshold=threshold(p), site=site, factor=1.0 / (1.0 - p), **extra)
        return out

    # -- rows ---------------------------------------------------------------------------------------------------------
    def layer_norm(self, x: VkArray, weight: VkArray, bias: VkArray, eps: float) -> tuple[VkArray, VkArray, VkArray]:
        y, mean, rstd = self.empty(x.shape), self.empty(x.shape[:-1]), self.empty(x.shape[:-1])
        kernel = self.kernel("layer_norm", DROPOUT_BEFORE=0, PAIRS=self.pairs(x.shape[-1], at=(x, weight, bias)))
        self.dispatch(kernel, mean.size, x=x, weight=weight, bias=bias, y=y,
                      mean=mean, rstd=rstd, rows=mean.size, columns=x.shape[-1], eps=eps)
        return y, mean, rstd

    def layer_norm_backward(self, x: VkArray, weight: VkArray, mean: VkArray, rstd: VkArray, g: VkArray
                            ) -> tuple[VkArray, VkArray, VkArray]:
        dx = self.empty(x.shape)
        kernel = self.kernel("layer_norm_backward", **NO_EPILOGUE, DROPOUT_AFTER=0,
                             PAIRS=self.pairs(x.shape[-1], at=(x, weight, g)))
        dw, db = self._columns(kernel, x, ("dweight", "dbias"), mean.size, x=x, weight=weight, mean=mean, rstd=rstd,
                               g=g, dx=dx)
        return dx, dw, db

    def qk_norm(self, qkv: VkArray, q_weight: VkArray, k_weight: VkArray, n_head: int) -> VkArray:
        qk = self.empty((*qkv.shape[:-1], 2 * qkv.shape[-1] // 3))
        self._qk_norm(qkv, q_weight, k_weight, qk, n_head, False)
        return qk

    def qk_norm_backward(self, qkv: VkArray, q_weight: VkArray, k_weight: VkArray, dqkv: VkArray, n_head: int
                         ) -> tuple[VkArray, VkArray]:
        dq, dk = self._qk_norm(qkv, q_weight, k_weight, dqkv, n_head, True)
        return dq, dk

    def _qk_norm(self, x: VkArray, q_weight: VkArray, k_weight: VkArray, y: VkArray, n_head: int, backward: bool
                 ) -> list[VkArray]:
        head, rows, size = q_weight.size, x.size // x.shape[-1], self.profile.subgroup_size
        alone = self.profile.profile == "cpu"
        each = size if alone else 1  # workers in a subgroup
        groups = min(divide(rows * n_head, 16 * each), BUSY // size)
        workers = groups * each
        names = ("dq_weight", "dk_weight") if backward else ()
        sums: dict[str, Any] = {name: self.empty((workers, head)) for name in names}
        kernel = self.kernel("qk_norm", DH=head, ALONE=int(alone), BACKWARD=int(backward),
                             PAIRS=self.pairs(head, at=(x, y, q_weight, k_weight)))
        self.dispatch(kernel, 2 * groups, x=x, q_weight=q_weight, k_weight=k_weight, y=y, rows=rows, heads=n_head,
                      x_stride=x.shape[-1], y_stride=y.shape[-1], workers=workers, eps=QK_EPS, **sums)
        return [self._sum_rows(x, workers, (head,)) for x in sums.values()]

    def embedding(self, table: VkArray, index: VkArray, positions: VkArray | None = None) -> VkArray:
        out = self.empty((*index.shape, table.shape[1]))
        self.dispatch(self.kernel("embedding"), index.size, table=table, index=index, positions=positions, o=out,
                      rows=index.size, columns=table.shape[1], len=index.shape[-1], vocabulary=table.shape[0])
        return out

    def embedding_backward(self, index: VkArray, g: VkArray, rows: int) -> VkArray:
        columns = g.shape[-1]
        out = self.empty((rows, columns))
        parts = 1 if self.profile.profile == "cpu" else min(rows, divide(BUSY, columns))
        self.dispatch(self.kernel("embedding_backward", self.lanes), divide(columns, self.lanes) * parts, g=g,
                      index=index, o=out, rows=index.size, columns=columns, vocabulary=rows, parts=parts)
        return out

    def positions_backward(self, g: VkArray, rows: int) -> VkArray:
        t, d = g.shape[-2:]
        return self._sum_rows(g, g.size // (t * d), (rows, d))

    def _sum_rows(self, x: VkArray, rows: int, shape: tuple[int, ...]) -> VkArray:
        """Sum x, seen as [rows, columns], over the rows into an array of this shape, zero beyond the columns."""
        out = self.empty(shape)
        self.dispatch(self.kernel("sum_rows", self.lanes), divide(out.size, self.lanes), x=x, o=out, n=out.size,
                      rows=rows, columns=x.size // rows)
        return out

    # -- reductions ---------------------------------------------------------------------------------------------------
    def sum(self, x: VkArray) -> VkArray:
        return self._reduce(x, "x", 1.0)

    def _partials(self, x: VkArray, expression: str) -> VkArray:
        n = max(1, min(MAX_PARTIALS, divide(x.size, PART)))
        partial = self.empty((n,))
        kernel = self.kernel("reduce", EXPR=expression, PAIRS=self.pairs(x.size, at=(x,)))
        self.dispatch(kernel, n, x=x, o=partial, n=x.size, groups=n, alpha=1.0)
        return partial

    def _reduce(self, x: VkArray, expression: str, alpha: float) -> VkArray:
        """Return alpha · Σ expression(x), of shape ()."""
        if x.size > PART:
            x, expression = self._partials(x, expression), "x"
        out = self.empty(())
        kernel = self.kernel("reduce", EXPR=expression, PAIRS=self.pairs(x.size, at=(x,)))
        self.dispatch(kernel, 1, x=x, o=out, n=x.size, groups=1, alpha=alpha)
        return out

    def expand(self, g: VkArray, shape: tuple[int, ...]) -> VkArray:
        out = self.empty(shape)
        self._each("expand", out.size, x=g, o=out)
        return out

    def cross_entropy(self, logits: VkArray, targets: VkArray) -> tuple[VkArray, VkArray]:
        rows = targets.size
        loss, lse = self.empty((rows,)), self.empty((rows,))
        kernel = self.kernel("cross_entropy", PAIRS=self.pairs(logits.shape[-1], at=(logits,)))
        self.dispatch(kernel, rows, logits=logits, targets=targets, loss=loss, lse=lse,
                      rows=rows, columns=logits.shape[-1])
        return self._reduce(loss, "x", 1.0 / rows), lse

    def cross_entropy_backward(self, logits: VkArray, targets: VkArray, lse: VkArray, g: VkArray) -> VkArray:
        out = self.empty(logits.shape)
        kernel = self.kernel("cross_entropy_backward", PAIRS=self.pairs(logits.shape[-1], at=(logits,)))
        self.dispatch(kernel, targets.size, True, logits=logits, targets=targets,
                      lse=lse, g=g, d=out, rows=targets.size, columns=logits.shape[-1])
        return out

    # -- the optimizer ------------------------------------------------------------------------------------------------
    def clip_stats(self, grad: VkArray, stats: VkArray, loss: VkArray | None, *, clip: float, spike: float,
                   beta1: float, beta2: float, scaling: bool = False) -> None:
        partial = self._partials(grad, "x * x")
        kernel = self.kernel("clip_stats", SCALING=int(scaling), SCALE_MIN=SCALE_MIN, SCALE_MAX=SCALE_MAX,
                             SCALE_PATIENCE=f"{SCALE_PATIENCE}.0", **PLACES)
        self.dispatch(kernel, 1, partial=partial, loss=loss, stats=stats, n=partial.size, clip=clip,
                      spike=spike, beta1=beta1, beta2=beta2)

    def adamw(self, w: VkArray, grad: VkArray, m: VkArray, v: VkArray, stats: VkArray, lr: VkArray, *, beta1: float,
              beta2: float, eps: float, weight_decay: float, n_decay: int) -> None:
        pairs = self.pairs(w.size, n_decay, at=(w, grad, m, v))
        self._each("adamw", w.size, defines={"PAIRS": pairs, **PLACES}, w=w, grad=grad, m=m, v=v, stats=stats, lr=lr,
                   n_decay=n_decay, beta1=beta1, beta2=beta2, eps=eps, decay=weight_decay)
