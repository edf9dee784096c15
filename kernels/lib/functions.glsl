// The soft cap, and the functions of formulas that GLSL lacks or has with too few digits; finite for all finite x, if
// their result is.

float sigmoid(float x) { return 1.0 / (1.0 + exp(-x)); }

// 1 - 2/(e²ˣ + 1) is right at both ends but cancels near 0, where three terms of the series are exact to 3e-8.
float tanh1(float x) {
    float y = x * x;
    return y < 0.01 ? x * (1.0 - y * (1.0 / 3.0 - y * (2.0 / 15.0))) : 1.0 - 2.0 / (exp(2.0 * x) + 1.0);
}

// max(x, 0) + log(1 + e), e = e^-|x|: log(1 + e) = 2·atanh(e/(2 + e)), by its series, keeps the digits of a small e.
float softplus(float x) {
    float e = exp(-abs(x)), z = e / (2.0 + e), y = z * z;
    float series = 1.0 + y * (1.0 / 3.0 + y * (1.0 / 5.0 + y * (1.0 / 7.0 + y * (1.0 / 9.0 + y * (1.0 / 11.0
        + y * (1.0 / 13.0))))));
    return max(x, 0.0) + 2.0 * z * series;
}

// Below 0.9 a polynomial of x² fitted to erf(x)/x, above it one fitted to -log(1 - erf(x)); within 2e-7.
float erf1(float x) {
    float t = min(abs(x), 4.0), y = t * t;
    float low = t * (1.12837911 + y * (-0.376125306 + y * (0.112822122 + y * (-0.0267813392 + y * (0.00501535740
        + y * -0.000610698946)))));
    float q = 0.000502260460 + t * (1.12677133 + t * (0.637938440 + t * (0.104162700 + t * (-0.0229789540
        + t * (0.00352458539 + t * (-0.000329196861 + t * 1.39520607e-5))))));
    float high = 1.0 - exp(-q);
    float r = t < 0.9 ? low : high;
    return x < 0.0 ? -r : r;
}

// sin(x + half·π), half 0 or ½. GLSL's own may be wrong by 2⁻¹¹, and by more beyond ±π. n·π is taken off in three parts,
// of which n times the first two is exact for |x| ≤ 1e4; far beyond, the result is only bounded.
float wave(float x, float shift) {
    float m = floor(x * 0.318309886 + shift + 0.5), n = m - shift;
    float r = clamp(((x - n * 3.140625) - n * 0.0009670257568359375) - n * 6.27832947e-7, -1.6, 1.6), y = r * r;
    float s = r * (0.999999995 + y * (-0.166666576 + y * (0.00833304216 + y * (-0.000198084101 + y * 2.60370005e-6))));
    return m - 2.0 * floor(0.5 * m) > 0.5 ? -s : s;
}
float sin1(float x) { return wave(x, 0.0); }
float cos1(float x) { return wave(x, 0.5); }

// eˣ - 1 below 0, by its series where it would cancel.
float elu(float x) {
    float y = min(x, 0.0);
    float series = y * (1.0 + y * (1.0 / 2.0 + y * (1.0 / 6.0 + y * (1.0 / 24.0 + y * (1.0 / 120.0 + y / 720.0)))));
    float below = y > -0.25 ? series : exp(y) - 1.0;
    return x > 0.0 ? x : below;
}

float softcap(float x, float cap) { return cap * tanh1(x / cap); }
float softcap_grad(float x, float cap) {
    float t = tanh1(x / cap);
    return 1.0 - t * t;
}
