// out[i] = x[0]. Grid: one workgroup for each WG·SPAN elements.
#include "lib/common.glsl"

layout(push_constant) uniform Push {
    In x;
    Out o;
    uint n;
} p;

void main() {
    uint first = group() * (WG * SPAN) + gl_LocalInvocationID.x;
    float x = p.x.v[0];
    for (uint k = 0; k < SPAN && first + k * WG < p.n; k++) p.o.v[first + k * WG] = x;
}
