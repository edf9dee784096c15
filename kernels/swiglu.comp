// A row of h has F gates, then F ups: out = silu(gate)·up, [rows, F]. With BACKWARD out is the gradient of h [rows, 2F],
// of g [rows, F]. Grid: one workgroup for each WG·SPAN elements of [rows, F].
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

float gated(float gate, float up, float g) { return silu(gate) * up; }
float to_gate(float gate, float up, float g) { return silu_grad(gate) * up * g; }
float to_up(float gate, float up, float g) { return silu(gate) * g; }

void main() {
    uint i = group() * (WG * SPAN) + EACH * turn(gl_LocalInvocationID.x);
    uint row = i / p.features, j = i % p.features;  // a division for each element would cost most
    uint rows = EACH * WG / p.features, step = EACH * WG % p.features;
    for (uint k = 0; k < SPAN && i < p.n; k += EACH) {
        uint at = i + row * p.features;
        Floats gate = LOAD(p.h, at), up = LOAD(p.h, at + p.features);
#if BACKWARD
        Floats g = LOAD(p.g, i);
        STORE(p.o, at, APPLY(to_gate, gate, up, g));
        STORE(p.o, at + p.features, APPLY(to_up, gate, up, g));
#else
        STORE(p.o, i, APPLY(gated, gate, up, gate));
#endif
        i += EACH * WG;
        j += step;
        row += rows;
        if (j >= p.features) {
            j -= p.features;
            row++;
        }
    }
}
