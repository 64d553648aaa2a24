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

#ifdef WIDE
inline float total(__m256 x) {
    __m128 low = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    low = _mm_add_ps(low, _mm_movehl_ps(low, low));
    return _mm_cvtss_f32(_mm_add_ss(low, _mm_movehdup_ps(low)));
}
inline __m256 wide(const uint16_t* x) {
    const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)x));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
}
#endif

float dot(const float* a, const float* b, int n) {
    int i = 0;
    float sum = 0;
#ifdef WIDE
    __m256 s0 = _mm256_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
    for (; i + 32 <= n; i += 32) {
        s0 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), s0);
        s1 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 8), _mm256_loadu_ps(b + i + 8), s1);
        s2 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 16), _mm256_loadu_ps(b + i + 16), s2);
        s3 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 24), _mm256_loadu_ps(b + i + 24), s3);
    }
    sum = total(_mm256_add_ps(_mm256_add_ps(s0, s1), _mm256_add_ps(s2, s3)));
#endif
    for (; i < n; i++) sum += a[i] * b[i];
    return sum;
}

float dot(const uint16_t* a, const float* b, int n) {
    int i = 0;
    float sum = 0;
#ifdef WIDE
    __m256 s0 = _mm256_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
    for (; i + 32 <= n; i += 32) {
        s0 = _mm256_fmadd_ps(wide(a + i), _mm256_loadu_ps(b + i), s0);
        s1 = _mm256_fmadd_ps(wide(a + i + 8), _mm256_loadu_ps(b + i + 8), s1);
        s2 = _mm256_fmadd_ps(wide(a + i + 16), _mm256_loadu_ps(b + i + 16), s2);
        s3 = _mm256_fmadd_ps(wide(a + i + 24), _mm256_loadu_ps(b + i + 24), s3);
    }
    sum = total(_mm256_add_ps(_mm256_add_ps(s0, s1), _mm256_add_ps(s2, s3)));
#endif
    for (; i < n; i++) {
        uint32_t bits = (uint32_t)a[i] << 16;
        float x;
        std::memcpy(&x, &bits, 4);
        sum += x * b[i];
    }
    return sum;
}

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

float dot(const int8_t* a, const float* a_scales, const Input& in, int n) {
    float sum = 0;
    int g = 0;
    const int groups = n / GROUP;
#ifdef WIDE
    const __m256i ones = _mm256_set1_epi16(1);
    __m256 s = _mm256_setzero_ps();
    for (; g < groups; g++) {
        const __m256i w = _mm256_loadu_si256((const __m256i*)(a + g * GROUP));
        const __m256i x = _mm256_loadu_si256((const __m256i*)(in.q + g * GROUP));
        // Bytes are multiplied unsigned by signed: |w| * (x with the sign of w).
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
        const __m256 sums = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, ones));
        s = _mm256_fmadd_ps(_mm256_set1_ps(a_scales[g] * in.scales[g]), sums, s);
    }
    sum = total(s);
#endif
    for (; g < groups; g++) {
        int32_t part = 0;
        for (int i = 0; i < GROUP; i++) part += (int32_t)a[g * GROUP + i] * in.q[g * GROUP + i];
        sum += a_scales[g] * in.scales[g] * (float)part;
    }
    return sum;
}

