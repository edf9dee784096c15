// The gradient of attention by q: dq = scale·Σ_j ds_j·k_j with ds = w·(g·vᵀ - delta)·cap', w = exp(c - lse) the weights,
// c the capped scores, delta = g·out (kept for attention_backward_kv). Shapes as in attention.comp; g as out;
// delta [B, H, T]; dq goes into its place in dqkv.
// A lane owns one query; keys are broadcast as in attention.comp. Grid: the same.
#include "lib/common.glsl"
#include "lib/attention.glsl"

layout(push_constant) uniform Push {
    In qkv, o, lse, g;
    Out dqkv, delta;
    InI rng;
    uint batch, heads, len, threshold, site;
    float scale, cap, factor;
} p;

void main() {
    Place at = place(p.batch, p.heads, p.len);
    if (!at.inside) return;
    uint i = at.block * SG + gl_SubgroupInvocationID, here = min(i, p.len - 1), row = at.head_row + here;
    float q[DH], g[DH], dq[DH], delta = 0.0, lse = p.lse.v[row];
    [[unroll]] for (uint d = 0; d < DH; d++) {
        q[d] = p.qkv.v[at.qkv + here * at.stride + d] * p.scale;
        g[d] = p.g.v[at.out0 + here * at.width + d];
        delta += g[d] * p.o.v[at.out0 + here * at.width + d];
        dq[d] = 0.0;
    }
    for (uint j0 = 0; j0 <= at.block * SG; j0 += SG) {
        uint theirs = at.qkv + min(j0 + gl_SubgroupInvocationID, p.len - 1) * at.stride;
        float s[SG], ds[SG], k[DH];
        [[unroll]] for (uint j = 0; j < SG; j++) s[j] = ds[j] = 0.0;
        [[unroll]] for (uint d = 0; d < DH; d++) {
            k[d] = p.qkv.v[theirs + at.width + d];
            float v = p.qkv.v[theirs + 2 * at.width + d];
            [[unroll]] for (uint j = 0; j < SG; j++) {
                s[j] = fma(q[d], subgroupBroadcast(k[d], j), s[j]);
                ds[j] = fma(g[d], subgroupBroadcast(v, j), ds[j]);
            }
        }
#if DROPOUT
        [[unroll]] for (uint j = 0; j < SG; j += 4) {
            uvec4 r = philox(p.rng, (j0 + j) / 4, row, p.site);
            [[unroll]] for (uint e = 0; e < 4; e++) ds[j + e] = r[e] >= p.threshold ? ds[j + e] * p.factor : 0.0;
        }
#endif
        [[unroll]] for (uint j = 0; j < SG; j++) {
            float c = capped(s[j], p.cap);
            ds[j] = j0 + j <= i ? exp(c - lse) * (ds[j] - delta) * capped_grad(c, p.cap) : 0.0;
        }
        [[unroll]] for (uint d = 0; d < DH; d++)
            [[unroll]] for (uint j = 0; j < SG; j++) dq[d] = fma(ds[j], subgroupBroadcast(k[d], j), dq[d]);
    }
    if (i >= p.len) return;
    [[unroll]] for (uint d = 0; d < DH; d++) p.dqkv.v[at.qkv + i * at.stride + d] = dq[d] * p.scale;
    p.delta.v[row] = delta;
}
