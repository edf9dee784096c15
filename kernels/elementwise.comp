// out[i] = EXPR(x[i], y[i], z[i], alpha, beta), and out2[i] = EXPR2 where there is one.
// EXPR, EXPR2: GLSL expressions of x, y, z, p.alpha, p.beta, defined by the host's table (primitives.py).
// Y, Z, OUT2: 1 where that argument exists. Grid: one workgroup for each WG·SPAN elements.
#include "lib/common.glsl"
#include "lib/activations.glsl"
#include "lib/pairs.glsl"

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

float first(float x, float y, float z) { return EXPR; }
#if OUT2
float second(float x, float y, float z) { return EXPR2; }
#endif

void main() {
    uint start = group() * (WG * SPAN) + EACH * turn(gl_LocalInvocationID.x);
    for (uint k = 0; k < SPAN; k += EACH) {
        uint i = start + k * WG;
        if (i >= p.n) return;
        Floats x = LOAD(p.x, i), y = x, z = x;
#if Y
        y = LOAD(p.y, i);
#endif
#if Z
        z = LOAD(p.z, i);
#endif
        STORE(p.o, i, APPLY(first, x, y, z));
#if OUT2
        STORE(p.o2, i, APPLY(second, x, y, z));
#endif
    }
}
