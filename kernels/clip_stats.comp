// Decide the update: norm = √Σ partial, clip coefficient, skip, Adam's count and bias corrections and, with SCALING,
// the next loss scale. partial [n]: sums of squares. stats: what STATS in helios/backends/backend.py names, each at its
// place STAT_…. Grid: one subgroup.
#include "lib/common.glsl"

layout(push_constant) uniform Push {
    In partial, loss;
    InOut stats;
    uint n;
    float clip, spike, beta1, beta2;
} p;

// By its bits: a driver may compute as if there were no NaN.
bool finite(float x) { return (floatBitsToUint(x) & 0x7F800000u) != 0x7F800000u; }

// By repeated squaring: pow() of a driver need not be accurate, and this is the same everywhere.
float power(float x, uint n) {
    float y = 1.0;
    for (; n > 0; n >>= 1, x *= x)
        if ((n & 1) == 1) y *= x;
    return y;
}

void main() {
    float sum = 0.0;
    for (uint i = gl_SubgroupInvocationID; i < p.n; i += SG) sum += p.partial.v[i];
    float root = sqrt(subgroupAdd(sum));
    if (gl_SubgroupInvocationID != 0) return;
    float scale = p.stats.v[STAT_LOSS_SCALE], norm = root / scale, loss = given(p.loss) ? p.loss.v[0] : 0.0;
    bool skip = !finite(norm) || !finite(loss) || (p.spike > 0.0 && norm > p.spike);
    float updates = p.stats.v[STAT_UPDATES] + (skip ? 0.0 : 1.0);
    float coef = p.clip > 0.0 && norm > p.clip ? p.clip / norm : 1.0;
    p.stats.v[STAT_GRAD_NORM] = norm;
    p.stats.v[STAT_CLIP_COEF] = coef;
    p.stats.v[STAT_SKIPPED] = skip ? 1.0 : 0.0;
    p.stats.v[STAT_UPDATES] = updates;
    p.stats.v[STAT_CORRECTION1] = 1.0 - power(p.beta1, uint(updates));
    p.stats.v[STAT_CORRECTION2] = 1.0 - power(p.beta2, uint(updates));
    p.stats.v[STAT_LOSS] = loss;
    p.stats.v[STAT_GRAD_COEF] = coef / scale;
#if SCALING
    bool overflow = !finite(norm) && finite(loss);
    float good = skip ? 0.0 : p.stats.v[STAT_GOOD_UPDATES] + 1.0;
    p.stats.v[STAT_OVERFLOWS] += overflow ? 1.0 : 0.0;
    if (overflow) p.stats.v[STAT_LOSS_SCALE] = max(scale / 2.0, SCALE_MIN);
    if (good >= SCALE_PATIENCE) p.stats.v[STAT_LOSS_SCALE] = min(scale * 2.0, SCALE_MAX);
    p.stats.v[STAT_GOOD_UPDATES] = good >= SCALE_PATIENCE ? 0.0 : good;
#endif
}
