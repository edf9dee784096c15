// C = sums + A·B over KB steps of K, or A·B where not `given_sums`; further steps are further dispatches, so that each
// element is summed in order, as in matmul_cpu.comp, to the same bits. A [M, K], or with TA [K, M]; B [K, N]; sums,
// C [M, N]; M ≥ R, N ≥ CB·SG. What is stored goes through lib/epilogue.glsl; with STORE_PRE, `pre` gets the product as
// it was. With TA, R is a multiple of 4.
//
// For lavapipe, which loads one scalar and broadcasts it where an address is the same in all lanes for certain: made of
// push constants, outside every branch and loop. Neighbouring ones become a single vector load. So K is unrolled, a
// subgroup keeps R rows by CB registers of columns, and A's elements are operands of multiplications: no gathers, no
// shuffles, no loop to carry the sums through. docs/kernels.md tells what else the driver's compiler wants:
// * Loads are of four floats where they can be: the driver's own compiler takes time by the square of their number.
// * Rows of A are pointers with constant offsets (TA: one pointer, that advances); B's pointer advances by a number
//   that the compiler does not know, or it forms all addresses first and spills them.
// * A store to shared memory every FENCE steps keeps loads near their use, one of all sums ends them before any is
//   stored. Nothing reads what is stored there.
// Grid: tiles along N, then M, one for each subgroup of a workgroup. A last tile lies over its neighbour, and stores
// only what is its own; so C may lie over sums.
#include "lib/common.glsl"
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require

layout(buffer_reference, std430, buffer_reference_align = 4) readonly buffer Fours { vec4 v[]; };

layout(push_constant) uniform Push {
    In a, b, sums;
    Out c;
#if STORE_PRE
    Out pre;
#endif
#if Y
    In y;
#endif
    uint m, n, a_row, b_row, given_sums;  // bytes from one row to the next; 0 or 1
#if HAS_EPILOGUE
    float alpha, beta;
#endif
    uint digit[DIGITS];  // digit[i] = i
} p;
#include "lib/epilogue.glsl"

const uint W = CB * SG, FENCE = 8, STEPS = (KB + FENCE - 1) / FENCE;
shared uint fence[STEPS + 1];

// A number below 8⁵ in words that are the same in all lanes for certain: its octal digits.
uint uniform_of(uint x) {
    uint y = p.digit[x & 7u];
    [[unroll]] for (uint i = 3; i < 15; i += 3) y |= p.digit[x >> i & 7u] << i;
    return y;
}

// One element a lane, from an address that is the same in all: a single load.
float load_row(uint64_t at) {
    uint lane = gl_SubgroupInvocationID;
    Fours q = Fours(at);
    float x = 0.0;
    [[unroll]] for (uint i = 0; i < SG / 4; i++) {
        vec4 four = q.v[i];
        [[unroll]] for (uint e = 0; e < 4; e++) x = mix(x, four[e], lane == 4 * i + e);
    }
    return x;
}

void main() {
    // All push constants first: their loads have branches, which the compiler moves arithmetic into.
    uint64_t a = uint64_t(p.a), b = uint64_t(p.b), sums = uint64_t(p.sums), a_row = p.a_row, b_row = p.b_row;
    Out c = p.c;
    uint m = p.m, n = p.n, given_sums = p.given_sums, lane = gl_SubgroupInvocationID;
    uint own_row = (uniform_of(gl_WorkGroupID.y) * (WG / SG) + p.digit[gl_SubgroupID & 7u]) * R;
    uint own_column = uniform_of(gl_WorkGroupID.x) * W;
    uint row = min(own_row, m - R), column = min(own_column, n - W);

    float acc[R][CB];
    uint64_t at[R];
#if TA
    [[unroll]] for (uint j = 0; j < CB; j++) at[j] = a + uint64_t(row * 4);
#else
    [[unroll]] for (uint r = 0; r < R; r++) at[r] = a + uint64_t(row + r) * a_row;
#endif
    b += uint64_t(column * 4);
    [[unroll]] for (uint r = 0; r < R; r++)
        [[unroll]] for (uint j = 0; j < CB; j++) {
            uint place = given_sums * ((row + r) * n + column + j * SG);  // without sums: a place that can be read
            acc[r][j] = mix(0.0, load_row(sums + uint64_t(place) * 4), given_sums == 1);
        }
    [[unroll]] for (uint k = 0; k < KB; k++) {
        if (k % FENCE == 0) fence[k / FENCE] = k;
        float x[CB];
        [[unroll]] for (uint j = 0; j < CB; j++) x[j] = load_row(b + j * 4 * SG);
        b += b_row;
        [[unroll]] for (uint r = 0; r < R; r++)
            [[unroll]] for (uint j = 0; j < CB; j++)
                acc[r][j] = fma(TA == 1 ? Fours(at[j]).v[r / 4][r % 4] : In(at[r]).v[k], x[j], acc[r][j]);
#if TA
        [[unroll]] for (uint j = 0; j < CB; j++) at[j] += a_row;
#endif
    }
    uint all = 0;
    [[unroll]] for (uint r = 0; r < R; r++)
        [[unroll]] for (uint j = 0; j < CB; j++) all ^= floatBitsToUint(acc[r][j]);
    fence[STEPS] = all;

    [[unroll]] for (uint r = 0; r < R; r++)
        [[unroll]] for (uint j = 0; j < CB; j++) {
            uint place = (row + r) * n + column + j * SG;
#if Y
            float other = load_row(uint64_t(p.y) + uint64_t(place) * 4);
#else
            float other = 0.0;
#endif
            if (row + r >= own_row && column + j * SG + lane >= own_column) {
#if STORE_PRE
                p.pre.v[place + lane] = acc[r][j];
#endif
                c.v[place + lane] = epilogue(acc[r][j], other);
            }
        }
}
