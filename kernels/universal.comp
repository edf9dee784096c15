// out = silu(h)·a + h·b; h [rows, F], a and b [F]. Grid: one workgroup for each WG·SPAN elements.
#include "lib/common.glsl"
#include "lib/activations.glsl"

layout(push_constant) uniform Push {
    In h;
    In a, b;
    Out o;
    uint n, features;
} p;

void main() {
    uint first = group() * (WG * SPAN) + gl_LocalInvocationID.x;
    uint j = first % p.features, step = WG % p.features;  // a division for each element would cost most
    for (uint k = 0; k < SPAN; k++, j += step) {
        uint i = first + k * WG;
        if (i >= p.n) return;
        if (j >= p.features) j -= p.features;
        float h = p.h.v[i];
        p.o.v[i] = silu(h) * p.a.v[j] + h * p.b.v[j];
    }
}
