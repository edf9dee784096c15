// A row of h has F gates, then F ups: out = silu(gate)·up, [rows, F]. BACKWARD: of g = dL/dout [rows, F], out = dL/dh
// [rows, 2F]: silu'(gate)·up·g, then silu(gate)·g. n: rows·F. Grid: one workgroup for each WG·SPAN elements of n.
#include "lib/common.glsl"
#include "lib/activations.glsl"
#include "lib/pairs.glsl"

layout(push_constant) uniform Push {
    In h;
#if BACKWARD
    In g;
#endif
    Out o;
    uint n, features;
} p;

float gated(float gate, float x) { return silu(gate) * x; }
float to_gate(float gate, float x) { return silu_grad(gate) * x; }

void main() {
    uint i = group() * (WG * SPAN) + EACH * lane_swizzle(gl_LocalInvocationID.x);
    uint j = i % p.features, step = EACH * WG % p.features;  // a division for each element would cost most
    for (uint k = 0; k < SPAN && i < p.n; k += EACH, i += EACH * WG, j += step) {
        if (j >= p.features) j -= p.features;
        uint at = 2 * i - j;  // row·2F + j, of i = row·F + j
        Floats gate = LOAD(p.h, at), up = LOAD(p.h, at + p.features);
#if BACKWARD
        Floats g = LOAD(p.g, i);
        STORE(p.o, at, APPLY(to_gate, gate, up * g));
        STORE(p.o, at + p.features, APPLY(gated, gate, g));
#else
        STORE(p.o, i, APPLY(gated, gate, up));
#endif
    }
}
