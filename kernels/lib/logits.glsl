// The logits z from `at` on, as many as a lane takes at a time, or the one there. CAPPED: of each cap·tanh(z/cap).
// After the push block, which has `In logits` and, if CAPPED, `float cap`.
#if CAPPED
#include "lib/functions.glsl"
Floats logits(uint at) {
    Floats z = LOAD(p.logits, at);
    return APPLY(softcap, z, Floats(p.cap));
}
float logit(uint at) { return softcap(p.logits.v[at], p.cap); }
#else
#define logits(at) LOAD(p.logits, at)
#define logit(at) p.logits.v[at]
#endif
