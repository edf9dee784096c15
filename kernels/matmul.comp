// C = op(A)·op(B), op transposing where TA, TB; A [batch, M, K], B [batch, K, N] (before op's transposition: [K, M],
// [N, K]), C [batch, M, N]; a_step, b_step: elements from one matrix of the batch to the next (0: shared).
// What is stored goes through lib/epilogue.glsl; with STORE_PRE, `pre` gets the product as it was. HALF: A and B are
// rounded to f16.
//
// For GPUs: a workgroup of 256 computes TILE × TILE of C from slices of A and B in shared memory, DEPTH of K at a time;
// each lane owns EACH × EACH of them, TILE/EACH apart. Grid: one workgroup a tile, along N, then M, then the batch.
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

const uint TILE = 64, DEPTH = 16, EACH = 4, SIDE = TILE / EACH;  // SIDE·SIDE = WG = 256
shared float as[DEPTH][TILE + 1], bs[DEPTH][TILE + 1];  // + 1: no two rows start in the same bank

void main() {
    uint across = (p.n + TILE - 1) / TILE, down = (p.m + TILE - 1) / TILE;
    uint tile = group() % (across * down), matrix = group() / (across * down);
    if (matrix >= p.batch) return;
    uint row0 = tile / across * TILE, column0 = tile % across * TILE, t = gl_LocalInvocationID.x;
    uint a_at = matrix * p.a_step, b_at = matrix * p.b_step;
    float acc[EACH][EACH];
    for (uint i = 0; i < EACH; i++)
        for (uint j = 0; j < EACH; j++) acc[i][j] = 0.0;

    for (uint k0 = 0; k0 < p.k; k0 += DEPTH) {
        for (uint e = t; e < TILE * DEPTH; e += WG) {  // neighbouring lanes read neighbouring addresses
            uint i = TA == 1 ? e % TILE : e / DEPTH, k = TA == 1 ? e / TILE : e % DEPTH;
            bool inside = row0 + i < p.m && k0 + k < p.k;
            uint at = a_at + (TA == 1 ? (k0 + k) * p.m + row0 + i : (row0 + i) * p.k + k0 + k);
            as[k][i] = inside ? rounded(p.a.v[at]) : 0.0;
        }
        for (uint e = t; e < TILE * DEPTH; e += WG) {
            uint j = TB == 1 ? e / DEPTH : e % TILE, k = TB == 1 ? e % DEPTH : e / TILE;
            bool inside = column0 + j < p.n && k0 + k < p.k;
            uint at = b_at + (TB == 1 ? (column0 + j) * p.k + k0 + k : (k0 + k) * p.n + column0 + j);
            bs[k][j] = inside ? rounded(p.b.v[at]) : 0.0;
        }
        barrier();
        for (uint k = 0; k < DEPTH; k++) {
            float a[EACH], b[EACH];
            for (uint i = 0; i < EACH; i++) a[i] = as[k][t / SIDE + i * SIDE];
            for (uint j = 0; j < EACH; j++) b[j] = bs[k][t % SIDE + j * SIDE];
            for (uint i = 0; i < EACH; i++)
                for (uint j = 0; j < EACH; j++) acc[i][j] = fma(a[i], b[j], acc[i][j]);
        }
        barrier();
    }

    uint c_at = matrix * p.m * p.n;
    for (uint i = 0; i < EACH; i++) {
        uint row = row0 + t / SIDE + i * SIDE;
        for (uint j = 0; j < EACH; j++) {
            uint column = column0 + t % SIDE + j * SIDE;
            if (row < p.m && column < p.n) {
                uint at = c_at + row * p.n + column;
#if STORE_PRE
                p.pre.v[at] = acc[i][j];
#endif
                p.c.v[at] = ended(acc[i][j], at);
            }
        }
    }
}
