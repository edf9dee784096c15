// out[i] = table[index[i]] (+ positions[i mod length]); table [V, D], index [rows], positions [≥ length, D] or null.
// An index out of range gives NaN. Grid: one subgroup a row.
#include "lib/common.glsl"

layout(push_constant) uniform Push {
    In table, positions;
    InI index;
    Out o;
    uint rows, columns, len, vocabulary;
} p;

void main() {
    uint row = group();
    if (row >= p.rows) return;
    uint index = uint(p.index.v[row]);
    bool exists = index < p.vocabulary;
    uint from = exists ? index * p.columns : 0, at = row % p.len * p.columns;
    bool placed = given(p.positions);
    for (uint j = gl_SubgroupInvocationID; j < p.columns; j += SG) {
        float x = p.table.v[from + j];
        if (placed) x += p.positions.v[at + j];
        p.o.v[row * p.columns + j] = exists ? x : uintBitsToFloat(0x7FC00000u);
    }
}
