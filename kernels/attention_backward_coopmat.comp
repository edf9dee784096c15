// The backward pass of attention on matrix units: arguments, results and formulas as in attention_backward.comp with
// HALF: q, k, v and g are rounded to f16; sums and all that is computed of them are f32; weights and ds are multiplied
// as in lib/attention_coopmat.glsl, which also says what the host must see to. Not yet run on a GPU.
//
// Two variants, run in this order. BY_KEY 0: a subgroup has F queries, for dq, and meets keys; it writes delta
// [B, H, T], too. BY_KEY 1: it has F keys, for dk and dv, meets queries, and reads delta. In both, "mine" are a and b
// (q and g, or k and v), as fragments, and "theirs" the two others, x and y. a·xᵀ gives scores, b·yᵀ the gradients of
// weights; then ds·x is the sum for a, and with BY_KEY w̃·y that for b. A tile always has queries in its rows, so that
// the four keys of a vec4 take one draw of dropout. Grid: that of attention_coopmat.comp.
#define W F
#define TILES 2
#define PAIRS (1 + BY_KEY)
#include "lib/attention_coopmat.glsl"

layout(push_constant) uniform Push {
    In q, k, v, lse, g;
#if BY_KEY
    In delta;
    Out dk, dv;
#else
    In o;
    Out delta, dq;
#endif
    InI rng;
    uint batch, heads, len, threshold, site, q_stride, k_stride, v_stride;
#if BY_KEY
    uint dk_stride, dv_stride;
#else
    uint dq_stride;
#endif
    float scale, cap, factor;
} p;

#if BY_KEY
#define OF_TILE BY_COLUMNS
shared vec2 stats[BK];  // lse and delta, of queries that are theirs
#else
#define OF_TILE BY_ROWS
shared vec2 stats[BLOCK];  // of mine
#endif

void fetch_both(Place at, uint row) {
#if BY_KEY
    fetch(0, p.q, at, p.q_stride, row, p.len);
    fetch(1, p.g, at, at.width, row, p.len);
#else
    fetch(0, p.k, at, p.k_stride, row, p.len);
    fetch(1, p.v, at, p.v_stride, row, p.len);
#endif
}

// What lies in the subgroup's first tile, times `scale`: F columns of the result x, from `column` on.
void give(Out x, Place at, uint stride, uint row, uint column, float scale) {
    subgroupBarrier();
    for (uint e = gl_SubgroupInvocationID; e < F * Q; e += SG)
        if (row + e / Q < p.len)
            Out4(uvec2(x)).v[(offset(at, row + e / Q, stride) + column) / 4 + e % Q] =
                tiles[gl_SubgroupID * TILES * TILE + e / Q * TILE_PITCH + e % Q] * scale;
    subgroupBarrier();
}

