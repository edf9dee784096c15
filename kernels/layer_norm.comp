// y = (x - mean)·rstd·weight + bias, rstd = 1/√(var + eps), var the population's; x [rows, D].
// RMS: y = x·rstd·weight, rstd = 1/√(avg(x²) + eps).
// DROPOUT_BEFORE: x is first made and stored, as in dropout.comp: x = residual + (kept ? h·factor : 0).
// Grid: one subgroup a row. A lane takes RUN neighbouring columns at a time: four with DROPOUT_BEFORE, for they share
// one random counter. It reads again only what it wrote itself.
#include "lib/common.glsl"
#include "lib/dropout.glsl"

layout(push_constant) uniform Push {
#if DROPOUT_BEFORE
    In h, residual;
#endif
#if RMS
    In weight;
    Out y, rstd;
#else
    In weight, bias;
    Out y, mean, rstd;
#endif
#if DROPOUT_BEFORE
    InOut x;
    InI rng;
#else
    In x;
#endif
    uint rows, columns;
#if DROPOUT_BEFORE
    uint threshold, site;
    float factor;
#endif
    float eps;
} p;

const uint RUN = DROPOUT_BEFORE == 1 ? 4 : EACH;

void main() {
    uint row = group(), lane = gl_SubgroupInvocationID, at = row * p.columns, n = (p.columns + RUN - 1) / RUN;
    if (row >= p.rows) return;
    float sum = 0.0, squares = 0.0;
    for (uint t = lane_swizzle(lane); t < n; t += SG) {
#if DROPOUT_BEFORE
        uvec4 r = philox(p.rng, t, row, p.site);
#endif
        [[unroll]] for (uint e = 0; e < RUN; e += EACH) {
            uint j = t * RUN + e;
            if (j < p.columns) {
#if DROPOUT_BEFORE
                Floats x = dropped(LOAD(p.h, at + j), r, e, p.threshold, p.factor) + LOAD(p.residual, at + j);
                STORE(p.x, at + j, x);
#else
                Floats x = LOAD(p.x, at + j);
#endif
#if RMS
                squares += total(x * x);
#else
                sum += total(x);
#endif
            }
        }
    }
#if !RMS
    float mean = subgroupAdd(sum) / float(p.columns);
    for (uint t = lane_swizzle(lane); t < n; t += SG)
        [[unroll]] for (uint e = 0; e < RUN; e += EACH) {
            uint j = t * RUN + e;
            if (j < p.columns) {
                Floats d = LOAD(p.x, at + j) - mean;
                squares += total(d * d);
            }
        }
#endif
    float rstd = 1.0 / sqrt(subgroupAdd(squares) / float(p.columns) + p.eps);
    for (uint t = lane_swizzle(lane); t < n; t += SG)
        [[unroll]] for (uint e = 0; e < RUN; e += EACH) {
            uint j = t * RUN + e;
            if (j < p.columns)
#if RMS
                STORE(p.y, at + j, LOAD(p.x, at + j) * rstd * LOAD(p.weight, j));
#else
                STORE(p.y, at + j, (LOAD(p.x, at + j) - mean) * rstd * LOAD(p.weight, j) + LOAD(p.bias, j));
#endif
        }
    if (lane == 0) {
#if !RMS
        p.mean.v[row] = mean;
#endif
        p.rstd.v[row] = rstd;
    }
}
