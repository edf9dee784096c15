// o [columns, rows] = xᵀ, x [rows, columns]. A lane has EACH rows, and goes through BLOCK columns, a cache line of each;
// what a subgroup writes at a time lies together. Grid: one subgroup a block, along the rows, then the columns.
#include "lib/common.glsl"
#include "lib/pairs.glsl"

layout(push_constant) uniform Push {
    In x;
    Out o;
    uint rows, columns;
} p;

void main() {
    uint down = (p.rows + EACH * SG - 1) / (EACH * SG);
    uint row = (group() % down * SG + gl_SubgroupInvocationID) * EACH, first = group() / down * BLOCK;
    if (row >= p.rows || first >= p.columns) return;
    for (uint column = first; column < min(first + BLOCK, p.columns); column += EACH) {
#if PAIRS
        vec2 upper = LOAD(p.x, row * p.columns + column), lower = LOAD(p.x, (row + 1) * p.columns + column);
        STORE(p.o, column * p.rows + row, vec2(upper.x, lower.x));
        STORE(p.o, (column + 1) * p.rows + row, vec2(upper.y, lower.y));
#else
        p.o.v[column * p.rows + row] = p.x.v[row * p.columns + column];
#endif
    }
}