void main() {
    Place at = place(p.batch, p.heads, p.len, BLOCK);
    if (!at.inside) return;
    uint lane = gl_SubgroupInvocationID, mine = at.block * BLOCK + gl_SubgroupID * F;
    uint tile = gl_SubgroupID * TILES * TILE, pair = gl_SubgroupID * PAIRS * PAIR;

    Left a[DF];
    Left b[DF];
    Sum da[DF];
#if BY_KEY
    Sum db[DF];
    uint begin = at.block * BLOCK, end = p.len;
#else
    uint begin = 0, end = min(p.len, (at.block + 1) * BLOCK);
#endif
    [[unroll]] for (uint d = 0; d < DF; d++) {
        da[d] = Sum(0.0);
#if BY_KEY
        db[d] = Sum(0.0);
        bring(p.k, at, p.k_stride, mine, p.len, d * F);
        coopMatLoad(a[d], pairs, pair, PAIR_PITCH, BY_ROWS);
        bring(p.v, at, p.v_stride, mine, p.len, d * F);
        coopMatLoad(b[d], pairs, pair, PAIR_PITCH, BY_ROWS);
#else
        bring(p.q, at, p.q_stride, mine, p.len, d * F);
        coopMatLoad(a[d], pairs, pair, PAIR_PITCH, BY_ROWS);
        bring(p.g, at, at.width, mine, p.len, d * F);
        coopMatLoad(b[d], pairs, pair, PAIR_PITCH, BY_ROWS);
#endif
    }
#if !BY_KEY
    for (uint row0 = 0; row0 < F; row0 += SG / 4) {  // SG / 4 divides F: all lanes go as often
        uint row = row0 + lane / 4;
        float delta = 0.0;
        for (uint d = lane % 4 * 4; d < DH; d += 16) {
            vec4 g = four(p.g, at, at.width, mine + row, p.len, d);
            vec4 o = four(p.o, at, at.width, mine + row, p.len, d);
            [[unroll]] for (uint e = 0; e < 4; e++) delta = fma(rounded(g[e]), o[e], delta);
        }
        delta = subgroupClusteredAdd(delta, 4);
        bool inside = mine + row < p.len;
        if (lane % 4 == 0) {
            stats[gl_SubgroupID * F + row] = inside ? vec2(p.lse.v[at.head_row + mine + row], delta) : vec2(0);
            if (inside) p.delta.v[at.head_row + mine + row] = delta;
        }
    }
#endif

    fetch_both(at, begin);
    for (uint block = begin; block < end; block += BK) {
        put();
#if BY_KEY
        for (uint e = gl_LocalInvocationID.x; e < BK; e += WG) {
            uint row = at.head_row + block + e;
            stats[e] = block + e < p.len ? vec2(p.lse.v[row], p.delta.v[row]) : vec2(0);
        }
#endif
        barrier();
        if (block + BK < end) fetch_both(at, block + BK);
        for (uint t = 0; t < BK; t += F) {
#if BY_KEY
            uint i0 = block + t, j0 = mine;
#else
            uint i0 = mine, j0 = block + t;
#endif
            if (j0 >= i0 + F || block + t >= p.len) continue;  // no query sees a key
            Sum s = Sum(0.0);
            Sum dw = Sum(0.0);
            [[unroll]] for (uint d = 0; d < DF; d++) {
                Right x;
                Right y;
                coopMatLoad(x, theirs, t * PITCH + d * F / 4, PITCH, BY_COLUMNS);
                coopMatLoad(y, theirs, (BK + t) * PITCH + d * F / 4, PITCH, BY_COLUMNS);
                s = coopMatMulAdd(a[d], x, s);
                dw = coopMatMulAdd(b[d], y, dw);
            }
            coopMatStore(s, tiles, tile, TILE_PITCH, OF_TILE);
            coopMatStore(dw, tiles, tile + TILE, TILE_PITCH, OF_TILE);
            subgroupBarrier();

            for (uint e = lane; e < F * Q; e += SG) {
                uint row = e / Q, i = i0 + row, j = j0 + e % Q * 4, from = tile + row * TILE_PITCH + e % Q;
                uint to = pair + row * PAIR_PITCH + e % Q;
                vec2 stat = stats[(BY_KEY == 1 ? t : gl_SubgroupID * F) + row];
                vec4 c = capped(tiles[from] * p.scale, p.cap), w = mix(vec4(0), exp(c - stat.x), seen(i, j));
                vec4 keep = kept(p.rng, j, at.head_row + i, p.threshold, p.site);
                put_pair(to, w * (tiles[from + TILE] * keep * p.factor - stat.y) * capped_grad(c, p.cap));
#if BY_KEY
                put_pair(to + PAIR, w * keep);
#endif
            }
            subgroupBarrier();

            Left high;
            Left low;
            coopMatLoad(high, pairs, pair, PAIR_PITCH, OF_TILE);
            coopMatLoad(low, pairs, pair + W / 4, PAIR_PITCH, OF_TILE);
            [[unroll]] for (uint d = 0; d < DF; d++) {
                Right x;
                coopMatLoad(x, theirs, t * PITCH + d * F / 4, PITCH, BY_ROWS);
                da[d] = coopMatMulAdd(low, x, da[d]);
                da[d] = coopMatMulAdd(high, x, da[d]);
            }
#if BY_KEY
            coopMatLoad(high, pairs, pair + PAIR, PAIR_PITCH, OF_TILE);
            coopMatLoad(low, pairs, pair + PAIR + W / 4, PAIR_PITCH, OF_TILE);
            [[unroll]] for (uint d = 0; d < DF; d++) {
                Right y;
                coopMatLoad(y, theirs, (BK + t) * PITCH + d * F / 4, PITCH, BY_ROWS);
                db[d] = coopMatMulAdd(low, y, db[d]);
                db[d] = coopMatMulAdd(high, y, db[d]);
            }
#endif
        }
        barrier();
    }

    [[unroll]] for (uint d = 0; d < DF; d++) {
        coopMatStore(da[d], tiles, tile, TILE_PITCH, BY_ROWS);
#if BY_KEY
        give(p.dk, at, p.dk_stride, mine, d * F, p.scale);
        coopMatStore(db[d], tiles, tile, TILE_PITCH, BY_ROWS);
        give(p.dv, at, p.dv_stride, mine, d * F, p.factor);
#else
        give(p.dq, at, p.dq_stride, mine, d * F, p.scale);
#endif
    }
}
