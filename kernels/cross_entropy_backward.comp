// d = (exp(logits - lse) - onehot(target))·g/rows; logits, d [rows, V], lse [rows], g one number. CAPPED: logits y are
// soft-capped (lib/logits.glsl), and d is that of the logits before, 1 - tanh² = 1 - (y/cap)² times as large.
// Grid: one subgroup a row. d may lie over logits.
#include "lib/common.glsl"
#include "lib/pairs.glsl"

layout(push_constant) uniform Push {
    In logits, lse, g;
    InI targets;
    Out d;
    uint rows, columns;
#if CAPPED
    float cap;
#endif
} p;
#include "lib/logits.glsl"

void main() {
    uint row = group(), at = row * p.columns;
    if (row >= p.rows) return;
    float lse = p.lse.v[row], scale = p.g.v[0] / float(p.rows);
    uint target = uint(p.targets.v[row]);
    for (uint j = EACH * lane_swizzle(gl_SubgroupInvocationID); j < p.columns; j += EACH * SG) {
#if CAPPED
        Floats y = logits(at + j), t = y / p.cap;
        STORE(p.d, at + j, (exp(y - lse) - among(target - j)) * (1.0 - t * t) * scale);
#else
        STORE(p.d, at + j, (exp(logits(at + j) - lse) - among(target - j)) * scale);
#endif
    }
}
