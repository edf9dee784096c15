// out = residual + (kept ? h·factor : 0), factor = 1/(1-p), the mask as in helios/random.py; h [rows, columns].
// Four columns of a row share one Philox counter. Grid: one lane for each such four.
#include "lib/common.glsl"
#include "lib/dropout.glsl"

layout(push_constant) uniform Push {
    In h;
#if RESIDUAL
    In residual;
#endif
    Out o;
    InI rng;
    uint rows, columns, threshold, site;
    float factor;
} p;

void main() {
    uint quads = (p.columns + 3) / 4, t = group() * WG + lane_swizzle(gl_LocalInvocationID.x);
    uint row = t / quads, quad = t % quads;
    if (row >= p.rows) return;
    uvec4 r = philox(p.rng, quad, row, p.site);
    [[unroll]] for (uint e = 0; e < 4; e += EACH) {
        uint j = 4 * quad + e, i = row * p.columns + j;
        if (j < p.columns) {
            Floats kept = dropped(LOAD(p.h, i), r, e, p.threshold, p.factor);
#if RESIDUAL
            kept += LOAD(p.residual, i);
#endif
            STORE(p.o, i, kept);
        }
    }
}
