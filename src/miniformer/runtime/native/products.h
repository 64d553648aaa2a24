// Products of a matrix with several vectors, nearly all of the work of a model.
//
// A matrix is stored in panels of PANEL rows. The values of one column of a panel are adjacent, so one
// input value is multiplied with all of them by vector instructions without horizontal sums. With few
// inputs the memory bandwidth limits the speed: weights are read sequentially. With more inputs a panel
// is read from the cache for TILE inputs at a time, whose sums fill the registers.

#pragma once

#include "functions.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, TILE = 12;
#elif defined(__AVX2__)
constexpr int LANES = 8, TILE = 6;
#else
constexpr int LANES = 4, TILE = 5;
#endif
constexpr int PANEL = 16, INTERLEAVE = PANEL / 2;

typedef float Lanes __attribute__((vector_size(LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));

enum Kind : int32_t { F32 = 0, BF16 = 1, INT8 = 2, INT4 = 3 };

struct Linear {
    int32_t kind, rows, columns, padding;
    const void* weight;   // per panel: [columns, PANEL]; int8: [columns / 4, PANEL, 4]; int4: [columns / 8, PANEL, 4],
                          // bytes of two values offset by 8: low bits for the first four columns, high for the next
    const float* scales;  // int8 and int4, per panel: [columns / GROUP, PANEL]
    const float* bias;    // [rows, padded to full panels]; null: none
    int panels() const { return (rows + PANEL - 1) / PANEL; }
};

inline int64_t padded_width(int64_t n) { return n + n % 2; }

// Inputs of a product: float32, and int8 with a scale per GROUP for int8 and int4 weights.
struct Input {
    const float* x;
    const int8_t* q;
    const float* scales;
    const int32_t* shifts;  // -128 times the sum of a group
    const uint16_t* halves; // bf16, rows padded to an even number of columns; null: bf16 weights multiply float32

    Input from(int64_t row, int64_t n) const {
        return {x + row * n, q + row * n, scales + row * (n / GROUP), shifts + row * (n / GROUP), halves ? halves + row * padded_width(n) : nullptr};
    }
};

inline Lanes load(const float* from) {
    Lanes values;
    std::memcpy(&values, from, sizeof(values));
    return values;
}
inline Lanes load(const uint16_t* from) {
#if defined(__AVX512F__)
    const Words words = (Words)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__AVX2__)
    const Words words = (Words)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from));
#else
    Halves halves;
    std::memcpy(&halves, from, sizeof(halves));
    const Words words = __builtin_convertvector(halves, Words);
#endif
    return (Lanes)(words << 16);
}
// Forces a value into a register; some compilers would reload it from memory in each operation.
inline void in_register(Lanes& x) {
#if defined(__x86_64__)
    asm("" : "+x"(x));
#elif defined(__aarch64__)
    asm("" : "+w"(x));
#endif
}
inline void store(float* to, Lanes values) { std::memcpy(to, &values, sizeof(values)); }

// Product of a panel with N inputs of n values: out[N, PANEL]. Prefetches the panel `next`. A sum has one order for every N,
// so that the output of an input does not depend on the inputs beside it. Without the pragmas GCC 12 keeps the sums of three
// inputs in memory.
template <int N, class W> void panel(const W* w, const W* next, const float* x, int n, float* out) {
    constexpr int PARTS = PANEL / LANES;
    Lanes sums[N][PARTS] = {};
    for (int i = 0; i < n; i++) {
        Lanes part[PARTS];
        if (N > 2) __builtin_prefetch(next + (int64_t)i * PANEL);
        for (int p = 0; p < PARTS; p++) {
            part[p] = load(w + (int64_t)i * PANEL + p * LANES);
            in_register(part[p]);
        }
#pragma GCC unroll 16
        for (int b = 0; b < N; b++)
            for (int p = 0; p < PARTS; p++) sums[b][p] += part[p] * x[(int64_t)b * n + i];
    }
#pragma GCC unroll 16
    for (int b = 0; b < N; b++)
        for (int p = 0; p < PARTS; p++) store(out + b * PANEL + p * LANES, sums[b][p]);
}

