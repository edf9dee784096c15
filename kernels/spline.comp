// out = Σ over points of points[m]·B_m(h), a cubic B-spline for each column; see lib/activation.glsl for the grid. B_m,
// of uniform knots 1/RATE apart, is centred at -REACH + (m - 1)/RATE. Beyond ±REACH it goes on as a straight line.
// h, out [rows, F]; points [POINTS, F]. BACKWARD: of dout = dL/dout, dh and, as `parts` partial sums [parts, POINTS, F],
// dpoints.
#include "lib/activation.glsl"

layout(push_constant) uniform Push {
    In h, points;
#if BACKWARD
    In dout;
    Out dh, dpoints;
#else
    Out o;
#endif
    uint rows, columns, parts;
} p;

const uint CELLS = POINTS - 3;  // between knots; their numbers have four bits
const float RATE = float(CELLS) / (2.0 * REACH);  // cells a unit of h

// By a bit of the cell's number: points come to the front, and weights go from there to where they belong. Loops are
// unrolled by the driver, which does not see through a condition like m + bit < POINTS.
#define FORTH(bit) \
    [[unroll]] for (uint m = 0; m < POINTS - bit; m++) near[m] = mix(near[m], near[m + bit], (cell & bit) != 0);
#define BACK(bit) \
    [[unroll]] for (uint i = 0; i < POINTS - bit; i++) { \
        const uint m = POINTS - 1 - i; \
        weights[m] = mix(weights[m], weights[m - bit], (cell & bit) != 0); \
    } \
    [[unroll]] for (uint m = 0; m < bit; m++) weights[m] = mix(weights[m], 0.0, (cell & bit) != 0);

void main() {
    Run mine = run(p.rows, p.columns, p.parts);
    if (mine.column >= p.columns || mine.part >= p.parts) return;
    float points[POINTS], sums[POINTS];
    [[unroll]] for (uint m = 0; m < POINTS; m++) {
        points[m] = p.points.v[m * p.columns + mine.column];
        sums[m] = 0.0;
    }
    for (uint row = mine.row; row < mine.end; row++) {
        uint at = row * p.columns + mine.column;
        float h = p.h.v[at], inside = clamp(h, -REACH, REACH), u = (inside + REACH) * RATE;
        uint cell = uint(min(u, float(CELLS - 1)));
        float t = u - float(cell), s = 1.0 - t, beyond = (h - inside) * RATE;
        // Of points cell to cell + 3, the others' being 0: slopes of the bases by u, bases, points.
        float slopes[4] = {-0.5 * s * s, (1.5 * t - 2.0) * t, (2.0 - 1.5 * s) * s, 0.5 * t * t};
        float bases[4] = {s * s * s / 6.0, (0.5 * t - 1.0) * t * t + 2.0 / 3.0, (0.5 * s - 1.0) * s * s + 2.0 / 3.0,
                          t * t * t / 6.0};
        float near[POINTS] = points, value = 0.0, slope = 0.0;
        FORTH(8) FORTH(4) FORTH(2) FORTH(1)
        [[unroll]] for (uint k = 0; k < 4; k++) {
            value += near[k] * bases[k];
            slope += near[k] * slopes[k];
        }
#if BACKWARD
        float dout = p.dout.v[at], weights[POINTS];
        [[unroll]] for (uint m = 0; m < POINTS; m++) weights[m] = m < 4 ? dout * (bases[m] + beyond * slopes[m]) : 0.0;
        BACK(1) BACK(2) BACK(4) BACK(8)
        [[unroll]] for (uint m = 0; m < POINTS; m++) sums[m] += weights[m];
        p.dh.v[at] = dout * slope * RATE;
#else
        p.o.v[at] = value + beyond * slope;
#endif
    }
#if BACKWARD
    [[unroll]] for (uint m = 0; m < POINTS; m++)
        p.dpoints.v[(mine.part * POINTS + m) * p.columns + mine.column] = sums[m];
#endif
}
