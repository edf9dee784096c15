// out = c0·silu(h) + c1·relu(h) + c2·gelu(h) + c3·h + c4·h²; h [rows, F], each c [F].
// Grid: one workgroup for each WG·SPAN elements.
#include "lib/common.glsl"
#include "lib/activations.glsl"

layout(push_constant) uniform Push {
    In h;
    In c0, c1, c2, c3, c4;
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
        p.o.v[i] = p.c0.v[j] * silu(h) + p.c1.v[j] * relu(h) + p.c2.v[j] * gelu(h) + (p.c3.v[j] + p.c4.v[j] * h) * h;
    }
}
