// out[i, j] = Σ_r x[i, r, j], r in order; x [outer, rows, columns], out [outer, padded]: zero from column `columns` on.
// Grid: one lane for each output element.
#include "lib/common.glsl"

layout(push_constant) uniform Push {
    In x;
    Out o;
    uint outer, rows, columns, padded;
} p;

void main() {
    uint t = group() * WG + gl_LocalInvocationID.x, i = t / p.padded, j = t % p.padded;
    if (i >= p.outer) return;
    float sum = 0.0;
    if (j < p.columns)
        for (uint r = 0; r < p.rows; r++) sum += p.x.v[(i * p.rows + r) * p.columns + j];
    p.o.v[t] = sum;
}
