// out[i] = EXPR(x[i], y[i], alpha, beta), a GLSL expression of x, y, p.alpha and p.beta from the host's table
// (variants.py), in which FORMULA may define act() and act_grad(). Y: 1 where there is a y. Grid: one workgroup for each
// WG·SPAN elements.
#include "lib/common.glsl"
#include "lib/functions.glsl"
#include "lib/pairs.glsl"
FORMULA

layout(push_constant) uniform Push {
    In x;
#if Y
    In y;
#endif
    Out o;
    uint n;
    float alpha, beta;
} p;

float of(float x, float y) { return EXPR; }

void main() {
    uint start = group() * (WG * SPAN) + EACH * lane_swizzle(gl_LocalInvocationID.x);
    for (uint k = 0; k < SPAN; k += EACH) {
        uint i = start + k * WG;
        if (i >= p.n) return;
        Floats x = LOAD(p.x, i), y = x;
#if Y
        y = LOAD(p.y, i);
#endif
        STORE(p.o, i, APPLY(of, x, y));
    }
}
