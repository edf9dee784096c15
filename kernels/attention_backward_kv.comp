// The gradients of attention by k and v: dk_j = scale·Σ_i ds_ij·q_i, dv_j = Σ_i w̃_ij·g_i, w̃ the weights after dropout,
// ds as in attention_backward_q.comp, which has written delta. dk and dv go into their places in dqkv.
// A lane owns one key with its k and v; SG queries at a time are broadcast. Grid: one subgroup for each SG keys, each
// head, each sequence.
#include "lib/common.glsl"
#include "lib/attention.glsl"

layout(push_constant) uniform Push {
    In qkv, lse, delta, g;
    Out dqkv;
    InI rng;
    uint batch, heads, len, threshold, site;
    float scale, cap, factor;
} p;

void main() {
    Place at = place(p.batch, p.heads, p.len);
    if (!at.inside) return;
    uint lane = gl_SubgroupInvocationID, j = at.block * SG + lane, here = min(j, p.len - 1);
    float k[DH], v[DH], dk[DH], dv[DH];
    [[unroll]] for (uint d = 0; d < DH; d++) {
        k[d] = p.qkv.v[at.qkv + here * at.stride + at.width + d] * p.scale;
        v[d] = p.qkv.v[at.qkv + here * at.stride + 2 * at.width + d];
        dk[d] = dv[d] = 0.0;
    }
    for (uint i0 = at.block * SG; i0 < p.len; i0 += SG) {
        uint there = min(i0 + lane, p.len - 1);
        float lse = p.lse.v[at.head_row + there], delta = p.delta.v[at.head_row + there];
        float q[DH], g[DH], s[SG], ds[SG];
        [[unroll]] for (uint i = 0; i < SG; i++) s[i] = ds[i] = 0.0;
        [[unroll]] for (uint d = 0; d < DH; d++) {
            q[d] = p.qkv.v[at.qkv + there * at.stride + d];
            g[d] = p.g.v[at.out0 + there * at.width + d];
            [[unroll]] for (uint i = 0; i < SG; i++) {
                s[i] = fma(k[d], subgroupBroadcast(q[d], i), s[i]);
                ds[i] = fma(v[d], subgroupBroadcast(g[d], i), ds[i]);
            }
        }
#if DROPOUT
        // A lane draws for one query and all SG keys, four at a time, and keeps a bit for each; so a bit, not a counter,
        // crosses lanes.
        uint kept[(SG + 31) / 32];
        [[unroll]] for (uint e = 0; e < SG; e += 4) {
            uvec4 r = philox(p.rng, (at.block * SG + e) / 4, at.head_row + i0 + lane, p.site);
            uvec4 bits = mix(uvec4(0), uvec4(1, 2, 4, 8), greaterThanEqual(r, uvec4(p.threshold))) << e % 32;
            kept[e / 32] = (e % 32 == 0 ? 0 : kept[e / 32]) | bits.x | bits.y | bits.z | bits.w;
        }
#endif
        [[unroll]] for (uint i = 0; i < SG; i++) {
            float c = capped(s[i], p.cap);
            float w = i0 + i >= j && i0 + i < p.len ? exp(c - subgroupBroadcast(lse, i)) : 0.0;
            float keep = 1.0;
#if DROPOUT
            uint mask = subgroupBroadcast(kept[0], i);
#if SG > 32
            if (lane >= 32) mask = subgroupBroadcast(kept[1], i);
#endif
            keep = (mask >> lane % 32 & 1) == 1 ? p.factor : 0.0;
#endif
            ds[i] = w * (ds[i] * keep - subgroupBroadcast(delta, i)) * capped_grad(c, p.cap);
            s[i] = w * keep;
        }
        [[unroll]] for (uint d = 0; d < DH; d++)
            [[unroll]] for (uint i = 0; i < SG; i++) {
                dk[d] = fma(ds[i], subgroupBroadcast(q[d], i), dk[d]);
                dv[d] = fma(s[i], subgroupBroadcast(g[d], i), dv[d]);
            }
    }
    if (j >= p.len) return;
    [[unroll]] for (uint d = 0; d < DH; d++) {
        p.dqkv.v[at.qkv + j * at.stride + at.width + d] = dk[d] * p.scale;
        p.dqkv.v[at.qkv + j * at.stride + 2 * at.width + d] = dv[d];
    }
}
