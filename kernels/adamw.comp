// AdamW over flat arrays of n elements, in place; the first n_decay decay. Nothing where the statistics say skipped;
// their places, STAT_…, are those of STATS in helios/backends/backend.py.
// g = grad·grad_coef; m ← β1·m + (1-β1)·g; v ← β2·v + (1-β2)·g²;
// w ← w - lr·decay·w - lr·(m/correction1)/(√(v/correction2) + eps). Grid: one workgroup for each WG·SPAN elements.
#include "lib/common.glsl"
#include "lib/pairs.glsl"

layout(push_constant) uniform Push {
    InOut w, m, v;
    In grad, stats, lr;
    uint n, n_decay;
    float beta1, beta2, eps, decay;
} p;

void main() {
    if (p.stats.v[STAT_SKIPPED] != 0.0) return;
    float coef = p.stats.v[STAT_GRAD_COEF], lr = p.lr.v[0];
    float c1 = 1.0 / p.stats.v[STAT_CORRECTION1], c2 = 1.0 / p.stats.v[STAT_CORRECTION2];
    uint first = group() * (WG * SPAN) + EACH * lane_swizzle(gl_LocalInvocationID.x);
    for (uint k = 0; k < SPAN; k += EACH) {
        uint i = first + k * WG;
        if (i >= p.n) return;
        Floats g = LOAD(p.grad, i) * coef;
        Floats m = p.beta1 * LOAD(p.m, i) + (1.0 - p.beta1) * g;
        Floats v = p.beta2 * LOAD(p.v, i) + (1.0 - p.beta2) * g * g;
        Floats w = LOAD(p.w, i);
        STORE(p.m, i, m);
        STORE(p.v, i, v);
        if (i < p.n_decay) w -= lr * p.decay * w;
        STORE(p.w, i, w - lr * (m * c1) / (sqrt(v * c2) + p.eps));
    }
}
