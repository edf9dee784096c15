"""Random graphs of operations give the same values with fusing and without, in any order that barriers allow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from helios import random
from helios.backends.vulkan import backend as module
from helios.backends.vulkan.array import VkArray
from helios.backends.vulkan.backend import VulkanBackend
from helios.formula import Formula

from .vulkan import make

GELU = Formula.parse("gelu(x)")
SHAPES = ((1, 1), (5, 1), (1, 7), (8, 8), (33, 8), (17, 19), (64, 64), (70, 30))


class Graph:
    """Ten to twenty operations on arrays of one shape, drawn by a seed; some results are kept, some go to a slab."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        draw = np.random.default_rng(seed)
        self.rows, self.columns = SHAPES[seed % len(SHAPES)]
        normal = lambda *shape: draw.standard_normal(shape).astype(np.float32)
        r, c = self.rows, self.columns
        self.inputs = [normal(r, c), normal(r, c), normal(c), normal(c, c) / np.float32(c**0.5), random.state(3, 4)]
        self.slab = normal(2 * r * c + 64)

    def build(self, be: VulkanBackend, slab: VkArray, *inputs: VkArray) -> list[VkArray]:
        draw = np.random.default_rng(self.seed + 1)
        a, b, vector, matrix, rng = inputs
        shape = (self.rows, self.columns)
        # The last overlaps the first two in part.
        homes = [be.view(slab, at, shape) for at in (0, self.rows * self.columns, 64)]
        pool, kept = [a, b, *homes], []
        pick = lambda: pool[-1 - min(int(draw.geometric(0.4)) - 1, len(pool) - 1)]
        maybe = lambda p: draw.random() < p

        def keep(x: VkArray) -> None:
            if maybe(0.25):
                be.assign(homes[int(draw.integers(3))], x, take=True)
            else:
                pool.append(x)

        for _ in range(int(draw.integers(10, 20))):
            kind = draw.choice(["matmul", "unary", "binary", "matmul_binary", "norm", "norm_backward", "copy"])
            if kind == "matmul":
                keep(be.matmul(pick(), matrix, False, maybe(0.5)))
            elif kind == "unary":
                keep(be.activation(GELU, pick()) if maybe(0.5) else be.scale(pick(), 0.7))
            elif kind == "binary":
                keep(be.axpby(pick(), pick(), 0.6, 0.5) if maybe(0.6) else
                     be.activation_backward(GELU, pick(), pick())[0])
            elif kind == "matmul_binary":
                product, other = be.matmul(pick(), matrix), pick()
                keep(be.axpby(product, other, 0.4, 0.7) if maybe(0.5) else be.axpby(other, product, 0.4, 0.7))
                if maybe(0.2):
                    pool.append(product)
                del product, other
            elif kind == "copy":
                be.assign(homes[int(draw.integers(3))], pick())
            else:
                x = be.dropout(pick(), rng, 0.3, int(draw.integers(5)), pick()) if maybe(0.8) else pick()
                if maybe(0.2):
                    keep(be.scale(pick(), 0.9))  # something between the two
                weight = be.scale(vector, 1.5) if maybe(0.5) else vector
                rms = maybe(0.4)
                y, *saved = be.rms_norm(x, weight, 1e-2) if rms else be.layer_norm(x, weight, vector, 1e-2)
                if kind == "norm_backward":
                    backward = be.rms_norm_backward if rms else be.layer_norm_backward
                    dx, dw, *_ = backward(x, weight, *saved, pick())
                    if maybe(0.7):
                        dx = be.axpby(dx, pick(), 0.5, 0.5)
                    if maybe(0.2):
                        keep(be.scale(pick(), 0.9))
                    if maybe(0.5):
                        keep(be.dropout(dx, rng, 0.3, int(draw.integers(5))))
                    keep(dx)
                    kept.append(dw)
                    del dx, dw
                if maybe(0.5):
                    pool.append(x)
                if maybe(0.3):
                    kept.append(saved[0])
                keep(y)
                del x, y, saved, weight
        return [x for x in pool[5:] if maybe(0.4)] + kept

    def run(self, be: VulkanBackend, shuffle: bool = False) -> tuple[list[np.ndarray], int]:
        """All that is left after two replays, and the number of commands."""
        slab = be.array(self.slab)
        program = be.record(lambda *inputs: self.build(be, slab, *inputs), [(x.shape, x.dtype) for x in self.inputs])
        if shuffle:
            program.shuffle(self.seed)
        results: list[Any] = []
        for _ in range(2):
            results += program.submit(self.inputs)()
        return [*results, be.numpy(slab)], len(program.commands)


def test_random_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    be, saved = make(), 0
    for seed in range(120):
        graph = Graph(seed)
        fused, n = graph.run(be)
        shuffled, _ = graph.run(be, shuffle=True)
        with monkeypatch.context() as patched:
            patched.setattr(module, "fuse", lambda commands, pipelines: list(commands))
            plain, m = graph.run(be)
        saved += m - n
        for x, y, z in zip(fused, plain, shuffled, strict=True):
            np.testing.assert_array_equal(x, z, err_msg=f"seed {seed}, shuffled")
            size = np.abs(y[np.isfinite(y)]).max(initial=1.0)
            np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-3 * size, err_msg=f"seed {seed}, fused")
    assert saved > 200, "nothing was fused"
