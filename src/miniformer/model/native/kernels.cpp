// One decoding step of a Transformer on a CPU: for each row one new token, all layers in one call.
//
// Decoding reads every weight once for each token, so that time is the weights' bytes over the
// memory's bandwidth, if nothing else is in the way. Threads therefore stay together for the whole
// step and meet at a barrier where one needs what another has written; a matrix is read by rows,
// each row by one thread; weights are float32, bfloat16, or int8 with a scale for each 32 of them.
//
// Letters: B rows, D model width, H query heads, K key-value heads, E head width, F inner width,
// S columns of the cache in use, C its capacity, V vocabulary.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define WIDE 1
#endif

namespace {

constexpr int GROUP = 32;  // int8 weights that share a scale

enum Kind : int32_t { F32 = 0, BF16 = 1, INT8 = 2 };

struct Linear {
    int32_t kind, rows, columns, padding;
    const void* weight;    // [rows, columns]
    const float* scales;   // int8: [rows, columns / GROUP]
    const float* bias;     // [rows]; null: none
};

struct Norm {
    int32_t kind, width;   // 0: none, 1: RMS, 2: layer
    float eps, padding;
    const float* weight;
    const float* bias;
};

struct Attention {
    Linear qkv, out;       // cross: qkv is the queries' alone
    Norm q_norm, k_norm;
    int32_t each_head, window;  // window 0: none
    int32_t rotation, has_sinks;  // which table turns queries and keys; -1: none
    float scale, softcap;  // softcap 0: none
    const float* sinks;    // [H]
};

struct Layer {
    Norm attention_in, attention_out, cross_in, cross_out, feed_in, feed_out;
    Attention attention, cross;
    Linear up, down;       // up: [F, D], or gate and up in turns of rows: [2F, D]
};

struct Model {
    int32_t width, heads, kv_heads, head_dim, inner, layers;
    int32_t gated, activation, post, parallel, has_cross, rotated, vocabulary, padding;
    float embedding_scale, logit_scale, logit_softcap, padding2;
    const float* embedding;  // [V, D]
    Norm embedding_norm, final_norm;
    Linear head;
    const Layer* layer;
};

struct Step {
    int32_t rows, columns, capacity, source_columns;
    int32_t tables_per_row, bias_per_row, table_length, padding;
    const int64_t* tokens;         // [B]
    const int64_t* positions;      // [B]
    const int64_t* key_positions;  // [B, C], -1: padding; null: column = position
    const float* vectors;          // [B, D], added to embeddings; null: nothing
    const float* const* cosines;   // of each table: [B or 1, length, rotated / 2]
    const float* const* sines;
    const float* bias;             // [B or 1, H, S]; null: none
    float* const* keys;            // of each layer: [B, K, C, E]
    float* const* values;
    const float* const* source_keys;    // of each layer: [B, K, source_columns, E]
    const float* const* source_values;
    const uint8_t* source_mask;    // [B, source_columns]; null: all are real
    float* logits;                 // [B, V]
    float* work;
};

// ---- products -------------------------------------------------------------------------------

// A number, or eight of them, as floats.
inline float one(const float* x) { return *x; }
inline float one(const uint16_t* x) {
    const uint32_t bits = (uint32_t)*x << 16;
    float found;
    std::memcpy(&found, &bits, 4);
    return found;
}
#ifdef WIDE
inline __m256 eight(const float* x) { return _mm256_loadu_ps(x); }
inline __m256 eight(const uint16_t* x) {
    const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)x));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
}
inline float total(__m256 x) {
    __m128 low = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    low = _mm_add_ps(low, _mm_movehl_ps(low, low));
    return _mm_cvtss_f32(_mm_add_ss(low, _mm_movehdup_ps(low)));
}
#endif

// Inputs of a product: as they are, and for int8 weights in int8 with a scale for each GROUP.
struct Input {
    const float* x;
    const int8_t* q;
    const float* scales;
};

