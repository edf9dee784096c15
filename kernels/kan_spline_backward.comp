// Given g = dL/dout: dh = g·(c0·silu' + c1·relu' + c2·gelu' + c3 + 2·c4·h), dc_i = Σ g·basis_i(h), sums over rows.
// h, g [rows, F]; each dc gets `parts` partial sums [parts, F], each over a run of rows.
// Grid: one workgroup for each WG columns and each part; a lane owns a column.
#include "lib/common.glsl"
#include "lib/activations.glsl"

layout(push_constant) uniform Push {
    In h, g;
    In c0, c1, c2, c3, c4;
    Out dh, dc0, dc1, dc2, dc3, dc4;
    uint rows, columns, parts;
} p;

void main() {
    uint blocks = (p.columns + WG - 1) / WG;
    uint j = group() % blocks * WG + gl_LocalInvocationID.x, part = group() / blocks;
    if (j >= p.columns || part >= p.parts) return;
    uint run = (p.rows + p.parts - 1) / p.parts, last = min(p.rows, (part + 1) * run);
    float c0 = p.c0.v[j], c1 = p.c1.v[j], c2 = p.c2.v[j], c3 = p.c3.v[j], c4 = p.c4.v[j];
    float d0 = 0.0, d1 = 0.0, d2 = 0.0, d3 = 0.0, d4 = 0.0;
    for (uint row = part * run; row < last; row++) {
        uint i = row * p.columns + j;
        float h = p.h.v[i], g = p.g.v[i];
        p.dh.v[i] = g * (c0 * silu_grad(h) + c1 * relu_grad(h) + c2 * gelu_grad(h) + c3 + 2.0 * c4 * h);
        d0 += g * silu(h);
        d1 += g * relu(h);
        d2 += g * gelu(h);
        d3 += g * h;
        d4 += g * h * h;
    }
    uint at = part * p.columns + j;
    p.dc0.v[at] = d0;
    p.dc1.v[at] = d1;
    p.dc2.v[at] = d2;
    p.dc3.v[at] = d3;
    p.dc4.v[at] = d4;
}