// A row of a matrix by N inputs at once, so that its weights are loaded, and widened, once.
#ifdef WIDE
template <int N> void dots(const float* w, const Input* in, int n, float* out) {
    __m256 sums[N][2];
    for (int b = 0; b < N; b++) sums[b][0] = sums[b][1] = _mm256_setzero_ps();
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        const __m256 w0 = _mm256_loadu_ps(w + i), w1 = _mm256_loadu_ps(w + i + 8);
        for (int b = 0; b < N; b++) {
            sums[b][0] = _mm256_fmadd_ps(w0, _mm256_loadu_ps(in[b].x + i), sums[b][0]);
            sums[b][1] = _mm256_fmadd_ps(w1, _mm256_loadu_ps(in[b].x + i + 8), sums[b][1]);
        }
    }
    for (int b = 0; b < N; b++) {
        out[b] = total(_mm256_add_ps(sums[b][0], sums[b][1]));
        for (int k = i; k < n; k++) out[b] += w[k] * in[b].x[k];
    }
}
template <int N> void dots(const uint16_t* w, const Input* in, int n, float* out) {
    __m256 sums[N][2];
    for (int b = 0; b < N; b++) sums[b][0] = sums[b][1] = _mm256_setzero_ps();
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        const __m256 w0 = wide(w + i), w1 = wide(w + i + 8);
        for (int b = 0; b < N; b++) {
            sums[b][0] = _mm256_fmadd_ps(w0, _mm256_loadu_ps(in[b].x + i), sums[b][0]);
            sums[b][1] = _mm256_fmadd_ps(w1, _mm256_loadu_ps(in[b].x + i + 8), sums[b][1]);
        }
    }
    for (int b = 0; b < N; b++) {
        out[b] = total(_mm256_add_ps(sums[b][0], sums[b][1]));
        for (int k = i; k < n; k++) out[b] += dot(w + k, in[b].x + k, 1);
    }
}
template <int N> void dots(const int8_t* w, const float* scales, const Input* in, int n, float* out) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256 sums[N];
    for (int b = 0; b < N; b++) sums[b] = _mm256_setzero_ps();
    for (int g = 0; g < n / GROUP; g++) {
        const __m256i row = _mm256_loadu_si256((const __m256i*)(w + g * GROUP));
        const __m256i size = _mm256_abs_epi8(row);
        for (int b = 0; b < N; b++) {
            const __m256i x = _mm256_loadu_si256((const __m256i*)(in[b].q + g * GROUP));
            const __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(x, row));
            const __m256 whole = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, ones));
            sums[b] = _mm256_fmadd_ps(_mm256_set1_ps(scales[g] * in[b].scales[g]), whole, sums[b]);
        }
    }
    for (int b = 0; b < N; b++) out[b] = total(sums[b]);
}
#endif

// A row of a matrix by all inputs, without the bias: out[B].
void products(const Linear& w, int row, const Input* in, int count, float* out) {
    const int64_t n = w.columns;
    const float* wide_row = (const float*)w.weight + row * n;
    const uint16_t* half_row = (const uint16_t*)w.weight + row * n;
    const int8_t* byte_row = (const int8_t*)w.weight + row * n;
    const float* scales = w.scales ? w.scales + row * (n / GROUP) : nullptr;
    int b = 0;
#ifdef WIDE
    for (; b + 4 <= count; b += 4) {
        if (w.kind == F32) dots<4>(wide_row, in + b, n, out + b);
        else if (w.kind == BF16) dots<4>(half_row, in + b, n, out + b);
        else dots<4>(byte_row, scales, in + b, n, out + b);
    }
#endif
    for (; b < count; b++) {
        if (w.kind == F32) out[b] = dot(wide_row, in[b].x, n);
        else if (w.kind == BF16) out[b] = dot(half_row, in[b].x, n);
        else out[b] = dot(byte_row, scales, in[b], n);
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
    std::vector<float> scores, out, gate;
    std::vector<Input> inputs;
    void fit(int rows, int n, int columns) {
        out.resize(rows);
        gate.resize(rows);
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
        for (int row = mine.begin; row < mine.end; row++) {
            products(w, row, in, s.rows, out);
            const float bias = w.bias ? w.bias[row] : 0.0f;
            for (int b = 0; b < s.rows; b++) take(b, row, out[b] + bias);
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
            float *gate = own.gate.data(), *up = own.out.data();
            for (int row = mine.begin; row < mine.end; row++) {
                products(l.up, 2 * row, in, s.rows, gate);
                products(l.up, 2 * row + 1, in, s.rows, up);
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
        float most = a.has_sinks ? a.sinks[head] : -INFINITY;
        for (int c = 0; c < columns; c++) {
            if (!sees(c)) { scores[c] = -INFINITY; continue; }
            float score = dot(query, keys + (int64_t)c * E, E) * a.scale;
            if (bias) score += bias[c];
            if (a.softcap > 0) score = a.softcap * std::tanh(score / a.softcap);
            scores[c] = score;
            most = std::max(most, score);
        }
        std::memset(out, 0, E * sizeof(float));
        if (most == -INFINITY) return;
        float sum = a.has_sinks ? std::exp(a.sinks[head] - most) : 0.0f;
        for (int c = 0; c < columns; c++) {
            if (scores[c] == -INFINITY) continue;
            const float weight = std::exp(scores[c] - most);
            sum += weight;
            const float* value = values + (int64_t)c * E;
            for (int i = 0; i < E; i++) out[i] += weight * value[i];
        }
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
