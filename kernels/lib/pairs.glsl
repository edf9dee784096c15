// Two neighbouring floats in one access where PAIRS, as 64 bits at an even place of an aligned array: lavapipe gathers
// and scatters lane by lane, and a lane's turn costs as much with 32 bits.
//
// pair and store_pair serve kernels that always take two. In kernels that are written for either number, a lane takes
// EACH floats at a time, `Floats`, by LOAD and STORE; PART(x, i): the i-th of them; among(i): 1 for that, 0 for the others.
#if PAIRS
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require
layout(buffer_reference, std430, buffer_reference_align = 8) buffer Twos { uint64_t v[]; };

// The place of a lane's two among the subgroup's. A register of 64-bit lanes is two machine registers, and the compiler
// may gather the second first; with the middle quarters exchanged each of them begins in the first cache line, so that
// memory is met in order and fetched ahead.
uint lane_swizzle(uint lane) {
    uint q = lane / (SG / 4);
    return lane % (SG / 4) + SG / 4 * (q % 2 * 2 + q / 2);
}
vec2 load_two(Twos q, uint at) {
    uint64_t x = q.v[at / 2];
    return uintBitsToFloat(uvec2(uint(x), uint(x >> 32)));
}
void store_two(Twos q, uint at, vec2 x) {
    q.v[at / 2] = uint64_t(floatBitsToUint(x.x)) | uint64_t(floatBitsToUint(x.y)) << 32;
}

#define EACH 2
#define Floats vec2
#define LOAD(q, at) load_two(Twos(uvec2(q)), at)
#define STORE(q, at, x) store_two(Twos(uvec2(q)), at, x)
#define APPLY(f, x, y) vec2(f((x)[0], (y)[0]), f((x)[1], (y)[1]))
#define PART(x, e) x[e]
vec2 pair(In q, uint at) { return LOAD(q, at); }
void store_pair(Out q, uint at, vec2 x, bool both) { STORE(q, at, x); }
float total(vec2 x) { return x.x + x.y; }
float highest(vec2 x) { return max(x.x, x.y); }
vec2 among(uint i) { return vec2(i == 0, i == 1); }
#else
uint lane_swizzle(uint lane) { return lane; }

#define EACH 1
#define Floats float
#define LOAD(q, at) q.v[at]
#define STORE(q, at, x) q.v[at] = x
#define APPLY(f, x, y) f(x, y)
#define PART(x, e) x
vec2 pair(In q, uint at) { return vec2(q.v[at], q.v[at + 1]); }
void store_pair(Out q, uint at, vec2 x, bool both) {
    q.v[at] = x.x;
    if (both) q.v[at + 1] = x.y;
}
float total(float x) { return x; }
float highest(float x) { return x; }
float among(uint i) { return float(i == 0); }
#endif
