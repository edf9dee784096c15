// Given g = dL/dout: dh = g·(silu'(h)·a + b), da = Σ g·silu(h), db = Σ g·h, sums over rows.
// h, g [rows, F]; da and db get `parts` partial sums [parts, F], each over a run of rows.
// Grid: one workgroup for each WG columns and each part; a lane owns a column.
#include "lib/common.glsl"
#include "lib/activations.glsl"

layout(push_constant) uniform Push {
    In h, a, b, g;
    Out dh, da, db;
    uint rows, columns, parts;
} p;

void main() {
    uint blocks = (p.columns + WG - 1) / WG;
    uint j = group() % blocks * WG + gl_LocalInvocationID.x, part = group() / blocks;
    if (j >= p.columns || part >= p.parts) return;
    uint run = (p.rows + p.parts - 1) / p.parts, last = min(p.rows, (part + 1) * run);
    float a = p.a.v[j], b = p.b.v[j], da = 0.0, db = 0.0;
    for (uint row = part * run; row < last; row++) {
        uint i = row * p.columns + j;
        float h = p.h.v[i], g = p.g.v[i];
        p.dh.v[i] = g * (silu_grad(h) * a + b);
        da += g * silu(h);
        db += g * h;
    }
    p.da.v[part * p.columns + j] = da;
    p.db.v[part * p.columns + j] = db;
}
