"""The primitives that are sums of products: matmul, linear, attention; and the tiles they compute by."""

from __future__ import annotations

import math
from typing import Any

from helios.backends.vulkan.array import VkArray
from helios.backends.vulkan.tuning import SUBGROUPS, TILES, Tile, candidates, kernel_of, lanes, shape_class
from helios.backends.vulkan.variants import ELEMENTWISE, NO_EPILOGUE, Variants, divide
from helios.formula import Formula
from helios.random import threshold

ATTENTION_HEAD = 128  # the largest head of which the attention kernels for matrix units have registers
CACHE_LINE = 16  # floats
DIGITS, TILES_ALONG = 8, 8**5  # of matmul_uniform: values of a digit; tiles along an axis that it can count
WORTH = 1 << 22, 1 << 14, 64  # M·N·K, M·N and K from which on matmul_uniform is faster and repays its compilation


class Products(Variants):
    """Products of matrices and attention, on the arrays of a Vulkan device."""

    tiles: dict[str, Tile] = {}  # noqa: RUF012  (replaced, not shared: those that tuning found, by shape class)

    def matmul(self, a: VkArray, b: VkArray, ta: bool = False, tb: bool = False) -> VkArray:
        return self._matmul(a, b, ta, tb, None)[0]

    def linear(self, x: VkArray, w: VkArray, activation: Formula | None) -> tuple[VkArray, VkArray | None]:
        return self._matmul(x, w, False, True, activation)

    def _matmul(self, a: VkArray, b: VkArray, ta: bool, tb: bool, activation: Formula | None
                ) -> tuple[VkArray, VkArray | None]:
        lead = a.shape[:-2] if len(b.shape) > 2 or ta else ()
        batch = math.prod(lead)
        k, m = (a.shape[-2], a.shape[-1]) if ta else (a.shape[-1], math.prod(a.shape[len(lead):-1]))
        n = b.shape[-2] if tb else b.shape[-1]
        shape = (*lead, m, n) if lead or ta else (*a.shape[:-1], n)
        out = self.empty(shape)
        pre = self.empty(shape) if activation else None
        tile = self.tiles.get(shape_class(ta, tb, m, n, k))
        if tile is None or not self.fits(tile, m, n, batch):
            tile = self.matmul_tile(ta, tb, m, n, k, batch)
        name, sg = kernel_of(tile, self.matmul_kernel), self.profile.subgroup_size
        defines: dict[str, Any] = {"TA": int(ta), "TB": int(tb), **NO_EPILOGUE, "STORE_PRE": int(pre is not None),
                                   "HALF": self.half}
        extra: dict[str, Any] = {}
        if activation:
            defines |= {"HAS_EPILOGUE": 1, "EPILOGUE": ELEMENTWISE["activation"], "FORMULA": activation.glsl}
            extra = {"pre": pre, "alpha": 0.0, "beta": 0.0}
        if name == "matmul_uniform":
            self._uniform(a, b, out, ta, tb, m, n, k, tile, defines, extra)
            return out, pre
        if name == "matmul_cpu":
            rows, columns = tile["RA"] * sg, tile["CB"] * sg
            defines["PAIRS"] = self.pairs(m if ta else k, k if tb else n, n, at=(a, b))
        else:
            rows, columns = tile["BM"], tile["BN"]
            defines["VEC_A"] = int(a.offset % 16 == 0 and (m if ta else k) % 4 == 0)
            defines["VEC_B"] = int(b.offset % 16 == 0 and (k if tb else n) % 4 == 0)
        kernel = self.kernel(name, lanes(name, tile, sg), **tile, **defines)
        self.dispatch(kernel, divide(m, rows) * divide(n, columns) * batch, a=a, b=b, c=out, m=m, n=n, k=k, batch=batch,
                      a_step=m * k, b_step=k * n if len(b.shape) > 2 else 0, **extra)
        return out, pre

    def _uniform(self, a: VkArray, b: VkArray, out: VkArray, ta: bool, tb: bool, m: int, n: int, k: int, tile: Tile,
                 defines: dict[str, Any], extra: dict[str, Any]) -> None:
        """Compute a product by matmul_uniform: KB steps of K at a time, then what is left of K by powers of two."""
        a_row, a_step, sg = *((4 * m, m) if tile["TA"] else (4 * k, 1)), self.profile.subgroup_size
        if ta != tile["TA"]:
            a = self._transposed(a, k if ta else m, m if ta else k)
        if tb:
            b = self._transposed(b, n, k)
        grid = divide(n, tile["CB"] * sg), divide(m, tile["R"] * SUBGROUPS)
        digits: dict[str, Any] = {f"digit{i}": i for i in range(DIGITS)}
        sums, done = b, 0
        plain = tile | NO_EPILOGUE | {"STORE_PRE": 0, "TB": 0, "DIGITS": DIGITS}
        defines = {name: value for name, value in defines.items() if name not in ("TA", "TB", "HALF")}
        while done < k:
            steps = min(tile["KB"], 1 << (k - done).bit_length() - 1)
            last = done + steps == k
            made = out if last else self.empty(out.shape)
            kernel = self.kernel("matmul_uniform", lanes("matmul_uniform", tile, sg), **(
                plain | (defines if last else {}) | {"KB": steps}))
            # In between, c may lie over sums: what a tile stores, it alone needs. The last one may be placed by others.
            self.dispatch(kernel, grid, done > 0 and not last, a=_from(a, done * a_step), b=_from(b, done * n),
                          sums=sums, c=made, m=m, n=n, a_row=a_row, b_row=4 * n, given_sums=int(done > 0), **digits,
                          **(extra if last else {}))
            sums, done = made, done + steps

    def _transposed(self, x: VkArray, rows: int, columns: int) -> VkArray:
        out, pairs = self.empty((columns, rows)), self.pairs(rows, columns, at=(x,))
        self.dispatch(self.kernel("transpose", BLOCK=CACHE_LINE, PAIRS=pairs), divide(columns, CACHE_LINE) * divide(
            rows, (1 + pairs) * self.profile.subgroup_size), x=x, o=out, rows=rows, columns=columns)
        return out

    @property
    def matmul_kernel(self) -> str:
        """Return the kernel that computes products on this device."""
        if self.profile.profile == "cpu":
            return "matmul_cpu"
        units = self.profile.profile == "coopmat" and self.half and candidates(self.profile, "matmul_coopmat")
        return "matmul_coopmat" if units else "matmul"

    def fits(self, tile: Tile, m: int, n: int, batch: int = 1) -> bool:
        """Return whether such products can be computed with this tile."""
        if "KB" not in tile:
            return True
        rows, columns = tile["R"], tile["CB"] * self.profile.subgroup_size
        return batch == 1 and not self.half and m >= rows and n >= columns and max(
            divide(m, rows * SUBGROUPS), divide(n, columns)) < min(TILES_ALONG, self.profile.max_groups)

    def matmul_tile(self, ta: bool, tb: bool, m: int, n: int, k: int, batch: int = 1) -> Tile:
        """Return the tile for products of which none was found by tuning."""
        if self.matmul_kernel == "matmul_cpu":
            uniform = TILES["matmul_uniform"][self.profile.subgroup_size >= 16]
            worth = all(size >= least for size, least in zip((m * n * k, m * n, k), WORTH, strict=True))
            if worth and self.fits(uniform, m, n, batch) and uniform in candidates(self.profile, "matmul_cpu"):
                return uniform
            wide = not tb and divide(n, 128) * 128 < 1.05 * n  # B's rows along memory, and little of a tile beyond them
            sizes = (2, 2, 4) if m < 128 or n < 64 else (4, 8, 2) if wide else (4, 4, 4)
            return dict(zip(("RA", "CB", "KU"), sizes, strict=True))
        large, *others = TILES[self.matmul_kernel]
        fit = candidates(self.profile, self.matmul_kernel)
        many = divide(m, large["BM"]) * divide(n, large["BN"]) * batch >= 128
        if many and large in fit:
            return large
        return next((tile for tile in (*others, large) if tile in fit), others[-1])

    def attention(self, qkv: VkArray, rng: VkArray | None, n_head: int, cap: float, p: float, site: int,
                  qk: VkArray | None = None) -> tuple[VkArray, VkArray]:
        (b, t, width), qk = qkv.shape, qk or qkv
        out, lse = self.empty((b, t, width // 3)), self.empty((b, n_head, t))
        block = self.attention_block(width // 3 // n_head, False, qkv, qk)
        self._attention("attention", block, {}, out, rng, n_head, cap, p, site, lse=lse, o=out, **_q_k_v(qkv, qk))
        return out, lse

    def attention_backward(self, qkv: VkArray, out: VkArray, lse: VkArray, g: VkArray, rng: VkArray | None,
                           n_head: int, cap: float, p: float, site: int, qk: VkArray | None = None) -> VkArray:
        dqkv, d, qk = self.empty(qkv.shape), out.shape[-1], qk or qkv
        block = self.attention_block(d // n_head, True, qkv, qk, out, g)
        delta = {"delta": self.empty(lse.shape)} if block else {}
        by_query = {"o": out, **delta, **_columns("dq", dqkv, 0, d)}
        by_key = (delta or {"o": out}) | _columns("dk", dqkv, 1, d) | _columns("dv", dqkv, 2, d)
        for i, given in enumerate((by_query, by_key)):
            self._attention("attention_backward", block, {"BY_KEY": i}, out, rng, n_head, cap, p, site, lse=lse, g=g,
                            **_q_k_v(qkv, qk), **given)
        return dqkv

    def attention_block(self, head: int, backward: bool, *arrays: VkArray) -> int:
        """Return BK of the attention kernels for matrix units, the larger one if shared memory allows; 0 where others
        serve."""
        side, size = self.profile.fragment, self.profile.subgroup_size
        units = self.profile.profile == "coopmat" and self.half and "subgroup clustered" in self.profile.features
        fits = head % 16 == 0 and head <= ATTENTION_HEAD and size <= 4 * side and 4 * size <= self.profile.max_lanes
        if units and fits and all(x.offset % 16 == 0 for x in arrays):
            for block in (32, 16):  # see lib/attention_coopmat.glsl
                tiles, pairs, wide, more = (2, 2, side, 32 * side) if backward else (1, 1, block, 0)
                mine = 16 * side * tiles * (wide + 4) + 8 * side * pairs * (2 * wide + 8) + more
                if 4 * block * (head + 8) + mine <= self.profile.shared_bytes:
                    return block
        return 0

    def _attention(self, name: str, block: int, defines: dict[str, int], out: VkArray, rng: VkArray | None, n_head: int,
                   cap: float, p: float, site: int, **args: Any) -> None:
        b, t, width = out.shape
        head, rows, lanes = width // n_head, self.profile.subgroup_size, 0
        defines = {"DH": head, "CAPPED": int(cap > 0), "DROPOUT": int(p > 0), "HALF": self.half, **defines}
        if block:
            name, rows, lanes, defines["BK"] = f"{name}_coopmat", 4 * self.profile.fragment, 4 * rows, block
        else:
            defines["PAIRS"] = self.pairs(head, at=[x for x in args.values() if isinstance(x, VkArray)])
        self.dispatch(self.kernel(name, lanes, **defines), divide(t, rows) * b * n_head, rng=rng, batch=b,
                      heads=n_head, len=t, threshold=threshold(p), site=site, scale=1.0 / math.sqrt(head), cap=cap,
                      factor=1.0 / (1.0 - p), **args)


def _from(x: VkArray, start: int) -> VkArray:
    return VkArray(x.handle, x.offset + 4 * start, (x.size - start,), x.dtype)


def _columns(name: str, x: VkArray, i: int, width: int) -> dict[str, Any]:
    """Return the arguments of a kernel for the i-th `width` columns of x [..., D]: where they begin, and the distance
    from one row to the next."""
    rest = x.size - x.shape[-1] + width  # from the first to the last of them, with all that lies between
    return {name: VkArray(x.handle, x.offset + 4 * i * width, (rest,), x.dtype), f"{name}_stride": x.shape[-1]}


def _q_k_v(qkv: VkArray, qk: VkArray) -> dict[str, Any]:
    d = qkv.shape[-1] // 3
    return _columns("q", qk, 0, d) | _columns("k", qk, 1, d) | _columns("v", qkv, 2, d)