// True if an instruction adds the products of four bytes.
#if (defined(__AVX512VNNI__) && defined(__AVX512BW__)) || (defined(__AVX2__) && defined(__AVXVNNI__))
constexpr bool MULTIPLIES_BYTES = true;
#else
constexpr bool MULTIPLIES_BYTES = false;
#endif

// Product of an int8 or int4 panel: integer sums within a group, which are then scaled. The instructions multiply
// unsigned by signed bytes: weights are offset to be unsigned, or their sign is moved to the inputs.
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
template <int N, int BITS> void panel(const int8_t* w, const float* scales, const Input& in, int n, float* out) {
    constexpr int PER_BYTE = 8 / BITS, BLOCKS = GROUP / 4;  // values per byte; blocks of four columns
    const int groups = n / GROUP;
    const __m512i offset = _mm512_set1_epi8(-128), low = _mm512_set1_epi8(15);
    __m512 sums[N];
    for (int b = 0; b < N; b++) sums[b] = _mm512_setzero_ps();
    for (int g = 0; g < groups; g++) {
        __m512i group_sums[N];
        for (int b = 0; b < N; b++) group_sums[b] = _mm512_set1_epi32(in.shifts[b * groups + g] / (BITS == 8 ? 1 : 16));
        const __m512i* rows = (const __m512i*)w + g * (BLOCKS / PER_BYTE);
        const int8_t* x = in.q + g * GROUP;
#pragma GCC unroll 8
        for (int i = 0; i < BLOCKS; i++) {
            __m512i row = _mm512_loadu_si512(rows + i / PER_BYTE);
            if (BITS == 8) row = _mm512_xor_si512(row, offset);
            else row = _mm512_and_si512(i % 2 ? _mm512_srli_epi16(row, 4) : row, low);
#pragma GCC unroll 16
            for (int b = 0; b < N; b++) {
                int32_t four;
                std::memcpy(&four, x + (int64_t)b * n + i * 4, 4);
                group_sums[b] = _mm512_dpbusd_epi32(group_sums[b], row, _mm512_set1_epi32(four));
            }
        }
        const __m512 scale = _mm512_loadu_ps(scales + g * PANEL);
        for (int b = 0; b < N; b++)
            sums[b] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(group_sums[b]), _mm512_mul_ps(scale, _mm512_set1_ps(in.scales[b * groups + g])), sums[b]);
    }
#pragma GCC unroll 16
    for (int b = 0; b < N; b++) _mm512_storeu_ps(out + b * PANEL, sums[b]);
}
#elif defined(__AVX2__)
// Adds products of four adjacent bytes to the sums.
inline __m256i add_products(__m256i sums, __m256i magnitudes, __m256i x) {
#if defined(__AVXVNNI__)
    return _mm256_dpbusd_avx_epi32(sums, magnitudes, x);
#else
    return _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(magnitudes, x), _mm256_set1_epi16(1)));
