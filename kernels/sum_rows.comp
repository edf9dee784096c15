// out[j] = Σ_r x[r, j], r in order; x [rows, columns], out [n], zero from column `columns` on.
// Grid: one lane for each output element.
#include "lib/common.glsl"

layout(push_constant) uniform Push {
    In x;
    Out o;
    uint n, rows, columns;
} p;

void main() {
    uint j = group() * WG + gl_LocalInvocationID.x;
    if (j >= p.n) return;
    float sum = 0.0;
    if (j < p.columns)
        for (uint r = 0; r < p.rows; r++) sum += p.x.v[r * p.columns + j];
    p.o.v[j] = sum;
}
