// Elementwise functions without branches, which compilers vectorize.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int GROUP = 32;  // int8 values per scale

// e^x with a relative error of at most 2e-7 near 0 and 6e-8 |x| elsewhere; 0 below the smallest float.
inline float fast_exp(float x) {
    const float exponent = std::min(std::max(x * 1.44269504f, -126.0f), 127.5f), rounded = std::nearbyint(exponent);
    const float r = (exponent - rounded) * 0.69314718f;
    const float series = 1 + r * (1 + r * (1 / 2.f + r * (1 / 6.f + r * (1 / 24.f + r * (1 / 120.f + r * (1 / 720.f))))));
    const int32_t bits = ((int32_t)rounded + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return x < -87.3f ? 0.0f : series * power;
}

inline float fast_tanh(float x) { return 1 - 2 / (fast_exp(2 * x) + 1); }

// Absolute error of at most 1.5e-7: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
inline float fast_erf(float x) {
    const float a = std::fabs(x), t = 1 / (1 + 0.3275911f * a);
    const float series = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    return std::copysign(1 - series * fast_exp(-a * a), x);
}

enum Activation : int32_t { GELU = 0, GELU_TANH = 1, RELU = 2, SILU = 3 };

void activate(int kind, float* x, int n) {
    switch (kind) {
        case GELU:
            for (int i = 0; i < n; i++) x[i] *= 0.5f * (1 + fast_erf(x[i] * 0.70710678f));
            break;
        case GELU_TANH:
            for (int i = 0; i < n; i++) x[i] *= 0.5f * (1 + fast_tanh(0.79788456f * (x[i] + 0.044715f * x[i] * x[i] * x[i])));
            break;
        case RELU:
            for (int i = 0; i < n; i++) x[i] = x[i] < 0 ? 0 : x[i];
            break;
        default:
            for (int i = 0; i < n; i++) x[i] = x[i] / (1 + fast_exp(-x[i]));
    }
}

// True for infinity and NaN. A test such as x - x != 0 does not survive reassociation by the compiler.
inline bool is_nonfinite(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return (bits & 0x7f800000) == 0x7f800000;
}

inline bool is_nan(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return (bits & 0x7fffffff) > 0x7f800000;
}

// Nearest bf16 number, the even one of two; NaN stays NaN.
inline uint16_t to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 64 : rounded);
}
inline float from_bf16(uint16_t half) {
    const uint32_t bits = (uint32_t)half << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

// Quantizes to int8 with a scale per GROUP; a group with a non-finite value gets the scale NaN. `shifts`, if not null:
// -128 times the sum of each group.
void quantize(const float* x, int64_t n, int8_t* q, float* scales, int32_t* shifts = nullptr) {
    for (int64_t g = 0; g < n / GROUP; g++, x += GROUP, q += GROUP) {
        int32_t bits[GROUP], max_bits = 0;  // magnitudes have the order of their bits; infinity and NaN are the largest
        std::memcpy(bits, x, sizeof(bits));
        for (int i = 0; i < GROUP; i++) max_bits = std::max(max_bits, bits[i] & 0x7fffffff);
        float max_abs;
        std::memcpy(&max_abs, &max_bits, 4);
        const bool nonfinite = max_bits >= 0x7f800000;
        const float inverse = max_abs > 0 && !nonfinite ? 127.0f / max_abs : 0.0f;
        scales[g] = nonfinite ? NAN : max_abs / 127.0f;
        int32_t sum = 0;
        if (nonfinite) {
            std::fill_n(q, GROUP, (int8_t)1);
            sum = GROUP;
        } else {
            int32_t values[GROUP];
            for (int i = 0; i < GROUP; i++) values[i] = (int32_t)std::nearbyint(x[i] * inverse);
            for (int i = 0; i < GROUP; i++) q[i] = (int8_t)values[i];
            for (int i = 0; i < GROUP; i++) sum += values[i];
        }
        if (shifts) shifts[g] = -128 * sum;
    }
}

}  // namespace
