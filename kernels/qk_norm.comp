// The RMS norm of each head's q and k: y = x·r·w, r = 1/√(avg(x²) + eps), averages over the head's DH elements.
// A row of x [rows, x_stride] begins with `heads` heads of q, whose w is q_weight [DH], and as many of k, whose w is
// k_weight; so does a row of y [rows, y_stride].
// BACKWARD: y has g = dL/dy and gets dL/dx = r·(g·w - x·r²·avg(g·w·x)) in its place; dq_weight and dk_weight get
// partial sums of g·x·r over rows and heads, [workers, DH].
//
// A worker has every `workers`-th head of q, or of k. ALONE: it is a lane, and nothing crosses lanes but w; otherwise it
// is a subgroup, in which neighbours read neighbours. Grid: subgroups with the workers of q, then as many with k's.
#include "lib/common.glsl"
#include "lib/heads.glsl"

layout(push_constant) uniform Push {
    In x, q_weight, k_weight;
#if BACKWARD
    InOut y;
    Out dq_weight, dk_weight;
#else
    Out y;
#endif
    uint rows, heads, x_stride, y_stride, workers;
    float eps;
} p;

const uint SPREAD = (TWOS + SG - 1) / SG;  // twos of a lane where a head is spread over the subgroup, as w always is
#if ALONE
const uint TEAM = SG, OWN = TWOS;  // workers in a subgroup, twos of a lane
uint two(uint d) { return d; }
float average(float sum) { return sum / float(DH); }
#define WEIGHT(d) subgroupBroadcast(w[d / SG], d % SG)
#else
const uint TEAM = 1, OWN = SPREAD;
uint two(uint d) { return d * SG + gl_SubgroupInvocationID; }
float average(float sum) { return subgroupAdd(sum) / float(DH); }
#define WEIGHT(d) w[d]
#endif

#if BACKWARD
vec2 gradient(uint at, uint d) {  // as head(), of what is written as well
#if PAIRS
    return LOAD(p.y, at + 2 * d);
#else
    return vec2(p.y.v[at + 2 * d], 2 * d + 1 < DH ? p.y.v[at + 2 * d + 1] : 0.0);
#endif
}
#endif

void main() {
    uint lane = gl_SubgroupInvocationID, groups = p.workers / TEAM, count = p.rows * p.heads;
    if (group() >= 2 * groups) return;
    bool of_k = group() >= groups;
    uint worker = group() % groups * TEAM + lane % TEAM;
    vec2 w[SPREAD], dw[OWN];
    [[unroll]] for (uint i = 0; i < SPREAD; i++) {
        uint t = min(i * SG + lane, TWOS - 1);
        w[i] = of_k ? head(p.k_weight, 0, t) : head(p.q_weight, 0, t);
    }
    [[unroll]] for (uint d = 0; d < OWN; d++) dw[d] = vec2(0.0);

    for (uint first = 0; first < count; first += p.workers) {  // equally often in all lanes
        bool mine = first + worker < count;
        uint n = min(first + worker, count - 1), row = n / p.heads, column = (n % p.heads + (of_k ? p.heads : 0)) * DH;
        uint from = row * p.x_stride + column, to = row * p.y_stride + column;
        vec2 x[OWN], y[OWN];
        float squares = 0.0, dot = 0.0;
        [[unroll]] for (uint d = 0; d < OWN; d++) {
            x[d] = two(d) < TWOS ? head(p.x, from, two(d)) : vec2(0.0);
            squares = plus_dot(x[d], x[d], squares);
#if BACKWARD
            y[d] = two(d) < TWOS ? gradient(to, two(d)) : vec2(0.0);
            dot = plus_dot(y[d] * WEIGHT(d), x[d], dot);
#endif
        }
        float r = 1.0 / sqrt(average(squares) + p.eps);
#if BACKWARD
        float along = r * r * average(dot);
        [[unroll]] for (uint d = 0; d < OWN; d++) {
            dw[d] += mine ? y[d] * x[d] * r : vec2(0.0);
            y[d] = r * (y[d] * WEIGHT(d) - x[d] * along);
        }
#else
        [[unroll]] for (uint d = 0; d < OWN; d++) y[d] = x[d] * r * WEIGHT(d);
#endif
        if (mine)
            [[unroll]] for (uint d = 0; d < OWN; d++)
                if (two(d) < TWOS) store_head(Out(uvec2(p.y)), to, two(d), y[d]);
    }
#if BACKWARD
    [[unroll]] for (uint d = 0; d < OWN; d++)
        if (two(d) < TWOS)
            store_head(Out(of_k ? uvec2(p.dk_weight) : uvec2(p.dq_weight)), worker * DH, two(d), dw[d]);
#endif
}
