"""No kernel has a subgroup operation or a barrier where lanes may have parted; and the analysis tells the two apart."""

from __future__ import annotations

from typing import Any

import pytest

from helios.backends.vulkan import shaders

from .test_shaders import KINDS, variants
from .uniformity import faults

HEAD = """#version 460
#define SG 32
#define WG 64
%s
layout(push_constant) uniform Push { In x; Out o; uint n; } p;
shared float s[WG];
%s
void main() {
    uint lane = gl_SubgroupInvocationID, i = 0, at = gl_WorkGroupID.x;
    float x = 1.0;
    bool found = false;
    %s
    p.o.v[lane] = x + float(i);
}
"""
COMMON = (shaders.resources.files("helios.kernels") / "lib/common.glsl").read_text()

APART = {
    "a condition": "if (lane < 3) x = subgroupAdd(x);",
    "the other side of a condition": "if (lane < 3) x = 2.0; else x = subgroupAdd(x);",
    "a local id": "if (gl_LocalInvocationID.x < 3) x = subgroupAdd(x);",
    "an expression": "x = lane < 3 ? subgroupAdd(x) : 0.0;",
    "the second half of a condition": "if (lane < 3 && subgroupAny(x > 0.0)) x = 2.0;",
    "after a return": "if (lane == 0) return; x = subgroupAdd(x);",
    "after a return in a loop": "for (; i < p.n; i++) if (lane == i) return; x = subgroupAdd(x);",
    "a loop of the lane's length": "for (i = lane; i < p.n; i += SG) x += subgroupAdd(x);",
    "a loop that lanes leave": "for (; i < p.n; i++) { x += subgroupAdd(x); if (lane == i) break; }",
    "after continue": "for (; i < p.n; i++) { if (lane == i) continue; x += subgroupAdd(x); }",
    "how far a lane came": "while (p.x.v[lane + i] > 0.0) i++; if (i > 3) x = subgroupAdd(x);",
    "a flag that some lanes set": "if (lane < 3) found = true; if (found) x = subgroupAdd(x);",
    "what a lane loaded": "if (p.x.v[lane] > 0.0) x = subgroupAdd(x);",
    "what a lane shared": "s[lane] = x; if (s[lane] > 0.0) x = subgroupAdd(x);",
    "an element of an array": "float a[2] = float[](1.0, float(lane)); if (a[i] > 0.0) x = subgroupAdd(x);",
    "a scan": "if (subgroupInclusiveAdd(x) > 3.0) x = subgroupAdd(x);",
    "the elected": "if (subgroupElect()) x = subgroupAdd(x);",
    "a switch": "switch (lane % 3) { case 0: x = 2.0; break; case 1: x = subgroupAdd(x); break; }",
    "a function": "if (lane < 3) x = all_of(x);",
    "a function's condition": "x = some_of(x, lane < 3);",
    "a function's result": "if (bigger(x, float(lane))) x = subgroupAdd(x);",
    "what a function stores": "set(found, lane < 3); if (found) x = subgroupAdd(x);",
    "a broadcast": "if (lane < 3) x = subgroupBroadcast(x, 2);",
    "a subgroup's barrier": "if (lane < 3) subgroupBarrier();",
    "a workgroup's barrier": "if (lane < 3) barrier();",
    "a workgroup's barrier, between subgroups": "if (gl_SubgroupID == 0) barrier();",
    "a workgroup's barrier, by a reduction": "if (subgroupAdd(p.x.v[lane]) > 0.0) barrier();",
}
TOGETHER = {
    "no condition": "x = subgroupAdd(p.x.v[lane]); barrier();",
    "an argument": "if (p.n > 3) { x = subgroupAdd(x); barrier(); }",
    "the workgroup": "if (at > p.n) return; x = subgroupAdd(x); barrier();",
    "the subgroup": "if (gl_SubgroupID == 0) { x = subgroupAdd(x); subgroupBarrier(); } barrier();",
    "what all loaded": "if (p.x.v[at] > 0.0) x = subgroupAdd(x);",
    "a reduction": "if (subgroupMax(p.x.v[lane]) > 0.0) x = subgroupAdd(x);",
    "a vote": "while (subgroupAny(p.x.v[lane + i++] > 0.0)) x += subgroupAdd(x);",
    "a broadcast": "if (subgroupBroadcast(p.x.v[lane], 2) > 0.0) x = subgroupAdd(x);",
    "after a condition": "if (lane < 3) x = 2.0; else x = 3.0; x = subgroupAdd(x); barrier();",
    "after a loop of the lane's length": "for (i = lane; i < p.n; i += SG) x += 1.0; x = subgroupAdd(x); barrier();",
    "after a loop that lanes leave": "for (; i < p.n; i++) if (lane == i) break; x = subgroupAdd(x);",
    "a loop of equal length": "for (uint k = 0; k < p.n; k++) { if (lane == k) continue; x += 1.0; } barrier();",
    "in a loop of equal length": "for (uint k = 0; k < p.n; k++) { if (lane == k) x = 2.0; x += subgroupAdd(x); }",
    "a function": "if (p.n > 3) x = all_of(x) + some_of(x, p.n > 4);",
    "after a function that lanes leave": "if (bigger(x, float(lane))) x = 2.0; x = subgroupAdd(x); barrier();",
}
FUNCTIONS = """
float all_of(float x) { return subgroupAdd(x); }
float some_of(float x, bool which) { if (which) x = subgroupAdd(x); return x; }
bool bigger(float x, float y) { if (y > 100.0) return true; return x > y; }
void set(inout bool found, bool value) { found = value; }
"""


def spirv(body: str) -> bytes:
    vote = "#extension GL_KHR_shader_subgroup_vote : require\n"
    return shaders.compile("snippet", HEAD % (vote + COMMON, FUNCTIONS, body))


@pytest.mark.parametrize("body", APART.values(), ids=APART)
def test_found(body: str) -> None:
    assert faults(spirv(body))


@pytest.mark.parametrize("body", TOGETHER.values(), ids=TOGETHER)
def test_not_found(body: str) -> None:
    assert faults(spirv(body)) == []


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))
def test_kernels(kind: tuple[Any, ...]) -> None:
    for text, (name, defines) in variants(kind).items():
        assert faults(shaders.compile(name, text)) == [], f"{name} {defines}"


BROADCASTS = [
    ("uint upper = subgroupBroadcast(kept[1], i);\n            mask = lane < 32 ? mask : upper;",
     "if (lane >= 32) mask = subgroupBroadcast(kept[1], i);"),
    ("exp(c - lse_i)", "exp(c - subgroupBroadcast(lse, i))"),
]


@pytest.mark.parametrize(("now", "once"), BROADCASTS)
def test_broadcasts_that_stood_under_a_condition(now: str, once: str) -> None:
    """As attention's backward pass had them, in which subgroups of 64 lanes are in two minds."""
    found = 0
    for text, (name, defines) in variants(("simt", 64)).items():
        if name == "attention_backward" and defines["BY_KEY"]:
            assert now in text
            found += bool(faults(shaders.compile(name, text.replace(now, once))))
    assert found >= 4
