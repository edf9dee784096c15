"""matmul_coopmat.comp, also without matrix units: its own text, with fragments emulated.

Fragments become arrays of the subgroup's lanes, and the cooperative operations loops over them. All else is the kernel
as it is shipped: tiles, slices, layouts, padding, the two halves of shared memory, barriers, stores, epilogues.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from helios.backends.cpu_ref import CpuRef
from helios.backends.vulkan import primitives, shaders
from helios.backends.vulkan.backend import VulkanBackend

from .vulkan import Training, make

EMULATION = """
// A lane holds the columns lane, lane + SG, … of a fragment: element (r, c) is v[r * EACH + c / SG] of lane c % SG.
#extension GL_KHR_shader_subgroup_shuffle : require
#define EACH (16 / SG)
struct Fragment { float v[16 * EACH]; };
#define gl_CooperativeMatrixLayoutRowMajor 0
#define gl_CooperativeMatrixLayoutColumnMajor 1

uvec2 halves(vec4 v) {
    return uvec2(packHalf2x16(vec2(rounded(v.x), rounded(v.y))), packHalf2x16(vec2(rounded(v.z), rounded(v.w))));
}
uvec2 halves(int zero) { return uvec2(0); }
float half_of(uvec2 four, uint e) { return unpackHalf2x16(four[e / 2])[e % 2]; }

#define SIXTEEN (15 + gl_NumWorkGroups.z)  // not known to the compiler: it would unroll for minutes
#define FOR_MINE for (uint e_ = 0; e_ < SIXTEEN * EACH; e_++)
#define ROW_ (e_ / EACH)
#define COLUMN_ (gl_SubgroupInvocationID + e_ % EACH * SG)
#define coopMatLoad(m, from, element, stride, layout_) FOR_MINE { \\
    uint at_ = ((layout_) == 0 ? ROW_ : COLUMN_) * (stride) * 4 + ((layout_) == 0 ? COLUMN_ : ROW_) + (element) * 4; \\
    m.v[e_] = half_of(from[at_ / 4], at_ % 4); }
#define coopMatStore(m, to, element, stride, layout_) FOR_MINE to[(element) + ROW_ * (stride) + COLUMN_] = m.v[e_]

