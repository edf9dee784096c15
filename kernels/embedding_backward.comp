// out[v] = Σ g[i] over the i with index[i] = v, in order of i; out [V, D], g [rows, D].
// Grid: one workgroup for each WG columns and each run of ⌈V/parts⌉ rows of out; a lane owns a column of that run, sets
// it to zero and walks over all of index. No two lanes write one element: no atomics, one order.
#include "lib/common.glsl"

layout(push_constant) uniform Push {
    In g;
    InI index;
    InOut o;
    uint rows, columns, vocabulary, parts;
} p;

void main() {
    uint blocks = (p.columns + WG - 1) / WG;
    uint j = group() % blocks * WG + gl_LocalInvocationID.x, part = group() / blocks;
    if (j >= p.columns || part >= p.parts) return;
    uint run = (p.vocabulary + p.parts - 1) / p.parts, first = part * run, last = min(p.vocabulary, first + run);
    for (uint v = first; v < last; v++) p.o.v[v * p.columns + j] = 0.0;
    for (uint i = 0; i < p.rows; i++) {
        uint v = uint(p.index.v[i]);
        if (v >= first && v < last) p.o.v[v * p.columns + j] += p.g.v[i * p.columns + j];
    }
}