void quantise(const float* x, int n, int8_t* q, float* scales) {
    for (int g = 0; g < n / GROUP; g++) {
        float most = 0;
        for (int i = 0; i < GROUP; i++) most = std::max(most, std::fabs(x[g * GROUP + i]));
        const float scale = most / 127.0f, back = most > 0 ? 127.0f / most : 0.0f;
        scales[g] = scale;
        for (int i = 0; i < GROUP; i++) q[g * GROUP + i] = (int8_t)std::lrint(x[g * GROUP + i] * back);
    }
}

// R rows of a matrix by N inputs: out[R, N]. Numbers are loaded once for the whole tile, and as many
// sums are under way as hide the time that one takes.
template <int R, int N, class W> void tile(const W* w, const Input* in, int n, float* out) {
    int i = 0;
    for (int k = 0; k < R * N; k++) out[k] = 0;
#ifdef WIDE
    constexpr int U = R * N >= 8 ? 1 : R * N >= 4 ? 2 : 4;
    __m256 sums[U][R][N];
    for (int u = 0; u < U; u++)
        for (int r = 0; r < R; r++)
            for (int b = 0; b < N; b++) sums[u][r][b] = _mm256_setzero_ps();
    for (; i + 8 * U <= n; i += 8 * U)
        for (int u = 0; u < U; u++) {
            __m256 x[N];
            for (int b = 0; b < N; b++) x[b] = _mm256_loadu_ps(in[b].x + i + 8 * u);
            for (int r = 0; r < R; r++) {
                if (N > 2) __builtin_prefetch(w + (int64_t)(R + r) * n + i + 8 * u);  // what comes next
                const __m256 row = eight(w + (int64_t)r * n + i + 8 * u);
                for (int b = 0; b < N; b++) sums[u][r][b] = _mm256_fmadd_ps(row, x[b], sums[u][r][b]);
            }
        }
    for (int r = 0; r < R; r++)
        for (int b = 0; b < N; b++) {
            for (int u = 1; u < U; u++) sums[0][r][b] = _mm256_add_ps(sums[0][r][b], sums[u][r][b]);
            out[r * N + b] = total(sums[0][r][b]);
        }
#endif
    for (; i < n; i++)
        for (int r = 0; r < R; r++)
            for (int b = 0; b < N; b++) out[r * N + b] += one(w + (int64_t)r * n + i) * in[b].x[i];
}

// The same of int8 weights; scales: [R, n / GROUP].
template <int R, int N>
void tile(const int8_t* w, const float* scales, const Input* in, int n, float* out) {
    const int groups = n / GROUP;
    int g = 0;
    for (int k = 0; k < R * N; k++) out[k] = 0;
#ifdef WIDE
    const __m256i ones = _mm256_set1_epi16(1);
    __m256 sums[R][N];
    for (int r = 0; r < R; r++)
        for (int b = 0; b < N; b++) sums[r][b] = _mm256_setzero_ps();
    for (; g < groups; g++)
        for (int r = 0; r < R; r++) {
            const __m256i row = _mm256_loadu_si256((const __m256i*)(w + (int64_t)r * n + g * GROUP));
            const __m256i size = _mm256_abs_epi8(row);
            for (int b = 0; b < N; b++) {
                const __m256i x = _mm256_loadu_si256((const __m256i*)(in[b].q + g * GROUP));
                // Bytes are multiplied unsigned by signed: |w| * (x with the sign of w).
                const __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(x, row));
                const __m256 whole = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, ones));
                const __m256 scale = _mm256_set1_ps(scales[r * groups + g] * in[b].scales[g]);
                sums[r][b] = _mm256_fmadd_ps(scale, whole, sums[r][b]);
            }
        }
    for (int r = 0; r < R; r++)
        for (int b = 0; b < N; b++) out[r * N + b] = total(sums[r][b]);
#endif
    for (; g < groups; g++)
        for (int r = 0; r < R; r++)
            for (int b = 0; b < N; b++) {
                int32_t whole = 0;
                for (int i = g * GROUP; i < (g + 1) * GROUP; i++) whole += (int32_t)w[(int64_t)r * n + i] * in[b].q[i];
                out[r * N + b] += scales[r * groups + g] * in[b].scales[g] * (float)whole;
            }
}

