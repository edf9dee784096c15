// C = op(A)·op(B) on matrix units; shapes, batches, layouts and epilogue as in matmul.comp, A and B rounded to f16,
// sums in f32. Not yet run on a GPU.
//
// A workgroup computes BM × BN of C, each of its subgroups WM × WN, as fragments of F × F. Slices of A and B, BK of K
// long, lie in shared memory as f16, in their layout in global memory (a fragment of a transposed one is loaded by
// columns), rows PAD further apart than they are long, so that neighbouring rows start in other banks. There are two of
// each: while one is multiplied, the next is on its way through registers. What lies beyond the edge is read as 0,
// and is not stored. Fragments of C go through a subgroup's piece of shared memory, where alone an element has a place.
// Grid: one workgroup a tile, along N, then M, then the batch.
//
// Host: F is what the device has, BM, BN, BK, WM and WN multiples of it; WG = BM/WM·BN/WN·SG; VEC_A, VEC_B where four
// neighbours of A, B are wholly inside or outside, aligned to 16 bytes.
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#pragma use_vulkan_memory_model
#include "lib/common.glsl"

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

const uint PAD = 8;  // its 16 bytes keep rows aligned to as many, as fragments must be
const uint A_PITCH = A_LONG + PAD, B_PITCH = B_LONG + PAD;
const int A_LAYOUT = TA == 1 ? gl_CooperativeMatrixLayoutColumnMajor : gl_CooperativeMatrixLayoutRowMajor;
const int B_LAYOUT = TB == 1 ? gl_CooperativeMatrixLayoutColumnMajor : gl_CooperativeMatrixLayoutRowMajor;

shared f16vec4 as[2 * A_ROWS * A_PITCH / 4], bs[2 * B_ROWS * B_PITCH / 4];
shared float out_[WG / SG * F * F];

void put(uint half_) {
    [[unroll]] for (uint i = 0; i < A_FOURS; i++) {
        uint e = (gl_LocalInvocationID.x + i * WG) * 4;
        as[((half_ * A_ROWS + e / A_LONG) * A_PITCH + e % A_LONG) / 4] = f16vec4(a_next[i]);
    }
    [[unroll]] for (uint i = 0; i < B_FOURS; i++) {
        uint e = (gl_LocalInvocationID.x + i * WG) * 4;
        bs[((half_ * B_ROWS + e / B_LONG) * B_PITCH + e % B_LONG) / 4] = f16vec4(b_next[i]);
    }
}

void main() {
    uint across = (p.n + BN - 1) / BN, down = (p.m + BM - 1) / BM;
    uint tile = group() % (across * down), matrix = group() / (across * down);
    if (matrix >= p.batch) return;
    uint row0 = tile / across * BM, column0 = tile % across * BN;
    uint a_at = matrix * p.a_step, b_at = matrix * p.b_step;
    uint mine = gl_SubgroupID, my_row = mine / (BN / WN) * WM, my_column = mine % (BN / WN) * WN;  // within the tile

    coopmat<float, gl_ScopeSubgroup, F, F, gl_MatrixUseAccumulator> acc[WM / F][WN / F];
    [[unroll]] for (uint i = 0; i < WM / F; i++)
        [[unroll]] for (uint j = 0; j < WN / F; j++)
            acc[i][j] = coopmat<float, gl_ScopeSubgroup, F, F, gl_MatrixUseAccumulator>(0.0);

    uint half_ = 0;
    fetch(a_at, b_at, row0, column0, 0);
    put(0);
    barrier();
    for (uint k0 = 0; k0 < p.k; k0 += BK) {
        bool more = k0 + BK < p.k;
        if (more) fetch(a_at, b_at, row0, column0, k0 + BK);
        [[unroll]] for (uint k = 0; k < BK; k += F) {
            coopmat<float16_t, gl_ScopeSubgroup, F, F, gl_MatrixUseA> a[WM / F];
            [[unroll]] for (uint i = 0; i < WM / F; i++) {
                uint row = my_row + i * F, at = TA == 1 ? k * A_PITCH + row : row * A_PITCH + k;
                coopMatLoad(a[i], as, (half_ * A_ROWS * A_PITCH + at) / 4, A_PITCH / 4, A_LAYOUT);
            }
            [[unroll]] for (uint j = 0; j < WN / F; j++) {
                coopmat<float16_t, gl_ScopeSubgroup, F, F, gl_MatrixUseB> b;
                uint column = my_column + j * F, at = TB == 1 ? column * B_PITCH + k : k * B_PITCH + column;
                coopMatLoad(b, bs, (half_ * B_ROWS * B_PITCH + at) / 4, B_PITCH / 4, B_LAYOUT);
                [[unroll]] for (uint i = 0; i < WM / F; i++) acc[i][j] = coopMatMulAdd(a[i], b, acc[i][j]);
            }
        }
        half_ ^= 1;
        if (more) put(half_);  // all have passed the barrier after its last use
        barrier();
    }

    uint c_at = matrix * p.m * p.n;
    [[unroll]] for (uint i = 0; i < WM / F; i++)
        [[unroll]] for (uint j = 0; j < WN / F; j++) {
            coopMatStore(acc[i][j], out_, mine * F * F, F, gl_CooperativeMatrixLayoutRowMajor);
            subgroupBarrier();
            for (uint e = gl_SubgroupInvocationID; e < F * F; e += SG) {
                uint row = row0 + my_row + i * F + e / F, column = column0 + my_column + j * F + e % F;
                if (row < p.m && column < p.n) {
                    float x = out_[mine * F * F + e];
                    uint at = c_at + row * p.n + column;
#if STORE_PRE
                    p.pre.v[at] = x;
#endif
                    p.c.v[at] = epilogue(x, at);
                }
            }
            subgroupBarrier();
        }
}
