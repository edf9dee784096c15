// With x̂ = (x - mean)·rstd and d = g·weight: dx = rstd·(d - avg(d) - x̂·avg(d·x̂)), averages over the row;
// dweight = Σ g·x̂ and dbias = Σ g, sums over rows. RMS: x̂ = x·rstd, and dx = rstd·(d - x̂·avg(d·x̂)).
// x, g, dx [rows, D]; dweight and dbias get `parts` partial sums [parts, D], each over a run of rows. dx goes through
// lib/epilogue.glsl. DROPOUT_AFTER: `dropped` gets what dropout.comp makes of dx.
// Grid: one subgroup a row, for dx, its lanes striding over the columns; then one for each EACH·SG columns and each
// part, for the sums, a lane owning EACH columns.
#include "lib/common.glsl"
#include "lib/dropout.glsl"

layout(push_constant) uniform Push {
#if RMS
    In x, weight, rstd, g;
    Out dx, dweight;
#else
    In x, weight, mean, rstd, g;
    Out dx, dweight, dbias;
#endif
#if Y
    In y;
#endif
#if DROPOUT_AFTER
    Out dropped;
    InI rng;
#endif
    uint rows, columns, parts;
#if DROPOUT_AFTER
    uint threshold, site;
    float factor;
#endif
#if HAS_EPILOGUE
    float alpha, beta;
#endif
} p;
#include "lib/epilogue.glsl"
#if RMS
#define MEAN(row) 0.0
#else
#define MEAN(row) p.mean.v[row]
#endif

const uint RUN = DROPOUT_AFTER == 1 ? 4 : EACH;  // neighbouring columns of a lane: four share a random counter

void row_gradient(uint row) {
    uint lane = gl_SubgroupInvocationID, at = row * p.columns;
    float mean = MEAN(row), rstd = p.rstd.v[row], sum = 0.0, dot = 0.0;
    for (uint j = EACH * lane_swizzle(lane); j < p.columns; j += EACH * SG) {
        Floats d = LOAD(p.g, at + j) * LOAD(p.weight, j);
#if !RMS
        sum += total(d);
#endif
        dot += total(d * (LOAD(p.x, at + j) - mean) * rstd);
    }
#if !RMS
    sum = subgroupAdd(sum) / float(p.columns);
#endif
    dot = subgroupAdd(dot) / float(p.columns);
    for (uint t = lane_swizzle(lane); t < (p.columns + RUN - 1) / RUN; t += SG) {
#if DROPOUT_AFTER
        uvec4 r = philox(p.rng, t, row, p.site);
#endif
        [[unroll]] for (uint e = 0; e < RUN; e += EACH) {
            uint j = t * RUN + e;
            if (j < p.columns) {
                Floats hat = (LOAD(p.x, at + j) - mean) * rstd;
                Floats dx = epilogue(rstd * (LOAD(p.g, at + j) * LOAD(p.weight, j) - sum - hat * dot), at + j);
                STORE(p.dx, at + j, dx);
#if DROPOUT_AFTER
                STORE(p.dropped, at + j, dropped(dx, r, e, p.threshold, p.factor));
#endif
            }
        }
    }
}

void column_sums(uint j, uint part) {
    uint run = (p.rows + p.parts - 1) / p.parts, last = min(p.rows, (part + 1) * run);
    Floats dweight = Floats(0.0), dbias = Floats(0.0);
    for (uint row = part * run; row < last; row++) {
        Floats g = LOAD(p.g, row * p.columns + j);
        dweight += g * (LOAD(p.x, row * p.columns + j) - MEAN(row)) * p.rstd.v[row];
        dbias += g;
    }
    STORE(p.dweight, part * p.columns + j, dweight);
#if !RMS
    STORE(p.dbias, part * p.columns + j, dbias);
#endif
}

void main() {
    uint blocks = (p.columns + EACH * SG - 1) / (EACH * SG), g = group();
    if (g < p.rows) {
        row_gradient(g);
        return;
    }
    uint j = ((g - p.rows) % blocks * SG + lane_swizzle(gl_SubgroupInvocationID)) * EACH, part = (g - p.rows) / blocks;
    if (j < p.columns && part < p.parts) column_sums(j, part);
}
