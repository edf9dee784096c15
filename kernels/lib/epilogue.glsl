// The last thing done to a value before it is stored at `at`: EPILOGUE, an expression as in elementwise.comp, of x (the
// value) and y (of p.y at the same place); where SWAP, of y (the value) and x (of p.y). Included after the push block,
// which has `In y` if Y, and `alpha`, `beta` if HAS_EPILOGUE.
#include "lib/functions.glsl"
FORMULA

float epilogue(float value, float other) {
#if SWAP
    float x = other, y = value;
#else
    float x = value, y = other;
#endif
#if HAS_EPILOGUE
    return EPILOGUE;
#else
    return value;
#endif
}

float epilogue(float value, uint at) {
#if Y
    return epilogue(value, p.y.v[at]);
#else
    return epilogue(value, 0.0);
#endif
}

#if defined(PAIRS) && PAIRS
vec2 epilogue(vec2 value, uint at) {
#if Y
    vec2 other = LOAD(p.y, at);
#else
    vec2 other = vec2(0.0);
#endif
    return vec2(epilogue(value.x, other.x), epilogue(value.y, other.y));
}
#endif
