// C = op(A)·op(B), op transposing where TA, TB; A [batch, M, K], B [batch, K, N] (before op's transposition: [K, M],
// [N, K]), C [batch, M, N]; a_step, b_step: elements from one matrix of the batch to the next (0: shared).
// What is stored goes through lib/epilogue.glsl; with STORE_PRE, `pre` gets the product as it was. HALF: A and B are
// rounded to f16.
//
// For GPUs: a workgroup computes BM × BN of C, each of its lanes TM × TN of them, in fours of neighbours BM·4/TM rows
// (BN·4/TN columns) apart. Slices of A and B, BK of K long, lie in shared memory with K across. There are two of each:
// while one is multiplied, the next is on its way through registers. What lies beyond the edge is read as 0, and is not
// stored. Grid: one workgroup a tile, along N, then M, then the batch.
//
// Host: WG = BM/TM·BN/TN; VEC_A, VEC_B where four neighbours of A, B are wholly inside or outside, aligned to 16 bytes.
#include "lib/common.glsl"
#include "lib/half.glsl"

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
#if HAS_EPILOGUE
    float alpha, beta;
#endif
} p;
#include "lib/epilogue.glsl"

#include "lib/slices.glsl"

const uint A_PITCH = BM + 4, B_PITCH = BN + 4;  // + 4: no two rows start in the same bank
const uint SIDE = BN / TN;  // lanes across a tile

shared float as[2 * BK * A_PITCH], bs[2 * BK * B_PITCH];

void put(uint half_) {
    [[unroll]] for (uint i = 0; i < A_FOURS; i++)
        [[unroll]] for (uint f = 0; f < 4; f++) {
            uint e = (gl_LocalInvocationID.x + i * WG) * 4 + f, k = TA == 1 ? e / BM : e % BK;
            as[(half_ * BK + k) * A_PITCH + (TA == 1 ? e % BM : e / BK)] = rounded(a_next[i][f]);
        }
    [[unroll]] for (uint i = 0; i < B_FOURS; i++)
        [[unroll]] for (uint f = 0; f < 4; f++) {
            uint e = (gl_LocalInvocationID.x + i * WG) * 4 + f, k = TB == 1 ? e % BK : e / BN;
            bs[(half_ * BK + k) * B_PITCH + (TB == 1 ? e / BK : e % BN)] = rounded(b_next[i][f]);
        }
}

// A lane's i-th row (j-th column) within the tile.
uint row_of(uint i) { return i / 4 * (BM * 4 / TM) + gl_LocalInvocationID.x / SIDE * 4 + i % 4; }
uint column_of(uint j) { return j / 4 * (BN * 4 / TN) + gl_LocalInvocationID.x % SIDE * 4 + j % 4; }

void main() {
    uint across = (p.n + BN - 1) / BN, down = (p.m + BM - 1) / BM;
    uint tile = group() % (across * down), matrix = group() / (across * down);
    if (matrix >= p.batch) return;
    uint row0 = tile / across * BM, column0 = tile % across * BN;
    uint a_at = matrix * p.a_step, b_at = matrix * p.b_step;
    float acc[TM][TN];
    [[unroll]] for (uint i = 0; i < TM; i++)
        [[unroll]] for (uint j = 0; j < TN; j++) acc[i][j] = 0.0;

    uint half_ = 0;
    fetch(a_at, b_at, row0, column0, 0);
    put(0);
    barrier();
    for (uint k0 = 0; k0 < p.k; k0 += BK, half_ ^= 1) {
        if (k0 + BK < p.k) fetch(a_at, b_at, row0, column0, k0 + BK);
        for (uint k = 0; k < BK; k++) {
            uint a_row = (half_ * BK + k) * A_PITCH, b_row = (half_ * BK + k) * B_PITCH;
            float a[TM], b[TN];
            [[unroll]] for (uint i = 0; i < TM; i++) a[i] = as[a_row + row_of(i)];
            [[unroll]] for (uint j = 0; j < TN; j++) b[j] = bs[b_row + column_of(j)];
            [[unroll]] for (uint i = 0; i < TM; i++)
                [[unroll]] for (uint j = 0; j < TN; j++) acc[i][j] = fma(a[i], b[j], acc[i][j]);
        }
        if (k0 + BK < p.k) put(half_ ^ 1);
        barrier();
    }

    uint c_at = matrix * p.m * p.n;
    [[unroll]] for (uint i = 0; i < TM; i++)
        [[unroll]] for (uint j = 0; j < TN; j++) {
            uint row = row0 + row_of(i), column = column0 + column_of(j), at = c_at + row * p.n + column;
            if (row < p.m && column < p.n) {
#if STORE_PRE
                p.pre.v[at] = acc[i][j];
#endif
                p.c.v[at] = epilogue(acc[i][j], at);
            }
        }
}