Fragment filled(float x) {
    Fragment m;
    FOR_MINE m.v[e_] = x;
    return m;
}
Fragment coopMatMulAdd(Fragment a, Fragment b, Fragment c) {
    for (uint k = 0; k < SIXTEEN; k++)
        FOR_MINE c.v[e_] = fma(subgroupShuffle(a.v[ROW_ * EACH + k / SG], k % SG), b.v[k * EACH + e_ % EACH], c.v[e_]);
    return c;
}
"""
real_source = shaders.source


def emulated(name: str, defines: dict[str, Any]) -> str:
    """The source of a kernel, with emulated fragments in the one that has some."""
    text = real_source(name, defines)
    if name != "matmul_coopmat":
        return text
    for pattern, replacement, least in [
            (r"\[\[unroll\]\] ", "", 3),
            (r"#extension GL_(KHR_cooperative|KHR_memory_scope|EXT_shader_explicit_arithmetic).*\n", "", 3),
            (r"#pragma use_vulkan_memory_model\n", "", 1), (r"f16vec4\(", "halves(", 3), (r"f16vec4", "uvec2", 3),
            (r"coopmat<[^>]*>\(", "filled(", 1), (r"coopmat<[^>]*>", "Fragment", 3)]:
        text, n = re.subn(pattern, replacement, text)
        assert n >= least, f"{pattern} is no longer in the kernel"
    head = (shaders.resources.files("helios.kernels") / "lib/half.glsl").read_text() + EMULATION
    return text.replace("layout(push_constant)", head + "layout(push_constant)", 1)


@pytest.fixture(scope="module")
def units() -> Iterator[VulkanBackend]:
    """A backend with matrix units, or one that is taken for such."""
    real = make(precision="mixed")
    if real.profile.profile == "coopmat":
        yield real
        return
    if real.profile.subgroup_size > 16:
        pytest.skip("the emulation spreads a fragment's 16 columns over the lanes of a subgroup")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shaders, "source", emulated)
        yield make(profile="coopmat", precision="mixed")


# The larger one that ships, shallower for lavapipe's 32 KiB of shared memory; the smaller; uneven ones.
TILES = [primitives.COOPMAT_TILES[0] | {"BK": 16}, primitives.COOPMAT_TILES[1],
         {"BM": 32, "BN": 64, "BK": 16, "WM": 32, "WN": 16}]
LAYOUTS = list(itertools.product((False, True), repeat=2))


def operands(m: int, n: int, k: int, ta: bool, tb: bool, lead_a: tuple[int, ...] = (), lead_b: tuple[int, ...] = ()
             ) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(m * n * k)
    a, b = draw.standard_normal((*lead_a, *((k, m) if ta else (m, k)))), draw.standard_normal(
        (*lead_b, *((n, k) if tb else (k, n))))
    return a.astype(np.float32), b.astype(np.float32)


def check(units: VulkanBackend, a: np.ndarray, b: np.ndarray, ta: bool, tb: bool) -> None:
    oracle = CpuRef(np.float64, "mixed")
    expected = oracle.matmul(oracle.array(a), oracle.array(b), ta, tb)
    got = units.numpy(units.matmul(units.array(a), units.array(b), ta, tb))
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tile", TILES, ids=lambda t: "x".join(map(str, t.values())))
@pytest.mark.parametrize(("ta", "tb"), LAYOUTS)
def test_any_shape(units: VulkanBackend, ta: bool, tb: bool, tile: dict[str, int], monkeypatch: pytest.MonkeyPatch
                   ) -> None:
    monkeypatch.setattr(primitives, "COOPMAT_TILES", (tile, tile))
    for m, n, k in [(1, 1, 1), (65, 67, 33), (70, 131, 99), (64, 64, 64), (148, 132, 100), (16, 200, 36)]:
        check(units, *operands(m, n, k, ta, tb), ta, tb)
    names = {key[0] for key in units.pipelines.kernels}
    assert "matmul_coopmat" in names and "matmul" not in names


@pytest.mark.parametrize(("ta", "tb"), LAYOUTS)
def test_batches(units: VulkanBackend, ta: bool, tb: bool) -> None:
    check(units, *operands(17, 19, 37, ta, tb, (2, 3), (2, 3)), ta, tb)
    check(units, *operands(20, 36, 40, ta, tb, (3,), (3,)), ta, tb)
    if not ta:
        check(units, *operands(17, 36, 40, ta, tb, (2, 3)), ta, tb)


def test_edges_are_not_stored(units: VulkanBackend) -> None:
    """Not a number beyond the edge of the operands, nor a write beyond the edge of the result."""
    for start, m, n, k in ((32, 3, 3, 5), (33, 3, 3, 4), (32, 4, 4, 4)):  # alone, not aligned, by fours
        whole = np.full(128, np.nan, np.float32)
        whole[start:start + max(m * k, k * n)] = 1
        x = units.array(whole)
        for ta, tb in LAYOUTS:
            a = units.view(x, start, (k, m) if ta else (m, k))
            b = units.view(x, start, (n, k) if tb else (k, n))
            assert (units.numpy(units.matmul(a, b, ta, tb)) == k).all()


def test_a_training_step(units: VulkanBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a step's products, with their epilogues, against the kernels for other GPUs in mixed precision."""
    least = {"BM": 16, "BN": 16, "BK": 16, "WM": 16, "WN": 16}
    monkeypatch.setattr(primitives, "COOPMAT_TILES", (least, least))
    ours, simt = Training(units, "gelu"), Training(make(profile="simt", precision="mixed"), "gelu")
    for _ in range(3):
        a, b = ours.step(), simt.step()
        np.testing.assert_allclose(a[0], b[0], rtol=1e-4)
        np.testing.assert_allclose(a[1], b[1], rtol=1e-2)
    assert "matmul_coopmat" in {c.name for c in ours.program.commands}
