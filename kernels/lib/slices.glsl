// How the matmul kernels for GPUs bring a slice of A, BM × BK, and one of B, BK × BN, into registers, by fours of
// neighbours in memory. After the push block, which has a, b, m, n and k.
layout(buffer_reference, std430, buffer_reference_align = 16) readonly buffer In4 { vec4 v[]; };

const uint A_ROWS = TA == 1 ? BK : BM, A_LONG = TA == 1 ? BM : BK;  // as it lies in memory
const uint B_ROWS = TB == 1 ? BN : BK, B_LONG = TB == 1 ? BK : BN;
const uint A_FOURS = BM * BK / 4 / WG, B_FOURS = BN * BK / 4 / WG;  // that a lane brings

vec4 a_next[A_FOURS], b_next[B_FOURS];

// Four of a row from `column` on, of a matrix [rows, columns] that starts at `start`; 0 beyond its edge.
vec4 four(In x, uint start, uint row, uint column, uint rows, uint columns, bool whole) {
    uint at = start + row * columns + column;
    if (row >= rows || column >= columns) return vec4(0);
    if (whole) return In4(uvec2(x)).v[at / 4];
    vec4 v = vec4(0);
    [[unroll]] for (uint e = 0; e < 4; e++)
        if (column + e < columns) v[e] = x.v[at + e];
    return v;
}

// Neighbouring lanes read neighbouring addresses.
void fetch(uint a_at, uint b_at, uint row0, uint column0, uint k0) {
    uvec2 a0 = TA == 1 ? uvec2(k0, row0) : uvec2(row0, k0), a_size = TA == 1 ? uvec2(p.k, p.m) : uvec2(p.m, p.k);
    uvec2 b0 = TB == 1 ? uvec2(column0, k0) : uvec2(k0, column0), b_size = TB == 1 ? uvec2(p.n, p.k) : uvec2(p.k, p.n);
    [[unroll]] for (uint i = 0; i < A_FOURS; i++) {
        uint e = (gl_LocalInvocationID.x + i * WG) * 4;
        a_next[i] = four(p.a, a_at, a0.x + e / A_LONG, a0.y + e % A_LONG, a_size.x, a_size.y, VEC_A == 1);
    }
    [[unroll]] for (uint i = 0; i < B_FOURS; i++) {
        uint e = (gl_LocalInvocationID.x + i * WG) * 4;
        b_next[i] = four(p.b, b_at, b0.x + e / B_LONG, b0.y + e % B_LONG, b_size.x, b_size.y, VEC_B == 1);
    }
}
