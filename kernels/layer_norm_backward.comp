// With x̂ = (x - mean)·rstd and d = g·weight: dx = rstd·(d - avg(d) - x̂·avg(d·x̂)), averages over the row; dweight = Σ g·x̂
// and dbias = Σ g, sums over rows. x, g, dx [rows, D]; dweight and dbias get `parts` partial sums [parts, D], each over a
// run of rows. dx goes through lib/epilogue.glsl.
// Grid: one subgroup a row, for dx, its lanes striding over the columns; then one for each SG columns and each part, for
// the sums, a lane owning a column.
#include "lib/common.glsl"
#include "lib/activations.glsl"

layout(push_constant) uniform Push {
    In x, weight, mean, rstd, g;
    Out dx, dweight, dbias;
#if Y
    In y;
#endif
    uint rows, columns, parts;
#if ENDED
    float alpha, beta;
#endif
} p;
#include "lib/epilogue.glsl"

void row_gradient(uint row) {
    uint lane = gl_SubgroupInvocationID, at = row * p.columns;
    float mean = p.mean.v[row], rstd = p.rstd.v[row], sum = 0.0, dot = 0.0;
    for (uint j = lane; j < p.columns; j += SG) {
        float d = p.g.v[at + j] * p.weight.v[j];
        sum += d;
        dot += d * (p.x.v[at + j] - mean) * rstd;
    }
    sum = subgroupAdd(sum) / float(p.columns);
    dot = subgroupAdd(dot) / float(p.columns);
    for (uint j = lane; j < p.columns; j += SG) {
        float hat = (p.x.v[at + j] - mean) * rstd;
        p.dx.v[at + j] = ended(rstd * (p.g.v[at + j] * p.weight.v[j] - sum - hat * dot), at + j);
    }
}

void column_sums(uint j, uint part) {
    uint run = (p.rows + p.parts - 1) / p.parts, last = min(p.rows, (part + 1) * run);
    float dweight = 0.0, dbias = 0.0;
    for (uint row = part * run; row < last; row++) {
        float g = p.g.v[row * p.columns + j];
        dweight += g * (p.x.v[row * p.columns + j] - p.mean.v[row]) * p.rstd.v[row];
        dbias += g;
    }
    p.dweight.v[part * p.columns + j] = dweight;
    p.dbias.v[part * p.columns + j] = dbias;
}

void main() {
    uint blocks = (p.columns + SG - 1) / SG, g = group();
    if (g < p.rows) {
        row_gradient(g);
        return;
    }
    uint j = (g - p.rows) % blocks * SG + gl_SubgroupInvocationID, part = (g - p.rows) / blocks;
    if (j < p.columns && part < p.parts) column_sums(j, part);
}
