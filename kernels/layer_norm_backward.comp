// With x̂ = (x - mean)·rstd and d = g·weight: dx = rstd·(d - avg(d) - x̂·avg(d·x̂)), averages over the row.
// x, g [rows, D]. Grid: one subgroup a row; its lanes stride over the columns.
#include "lib/common.glsl"

layout(push_constant) uniform Push {
    In x, weight, mean, rstd, g;
    Out dx;
    uint rows, columns;
} p;

void main() {
    uint row = group(), lane = gl_SubgroupInvocationID, at = row * p.columns;
    if (row >= p.rows) return;
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
        p.dx.v[at + j] = rstd * (p.g.v[at + j] * p.weight.v[j] - sum - hat * dot);
    }
}