float dot(const float* a, const float* b, int n) {
    const Input in{b, nullptr, nullptr};
    float out;
    tile<1, 1>(a, &in, n, &out);
    return out;
}

// R rows of a matrix by N inputs: out[R, N], without the bias.
template <int R, int N> void product(const Linear& w, int row, const Input* in, float* out) {
    const int64_t n = w.columns, begin = row * n;
    if (w.kind == F32) tile<R, N>((const float*)w.weight + begin, in, n, out);
    else if (w.kind == BF16) tile<R, N>((const uint16_t*)w.weight + begin, in, n, out);
    else tile<R, N>((const int8_t*)w.weight + begin, w.scales + begin / GROUP, in, n, out);
}

// R rows by all inputs: out[R, count]. A few inputs go through one row at a time: memory is then what
// takes the time, and it is read faster in one stream.
template <int R> void products(const Linear& w, int row, const Input* in, int count, float* out) {
    int b = 0;
    for (; b + 4 <= count; b += 4) {
        float found[R * 4];
        product<R, 4>(w, row, in + b, found);
        for (int r = 0; r < R; r++) std::memcpy(out + r * count + b, found + r * 4, 4 * sizeof(float));
    }
    for (; b + 2 <= count; b += 2)
        for (int r = 0; r < R; r++) product<1, 2>(w, row + r, in + b, out + r * count + b);
    if (b < count)
        for (int r = 0; r < R; r++) product<1, 1>(w, row + r, in + b, out + r * count + b);
}

// The sum of vectors [n, width], each times its weight, into out[width].
void weigh(const float* weights, const float* vectors, int n, int width, float* out) {
    int i = 0;
#ifdef WIDE
    for (; i + 32 <= width; i += 32) {
        __m256 sums[4];
        for (int k = 0; k < 4; k++) sums[k] = _mm256_setzero_ps();
        for (int c = 0; c < n; c++) {
            const __m256 weight = _mm256_set1_ps(weights[c]);
            const float* from = vectors + (int64_t)c * width + i;
            for (int k = 0; k < 4; k++) sums[k] = _mm256_fmadd_ps(weight, _mm256_loadu_ps(from + 8 * k), sums[k]);
        }
        for (int k = 0; k < 4; k++) _mm256_storeu_ps(out + i + 8 * k, sums[k]);
    }
#endif
    for (; i < width; i++) {
        out[i] = 0;
        for (int c = 0; c < n; c++) out[i] += weights[c] * vectors[(int64_t)c * width + i];
    }
}

// ---- small parts ----------------------------------------------------------------------------

void normalise(const Norm& norm, const float* x, float* out, int n) {
    if (norm.kind == 0) {
        if (out != x) std::memcpy(out, x, n * sizeof(float));
        return;
    }
    float mean = 0;
    if (norm.kind == 2) {
        for (int i = 0; i < n; i++) mean += x[i];
        mean /= n;
    }
    float squares = 0;
    for (int i = 0; i < n; i++) squares += (x[i] - mean) * (x[i] - mean);
    const float scale = 1.0f / std::sqrt(squares / n + norm.eps);
    for (int i = 0; i < n; i++)
        out[i] = (x[i] - mean) * scale * norm.weight[i] + (norm.bias ? norm.bias[i] : 0.0f);
}

float activate(int kind, float x) {
    switch (kind) {
        case 0: return 0.5f * x * (1.0f + std::erf(x * 0.70710678118654752f));
        case 1: return 0.5f * x * (1.0f + std::tanh(0.79788456080286536f * (x + 0.044715f * x * x * x)));
        case 2: return x > 0 ? x : 0;
        default: return x / (1.0f + std::exp(-x));
    }
}

void turn(float* x, const float* cosine, const float* sine, int half) {
    for (int i = 0; i < half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cosine[i] - b * sine[i];
        x[i + half] = b * cosine[i] + a * sine[i];
    }
}