#endif
}
template <int N, int BITS> void panel(const int8_t* w, const float* scales, const Input& in, int n, float* out) {
    constexpr int PER_BYTE = 8 / BITS, BLOCKS = GROUP / 4, PARTS = PANEL / 8;
    const int groups = n / GROUP;
    const __m256i low = _mm256_set1_epi8(15);
    __m256 sums[PARTS][N] = {};
    for (int g = 0; g < groups; g++)
        for (int p = 0; p < PARTS; p++) {
            __m256i group_sums[N];
            for (int b = 0; b < N; b++) group_sums[b] = _mm256_set1_epi32(BITS == 8 ? 0 : in.shifts[b * groups + g] / 16);
            const __m256i* rows = (const __m256i*)w + g * (BLOCKS / PER_BYTE) * PARTS + p;
            for (int i = 0; i < BLOCKS; i++) {
                const __m256i row = _mm256_loadu_si256(rows + i / PER_BYTE * PARTS);
                const __m256i magnitudes = BITS == 8 ? _mm256_abs_epi8(row) : _mm256_and_si256(i % 2 ? _mm256_srli_epi16(row, 4) : row, low);
                for (int b = 0; b < N; b++) {
                    int32_t four;
                    std::memcpy(&four, in.q + (int64_t)b * n + g * GROUP + i * 4, 4);
                    const __m256i x = _mm256_set1_epi32(four);
                    group_sums[b] = add_products(group_sums[b], magnitudes, BITS == 8 ? _mm256_sign_epi8(x, row) : x);
                }
            }
            const __m256 scale = _mm256_loadu_ps(scales + g * PANEL + p * 8);
            for (int b = 0; b < N; b++)
                sums[p][b] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(group_sums[b]), _mm256_mul_ps(scale, _mm256_set1_ps(in.scales[b * groups + g])), sums[p][b]);
        }
    for (int b = 0; b < N; b++)
        for (int p = 0; p < PARTS; p++) _mm256_storeu_ps(out + b * PANEL + p * 8, sums[p][b]);
}
#else
// Product with one input, not inlined: the compiler may choose another order of the sums for each number of inputs.
template <int BITS> __attribute__((noinline)) void one_input(const int8_t* w, const float* scales, const int8_t* x, const float* x_scales, int groups, float* out) {
    constexpr int PER_BYTE = 8 / BITS, BLOCKS = GROUP / 4;
    float sums[PANEL] = {};
    for (int g = 0; g < groups; g++) {
        int32_t group_sums[PANEL] = {};
        for (int i = 0; i < BLOCKS; i++) {
            const int8_t* four = w + (g * BLOCKS + i) / PER_BYTE * PANEL * 4;
            for (int r = 0; r < PANEL; r++)
                for (int k = 0; k < 4; k++) {
                    const int byte = four[r * 4 + k], half = (byte >> (i % 2 * 4) & 15) - 8;
                    group_sums[r] += (BITS == 8 ? byte : half) * x[g * GROUP + i * 4 + k];
                }
        }
        for (int r = 0; r < PANEL; r++) sums[r] += (float)group_sums[r] * scales[g * PANEL + r] * x_scales[g];
    }
    std::memcpy(out, sums, sizeof(sums));
}
template <int N, int BITS> void panel(const int8_t* w, const float* scales, const Input& in, int n, float* out) {
    const int groups = n / GROUP;
    for (int64_t b = 0; b < N; b++) one_input<BITS>(w, scales, in.q + b * n, in.scales + b * groups, groups, out + b * PANEL);
}
#endif

// Product of a bf16 panel with bf16 inputs, two columns at a time.
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
constexpr bool MULTIPLIES_BF16 = true;
template <int N> void bf16_panel(const uint16_t* w, const uint16_t* x, int n, float* out) {
    alignas(64) static constexpr uint16_t PAIRS[32] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
                                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i pairs = _mm512_load_si512(PAIRS);
    const int64_t width = padded_width(n);
    __m512 sums[N];
    for (int b = 0; b < N; b++) sums[b] = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i += 2) {
        const __m512i columns = _mm512_maskz_loadu_epi16(i + 1 < n ? 0xffffffff : 0xffff, w + i * PANEL);
        const __m512i two_columns = _mm512_permutexvar_epi16(pairs, columns);
#pragma GCC unroll 16
        for (int b = 0; b < N; b++) {
            int32_t two;
            std::memcpy(&two, x + b * width + i, 4);
            sums[b] = _mm512_dpbf16_ps(sums[b], (__m512bh)two_columns, (__m512bh)_mm512_set1_epi32(two));
        }
    }
#pragma GCC unroll 16
    for (int b = 0; b < N; b++) _mm512_storeu_ps(out + b * PANEL, sums[b]);
}
#else
constexpr bool MULTIPLIES_BF16 = false;
template <int N> void bf16_panel(const uint16_t*, const uint16_t*, int, float*) {}
#endif

