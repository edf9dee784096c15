// lse = log Σ exp(logits), loss = lse - logits[target]; logits [rows, V], both outputs [rows].
// A target out of range gives NaN. Grid: one subgroup a row.
#include "lib/common.glsl"

layout(push_constant) uniform Push {
    In logits;
    InI targets;
    Out loss, lse;
    uint rows, columns;
} p;

void main() {
    uint row = group(), lane = gl_SubgroupInvocationID, at = row * p.columns;
    if (row >= p.rows) return;
    float top = p.logits.v[at];
    for (uint j = lane; j < p.columns; j += SG) top = max(top, p.logits.v[at + j]);
    top = subgroupMax(top);
    float sum = 0.0;
    for (uint j = lane; j < p.columns; j += SG) sum += exp(p.logits.v[at + j] - top);
    float lse = top + log(subgroupAdd(sum));
    if (lane == 0) {
        p.lse.v[row] = lse;
        uint target = uint(p.targets.v[row]);
        p.loss.v[row] = target < p.columns ? lse - p.logits.v[at + target] : uintBitsToFloat(0x7FC00000u);
    }
}
