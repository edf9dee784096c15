// Dropout of what a lane takes at a time; r: the bits of four neighbouring columns, e: which of them comes first here.
#include "lib/philox.glsl"
#include "lib/pairs.glsl"

Floats dropped(Floats h, uvec4 r, uint e, uint threshold, float factor) {
#if PAIRS
    return mix(vec2(0.0), h * factor, greaterThanEqual(uvec2(r[e], r[e + 1]), uvec2(threshold)));
#else
    return r[e] >= threshold ? h * factor : 0.0;
#endif
}
