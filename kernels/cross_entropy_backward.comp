// d = (exp(logits - lse) - onehot(target))·g/rows; logits, d [rows, V], lse [rows], g one number.
// Grid: one subgroup a row. d may lie over logits.
#include "lib/common.glsl"
#include "lib/pairs.glsl"

layout(push_constant) uniform Push {
    In logits, lse, g;
    InI targets;
    Out d;
    uint rows, columns;
} p;

void main() {
    uint row = group(), at = row * p.columns;
    if (row >= p.rows) return;
    float lse = p.lse.v[row], scale = p.g.v[0] / float(p.rows);
    uint target = uint(p.targets.v[row]);
    for (uint j = EACH * lane_swizzle(gl_SubgroupInvocationID); j < p.columns; j += EACH * SG)
        STORE(p.d, at + j, (exp(LOAD(p.logits, at + j) - lse) - among(target - j)) * scale);
}
