"""The primitives: which kernel computes each, with what arguments, over what grid.

Every choice by device is here and reads the profile: "cpu" devices have no use for workgroups larger than a subgroup
and pay for each workgroup; GPUs want many lanes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from helios.backends.backend import SCALE_MAX, SCALE_MIN, SCALE_PATIENCE
from helios.backends.vulkan.pipelines import Kernel
from helios.backends.vulkan.tuning import TILES, Tile, shape_class, shared_bytes
from helios.random import threshold

if TYPE_CHECKING:
    from helios.backends.vulkan.backend import VkArray

# op → EXPR of elementwise.comp, in x, y, p.alpha, p.beta
ELEMENTWISE = {
    "axpby": "p.alpha * x + p.beta * y",
    "mul": "x * y",
    "scale": "p.alpha * x",
    "gelu": "gelu(x)",
    "gelu_backward": "gelu_grad(x) * y",
    "silu": "silu(x)",
    "silu_backward": "silu_grad(x) * y",
    "relu": "relu(x)",
    "relu_backward": "relu_grad(x) * y",
    "softcap": "softcap(x, p.alpha)",
    "softcap_backward": "softcap_grad(x, p.alpha) * y",
}
# Of the kernels that include lib/epilogue.glsl; fuse.py gives them one.
NO_EPILOGUE = {"HAS_EPILOGUE": 0, "Y": 0, "SWAP": 0}
MAX_PARTIALS = 1024  # of a sum over everything
ATTENTION_HEAD = 128  # the largest head of which the attention kernels for matrix units have registers


def divide(n: int, d: int) -> int:
    return -(-n // d)


class Primitives:
    """Mixed into VulkanBackend, which brings empty(), dispatch() and the pipelines."""

    precision = "f32"
    tiles: dict[str, Tile] = {}  # noqa: RUF012  (replaced, not shared: those that tuning found, by shape class)
    profile: Any
    pipelines: Any
    empty: Any
    dispatch: Any

    # -- variants -----------------------------------------------------------------------------------------------------
    def kernel(self, name: str, lanes: int = 0, **defines: Any) -> Kernel:
        """A variant with `lanes` a workgroup, or one subgroup; for matrix units, with the side of their fragments."""
        sg = self.profile.subgroup_size
        if name.endswith("_coopmat"):
            defines["F"] = self.profile.fragment
        return self.pipelines.get(name, SG=sg, WG=lanes or sg, **defines)

    @property
    def half(self) -> int:
        """HALF of the kernels that include lib/half.glsl."""
        return int(self.precision == "mixed")

    @property
    def lanes(self) -> int:
        """A workgroup's, in kernels where each lane works for itself."""
        return self.profile.subgroup_size if self.profile.profile == "cpu" else 256

    @property
    def span(self) -> int:
        """Elements a lane in elementwise kernels."""
        return 64 if self.profile.profile == "cpu" else 4

    def pairs(self, *lengths: int, at: Sequence[VkArray] = ()) -> int:
        """PAIRS of the kernels that include lib/pairs.glsl: rows of these lengths, arrays at these places in blocks,
        which begin at multiples of 8 bytes."""
        even = all(n % 2 == 0 for n in lengths) and all(x.offset % 8 == 0 for x in at)
        return int(even and self.profile.profile == "cpu" and "shaderInt64" in self.profile.features)

    def parts(self, rows: int, columns: int) -> int:
        """Runs of rows in sums over rows: one where the columns alone keep the device busy."""
        if self.profile.profile == "cpu":
            return 1
        return max(1, min(divide(16384, columns), divide(rows, 16)))

    def _each(self, name: str, n: int, elementwise: bool = False, defines: dict[str, Any] | None = None, **args: Any
              ) -> None:
        kernel = self.kernel(name, self.lanes, SPAN=self.span, **(defines or {}))
        self.dispatch(kernel, divide(n, self.lanes * self.span), elementwise, n=n, **args)

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
        self.dispatch(kernel, before + divide(columns, owned) * parts, rows=rows, columns=columns, parts=parts,
                      **dict(zip(names, partials, strict=True)), **args)
        return partials if parts == 1 else [self._sum_rows(x, parts, (columns,)) for x in partials]

    def dropout(self, h: VkArray, rng: VkArray, p: float, site: int, residual: VkArray | None = None) -> VkArray:
        out = self.empty(h.shape)
        columns = h.shape[-1] if h.shape else 1
        rows = h.size // columns
        extra = {} if residual is None else {"residual": residual}
        kernel = self.kernel("dropout", self.lanes, RESIDUAL=int(residual is not None),
                             PAIRS=self.pairs(columns, at=(h, *extra.values())))
        self.dispatch(kernel, divide(rows * divide(columns, 4), self.lanes), True, h=h, o=out, rng=rng, rows=rows,
                      columns=columns, threshold=threshold(p), site=site, factor=1.0 / (1.0 - p), **extra)
        return out

    # -- matrices -----------------------------------------------------------------------------------------------------
    def matmul(self, a: VkArray, b: VkArray, ta: bool = False, tb: bool = False) -> VkArray:
        return self._matmul(a, b, ta, tb, None)[0]

    def linear(self, x: VkArray, w: VkArray, activation: str | None) -> tuple[VkArray, VkArray | None]:
        return self._matmul(x, w, False, True, activation)

    def _matmul(self, a: VkArray, b: VkArray, ta: bool, tb: bool, epilogue: str | None
                ) -> tuple[VkArray, VkArray | None]:
        lead = a.shape[:-2] if len(b.shape) > 2 or ta else ()
        batch = math.prod(lead)
        k, m = (a.shape[-2], a.shape[-1]) if ta else (a.shape[-1], math.prod(a.shape[len(lead):-1]))
        n = b.shape[-2] if tb else b.shape[-1]
        shape = (*lead, m, n) if lead or ta else (*a.shape[:-1], n)
        out = self.empty(shape)
        pre = self.empty(shape) if epilogue else None
        defines: dict[str, Any] = {"TA": int(ta), "TB": int(tb), **NO_EPILOGUE, "STORE_PRE": int(pre is not None),
                                   "HALF": self.half}
        extra: dict[str, Any] = {}
        if epilogue:
            defines |= {"HAS_EPILOGUE": 1, "EPILOGUE": ELEMENTWISE[epilogue]}
            extra = {"pre": pre, "alpha": 0.0, "beta": 0.0}
        name, sg = self.matmul_kernel, self.profile.subgroup_size
        tile = self.tiles.get(shape_class(ta, tb, m, n, k)) or self.matmul_tile(ta, tb, m, n, batch)
        if name == "matmul_cpu":
            rows, columns, lanes = tile["RA"] * sg, tile["CB"] * sg, sg
            defines["PAIRS"] = self.pairs(m if ta else k, k if tb else n, n, at=(a, b))
        else:
            rows, columns = tile["BM"], tile["BN"]
            part = (tile["TM"], tile["TN"], 1) if name == "matmul" else (tile["WM"], tile["WN"], sg)
            lanes = rows // part[0] * (columns // part[1]) * part[2]
            defines["VEC_A"] = int(a.offset % 16 == 0 and (m if ta else k) % 4 == 0)
            defines["VEC_B"] = int(b.offset % 16 == 0 and (k if tb else n) % 4 == 0)
        kernel, tiles = self.kernel(name, lanes, **tile, **defines), divide(m, rows) * divide(n, columns)
        self.dispatch(kernel, tiles * batch, a=a, b=b, c=out, m=m, n=n, k=k, batch=batch,
                      a_step=m * k, b_step=k * n if len(b.shape) > 2 else 0, **extra)
        return out, pre

    @property
    def matmul_kernel(self) -> str:
        units = self.profile.profile == "coopmat" and self.half
        return "matmul_cpu" if self.profile.profile == "cpu" else "matmul_coopmat" if units else "matmul"

    def matmul_tile(self, ta: bool, tb: bool, m: int, n: int, batch: int = 1) -> Tile:
        """Where none was found by tuning."""
        if self.matmul_kernel == "matmul_cpu":
            wide = not tb and divide(n, 128) * 128 < 1.05 * n  # B's rows along memory, and little of a tile beyond them
            sizes = (2, 2, 4) if m < 128 or n < 64 else (4, 8, 2) if wide else (4, 4, 4)
            return dict(zip(("RA", "CB", "KU"), sizes, strict=True))
        large, small = TILES[self.matmul_kernel][:2]
        many = divide(m, large["BM"]) * divide(n, large["BN"]) * batch >= 128
        return large if many and shared_bytes(self.matmul_kernel, large) <= self.profile.shared_bytes else small

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

    def embedding(self, table: VkArray, index: VkArray, positions: VkArray | None = None) -> VkArray:
        out = self.empty((*index.shape, table.shape[1]))
        self.dispatch(self.kernel("embedding"), index.size, table=table, index=index, positions=positions, o=out,
                      rows=index.size, columns=table.shape[1], len=index.shape[-1], vocabulary=table.shape[0])
        return out

    def embedding_backward(self, index: VkArray, g: VkArray, rows: int) -> VkArray:
        columns = g.shape[-1]
        out = self.empty((rows, columns))
        parts = 1 if self.profile.profile == "cpu" else min(rows, divide(16384, columns))
        self.dispatch(self.kernel("embedding_backward", self.lanes), divide(columns, self.lanes) * parts, g=g,
                      index=index, o=out, rows=index.size, columns=columns, vocabulary=rows, parts=parts)
        return out

    def positions_backward(self, g: VkArray, rows: int) -> VkArray:
        t, d = g.shape[-2:]
        return self._sum_rows(g, g.size // (t * d), (rows, d))

    def _sum_rows(self, x: VkArray, rows: int, shape: tuple[int, ...]) -> VkArray:
        """x seen as [rows, columns], summed over the rows, into an array of this shape, zero beyond the columns."""
        out = self.empty(shape)
        self.dispatch(self.kernel("sum_rows", self.lanes), divide(out.size, self.lanes), x=x, o=out, n=out.size,
                      rows=rows, columns=x.size // rows)
        return out

    def attention(self, qkv: VkArray, rng: VkArray | None, n_head: int, cap: float, p: float, site: int
                  ) -> tuple[VkArray, VkArray]:
        b, t, width = qkv.shape
        out, lse = self.empty((b, t, width // 3)), self.empty((b, n_head, t))
        block = self.attention_block(width // 3 // n_head, False, qkv)
        self._attention("attention", block, {}, qkv, rng, n_head, cap, p, site, o=out, lse=lse)
        return out, lse

    def attention_backward(self, qkv: VkArray, out: VkArray, lse: VkArray, g: VkArray, rng: VkArray | None,
                           n_head: int, cap: float, p: float, site: int) -> VkArray:
        dqkv = self.empty(qkv.shape)
        block = self.attention_block(qkv.shape[-1] // 3 // n_head, True, qkv, out, g)
        extra = {"delta": self.empty(lse.shape)} if block else {}
        for by_key in (0, 1):
            self._attention("attention_backward", block, {"BY_KEY": by_key}, qkv, rng, n_head, cap, p, site, o=out,
                            lse=lse, g=g, dqkv=dqkv, **extra)
        return dqkv

    def attention_block(self, head: int, backward: bool, *arrays: VkArray) -> int:
        """BK of the attention kernels for matrix units, the larger if shared memory allows; 0 where others serve."""
        side = self.profile.fragment
        fits = head % 16 == 0 and head <= ATTENTION_HEAD and self.profile.subgroup_size <= 4 * side
        if self.profile.profile == "coopmat" and self.half and fits and all(x.offset % 16 == 0 for x in arrays):
            for block in (32, 16):  # see lib/attention_coopmat.glsl
                tiles, pairs, wide, more = (2, 2, side, 32 * side) if backward else (1, 1, block, 0)
                mine = 16 * side * tiles * (wide + 4) + 8 * side * pairs * (2 * wide + 8) + more
                if 4 * block * (head + 8) + mine <= self.profile.shared_bytes:
                    return block
        return 0

    def _attention(self, name: str, block: int, defines: dict[str, int], qkv: VkArray, rng: VkArray | None, n_head: int,
                   cap: float, p: float, site: int, **args: VkArray) -> None:
        b, t, width = qkv.shape
        head, rows, lanes = width // 3 // n_head, self.profile.subgroup_size, 0
        defines = {"DH": head, "CAPPED": int(cap > 0), "DROPOUT": int(p > 0), "HALF": self.half, **defines}
        if block:
            name, rows, lanes, defines["BK"] = f"{name}_coopmat", 4 * self.profile.fragment, 4 * rows, block
        else:
            defines["PAIRS"] = self.pairs(head, at=(qkv, *args.values()))
        self.dispatch(self.kernel(name, lanes, **defines), divide(t, rows) * b * n_head, qkv=qkv, rng=rng, batch=b,
                      heads=n_head, len=t, threshold=threshold(p), site=site, scale=1.0 / math.sqrt(head), cap=cap,
                      factor=1.0 / (1.0 - p), **args)

    # -- reductions ---------------------------------------------------------------------------------------------------
    def sum(self, x: VkArray) -> VkArray:
        return self._reduce(x, "x", 1.0)

    def _partials(self, x: VkArray, expression: str) -> VkArray:
        n = max(1, min(MAX_PARTIALS, divide(x.size, 4096)))
        partial = self.empty((n,))
        kernel = self.kernel("reduce", EXPR=expression, PAIRS=self.pairs(x.size, at=(x,)))
        self.dispatch(kernel, n, x=x, o=partial, n=x.size, groups=n, alpha=1.0)
        return partial

    def _reduce(self, x: VkArray, expression: str, alpha: float) -> VkArray:
        """alpha · Σ expression(x), shape ()."""
        if x.size > 4096:
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
                             SCALE_PATIENCE=f"{SCALE_PATIENCE}.0")
        self.dispatch(kernel, 1, partial=partial, loss=loss, stats=stats, n=partial.size, clip=clip,
                      spike=spike, beta1=beta1, beta2=beta2)

    def adamw(self, w: VkArray, grad: VkArray, m: VkArray, v: VkArray, stats: VkArray, lr: VkArray, *, beta1: float,
              beta2: float, eps: float, weight_decay: float, n_decay: int) -> None:
        pairs = self.pairs(w.size, n_decay, at=(w, grad, m, v))
        self._each("adamw", w.size, defines={"PAIRS": pairs}, w=w, grad=grad, m=m, v=v, stats=stats, lr=lr,
                   n_decay=n_decay, beta1=beta1, beta2=beta2, eps=eps, decay=weight_decay)
