// Functions of many numbers at a time. They have no branches, so that compilers make vectors of them.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int GROUP = 32;  // int8 numbers that share a scale

// e^x to within 2e-7 of itself near 0, and 6e-8 |x| further away; 0 below the smallest float.
inline float exp_of(float x) {
    const float powers = std::min(std::max(x * 1.44269504f, -126.0f), 127.5f), whole = std::nearbyint(powers);
    const float r = (powers - whole) * 0.69314718f;
    const float series = 1 + r * (1 + r * (1 / 2.f + r * (1 / 6.f + r * (1 / 24.f + r * (1 / 120.f + r * (1 / 720.f))))));
    const int32_t bits = ((int32_t)whole + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return x < -87.3f ? 0.0f : series * power;
}

inline float tanh_of(float x) { return 1 - 2 / (exp_of(2 * x) + 1); }

// To within 1.5e-7: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
inline float erf_of(float x) {
    const float a = std::fabs(x), t = 1 / (1 + 0.3275911f * a);
    const float series = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    return std::copysign(1 - series * exp_of(-a * a), x);
}

enum Activation : int32_t { GELU = 0, GELU_TANH = 1, RELU = 2, SILU = 3 };

void activate(int kind, float* x, int n) {
    switch (kind) {
        case GELU:
            for (int i = 0; i < n; i++) x[i] *= 0.5f * (1 + erf_of(x[i] * 0.70710678f));
            break;
        case GELU_TANH:
            for (int i = 0; i < n; i++) x[i] *= 0.5f * (1 + tanh_of(0.79788456f * (x[i] + 0.044715f * x[i] * x[i] * x[i])));
            break;
        case RELU:
            for (int i = 0; i < n; i++) x[i] = x[i] < 0 ? 0 : x[i];
            break;
        default:
            for (int i = 0; i < n; i++) x[i] = x[i] / (1 + exp_of(-x[i]));
    }
}

// Whether a number is infinite or NaN. Compilers that may reorder sums see through x - x.
inline bool not_finite(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return (bits & 0x7f800000) == 0x7f800000;
}

// Numbers in int8 with a scale for each GROUP of them; a group with one that is not finite becomes NaN. Where shifts
// are wanted: -128 times the sum of each group.
void quantise(const float* x, int64_t n, int8_t* q, float* scales, int32_t* shifts = nullptr) {
    for (int64_t g = 0; g < n / GROUP; g++, x += GROUP, q += GROUP) {
        float most[8] = {};
        int any = 0;
        for (int i = 0; i < GROUP; i += 8)
            for (int j = 0; j < 8; j++) {
                const float size = std::fabs(x[i + j]);
                most[j] = size > most[j] ? size : most[j];
            }
        for (int i = 0; i < GROUP; i++) any |= not_finite(x[i]);
        const float all = *std::max_element(most, most + 8), back = all > 0 && !any ? 127.0f / all : 0.0f;
        scales[g] = any ? NAN : all / 127.0f;
        for (int i = 0; i < GROUP; i++) q[i] = (int8_t)(int32_t)std::nearbyint(any ? 1.0f : x[i] * back);
        if (!shifts) continue;
        shifts[g] = 0;
        for (int i = 0; i < GROUP; i++) shifts[g] -= 128 * q[i];
    }
}

}  // namespace
