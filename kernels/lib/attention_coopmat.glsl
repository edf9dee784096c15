// What the attention kernels for matrix units share.
//
// A workgroup has BLOCK positions of one head of one sequence, each of its subgroups F of them ("mine"). It meets BK
// at a time of the others ("theirs"): two matrices [BK, DH] in shared memory as f16; while they are multiplied, the
// next are on their way through registers. Positions beyond the sequence are read as 0.
//
// An element of a product has a row and a column only in shared memory, so a subgroup has there TILES tiles of F × W,
// f32, and PAIRS for what is computed of them, weights and gradients of scores. A pair holds each number as the sum of
// two f16s, W columns apart, and both are multiplied: 22 of its 24 bits (down to 2⁻²⁵), where one f16 has 11.
//
// Host: F, a fragment's side, is what the device has; WG = 4·SG, SG at most 4·F; DH a multiple of 16, BK of F; all
// arrays aligned to 16 bytes. Shared memory, bytes:
//   4·BK·(DH + 8) + TILES·16·F·(W + 4) + PAIRS·8·F·(2·W + 8), in the backward pass and 32·F more
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#extension GL_KHR_shader_subgroup_clustered : require
#pragma use_vulkan_memory_model
#include "lib/common.glsl"
#include "lib/half.glsl"
#include "lib/attention.glsl"

layout(buffer_reference, std430, buffer_reference_align = 16) readonly buffer In4 { vec4 v[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) writeonly buffer Out4 { vec4 v[]; };

// One a declaration, and none to or from a function: glslang 13 forgets the use of the others.
#define Left coopmat<float16_t, gl_ScopeSubgroup, F, F, gl_MatrixUseA>
#define Right coopmat<float16_t, gl_ScopeSubgroup, F, F, gl_MatrixUseB>
#define Sum coopmat<float, gl_ScopeSubgroup, F, F, gl_MatrixUseAccumulator>
#define BY_ROWS gl_CooperativeMatrixLayoutRowMajor
#define BY_COLUMNS gl_CooperativeMatrixLayoutColumnMajor

const uint BLOCK = 4 * F, DF = DH / F, Q = F / 4;  // Q: fours in a fragment's row
// Offsets in shared memory count fours. Rows lie so far apart that neighbours start in other banks, and at multiples of
// 16 bytes, as fragments must.
const uint PITCH = (DH + 8) / 4, TILE_PITCH = (W + 4) / 4, PAIR_PITCH = (2 * W + 8) / 4;
const uint TILE = F * TILE_PITCH, PAIR = F * PAIR_PITCH;
const uint FOURS = BK * DH / 4, EACH = (FOURS + WG - 1) / WG;  // of one of their matrices; a lane's

shared f16vec4 theirs[2 * BK * PITCH], pairs[4 * PAIRS * PAIR];
shared vec4 tiles[4 * TILES * TILE];

f16vec4 next[2 * EACH];

vec4 four(In x, Place at, uint stride, uint row, uint len, uint column) {
    if (row >= len) return vec4(0);
    return In4(uvec2(x)).v[(offset(at, row, stride) + column) / 4];
}

// The first (0) or second (1) of their matrices, from `row` on.
void fetch(uint which, In x, Place at, uint stride, uint row, uint len) {
    [[unroll]] for (uint n = 0; n < EACH; n++) {
        uint e = gl_LocalInvocationID.x + n * WG;
        next[which * EACH + n] = f16vec4(four(x, at, stride, row + e / (DH / 4), len, e % (DH / 4) * 4));
    }
}

void put() {
    [[unroll]] for (uint n = 0; n < 2 * EACH; n++) {
        uint e = gl_LocalInvocationID.x + n % EACH * WG;
        if (e < FOURS) theirs[(n / EACH * BK + e / (DH / 4)) * PITCH + e % (DH / 4)] = next[n];
    }
}

// F columns of F positions into the subgroup's first pair, as a fragment's high part.
void bring(In x, Place at, uint stride, uint row, uint len, uint column) {
    subgroupBarrier();
    for (uint e = gl_SubgroupInvocationID; e < F * Q; e += SG)
        pairs[gl_SubgroupID * PAIRS * PAIR + e / Q * PAIR_PITCH + e % Q] =
            f16vec4(four(x, at, stride, row + e / Q, len, column + e % Q * 4));
    subgroupBarrier();
}

void put_pair(uint at, vec4 x) {
    vec4 high = vec4(rounded(x.xy), rounded(x.zw));  // not by f16vec4: Mesa takes its way there and back for none
    pairs[at] = f16vec4(high);
    pairs[at + W / 4] = f16vec4(x - high);
}

// Whether query i sees keys j, …, j + 3.
bvec4 seen(uint i, uint j) { return lessThanEqual(uvec4(j, j + 1, j + 2, j + 3), uvec4(i)); }

// 1 where dropout keeps the weights of keys j, …, j + 3 in `row` of [B, H, T], else 0.
vec4 kept(InI rng, uint j, uint row, uint threshold, uint site) {
#if DROPOUT
    return mix(vec4(0), vec4(1), greaterThanEqual(philox(rng, j / 4, row, site), uvec4(threshold)));
#else
    return vec4(1);
#endif
}

vec4 capped(vec4 s, float cap) { return vec4(capped(s.x, cap), capped(s.y, cap), capped(s.z, cap), capped(s.w, cap)); }
vec4 capped_grad(vec4 c, float cap) {
    return vec4(capped_grad(c.x, cap), capped_grad(c.y, cap), capped_grad(c.z, cap), capped_grad(c.w, cap));
}
