// The last thing done to a value before it is stored at `at`: EPILOGUE, an expression as in elementwise.comp, of x (the
// value) and y (of p.y at the same place); where SWAP, of y (the value) and x (of p.y). Included after the push block,
// which has `In y` if Y, and `alpha`, `beta` if ENDED.
float ended(float value, float other) {
#if SWAP
    float x = other, y = value;
#else
    float x = value, y = other;
#endif
#if ENDED
    return EPILOGUE;
#else
    return value;
#endif
}

float ended(float value, uint at) {
#if Y
    return ended(value, p.y.v[at]);
#else
    return ended(value, 0.0);
#endif
}

#if defined(PAIRS) && PAIRS
vec2 ended(vec2 value, uint at) {
#if Y
    vec2 other = LOAD(p.y, at);
#else
    vec2 other = vec2(0.0);
#endif
    return vec2(ended(value.x, other.x), ended(value.y, other.y));
}
#endif
