// The arithmetic peak: WIDTH independent chains of fma in every lane, DEPTH long in each of `rounds` rounds.
// out[i] = the sum of lane i's chains, so that none can be left out. Operations: 2·WIDTH·DEPTH·rounds a lane.
// Grid: one workgroup for each WG elements of out.
#include "lib/common.glsl"

layout(push_constant) uniform Push {
    In x;
    Out o;
    uint n, rounds;
} p;

void main() {
    uint i = group() * WG + gl_LocalInvocationID.x;
    if (i >= p.n) return;
    float a = p.x.v[0], b = p.x.v[1], c[WIDTH];
    [[unroll]] for (uint w = 0; w < WIDTH; w++) c[w] = float(i + w);
    for (uint r = 0; r < p.rounds; r++)
        [[unroll]] for (uint d = 0; d < DEPTH; d++)
            [[unroll]] for (uint w = 0; w < WIDTH; w++) c[w] = fma(c[w], a, b);
    float sum = 0.0;
    [[unroll]] for (uint w = 0; w < WIDTH; w++) sum += c[w];
    p.o.v[i] = sum;
}
