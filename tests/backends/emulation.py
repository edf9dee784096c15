"""Kernels for matrix units, also without matrix units: then their own text, with fragments emulated.

Fragments become arrays of the subgroup's lanes, and the cooperative operations loops over them. No loop is unrolled:
lavapipe would compile for minutes. All else is the kernel as it is shipped: tiles, slices, layouts, padding, shared
memory, barriers, stores.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from helios.backends.vulkan import shaders, tuning
from helios.backends.vulkan.backend import VulkanBackend
from helios.backends.vulkan.device import DeviceProfile

from .vulkan import make

EMULATION = """
// A lane holds the columns lane, lane + SG, … of a fragment: element (r, c) is v[r * WIDE + c / SG] of lane c % SG.
#extension GL_KHR_shader_subgroup_shuffle : require
#define WIDE (F / SG)
struct Fragment { float v[max(F * WIDE, 33)]; };  // of 32 or fewer, Mesa makes each access a tree of branches
#define gl_CooperativeMatrixLayoutRowMajor 0
#define gl_CooperativeMatrixLayoutColumnMajor 1

uvec2 halves(vec4 v) {
    return uvec2(packHalf2x16(vec2(rounded(v.x), rounded(v.y))), packHalf2x16(vec2(rounded(v.z), rounded(v.w))));
}
uvec2 halves(int zero) { return uvec2(0); }
float element(uvec2 four, uint e) { return unpackHalf2x16((e < 2 ? four.x : four.y) >> e % 2 * 16).x; }
float element(vec4 four, uint e) { return four[e]; }

#define FOR_MINE for (uint e_ = 0; e_ < F * ONE * WIDE; e_++)
#define ROW_ (e_ / WIDE)
#define COLUMN_ (gl_SubgroupInvocationID + e_ % WIDE * SG)
#define IN_MEMORY(at, stride, layout_) \\
    ((at) + ((layout_) == 0 ? ROW_ : COLUMN_) * (stride) + ((layout_) == 0 ? COLUMN_ : ROW_))
#define coopMatLoad(m, from, at, stride, layout_) FOR_MINE { \\
    uint at_ = IN_MEMORY((at) * 4, (stride) * 4, layout_); \\
    m.v[e_] = element(from[at_ / 4], at_ % 4); }
#define coopMatStore(m, to, at, stride, layout_) FOR_MINE to[IN_MEMORY(at, stride, layout_)] = m.v[e_]
#define coopMatStore4(m, to, at, stride, layout_) FOR_MINE { \\
    uint at_ = IN_MEMORY((at) * 4, (stride) * 4, layout_); \\
    to[at_ / 4][at_ % 4] = m.v[e_]; }

// In place and without a copy of a fragment, of which lavapipe makes many instructions. c is also the result.
#define FILL(m, x) FOR_MINE m.v[e_] = x;
#define TIMES(a, b) FOR_MINE a.v[e_] *= b.v[e_];
#define MULTIPLY(a, b, c) FOR_MINE { \\
    float sum_ = c.v[e_]; \\
    for (uint k_ = 0; k_ < F * ONE; k_++) \\
        sum_ = fma(subgroupBroadcast(a.v[ROW_ * WIDE + k_ / SG], k_ % SG), b.v[k_ * WIDE + e_ % WIDE], sum_); \\
    c.v[e_] = sum_; }
"""
# (what is replaced, by what, how often at least it must be there)
COMMON = [
    (r"(?:\[\[unroll\]\] )?(for \((u?int) (\w+) = [^;]*; \3 <) ([^;]+);", r"\1 (\4) * \2(ONE);", 10),
    (r"(#version .*\n)", r"\1#define ONE gl_NumWorkGroups.z  // unknown to the compiler: it unrolls no loop\n", 1),
    (r"#pragma use_vulkan_memory_model\n", "", 1),
    (r"#extension GL_(KHR_cooperative|KHR_memory_scope|EXT_shader_explicit_arithmetic).*\n", "", 3),
    (r"(\S+) = coopMatMulAdd\((\S+), (\S+), \1\);", r"MULTIPLY(\2, \3, \1)", 1),
    (r"Sum (\S+) = Sum\(0\.0\);", r"Sum \1; FILL(\1, 0.0)", 0),
    (r"(\S+) = (?:Sum|coopmat<[^>]*>)\(0\.0\);", r"FILL(\1, 0.0)", 1), (r"coopmat<[^>]*>", "Fragment", 3)]
MATMUL = [(r"f16vec4\(", "halves(", 2), (r"f16vec4", "uvec2", 1)]
ALONE = (r"subgroupBarrier\(\)", "subgroupMemoryBarrierShared()")  # lavapipe would wait for the whole workgroup
ATTENTION = [
    (r"f16vec4\(", "halves(", 3), (r"f16vec4", "uvec2", 3),
    (*ALONE, 2),
    (r"(\S+) = \1 \* by;", r"TIMES(\1, by)", 0),
    (r"coopMatStore\(", "coopMatStore4(", 2)]
EMULATED = {"matmul_coopmat": COMMON + MATMUL, "attention_coopmat": COMMON + ATTENTION,
            "attention_backward_coopmat": COMMON + ATTENTION}
TILE = {"BM": 64, "BN": 64, "BK": 16, "WM": 16, "WN": 16}  # each lane brings little at a time: it compiles soonest
real_source = shaders.source


def emulated(name: str, defines: dict[str, Any]) -> str:
    """The source of a kernel, with emulated fragments in those that have some."""
    text = real_source(name, defines)
    if name not in EMULATED:
        return text
    for pattern, replacement, least in EMULATED[name]:
        text, n = re.subn(pattern, replacement, text)
        assert n >= least, f"{pattern} is no longer in the kernel"
    half = (shaders.resources.files("helios.kernels") / "lib/half.glsl").read_text()
    head = EMULATION if half in text else half + EMULATION
    start = "layout(buffer_reference, std430, buffer_reference_align = 16)"
    return text.replace(start, head + start, 1)


def on_lavapipe(name: str, defines: dict[str, Any]) -> str:
    """The source of a kernel, without what makes a subgroup wait for the whole workgroup there."""
    return re.sub(*ALONE, real_source(name, defines))


def has_units(profile: DeviceProfile) -> bool:
    """Whether its cooperative matrices can be had: lavapipe (Mesa 26.2) crashes where its vectors have 512 bits."""
    return profile.fragment > 0 and not (profile.type == "cpu" and profile.subgroup_size > 8)


@contextmanager
def matrix_units(**options: object) -> Iterator[VulkanBackend]:
    """A backend with matrix units, or one that is taken for such."""
    be = make(profile="coopmat", precision="mixed", **options)
    real = has_units(be.profile)
    if not real and be.profile.subgroup_size > 16:
        pytest.skip("the emulation spreads a fragment's 16 columns over the lanes of a subgroup")
    with pytest.MonkeyPatch.context() as patch:
        if not real:
            be.profile = replace(be.profile, fragment=16)
            patch.setattr(shaders, "source", emulated)
        elif be.profile.type == "cpu":
            patch.setattr(shaders, "source", on_lavapipe)
        if be.profile.type == "cpu":
            patch.setitem(tuning.TILES, "matmul_coopmat", (TILE, TILE))
        yield be
