// The activations and their derivatives.
#include "lib/functions.glsl"

const float GELU_K = 0.7978845608028654;  // √(2/π)
const float GELU_C = 0.044715;

// ½x(1 + tanh u) = x·sigmoid(2u), u = √(2/π)(x + 0.044715x³)
float gelu(float x) { return x * sigmoid(2.0 * GELU_K * (x + GELU_C * x * x * x)); }
float gelu_grad(float x) {
    float s = sigmoid(2.0 * GELU_K * (x + GELU_C * x * x * x));
    return s + x * s * (1.0 - s) * 2.0 * GELU_K * (1.0 + 3.0 * GELU_C * x * x);
}

float silu(float x) { return x * sigmoid(x); }
float silu_grad(float x) {
    float s = sigmoid(x);
    return s * (1.0 + x * (1.0 - s));
}

float relu(float x) { return max(x, 0.0); }
float relu_grad(float x) { return x > 0.0 ? 1.0 : 0.0; }

float softcap(float x, float cap) { return cap * tanh1(x / cap); }
float softcap_grad(float x, float cap) {
    float t = tanh1(x / cap);
    return 1.0 - t * t;
}