// ---- threads --------------------------------------------------------------------------------

// Threads that stay awake while steps follow one another, and sleep when none comes for a while.
class Pool {
  public:
    explicit Pool(int count) : count_(count) {
        for (int t = 1; t < count; t++) threads_.emplace_back([this, t] { serve(t); });
    }
    ~Pool() {
        over_ = true;
        round_.fetch_add(1);
        round_.notify_all();
        for (auto& each : threads_) each.join();
    }
    int count() const { return count_; }
    template <class Work> void run(Work&& work) {
        struct Call {
            static void go(void* what, int t) { (*static_cast<std::remove_reference_t<Work>*>(what))(t); }
        };
        call_ = &Call::go;
        what_ = (void*)&work;
        left_.store(count_ - 1);
        round_.fetch_add(1, std::memory_order_release);
        round_.notify_all();
        work(0);
        for (int spins = 0; left_.load(std::memory_order_acquire) > 0; spins++) pause(spins);
    }
    void meet() {  // until all threads are here
        const int turn = turn_.load(std::memory_order_acquire);
        if (waiting_.fetch_add(1, std::memory_order_acq_rel) == count_ - 1) {
            waiting_.store(0, std::memory_order_relaxed);
            turn_.store(turn + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; turn_.load(std::memory_order_acquire) == turn; spins++) pause(spins);
    }

  private:
    static void pause(int spins) {
#ifdef WIDE
        if (spins < 2000) { _mm_pause(); return; }
#endif
        std::this_thread::yield();
    }
    void serve(int t) {
        int seen = 0;
        while (true) {
            int spins = 0;
            while (round_.load(std::memory_order_acquire) == seen) {
                if (++spins < 20000) pause(0);
                else round_.wait(seen);
            }
            seen = round_.load(std::memory_order_acquire);
            if (over_) return;
            call_(what_, t);
            left_.fetch_sub(1, std::memory_order_acq_rel);
        }
    }
    const int count_;
    std::vector<std::thread> threads_;
    std::atomic<int> round_{0}, left_{0}, waiting_{0}, turn_{0};
    std::atomic<bool> over_{false};
    void (*call_)(void*, int) = nullptr;
    void* what_ = nullptr;
};

struct Range { int begin, end; };
Range share(int n, int t, int count, int unit = 1) {
    const int units = (n + unit - 1) / unit;
    const int begin = (int)((int64_t)units * t / count) * unit, end = (int)((int64_t)units * (t + 1) / count) * unit;
    return {std::min(begin, n), std::min(end, n)};
}

// A thread's own inputs of products, of all rows.
struct Local {
    std::vector<float> x, scales;
    std::vector<int8_t> q;
    std::vector<float> scores, out;
    std::vector<Input> inputs;
    void fit(int rows, int n, int columns) {
        out.resize(2 * rows);
        inputs.resize(rows);
        if ((int)x.size() < rows * n) { x.resize(rows * n); q.resize(rows * n); scales.resize(rows * (n / GROUP + 1)); }
        if ((int)scores.size() < columns) scores.resize(columns);
    }
    const Input* all(int rows, int n) {
        for (int b = 0; b < rows; b++)
            inputs[b] = {x.data() + b * n, q.data() + b * n, scales.data() + b * (n / GROUP)};
        return inputs.data();
    }
};

class Runner {
  public:
    Runner(const Model& model, const Step& step, Pool& pool, std::vector<Local>& locals)
        : m(model), s(step), pool(pool), locals(locals) {
        float* at = s.work;
        const int q = m.heads * m.head_dim, kv = m.kv_heads * m.head_dim;
        x = take(at, m.width); mixed = take(at, q); inner = take(at, m.inner);
        qkv = take(at, q + 2 * kv); change = take(at, m.width); second = take(at, m.width);
    }
    void operator()(int t) {
        Local& own = locals[t];
        const int widest = std::max({m.width, m.inner, m.heads * m.head_dim});
        own.fit(s.rows, widest, std::max(s.columns, s.source_columns));
        if (t == 0) embed();
        pool.meet();
        for (int index = 0; index < m.layers; index++) layer(m.layer[index], index, t, own);
        prepare(m.final_norm, x, m.width, m.head, own, m.logit_scale);
        multiply(m.head, own, t, [&](int b, int row, float value) {
            if (m.logit_softcap > 0) value = m.logit_softcap * std::tanh(value / m.logit_softcap);
            s.logits[(int64_t)b * m.vocabulary + row] = value;
        });
    }

