// Two neighbouring floats in one access where PAIRS, as 64 bits at an even place of an aligned array: lavapipe gathers and
// scatters lane by lane, and a lane's turn costs as much with 32 bits.
#if PAIRS
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require
layout(buffer_reference, std430, buffer_reference_align = 8) readonly buffer In64 { uint64_t v[]; };
layout(buffer_reference, std430, buffer_reference_align = 8) writeonly buffer Out64 { uint64_t v[]; };
#endif

vec2 pair(In q, uint at) {
#if PAIRS
    uint64_t x = In64(uvec2(q)).v[at / 2];
    return uintBitsToFloat(uvec2(uint(x), uint(x >> 32)));
#else
    return vec2(q.v[at], q.v[at + 1]);
#endif
}

// Without PAIRS, the second is left out unless `both`.
void store_pair(Out q, uint at, vec2 x, bool both) {
#if PAIRS
    Out64(uvec2(q)).v[at / 2] = uint64_t(floatBitsToUint(x.x)) | uint64_t(floatBitsToUint(x.y)) << 32;
#else
    q.v[at] = x.x;
    if (both) q.v[at + 1] = x.y;
#endif
}