// Product of panel p with `count` inputs, at most TILE: out[count, PANEL].
template <int N = TILE> void panel(const Linear& w, int p, int next, const Input& in, int count, float* out) {
    if constexpr (N > 1)
        if (count < N) return panel<N - 1>(w, p, next, in, count, out);
    const int64_t n = w.columns, begin = p * n * PANEL, next_begin = next * n * PANEL;
    if (w.kind == F32) panel<N>((const float*)w.weight + begin, (const float*)w.weight + next_begin, in.x, n, out);
    else if (w.kind == BF16 && in.halves) bf16_panel<N>((const uint16_t*)w.weight + begin, in.halves, n, out);
    else if (w.kind == BF16) panel<N>((const uint16_t*)w.weight + begin, (const uint16_t*)w.weight + next_begin, in.x, n, out);
    else if (w.kind == INT8) panel<N, 8>((const int8_t*)w.weight + begin, w.scales + begin / GROUP, in, n, out);
    else panel<N, 4>((const int8_t*)w.weight + begin / 2, w.scales + begin / GROUP, in, n, out);
}

// Product of panels `begin` to `end` with `count` inputs. Calls output(input, row, values, number of values).
template <class Output> void product(const Linear& w, int begin, int end, const Input& in, int count, Output&& output) {
    const int64_t n = w.columns;
    const int tiles = (count + TILE - 1) / TILE;
    const int block = std::max<int64_t>(1, (1 << 15) / (n * PANEL));  // panels that fit in the cache
    float out[TILE * PANEL];
    for (int block_begin = begin; block_begin < end; block_begin += block)
        for (int tile = 0; tile < tiles; tile++) {
            const int first = (int64_t)count * tile / tiles, num_inputs = (int64_t)count * (tile + 1) / tiles - first;
            const Input inputs = in.from(first, n);
            for (int p = block_begin; p < std::min(block_begin + block, end); p++) {
                // Each tile prefetches its part of the next block.
                const int next = (p - block_begin) % tiles == tile && p + block < end ? p + block : p;
                panel(w, p, next, inputs, num_inputs, out);
                for (int b = 0; b < num_inputs; b++) {
                    float* values = out + b * PANEL;
                    if (w.bias) for (int i = 0; i < PANEL; i++) values[i] += w.bias[p * PANEL + i];
                    output(first + b, p * PANEL, values, std::min(PANEL, w.rows - p * PANEL));
                }
            }
        }
}

// Dot products of one vector with n others: out[c] = x * vectors[c]. With `rows` vector c has the offset
// `rows[c]` times stride.
void dot_products(const float* x, const float* vectors, const int32_t* rows, int64_t stride, int n, int width, float* out) {
    const auto at = [&](int c) { return vectors + (rows ? rows[c] * stride : 0) + (int64_t)c * width; };
    int c = 0;
    for (; c + 4 <= n; c += 4) {
        const float* four[4] = {at(c), at(c + 1), at(c + 2), at(c + 3)};
        Lanes sums[4] = {};
        int i = 0;
        for (; i + LANES <= width; i += LANES)
            for (int k = 0; k < 4; k++) sums[k] += load(x + i) * load(four[k] + i);
        for (int k = 0; k < 4; k++) {
            float sum = 0;
            for (int j = 0; j < LANES; j++) sum += sums[k][j];
            for (int j = i; j < width; j++) sum += x[j] * four[k][j];
            out[c + k] = sum;
        }
    }
    for (; c < n; c++) {
        out[c] = 0;
        for (int i = 0; i < width; i++) out[c] += x[i] * at(c)[i];
    }
}

// Weighted sum of such vectors.
void weighted_sum(const float* weights, const float* vectors, const int32_t* rows, int64_t stride, int n, int width, float* out) {
    const auto at = [&](int c) { return vectors + (rows ? rows[c] * stride : 0) + (int64_t)c * width; };
    int i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES) {
        Lanes sums[4] = {};
        for (int c = 0; c < n; c++)
            for (int k = 0; k < 4; k++) sums[k] += load(at(c) + i + k * LANES) * weights[c];
        for (int k = 0; k < 4; k++) store(out + i + k * LANES, sums[k]);
    }
    for (; i + LANES <= width; i += LANES) {
        Lanes sum = {};
        for (int c = 0; c < n; c++) sum += load(at(c) + i) * weights[c];
        store(out + i, sum);
    }
    for (; i < width; i++) {
        out[i] = 0;
        for (int c = 0; c < n; c++) out[i] += weights[c] * at(c)[i];
    }
}

}  // namespace
