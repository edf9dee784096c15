// out[i] = EXPR(x[i], y[i], z[i], alpha, beta), and out2[i] = EXPR2 where there is one.
// EXPR, EXPR2: GLSL expressions of x, y, z, p.alpha, p.beta, defined by the host's table (primitives.py).
// Y, Z, OUT2: 1 where that argument exists. Grid: one workgroup for each WG·SPAN elements.
#include "lib/common.glsl"
#include "lib/activations.glsl"

layout(push_constant) uniform Push {
    In x;
#if Y
    In y;
#endif
#if Z
    In z;
#endif
    Out o;
#if OUT2
    Out o2;
#endif
    uint n;
    float alpha, beta;
} p;

void main() {
    uint first = group() * (WG * SPAN) + gl_LocalInvocationID.x;
    for (uint k = 0; k < SPAN; k++) {
        uint i = first + k * WG;
        if (i >= p.n) return;
        float x = p.x.v[i];
#if Y
        float y = p.y.v[i];
#endif
#if Z
        float z = p.z.v[i];
#endif
        p.o.v[i] = EXPR;
#if OUT2
        p.o2.v[i] = EXPR2;
#endif
    }
}
