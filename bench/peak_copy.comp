// The memory peak: out = x, n elements. Grid: one workgroup for each WG·SPAN elements.
#include "lib/common.glsl"

layout(push_constant) uniform Push {
    In x;
    Out o;
    uint n;
} p;

void main() {
    uint first = group() * (WG * SPAN) + gl_LocalInvocationID.x;
    for (uint k = 0; k < SPAN; k++) {
        uint i = first + k * WG;
        if (i >= p.n) return;
        p.o.v[i] = p.x.v[i];
    }
}
