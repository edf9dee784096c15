// C = op(A)·op(B), op transposing where TA, TB; A [batch, M, K], B [batch, K, N] (before op's transposition: [K, M],
// [N, K]), C [batch, M, N]; a_step, b_step: elements from one matrix of the batch to the next (0: shared).
// What is stored goes through lib/epilogue.glsl; with STORE_PRE, `pre` gets the product as it was. HALF: A and B are
// rounded to f16.
//
// For devices whose subgroup is a SIMD register (lavapipe). A subgroup computes RA·SG rows by CB·SG columns: lanes hold
// SG rows of A and SG columns of B, and each row's value is broadcast to all lanes in turn: one shuffle for CB
// multiply-adds. KU steps of K are loaded first, all of a lane's row together (one cache line), then each accumulator
// takes its KU products in one trip between memory and registers. A lane's rows (columns) are neighbours by twos, so
// that with PAIRS two floats are one load: that wants even lengths along memory, of C too, and RA, CB, KU even always.
// Grid: one subgroup a tile, along N, then M, then the batch. Rows and columns beyond the edge repeat the last one and
// are not stored.
#include "lib/common.glsl"
#include "lib/half.glsl"
#include "lib/pairs.glsl"

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

float acc[RA * SG][CB];

// Which row (column) is r in a lane, counted from the tile's first; and which r, in which lane, is row i.
uint member(uint r, uint lane) { return (r & ~1u) * SG + 2 * lane_swizzle(lane) + (r & 1u); }
uint owned(uint i) { return i / (2 * SG) * 2 + i % 2; }
uint owner(uint i) { return lane_swizzle(i % (2 * SG) / 2); }

// Into to[s][i] element s of K, of the lane's row (column) i, which begins at place[i]; k, count and two are those of
// steps(). ALONG: K runs along memory.
#define FETCH(to, n, q, start, place, across, ALONG)                                                    \
    [[unroll]] for (uint i = 0; i < n; i += two && !ALONG ? 2 : 1)                                      \
        [[unroll]] for (uint s = 0; s < count; s += two && ALONG ? 2 : 1) {                             \
            uint at = start + place[i] + (k + s) * (ALONG ? 1 : across);                                \
            if (two) {                                                                                  \
                vec2 both = pair(q, at);                                                                \
                to[s][i] = rounded(both[0]);                                                            \
                to[ALONG ? s + 1 : s][ALONG ? i : i + 1] = rounded(both[1]);                            \
            } else to[s][i] = rounded(q.v[at]);                                                         \
        }

void steps(uint a_at, uint b_at, uint rows[RA], uint columns[CB], uint k, const uint count) {
    const bool two = PAIRS == 1 && count == KU;
    float a[KU][RA], b[KU][CB];
    FETCH(a, RA, p.a, a_at, rows, p.m, (TA == 0))
    FETCH(b, CB, p.b, b_at, columns, p.n, (TB == 1))
    [[unroll]] for (uint r = 0; r < RA * SG; r++)
        [[unroll]] for (uint s = 0; s < count; s++) {
            float x = subgroupBroadcast(a[s][owned(r)], owner(r));
            [[unroll]] for (uint c = 0; c < CB; c++) acc[r][c] = fma(x, b[s][c], acc[r][c]);
        }
}

// Brings what lies ahead into the cache, a line of SG floats a lane: row k of K and those after it, `lines` of each
// from `first` on. Where each step of K is in another row of both A and B, no cache foresees what comes.
uint touch(In q, uint at, uint k, uint first, uint across, uint lines) {
    uint lane = gl_SubgroupInvocationID, row = min(k + lane / lines, p.k - 1);
    return floatBitsToUint(q.v[at + row * across + min(first + lane % lines * SG, across - 1)]);
}

// What the epilogue takes at `at` and, if there are `both`, the next place.
vec2 others(uint at, bool both) {
#if !Y
    return vec2(0.0);
#elif PAIRS
    return pair(p.y, at);
#else
    return vec2(p.y.v[at], p.y.v[both ? at + 1 : at]);
#endif
}

void main() {
    uint across = (p.n + CB * SG - 1) / (CB * SG), down = (p.m + RA * SG - 1) / (RA * SG);
    uint tile = group() % (across * down), matrix = group() / (across * down);
    if (matrix >= p.batch) return;
    uint row0 = tile / across * (RA * SG), column0 = tile % across * (CB * SG), lane = gl_SubgroupInvocationID;
    uint rows[RA], columns[CB];
    // An even r is held to an even place, where a load of two is aligned and stays inside.
    [[unroll]] for (uint r = 0; r < RA; r++)
        rows[r] = min(row0 + member(r, lane), p.m - 1 & ~(~r & 1u)) * (TA == 1 ? 1 : p.k);
    [[unroll]] for (uint c = 0; c < CB; c++)
        columns[c] = min(column0 + member(c, lane), p.n - 1 & ~(~c & 1u)) * (TB == 1 ? p.k : 1);
    [[unroll]] for (uint r = 0; r < RA * SG; r++)
        [[unroll]] for (uint c = 0; c < CB; c++) acc[r][c] = 0.0;

    uint a_at = matrix * p.a_step, b_at = matrix * p.b_step, k = 0;
#if TA && !TB
    uint touched = 0;
#endif
    for (; k + KU <= p.k; k += KU) {
#if TA && !TB
        // Eight rows ahead, whatever KU is: four come too late.
        touched |= touch(p.a, a_at, k + 8, row0, p.m, RA) | touch(p.b, b_at, k + 8, column0, p.n, CB);
#endif
        steps(a_at, b_at, rows, columns, k, KU);
    }
    for (; k < p.k; k++) steps(a_at, b_at, rows, columns, k, 1);
#if TA && !TB
    if (p.k == ~0u) acc[0][0] = uintBitsToFloat(touched);  // never; but a load that nothing needs would be left out
#endif

    uint c_at = matrix * p.m * p.n;
    [[unroll]] for (uint r = 0; r < RA * SG; r += 2) {
        if (row0 + r >= p.m) break;
        // All that the epilogue takes from memory first, or it would wait for each load in turn.
        vec2 other[2][CB / 2];
        [[unroll]] for (uint e = 0; e < 2; e++)
            [[unroll]] for (uint c = 0; c < CB; c += 2) {
                uint column = min(column0 + member(c, lane), p.n - 1 & ~1u), row = min(row0 + r + e, p.m - 1);
                other[e][c / 2] = others(c_at + row * p.n + column, column + 1 < p.n);
            }
        [[unroll]] for (uint e = 0; e < 2; e++)
            [[unroll]] for (uint c = 0; c < CB; c += 2) {
                uint column = column0 + member(c, lane), row = row0 + r + e, at = c_at + row * p.n + column;
                if (column < p.n && row < p.m) {
                    vec2 x = vec2(acc[r + e][c], acc[r + e][c + 1]), y = other[e][c / 2];
#if STORE_PRE
                    store_pair(p.pre, at, x, column + 1 < p.n);
#endif
                    store_pair(p.c, at, vec2(epilogue(x.x, y.x), epilogue(x.y, y.y)), column + 1 < p.n);
                }
            }
    }
}
