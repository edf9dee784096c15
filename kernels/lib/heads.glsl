// A head's DH elements, by twos.
#include "lib/pairs.glsl"

#define TWOS ((DH + 1) / 2)

// sum + a·b, term by term.
float plus_dot(vec2 a, vec2 b, float sum) { return fma(a.y, b.y, fma(a.x, b.x, sum)); }

// Elements 2·d and 2·d + 1 of the head that begins at `at`; 0 beyond an odd DH.
vec2 head(In q, uint at, uint d) {
    if (2 * d + 1 == DH) return vec2(q.v[at + 2 * d], 0.0);
    return pair(q, at + 2 * d);
}

void store_head(Out q, uint at, uint d, vec2 x) { store_pair(q, at + 2 * d, x, 2 * d + 1 < DH); }
