// dweight = Σ g·(x - mean)·rstd, dbias = Σ g, sums over rows; x, g [rows, D].
// Each gets `parts` partial sums [parts, D], each over a run of rows.
// Grid: one workgroup for each WG columns and each part; a lane owns a column.
#include "lib/common.glsl"

layout(push_constant) uniform Push {
    In x, mean, rstd, g;
    Out dweight, dbias;
    uint rows, columns, parts;
} p;

void main() {
    uint blocks = (p.columns + WG - 1) / WG;
    uint j = group() % blocks * WG + gl_LocalInvocationID.x, part = group() / blocks;
    if (j >= p.columns || part >= p.parts) return;
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
