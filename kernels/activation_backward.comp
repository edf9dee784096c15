// Of dout = dL/dout [rows, F]: dh = dL/dh, as h, and for each coefficient Σ over rows of dout·∂act/∂c, as `parts` partial
// sums [parts, F]; see activation.comp. SLOPES: what act_grads() gives, dx or dg and du, then dc[0], ….
#include "lib/activation.glsl"

layout(push_constant) uniform Push {
    In h, dout;
    Out dh;
#if COUNT
    In c[COUNT];
    Out dc[COUNT];
#endif
    uint rows, columns, parts;
} p;

void main() {
    Run mine = run(p.rows, p.columns, p.parts);
    if (mine.column >= p.columns || mine.part >= p.parts) return;
#if COUNT
    Floats c[COUNT], sum[COUNT];
    [[unroll]] for (uint k = 0; k < COUNT; k++) {
        c[k] = LOAD(p.c[k], mine.column);
        sum[k] = Floats(0.0);
    }
#endif
    for (uint row = mine.row; row < mine.end; row++) {
        uint at = AT(row, mine.column, p.columns);
        INPUTS;
        Floats dout = LOAD(p.dout, row * p.columns + mine.column), first, second;
        [[unroll]] for (uint e = 0; e < EACH; e++) {
#if COUNT
            float dc[COUNT];
#endif
#if GATED
            float dg, du;
            act_grads(ARGUMENTS, SLOPES);
            PART(first, e) = dg * PART(dout, e);
            PART(second, e) = du * PART(dout, e);
#else
            float dx;
            act_grads(ARGUMENTS, SLOPES);
            PART(first, e) = dx * PART(dout, e);
#endif
#if COUNT
            [[unroll]] for (uint k = 0; k < COUNT; k++) PART(sum[k], e) += dc[k] * PART(dout, e);
#endif
        }
        STORE(p.dh, at, first);
#if GATED
        STORE(p.dh, at + p.columns, second);
#endif
    }
#if COUNT
    [[unroll]] for (uint k = 0; k < COUNT; k++) STORE(p.dc[k], mine.part * p.columns + mine.column, sum[k]);
#endif
}