  private:
    const Model& m;
    const Step& s;
    Pool& pool;
    std::vector<Local>& locals;
    float *x, *mixed, *inner, *qkv, *change, *second;

    float* take(float*& at, int width) {
        float* begin = at;
        at += (int64_t)s.rows * width;
        return begin;
    }
    void embed() {
        for (int b = 0; b < s.rows; b++) {
            const float* from = m.embedding + s.tokens[b] * m.width;
            float* to = x + b * m.width;
            for (int i = 0; i < m.width; i++) {
                to[i] = from[i] * m.embedding_scale;
                if (s.vectors) to[i] += s.vectors[b * m.width + i];
            }
            normalise(m.embedding_norm, to, to, m.width);
        }
    }
    // What all rows of a product read: normalised, by each thread for itself.
    void prepare(const Norm& norm, const float* from, int n, const Linear& w, Local& own, float scale = 1) {
        for (int b = 0; b < s.rows; b++) {
            float* to = own.x.data() + b * n;
            normalise(norm, from + (int64_t)b * n, to, n);
            if (scale != 1) for (int i = 0; i < n; i++) to[i] *= scale;
            if (w.kind == INT8) quantise(to, n, own.q.data() + b * n, own.scales.data() + b * (n / GROUP));
        }
    }
    template <class Take> void multiply(const Linear& w, Local& own, int t, Take&& take) {
        const Range mine = share(w.rows, t, pool.count());
        const Input* in = own.all(s.rows, w.columns);
        float* out = own.out.data();
        const auto give = [&](int row, const float* of_row) {
            const float bias = w.bias ? w.bias[row] : 0.0f;
            for (int b = 0; b < s.rows; b++) take(b, row, of_row[b] + bias);
        };
        int row = mine.begin;
        for (; row + 2 <= mine.end; row += 2) {
            products<2>(w, row, in, s.rows, out);
            give(row, out);
            give(row + 1, out + s.rows);
        }
        if (row < mine.end) {
            products<1>(w, row, in, s.rows, out);
            give(row, out);
        }
    }
    void layer(const Layer& l, int index, int t, Local& own) {
        attend(l.attention, l.attention_in, index, t, own);
        finish(l.attention.out, mixed, m.heads * m.head_dim, l.attention_in, l.attention_out, t, own, m.parallel ? second : nullptr);
        if (m.has_cross) {
            cross(l.cross, l.cross_in, index, t, own);
            finish(l.cross.out, mixed, m.heads * m.head_dim, l.cross_in, l.cross_out, t, own, nullptr);
        }
        prepare(m.post ? Norm{} : l.feed_in, x, m.width, l.up, own);
        if (m.gated) {
            const Range mine = share(m.inner, t, pool.count());
            const Input* in = own.all(s.rows, m.width);
            float *gate = own.out.data(), *up = gate + s.rows;
            for (int row = mine.begin; row < mine.end; row++) {
                products<2>(l.up, 2 * row, in, s.rows, gate);
                const float of_gate = l.up.bias ? l.up.bias[2 * row] : 0.0f;
                const float of_up = l.up.bias ? l.up.bias[2 * row + 1] : 0.0f;
                for (int b = 0; b < s.rows; b++)
                    inner[b * m.inner + row] = activate(m.activation, gate[b] + of_gate) * (up[b] + of_up);
            }
        } else {
            multiply(l.up, own, t, [&](int b, int row, float v) { inner[b * m.inner + row] = activate(m.activation, v); });
        }
        pool.meet();
        finish(l.down, inner, m.inner, l.feed_in, l.feed_out, t, own, nullptr);
    }
    // x + norm(W from), or of post-norm layers norm(x + W from). `aside`: where it waits instead.
    void finish(const Linear& w, const float* from, int n, const Norm& in, const Norm& out, int t, Local& own, float* aside) {
        prepare(Norm{}, from, n, w, own);
        const bool simple = !m.post && out.kind == 0 && !aside;
        float* to = aside ? aside : change;
        multiply(w, own, t, [&](int b, int row, float v) {
            if (simple) x[b * m.width + row] += v; else to[b * m.width + row] = v;
        });
        pool.meet();
        if (simple && !(m.parallel)) return;
        if (aside) return;
        if (t == 0)
            for (int b = 0; b < s.rows; b++) {
                float* xb = x + b * m.width;
                float* cb = change + b * m.width;
                if (!simple) {
                    normalise(out, cb, cb, m.width);
                    for (int i = 0; i < m.width; i++) xb[i] += cb[i];
                }
                if (m.parallel) for (int i = 0; i < m.width; i++) xb[i] += second[b * m.width + i];
                if (m.post) normalise(in, xb, xb, m.width);
            }
        pool.meet();
    }
    void attend(const Attention& a, const Norm& norm, int index, int t, Local& own) {
        const int E = m.head_dim, q = m.heads * E, kv = m.kv_heads * E, all = q + 2 * kv;
        prepare(m.post ? Norm{} : norm, x, m.width, a.qkv, own);
        multiply(a.qkv, own, t, [&](int b, int row, float v) { qkv[(int64_t)b * all + row] = v; });
        pool.meet();
        if (!a.each_head && a.q_norm.kind) {
            if (t == 0)
                for (int b = 0; b < s.rows; b++) {
                    float* row = qkv + (int64_t)b * all;
                    normalise(a.q_norm, row, row, q);
                    normalise(a.k_norm, row + q, row + q, kv);
                }
            pool.meet();
        }
        const int column = s.columns - 1, half = m.rotated / 2;
        // A thread turns the queries and keys of its key-value heads, and attends with them.
        const Range mine = share(s.rows * m.kv_heads, t, pool.count());
        const int per = m.heads / m.kv_heads;
        for (int at = mine.begin; at < mine.end; at++) {
            const int b = at / m.kv_heads, group = at % m.kv_heads;
            float* row = qkv + (int64_t)b * all;
            float *k = row + q + group * E, *v = k + kv, *queries = row + group * per * E;
            if (a.each_head) {
                normalise(a.k_norm, k, k, E);
                for (int h = 0; h < per; h++) normalise(a.q_norm, queries + h * E, queries + h * E, E);
            }
            if (a.rotation >= 0) {
                const int64_t place = ((s.tables_per_row ? (int64_t)b * s.table_length : 0) + s.positions[b]) * half;
                const float *cosine = s.cosines[a.rotation] + place, *sine = s.sines[a.rotation] + place;
                turn(k, cosine, sine, half);
                for (int h = 0; h < per; h++) turn(queries + h * E, cosine, sine, half);
            }
            const int64_t base = ((int64_t)b * m.kv_heads + group) * s.capacity * E;
            float *keys = s.keys[index] + base, *values = s.values[index] + base;
            std::memcpy(keys + (int64_t)column * E, k, E * sizeof(float));
            std::memcpy(values + (int64_t)column * E, v, E * sizeof(float));
            const int64_t* places = s.key_positions ? s.key_positions + (int64_t)b * s.capacity : nullptr;
            for (int h = 0; h < per; h++) {
                const int head = group * per + h;
                mix(a, queries + h * E, keys, values, s.columns, own, mixed + (int64_t)b * q + head * E, head,
                    [&](int c) {
                        const int64_t place = places ? places[c] : c;
                        return place >= 0 && (!a.window || s.positions[b] - place < a.window);
                    },
                    s.bias ? s.bias + ((s.bias_per_row ? (int64_t)b * m.heads : 0) + head) * s.columns : nullptr);
            }
        }
        pool.meet();
    }
    void cross(const Attention& a, const Norm& norm, int index, int t, Local& own) {
        const int E = m.head_dim, q = m.heads * E;
        prepare(m.post ? Norm{} : norm, x, m.width, a.qkv, own);
        multiply(a.qkv, own, t, [&](int b, int row, float v) { qkv[(int64_t)b * q + row] = v; });
        pool.meet();
        if (!a.each_head && a.q_norm.kind) {
            if (t == 0)
                for (int b = 0; b < s.rows; b++) normalise(a.q_norm, qkv + (int64_t)b * q, qkv + (int64_t)b * q, q);
            pool.meet();
        }
        const Range mine = share(s.rows * m.heads, t, pool.count());
        for (int at = mine.begin; at < mine.end; at++) {
            const int b = at / m.heads, head = at % m.heads, group = head / (m.heads / m.kv_heads);
            float* query = qkv + (int64_t)b * q + head * E;
            if (a.each_head) normalise(a.q_norm, query, query, E);
            const int64_t base = ((int64_t)b * m.kv_heads + group) * s.source_columns * E;
            mix(a, query, s.source_keys[index] + base, s.source_values[index] + base, s.source_columns, own,
                mixed + (int64_t)b * q + head * E, head,
                [&](int c) { return !s.source_mask || s.source_mask[(int64_t)b * s.source_columns + c]; }, nullptr);
        }
        pool.meet();
    }
    template <class Sees>
    void mix(const Attention& a, const float* query, const float* keys, const float* values, int columns,
             Local& own, float* out, int head, Sees&& sees, const float* bias) {
        const int E = m.head_dim;
        float* scores = own.scores.data();
        const Input in{query, nullptr, nullptr};
        int c = 0;
        for (; c + 4 <= columns; c += 4) tile<4, 1>(keys + (int64_t)c * E, &in, E, scores + c);
        for (; c < columns; c++) tile<1, 1>(keys + (int64_t)c * E, &in, E, scores + c);
        float most = a.has_sinks ? a.sinks[head] : -INFINITY;
        for (c = 0; c < columns; c++) {
            float score = scores[c] * a.scale + (bias ? bias[c] : 0.0f);
            if (a.softcap > 0) score = a.softcap * std::tanh(score / a.softcap);
            scores[c] = sees(c) ? score : -INFINITY;
            most = std::max(most, scores[c]);
        }
        std::memset(out, 0, E * sizeof(float));
        if (most == -INFINITY) return;
        float sum = a.has_sinks ? std::exp(a.sinks[head] - most) : 0.0f;
        for (c = 0; c < columns; c++) sum += scores[c] = scores[c] == -INFINITY ? 0.0f : std::exp(scores[c] - most);
        weigh(scores, values, columns, E, out);
        const float back = 1.0f / sum;
        for (int i = 0; i < E; i++) out[i] *= back;
    }
};

struct Engine {
    std::mutex one_at_a_time;  // several streams may share a model
    Pool pool;
    std::vector<Local> locals;
    explicit Engine(int threads) : pool(threads), locals(threads) {}
};

}  // namespace

extern "C" {
void* engine_new(int threads) { return new Engine(threads); }
void engine_free(void* engine) { delete static_cast<Engine*>(engine); }
void engine_step(void* engine, const Model* model, const Step* step) {
    Engine& e = *static_cast<Engine*>(engine);
    const std::lock_guard<std::mutex> alone(e.one_at_a_time);
    Runner runner(*model, *step, e.pool, e.locals);
    e.pool.run(runner);
}
// Sizes, to be held against those of the caller's own declarations.
void engine_sizes(int64_t* out) {
    out[0] = sizeof(Linear); out[1] = sizeof(Norm); out[2] = sizeof(Attention);
    out[3] = sizeof(Layer); out[4] = sizeof(Model); out[5] = sizeof(Step);
}
void engine_quantise(const float* from, int64_t n, int8_t* to, float* scales) { quantise(from, (int)n, to, scales); }
}
