// lse = log Σ exp(logits), loss = lse - logits[target]; logits [rows, V], both outputs [rows]. Logits are soft-capped as
// lib/logits.glsl says.
// A target out of range gives NaN. One pass: a lane sums exp(logits - top), top at least its highest so far. top is
// whole, so that the sum is seldom rounded anew for a higher one, and finite, so that logits of -∞ leave no NaN. What
// an addition loses is made up for by the next (Kahan, 1965), or thousands of terms would cost up to three digits.
// Grid: one subgroup a row.
#include "lib/common.glsl"
#include "lib/pairs.glsl"

layout(push_constant) uniform Push {
    In logits;
    InI targets;
    Out loss, lse;
    uint rows, columns;
#if CAPPED
    float cap;
#endif
} p;
#include "lib/logits.glsl"

void main() {
    uint row = group(), lane = gl_SubgroupInvocationID, at = row * p.columns;
    if (row >= p.rows) return;
    float top = -3e38, sum = 0.0, excess = 0.0;  // excess: how much more sum is than it should be
    for (uint j = EACH * lane_swizzle(lane); j < p.columns; j += EACH * SG) {
        Floats x = logits(at + j);
        float before = top;
        top = max(top, ceil(highest(x)));
        float shrink = exp(before - top);
        sum *= shrink;
        precise float term = total(exp(x - top)) - excess * shrink, next = sum + term;
        precise float added = next - sum;
        excess = added - term;
        sum = next;
    }
    float all = subgroupMax(top), lse = all + log(subgroupAdd(sum * exp(top - all)));
    if (lane == 0) {
        p.lse.v[row] = lse;
        uint target = uint(p.targets.v[row]);
        p.loss.v[row] = target < p.columns ? lse - logit(at + target) : uintBitsToFloat(0x7FC00000u);
    }
}
