// Causal attention: out = dropout(softmax(cap·tanh(q·kᵀ·scale/cap)))·v, and lse, the log-sum-exp of each row of capped
// scores. q, k and v [B, T, H·DH] may be columns of wider arrays: positions lie q_stride, k_stride and v_stride apart.
// out [B, T, H·DH]; lse [B, H, T]. CAPPED 0: no soft cap. HALF: q, k and v are rounded to f16; scores and weights are
// not.
//
// A lane owns one query with its q and its sum of outputs; SG keys at a time are loaded one a lane and broadcast to all
// in turn. The softmax is taken online: top and total are each lane's own, so nothing crosses lanes but the broadcasts,
// and no T × T array exists. Grid: one subgroup for each SG queries, each head, each sequence.
#include "lib/common.glsl"
#include "lib/half.glsl"
#include "lib/attention.glsl"
#include "lib/heads.glsl"

layout(push_constant) uniform Push {
    In q, k, v;
    Out o, lse;
    InI rng;
    uint batch, heads, len, threshold, site, q_stride, k_stride, v_stride;
    float scale, cap, factor;
} p;

void main() {
    Place at = place(p.batch, p.heads, p.len, SG);
    if (!at.inside) return;
    uint i = at.block * SG + gl_SubgroupInvocationID, row = at.head_row + i;
    uint mine = offset(at, min(i, p.len - 1), p.q_stride);
    vec2 q[TWOS], sum[TWOS];
    float top = -1e30, total = 0.0;
    [[unroll]] for (uint d = 0; d < TWOS; d++) {
        q[d] = rounded(head(p.q, mine, d)) * p.scale;
        sum[d] = vec2(0.0);
    }
    for (uint j0 = 0; j0 <= at.block * SG; j0 += SG) {
        uint there = min(j0 + gl_SubgroupInvocationID, p.len - 1);
        uint k_at = offset(at, there, p.k_stride), v_at = offset(at, there, p.v_stride);
        float s[SG];
        [[unroll]] for (uint j = 0; j < SG; j++) s[j] = 0.0;
        [[unroll]] for (uint d = 0; d < TWOS; d++) {
            vec2 k = rounded(head(p.k, k_at, d));
            [[unroll]] for (uint j = 0; j < SG; j++) s[j] = plus_dot(q[d], subgroupBroadcast(k, j), s[j]);
        }
        float high = top;
        [[unroll]] for (uint j = 0; j < SG; j++) {
            s[j] = j0 + j <= i ? capped(s[j], p.cap) : -1e30;
            high = max(high, s[j]);
        }
        float shrink = exp(top - high);
        top = high;
        total *= shrink;
        [[unroll]] for (uint d = 0; d < TWOS; d++) sum[d] *= shrink;
        [[unroll]] for (uint j = 0; j < SG; j++) {
            s[j] = exp(s[j] - top);
            total += s[j];
        }
#if DROPOUT
        [[unroll]] for (uint j = 0; j < SG; j += 4) {
            uvec4 r = philox(p.rng, (j0 + j) / 4, row, p.site);
            [[unroll]] for (uint e = 0; e < 4; e++) s[j + e] = r[e] >= p.threshold ? s[j + e] * p.factor : 0.0;
        }
#endif
        [[unroll]] for (uint d = 0; d < TWOS; d++) {
            vec2 v = rounded(head(p.v, v_at, d));
            [[unroll]] for (uint j = 0; j < SG; j++) sum[d] = fma(vec2(s[j]), subgroupBroadcast(v, j), sum[d]);
        }
    }
    if (i >= p.len) return;
    [[unroll]] for (uint d = 0; d < TWOS; d++) store_head(p.o, offset(at, i, at.width), d, sum[d] / total);
    p.lse.v[row] = top + log(total);
}
