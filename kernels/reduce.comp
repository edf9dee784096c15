// out[group] = alpha·Σ EXPR(x[i]) over this group's run of elements, lanes striding, then across lanes.
// Grid: `groups` subgroups, each with a run of ⌈n/groups⌉ elements, or one more to make it even.
#include "lib/common.glsl"
#include "lib/pairs.glsl"

layout(push_constant) uniform Push {
    In x;
    Out o;
    uint n, groups;
    float alpha;
} p;

void main() {
    uint g = group();
    if (g >= p.groups) return;
    uint run = ((p.n + p.groups - 1) / p.groups + EACH - 1) / EACH * EACH, last = min(p.n, (g + 1) * run);
    float sum = 0.0;
    for (uint i = g * run + EACH * lane_swizzle(gl_SubgroupInvocationID); i < last; i += EACH * SG) {
        Floats x = LOAD(p.x, i);
        sum += total(EXPR);
    }
    sum = subgroupAdd(sum);
    if (gl_SubgroupInvocationID == 0) p.o.v[g] = p.alpha * sum;
}
