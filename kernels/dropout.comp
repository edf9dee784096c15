// out = residual + (kept ? h·factor : 0), factor = 1/(1-p), the mask as in helios/random.py; h [rows, columns].
// Four columns of a row share one Philox counter. Grid: one lane for each such four.
#include "lib/common.glsl"
#include "lib/philox.glsl"

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
    uint quads = (p.columns + 3) / 4, t = group() * WG + gl_LocalInvocationID.x;
    uint row = t / quads, quad = t % quads;
    if (row >= p.rows) return;
    uvec4 r = philox(p.rng, quad, row, p.site);
    [[unroll]] for (uint k = 0; k < 4; k++) {
        uint j = 4 * quad + k;
        if (j < p.columns) {
            uint i = row * p.columns + j;
            float kept = r[k] >= p.threshold ? p.h.v[i] * p.factor : 0.0;
#if RESIDUAL
            kept += p.residual.v[i];
#endif
            p.o.v[i] = kept;
        }
    }
}
