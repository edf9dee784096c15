// out = act(x, c…), or act(g, u, c…) of gates g and values u; see lib/activation.glsl. h [rows, F], GATED [rows, 2F];
// each coefficient [F]; out [rows, F].
#include "lib/activation.glsl"

layout(push_constant) uniform Push {
    In h;
    Out o;
#if COUNT
    In c[COUNT];
#endif
    uint rows, columns, parts;
} p;

void main() {
    Run mine = run(p.rows, p.columns, p.parts);
    if (mine.row >= mine.end) return;
#if COUNT
    Floats c[COUNT];
    [[unroll]] for (uint k = 0; k < COUNT; k++) c[k] = LOAD(p.c[k], mine.column);
#endif
    for (uint row = mine.row; row < mine.end; row++) {
        uint at = AT(row, mine.column, p.columns);
        INPUTS;
        Floats y;
        [[unroll]] for (uint e = 0; e < EACH; e++) PART(y, e) = act(ARGUMENTS);
        STORE(p.o, row * p.columns + mine.column, y);
    }
}
