// The backward pass of attention: from g = dL/dout, the gradients dq, dk and dv, with strides of their own. Shapes as
// in attention.comp; g as out. With c the capped scores, w = exp(c - lse) the weights, w̃ the weights after dropout,
// delta_i = g_i·out_i and ds = w·(dropped(g·vᵀ) - delta)·cap':
//   dq_i = scale·Σ_j ds_ij·k_j    dk_j = scale·Σ_i ds_ij·q_i    dv_j = Σ_i w̃_ij·g_i
// HALF: q, k, v and g are rounded to f16; what is computed from them is not.
//
// Two variants, each with the grid of attention.comp. BY_KEY 0: a lane owns one query, for dq, and keys are
// broadcast; BY_KEY 1: a lane owns one key, for dk and dv, and queries are. Scores are computed anew in both: no T × T
// array exists.
#include "lib/common.glsl"
#include "lib/half.glsl"
#include "lib/attention.glsl"
#include "lib/heads.glsl"

layout(push_constant) uniform Push {
    In q, k, v, o, lse, g;
#if BY_KEY
    Out dk, dv;
#else
    Out dq;
#endif
    InI rng;
    uint batch, heads, len, threshold, site, q_stride, k_stride, v_stride;
#if BY_KEY
    uint dk_stride, dv_stride;
#else
    uint dq_stride;
#endif
    float scale, cap, factor;
} p;

#if BY_KEY
void by_key(Place at) {
    uint lane = gl_SubgroupInvocationID, j = at.block * SG + lane, here = min(j, p.len - 1);
    vec2 k[TWOS], v[TWOS], dk[TWOS], dv[TWOS];
    [[unroll]] for (uint d = 0; d < TWOS; d++) {
        k[d] = rounded(head(p.k, offset(at, here, p.k_stride), d)) * p.scale;
        v[d] = rounded(head(p.v, offset(at, here, p.v_stride), d));
        dk[d] = dv[d] = vec2(0.0);
    }
    for (uint i0 = at.block * SG; i0 < p.len; i0 += SG) {
        uint there = min(i0 + lane, p.len - 1);
        float lse = p.lse.v[at.head_row + there], delta = 0.0, s[SG], ds[SG];
        vec2 q[TWOS], g[TWOS];
        [[unroll]] for (uint i = 0; i < SG; i++) s[i] = ds[i] = 0.0;
        [[unroll]] for (uint d = 0; d < TWOS; d++) {
            q[d] = rounded(head(p.q, offset(at, there, p.q_stride), d));
            g[d] = rounded(head(p.g, offset(at, there, at.width), d));
            delta = plus_dot(g[d], head(p.o, offset(at, there, at.width), d), delta);
            [[unroll]] for (uint i = 0; i < SG; i++) {
                s[i] = plus_dot(k[d], subgroupBroadcast(q[d], i), s[i]);
                ds[i] = plus_dot(v[d], subgroupBroadcast(g[d], i), ds[i]);
            }
        }
#if DROPOUT
        // A lane draws for one query and all SG keys, four at a time, and keeps a bit for each; so a bit, not a
        // counter, crosses lanes.
        uint kept[(SG + 31) / 32];
        [[unroll]] for (uint e = 0; e < SG; e += 4) {
            uvec4 r = philox(p.rng, (at.block * SG + e) / 4, at.head_row + i0 + lane, p.site);
            uvec4 bits = mix(uvec4(0), uvec4(1, 2, 4, 8), greaterThanEqual(r, uvec4(p.threshold))) << e % 32;
            kept[e / 32] = (e % 32 == 0 ? 0 : kept[e / 32]) | bits.x | bits.y | bits.z | bits.w;
        }
#endif
        [[unroll]] for (uint i = 0; i < SG; i++) {
            // Broadcasts stand outside of what only some lanes do, where they would be undefined.
            float c = capped(s[i], p.cap), lse_i = subgroupBroadcast(lse, i), delta_i = subgroupBroadcast(delta, i);
            float w = i0 + i >= j && i0 + i < p.len ? exp(c - lse_i) : 0.0, keep = 1.0;
#if DROPOUT
            uint mask = subgroupBroadcast(kept[0], i);
#if SG > 32
            uint upper = subgroupBroadcast(kept[1], i);
            mask = lane < 32 ? mask : upper;
#endif
            keep = (mask >> lane % 32 & 1) == 1 ? p.factor : 0.0;
#endif
            ds[i] = w * (ds[i] * keep - delta_i) * capped_grad(c, p.cap);
            s[i] = w * keep;
        }
        [[unroll]] for (uint d = 0; d < TWOS; d++)
            [[unroll]] for (uint i = 0; i < SG; i++) {
                dk[d] = fma(vec2(ds[i]), subgroupBroadcast(q[d], i), dk[d]);
                dv[d] = fma(vec2(s[i]), subgroupBroadcast(g[d], i), dv[d]);
            }
    }
    if (j >= p.len) return;
    [[unroll]] for (uint d = 0; d < TWOS; d++) {
        store_head(p.dk, offset(at, j, p.dk_stride), d, dk[d] * p.scale);
        store_head(p.dv, offset(at, j, p.dv_stride), d, dv[d]);
    }
}
#else
void by_query(Place at) {
    uint i = at.block * SG + gl_SubgroupInvocationID, here = min(i, p.len - 1), row = at.head_row + here;
    float delta = 0.0, lse = p.lse.v[row];
    vec2 q[TWOS], g[TWOS], dq[TWOS];
    [[unroll]] for (uint d = 0; d < TWOS; d++) {
        q[d] = rounded(head(p.q, offset(at, here, p.q_stride), d)) * p.scale;
        g[d] = rounded(head(p.g, offset(at, here, at.width), d));
        delta = plus_dot(g[d], head(p.o, offset(at, here, at.width), d), delta);
        dq[d] = vec2(0.0);
    }
    for (uint j0 = 0; j0 <= at.block * SG; j0 += SG) {
        uint there = min(j0 + gl_SubgroupInvocationID, p.len - 1);
        uint k_at = offset(at, there, p.k_stride), v_at = offset(at, there, p.v_stride);
        float s[SG], ds[SG];
        vec2 k[TWOS];
        [[unroll]] for (uint j = 0; j < SG; j++) s[j] = ds[j] = 0.0;
        [[unroll]] for (uint d = 0; d < TWOS; d++) {
            k[d] = rounded(head(p.k, k_at, d));
            vec2 v = rounded(head(p.v, v_at, d));
            [[unroll]] for (uint j = 0; j < SG; j++) {
                s[j] = plus_dot(q[d], subgroupBroadcast(k[d], j), s[j]);
                ds[j] = plus_dot(g[d], subgroupBroadcast(v, j), ds[j]);
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
        [[unroll]] for (uint d = 0; d < TWOS; d++)
            [[unroll]] for (uint j = 0; j < SG; j++) dq[d] = fma(vec2(ds[j]), subgroupBroadcast(k[d], j), dq[d]);
    }
    if (i >= p.len) return;
    [[unroll]] for (uint d = 0; d < TWOS; d++) store_head(p.dq, offset(at, i, p.dq_stride), d, dq[d] * p.scale);
}
#endif

void main() {
    Place at = place(p.batch, p.heads, p.len, SG);
    if (!at.inside) return;
#if BY_KEY
    by_key(at);
#else
    by_query(at);
#endif
}
