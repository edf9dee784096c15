// What a kernel multiplies where HALF is set (--precision mixed): its inputs rounded to f16, computed with in f32.

// The float16 nearest to x, ties to even, from 65,520 on infinity: x + 1.5·2ᵉ⁺¹³ has just the digits that a float16 of
// x's exponent e (at least -14) keeps. unpackHalf2x16(packHalf2x16(…)) should give the same, but Mesa makes it x.
float rounded(float x) {
#if HALF
    uint e = clamp(floatBitsToUint(x) & 0x7F800000u, 113u << 23, 143u << 23);
    float shift = uintBitsToFloat(e + (27u << 22));
    precise float sum = x + shift, y = sum - shift;
    return abs(y) > 65504.0 ? y * uintBitsToFloat(0x7F800000u) : y;
#else
    return x;
#endif
}

vec2 rounded(vec2 x) { return vec2(rounded(x.x), rounded(x.y)); }
