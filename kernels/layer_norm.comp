// y = (x - mean)·rstd·weight + bias, rstd = 1/√(var + eps), var the population's; x [rows, D].
// Where DROPPED, x is first made and stored, as in dropout.comp: x = residual + (kept ? h·factor : 0).
// Grid: one subgroup a row. A lane takes EACH neighbouring columns at a time: four where DROPPED, for they share one
// random counter. It reads again only what it wrote itself.
#include "lib/common.glsl"
#include "lib/philox.glsl"

layout(push_constant) uniform Push {
#if DROPPED
    In h, residual;
#endif
    In weight, bias;
    Out y, mean, rstd;
#if DROPPED
    InOut x;
    InI rng;
#endif
#if GIVEN
    In x;
#endif
    uint rows, columns;
#if DROPPED
    uint threshold, site;
    float factor;
#endif
    float eps;
} p;

const uint EACH = DROPPED == 1 ? 4 : 1;

void main() {
    uint row = group(), lane = gl_SubgroupInvocationID, at = row * p.columns, n = (p.columns + EACH - 1) / EACH;
    if (row >= p.rows) return;
    float sum = 0.0, squares = 0.0;
    for (uint t = lane; t < n; t += SG) {
#if DROPPED
        uvec4 r = philox(p.rng, t, row, p.site);
#endif
        [[unroll]] for (uint e = 0; e < EACH; e++) {
            uint j = t * EACH + e;
            if (j < p.columns) {
#if DROPPED
                p.x.v[at + j] = (r[e] >= p.threshold ? p.h.v[at + j] * p.factor : 0.0) + p.residual.v[at + j];
#endif
                sum += p.x.v[at + j];
            }
        }
    }
    float mean = subgroupAdd(sum) / float(p.columns);
    for (uint t = lane; t < n; t += SG)
        [[unroll]] for (uint e = 0; e < EACH; e++) {
            uint j = t * EACH + e;
            if (j < p.columns) {
                float d = p.x.v[at + j] - mean;
                squares += d * d;
            }
        }
    float rstd = 1.0 / sqrt(subgroupAdd(squares) / float(p.columns) + p.eps);
    for (uint t = lane; t < n; t += SG)
        [[unroll]] for (uint e = 0; e < EACH; e++) {
            uint j = t * EACH + e;
            if (j < p.columns) p.y.v[at + j] = (p.x.v[at + j] - mean) * rstd * p.weight.v[j] + p.bias.v[j];
        }
    if (lane == 0) {
        p.mean.v[row] = mean;
        p.rstd.v[row] = rstd;
    }
}
