// C = op(A)·op(B), op transposing where TA, TB; A [batch, M, K], B [batch, K, N] (before op's transposition: [K, M],
// [N, K]), C [batch, M, N]; a_step, b_step: elements from one matrix of the batch to the next (0: shared).
// What is stored goes through lib/epilogue.glsl; with STORE_PRE, `pre` gets the product as it was. HALF: A and B are
// rounded to f16.
//
// For devices whose subgroup is a SIMD register (lavapipe). A subgroup computes RA·SG rows by CB·SG columns: lanes hold
// SG rows of A and SG columns of B, and each row's value is broadcast to all lanes in turn: one shuffle for CB
// multiply-adds. KU steps of K are loaded first, all of a lane's row together (one cache line), then each accumulator
// takes its KU products in one trip between memory and registers.
// Grid: one subgroup a tile, along N, then M, then the batch. Rows and columns beyond the edge repeat the last one and
// are not stored.
#include "lib/common.glsl"
#include "lib/half.glsl"
#include "lib/activations.glsl"

layout(push_constant) uniform Push {
    In a, b;
    Out c;
#if STORE_PRE
    Out pre;
#endif
#if Y
    In y;
#endif
    uint m, n, k, batch, a_step, b_step;
#if ENDED
    float alpha, beta;
#endif
} p;
#include "lib/epilogue.glsl"

float acc[RA * SG][CB];

void steps(uint a_at, uint b_at, uint rows[RA], uint columns[CB], uint k, const uint count) {
    float a[KU][RA], b[KU][CB];
    [[unroll]] for (uint r = 0; r < RA; r++)
        [[unroll]] for (uint s = 0; s < count; s++)
            a[s][r] = rounded(p.a.v[a_at + (TA == 1 ? (k + s) * p.m + rows[r] : rows[r] + k + s)]);
    [[unroll]] for (uint c = 0; c < CB; c++)
        [[unroll]] for (uint s = 0; s < count; s++)
            b[s][c] = rounded(p.b.v[b_at + (TB == 1 ? columns[c] + k + s : (k + s) * p.n + columns[c])]);
    [[unroll]] for (uint r = 0; r < RA * SG; r++)
        [[unroll]] for (uint s = 0; s < count; s++) {
            float x = subgroupBroadcast(a[s][r / SG], r % SG);
            [[unroll]] for (uint c = 0; c < CB; c++) acc[r][c] = fma(x, b[s][c], acc[r][c]);
        }
}

void main() {
    uint across = (p.n + CB * SG - 1) / (CB * SG), down = (p.m + RA * SG - 1) / (RA * SG);
    uint tile = group() % (across * down), matrix = group() / (across * down);
    if (matrix >= p.batch) return;
    uint row0 = tile / across * (RA * SG), column0 = tile % across * (CB * SG), lane = gl_SubgroupInvocationID;
    uint rows[RA], columns[CB];
    [[unroll]] for (uint r = 0; r < RA; r++)
        rows[r] = min(row0 + r * SG + lane, p.m - 1) * (TA == 1 ? 1 : p.k);
    [[unroll]] for (uint c = 0; c < CB; c++)
        columns[c] = min(column0 + c * SG + lane, p.n - 1) * (TB == 1 ? p.k : 1);
    [[unroll]] for (uint r = 0; r < RA * SG; r++)
        [[unroll]] for (uint c = 0; c < CB; c++) acc[r][c] = 0.0;

    uint a_at = matrix * p.a_step, b_at = matrix * p.b_step, k = 0;
    for (; k + KU <= p.k; k += KU) steps(a_at, b_at, rows, columns, k, KU);
    for (; k < p.k; k++) steps(a_at, b_at, rows, columns, k, 1);

    uint c_at = matrix * p.m * p.n;
    [[unroll]] for (uint r = 0; r < RA * SG; r++) {
        if (row0 + r >= p.m) break;
        [[unroll]] for (uint c = 0; c < CB; c++) {
            uint column = column0 + c * SG + lane;
            if (column < p.n) {
                uint at = c_at + (row0 + r) * p.n + column;
#if STORE_PRE
                p.pre.v[at] = acc[r][c];
#endif
                p.c.v[at] = ended(acc[r][c], at);
            }
        }
    }
}
