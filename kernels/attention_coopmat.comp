// Attention on matrix units: arguments, results and formula as in attention.comp with HALF: q, k and v are rounded to
// f16; sums, scores and the softmax are f32; weights are multiplied as in lib/attention_coopmat.glsl, which also says
// what the host must see to. Not yet run on a GPU.
//
// A subgroup has F queries, q and the sums of their outputs as fragments, and meets BK keys at a time. Their scores go
// through its tile; there PARTS neighbouring lanes share a query's row, take the softmax online and write the weights
// for the next product. Where a row's top grew, sums shrink by a product element by element, with a fragment that has
// the row's factor in all columns. No T × T array exists. Grid: one workgroup for each 4·F queries, each head, each
// sequence.
#define W BK
#define TILES 1
#define PAIRS 1
#include "lib/attention_coopmat.glsl"

layout(push_constant) uniform Push {
    In q, k, v;
    Out o, lse;
    InI rng;
    uint batch, heads, len, threshold, site, q_stride, k_stride, v_stride;
    float scale, cap, factor;
} p;

const uint PARTS = SG > 2 * F ? SG / F : 2, ROWS = F * PARTS / SG;  // lanes of a row, rows of a lane
const uint SPAN = BK / 4 / PARTS;  // fours of a row that a lane has

void fetch_both(Place at, uint j) {
    fetch(0, p.k, at, p.k_stride, j, p.len);
    fetch(1, p.v, at, p.v_stride, j, p.len);
}

void main() {
    Place at = place(p.batch, p.heads, p.len, BLOCK);
    if (!at.inside) return;
    uint i0 = at.block * BLOCK + gl_SubgroupID * F, end = min(p.len, (at.block + 1) * BLOCK);
    uint tile = gl_SubgroupID * TILE, pair = gl_SubgroupID * PAIR;
    uint part = gl_SubgroupInvocationID % PARTS, first = gl_SubgroupInvocationID / PARTS;  // row; more: SG/PARTS apart

    Left q[DF];
    Sum sum[DF];
    [[unroll]] for (uint d = 0; d < DF; d++) {
        bring(p.q, at, p.q_stride, i0, p.len, d * F);
        coopMatLoad(q[d], pairs, pair, PAIR_PITCH, BY_ROWS);
        sum[d] = Sum(0.0);
    }
    float top[ROWS], total[ROWS], shrink[ROWS];
    [[unroll]] for (uint r = 0; r < ROWS; r++) {
        top[r] = -1e30;
        total[r] = 0.0;
    }

    fetch_both(at, 0);
    for (uint j0 = 0; j0 < end; j0 += BK) {
        put();
        barrier();
        if (j0 + BK < end) fetch_both(at, j0 + BK);
        if (j0 < i0 + F) {  // some query of the subgroup sees some key
            [[unroll]] for (uint t = 0; t < BK / F; t++) {
                Sum s = Sum(0.0);
                [[unroll]] for (uint d = 0; d < DF; d++) {
                    Right k;
                    coopMatLoad(k, theirs, t * F * PITCH + d * F / 4, PITCH, BY_COLUMNS);
                    s = coopMatMulAdd(q[d], k, s);
                }
                coopMatStore(s, tiles, tile + t * F / 4, TILE_PITCH, BY_ROWS);
            }
            subgroupBarrier();

            float least = 1.0;
            [[unroll]] for (uint r = 0; r < ROWS; r++) {
                uint row = first + r * (SG / PARTS), i = i0 + row;
                vec4 s[SPAN];
                float high = top[r], added = 0.0;
                [[unroll]] for (uint e = 0; e < SPAN; e++) {
                    uint column = part * SPAN + e;
                    s[e] = capped(tiles[tile + row * TILE_PITCH + column] * p.scale, p.cap);
                    s[e] = mix(vec4(-1e30), s[e], seen(i, j0 + column * 4));
                    high = max(high, max(max(s[e].x, s[e].y), max(s[e].z, s[e].w)));
                }
                high = subgroupClusteredMax(high, PARTS);
                [[unroll]] for (uint e = 0; e < SPAN; e++) {
                    uint column = part * SPAN + e;
                    s[e] = exp(s[e] - high);
                    added += s[e].x + s[e].y + s[e].z + s[e].w;
                    s[e] *= kept(p.rng, j0 + column * 4, at.head_row + i, p.threshold, p.site);
                    put_pair(pair + row * PAIR_PITCH + column, s[e]);
                }
                shrink[r] = exp(top[r] - high);
                top[r] = high;
                total[r] = total[r] * shrink[r] + subgroupClusteredAdd(added, PARTS);
                least = min(least, shrink[r]);
            }
            subgroupBarrier();

            if (subgroupMin(least) < 1.0) {
                [[unroll]] for (uint r = 0; r < ROWS; r++)
                    for (uint column = part; column < Q; column += PARTS)
                        tiles[tile + (first + r * (SG / PARTS)) * TILE_PITCH + column] = vec4(shrink[r]);
                subgroupBarrier();
                Sum by;
                coopMatLoad(by, tiles, tile, TILE_PITCH, BY_ROWS);
                [[unroll]] for (uint d = 0; d < DF; d++) sum[d] = sum[d] * by;
            }
            [[unroll]] for (uint t = 0; t < BK / F; t++) {
                Left high;
                Left low;
                coopMatLoad(high, pairs, pair + t * F / 4, PAIR_PITCH, BY_ROWS);
                coopMatLoad(low, pairs, pair + (W + t * F) / 4, PAIR_PITCH, BY_ROWS);
                [[unroll]] for (uint d = 0; d < DF; d++) {
                    Right v;
                    coopMatLoad(v, theirs, (BK + t * F) * PITCH + d * F / 4, PITCH, BY_ROWS);
                    sum[d] = coopMatMulAdd(low, v, sum[d]);
                    sum[d] = coopMatMulAdd(high, v, sum[d]);
                }
            }
        }
        barrier();
    }

    [[unroll]] for (uint d = 0; d < DF; d++) {
        coopMatStore(sum[d], tiles, tile, TILE_PITCH, BY_ROWS);
        subgroupBarrier();
        [[unroll]] for (uint r = 0; r < ROWS; r++) {
            uint row = first + r * (SG / PARTS), i = i0 + row;
            if (i < p.len)
                for (uint column = part; column < Q; column += PARTS)
                    Out4(uvec2(p.o)).v[(offset(at, i, at.width) + d * F) / 4 + column] =
                        tiles[tile + row * TILE_PITCH + column] * (p.factor / total[r]);
        }
        subgroupBarrier();
    }
    [[unroll]] for (uint r = 0; r < ROWS; r++) {
        uint i = i0 + first + r * (SG / PARTS);
        if (part == 0 && i < p.len) p.lse.v[at.head_row + i] = top[r] + log(total[r]);
    }
}
