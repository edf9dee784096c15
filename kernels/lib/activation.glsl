// What activation.comp and activation_backward.comp share: FORMULA, GLSL that helios/formula makes, and how it is fed.
//
// A lane owns one column, two with PAIRS, and goes through a run of the rows with its coefficients in registers. GATED:
// a row of h has `columns` gates, then as many values u. COUNT: how many coefficients there are; ARGUMENTS: those of
// act(), of the e-th of a lane's columns.
// Grid: one workgroup for each WG·EACH columns and each of `parts` runs of rows.
#include "lib/common.glsl"
#include "lib/functions.glsl"
#include "lib/pairs.glsl"
FORMULA

struct Run {
    uint column, row, end;  // empty beyond the columns
    uint part;
};

Run run(uint rows, uint columns, uint parts) {
    uint blocks = (columns + WG * EACH - 1) / (WG * EACH), part = group() / blocks, size = (rows + parts - 1) / parts;
    uint column = group() % blocks * (WG * EACH) + EACH * lane_swizzle(gl_LocalInvocationID.x);
    return Run(column, part * size, column < columns && part < parts ? min(rows, (part + 1) * size) : 0, part);
}

#if GATED
#define AT(row, column, columns) 2 * (row) * (columns) + (column)
#define INPUTS Floats g = LOAD(p.h, at), u = LOAD(p.h, at + p.columns)
#else
#define AT(row, column, columns) (row) * (columns) + (column)
#define INPUTS Floats x = LOAD(p.h, at)
#endif
