// out = Σ over points of points[m]·B_m(h), a cubic B-spline for each column; see lib/activation.glsl for the grid. B_m,
// of uniform knots STEP apart, is centred at -REACH + (m - 1)·STEP. Beyond ±REACH it goes on as a straight line.
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

const float STEP = 2.0 * REACH / float(POINTS - 3);

// At a distance d from its centre, in steps: the value, and the slope by d.
vec2 basis(float d) {
    float a = abs(d), b = max(2.0 - a, 0.0);
    return a < 1.0 ? vec2(2.0 / 3.0 - a * a * (1.0 - 0.5 * a), d * (1.5 * a - 2.0))
                   : vec2(b * b * b / 6.0, -0.5 * sign(d) * b * b);
}

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
        float h = p.h.v[at], inside = clamp(h, -REACH, REACH), u = (inside + REACH) / STEP, value = 0.0, slope = 0.0;
        float beyond = (h - inside) / STEP;
#if BACKWARD
        float dout = p.dout.v[at];
#endif
        [[unroll]] for (uint m = 0; m < POINTS; m++) {
            vec2 b = basis(u - float(m) + 1.0);
            float weight = b.x + beyond * b.y;
            value += points[m] * weight;
            slope += points[m] * b.y;
#if BACKWARD
            sums[m] += dout * weight;
#endif
        }
#if BACKWARD
        p.dh.v[at] = dout * slope / STEP;
#else
        p.o.v[at] = value;
#endif
    }
#if BACKWARD
    [[unroll]] for (uint m = 0; m < POINTS; m++)
        p.dpoints.v[(mine.part * POINTS + m) * p.columns + mine.column] = sums[m];
#endif
}
