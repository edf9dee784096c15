"""The primitives: which kernel computes each, with what arguments, over what grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from helios.backends.backend import (
    QK_EPS,
    SCALE_MAX,
    SCALE_MIN,
    SCALE_PATIENCE,
    SPLINE_POINTS,
    SPLINE_REACH,
    STATS,
)
from helios.backends.vulkan.array import VkArray
from helios.backends.vulkan.pipelines import Kernel
from helios.backends.vulkan.products import Products
from helios.backends.vulkan.variants import BUSY, ELEMENTWISE, NO_EPILOGUE, divide
from helios.formula import Formula
from helios.random import threshold

PART, MAX_PARTIALS = 4096, 1024  # a sum over everything: elements in a part, at least, and parts, at most
PLACES = {f"STAT_{name.upper()}": i for i, name in enumerate(STATS)}  # of the optimizer's statistics, for its kernels


class Primitives(Products):
    """All primitives of helios.backends.backend.Backend, on the arrays of a Vulkan device."""

    # -- element by element -------------------------------------------------------------------------------------------
    def _elementwise(self, op: str, *inputs: VkArray, formula: Formula | None = None, alpha: float = 0.0,
                     beta: float = 0.0) -> VkArray:
        out = self.empty(inputs[0].shape)
        defines = {"EXPR": ELEMENTWISE[op], "FORMULA": formula.glsl if formula else "", "Y": int(len(inputs) > 1),
                   "PAIRS": self.pairs(out.size, at=inputs)}
        self._each("elementwise", out.size, True, defines, o=out, alpha=alpha, beta=beta,
                   **dict(zip("xy", inputs, strict=False)))
        return out

    def axpby(self, x: VkArray, y: VkArray, alpha: float, beta: float) -> VkArray:
        return self._elementwise("axpby", x, y, alpha=alpha, beta=beta)

    def mul(self, x: VkArray, y: VkArray) -> VkArray:
        return self._elementwise("mul", x, y)

    def scale(self, x: VkArray, alpha: float) -> VkArray:
        return self._elementwise("scale", x, alpha=alpha)

    def activation(self, formula: Formula, h: VkArray, *coefficients: VkArray) -> VkArray:
        if formula.plain:
            return self._elementwise("activation", h, formula=formula)
        out = self.empty((*h.shape[:-1], h.shape[-1] // len(formula.inputs)))
        self._activation("activation", formula, out, coefficients, [], h=h, o=out)
        return out

    def activation_backward(self, formula: Formula, h: VkArray, *others: VkArray) -> tuple[VkArray, ...]:
        *coefficients, g = others
        if formula.plain:
            return (self._elementwise("activation_backward", h, g, formula=formula),)
        dh, names = self.empty(h.shape), [f"dc{i}" for i in range(len(coefficients))]
        return (dh, *self._activation("activation_backward", formula, g, coefficients, names, h=h, dout=g, dh=dh))

    def _activation(self, name: str, formula: Formula, like: VkArray, coefficients: Sequence[VkArray],
                    sums: Sequence[str], **args: Any) -> list[VkArray]:
        count = len(coefficients)
        arguments = [*formula.inputs, *(f"c[{i}]" for i in range(count))]
        slopes = [*(f"d{x}" for x in formula.inputs), *(f"dc[{i}]" for i in range(count))]
        kernel = self.kernel(name, self.lanes, FORMULA=formula.glsl, GATED=int(formula.gated), COUNT=count,
                             ARGUMENTS=", ".join(f"PART({x}, e)" for x in arguments), SLOPES=", ".join(slopes),
                             PAIRS=self.pairs(like.shape[-1], at=(*args.values(), *coefficients)))
        args |= {f"c{i}": c for i, c in enumerate(coefficients)}
        return self._columns(kernel, like, sums, elementwise=True, **args)

    def softcap(self, x: VkArray, cap: float) -> VkArray:
        return self._elementwise("softcap", x, alpha=cap)

    def softcap_backward(self, x: VkArray, g: VkArray, cap: float) -> VkArray:
        return self._elementwise("softcap_backward", x, g, alpha=cap)

    def spline(self, h: VkArray, points: VkArray) -> VkArray:
        out = self.empty(h.shape)
        self._spline(self.parts(h.size // h.shape[-1], h.shape[-1]), 0, h=h, points=points, o=out)
        return out

    def spline_backward(self, h: VkArray, points: VkArray, g: VkArray) -> tuple[VkArray, VkArray]:
        parts = self.parts(h.size // h.shape[-1], h.shape[-1])
        dh, dpoints = self.empty(h.shape), self.empty((parts, *points.shape) if parts > 1 else points.shape)
        self._spline(parts, 1, h=h, points=points, dout=g, dh=dh, dpoints=dpoints)
        return dh, dpoints if parts == 1 else self._sum_rows(dpoints, parts, points.shape)

    def _spline(self, parts: int, backward: int, **args: VkArray) -> None:
        # Where an output is as large as an input, `parts` is such that one lane alone has to do with the same elements.
        size, columns = args["h"].size, args["h"].shape[-1]
        kernel = self.kernel("spline", self.lanes, FORMULA="", GATED=0, PAIRS=0, BACKWARD=backward,
                             POINTS=SPLINE_POINTS, REACH=SPLINE_REACH)
        self.dispatch(kernel, divide(columns, self.lanes) * parts, True, rows=size // columns, columns=columns,
                      parts=parts, **args)

    def _columns(self, kernel: Kernel, like: VkArray, names: Sequence[str], before: int = 0,
                 elementwise: bool = False, **args: Any) -> list[VkArray]:
        """Run a kernel whose lanes own columns of `like` and sum over its rows, into arrays [columns] by those names,
        in parts where it pays; `before` workgroups do something else."""
        columns = like.shape[-1]
        rows = like.size // columns
        parts = self.parts(rows, columns, bool(names))
        partials = [self.empty((parts, columns) if parts > 1 else (columns,)) for _ in names]
        owned = kernel.defines["WG"] * (1 + kernel.defines.get("PAIRS", 0))
        args |= dict(zip(names, partials, strict=True))
        self.dispatch(kernel, before + divide(columns, owned) * parts, elementwise, rows=rows, columns=columns,
                      parts=parts, **args)
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
        kernel = self.kernel("layer_norm", RMS=0, DROPOUT_BEFORE=0, PAIRS=self.pairs(x.shape[-1], at=(x, weight, bias)))
        self.dispatch(kernel, mean.size, x=x, weight=weight, bias=bias, y=y,
                      mean=mean, rstd=rstd, rows=mean.size, columns=x.shape[-1], eps=eps)
        return y, mean, rstd

    def layer_norm_backward(self, x: VkArray, weight: VkArray, mean: VkArray, rstd: VkArray, g: VkArray
                            ) -> tuple[VkArray, VkArray, VkArray]:
        dx = self.empty(x.shape)
        kernel = self.kernel("layer_norm_backward", **NO_EPILOGUE, RMS=0, DROPOUT_AFTER=0,
                             PAIRS=self.pairs(x.shape[-1], at=(x, weight, g)))
        dw, db = self._columns(kernel, x, ("dweight", "dbias"), mean.size, x=x, weight=weight, mean=mean, rstd=rstd,
                               g=g, dx=dx)
        return dx, dw, db

    def rms_norm(self, x: VkArray, weight: VkArray, eps: float) -> tuple[VkArray, VkArray]:
        y, rstd = self.empty(x.shape), self.empty(x.shape[:-1])
        kernel = self.kernel("layer_norm", RMS=1, DROPOUT_BEFORE=0, PAIRS=self.pairs(x.shape[-1], at=(x, weight)))
        self.dispatch(kernel, rstd.size, x=x, weight=weight, y=y, rstd=rstd, rows=rstd.size, columns=x.shape[-1],
                      eps=eps)
        return y, rstd

    def rms_norm_backward(self, x: VkArray, weight: VkArray, rstd: VkArray, g: VkArray) -> tuple[VkArray, VkArray]:
        dx = self.empty(x.shape)
        kernel = self.kernel("layer_norm_backward", **NO_EPILOGUE, RMS=1, DROPOUT_AFTER=0,
                             PAIRS=self.pairs(x.shape[-1], at=(x, weight, g)))
        (dw,) = self._columns(kernel, x, ("dweight",), rstd.size, x=x, weight=weight, rstd=rstd, g=g, dx=dx)
        return dx, dw

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

    def cross_entropy(self, logits: VkArray, targets: VkArray, cap: float = 0.0) -> tuple[VkArray, VkArray]:
        loss, lse = self.empty((targets.size,)), self.empty((targets.size,))
        self._of_logits("cross_entropy", False, cap, logits=logits, targets=targets, loss=loss, lse=lse)
        return self._reduce(loss, "x", 1.0 / targets.size), lse

    def cross_entropy_backward(self, logits: VkArray, targets: VkArray, lse: VkArray, g: VkArray, cap: float = 0.0
                               ) -> VkArray:
        out = self.empty(logits.shape)
        self._of_logits("cross_entropy_backward", True, cap, logits=logits, targets=targets, lse=lse, g=g, d=out)
        return out

    def _of_logits(self, name: str, elementwise: bool, cap: float, **args: VkArray) -> None:
        rows, columns = args["targets"].size, args["logits"].shape[-1]
        kernel = self.kernel(name, CAPPED=int(cap > 0), PAIRS=self.pairs(columns, at=(args["logits"],)))
        self.dispatch(kernel, rows, elementwise, rows=rows, columns=columns, **args, **({"cap": cap} if cap else {}))

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
