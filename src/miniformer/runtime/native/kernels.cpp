// A step of a Transformer on a CPU: several tokens go through all layers in one call, in decoding one
// new token of each row of the cache, in prefill a chunk of the prompts.
//
// With few tokens the memory bandwidth of the weights limits the speed. So one set of threads runs the
// whole step and synchronizes with barriers.
//
// Letters: N tokens of the step, B rows of the cache, D model width, H query heads, K key-value heads,
// E head width, F inner width, S columns of the cache in use, C its capacity, V vocabulary.

#include <mutex>

#include "row_products.h"

namespace {

struct Norm {
    int32_t kind, width;   // 0: none, 1: RMS, 2: layer
    float eps, padding;
    const float* weight;
    const float* bias;
};

struct Attention {
    Linear qkv, out;       // cross-attention: qkv has only the queries
    Norm q_norm, k_norm;
    int32_t norm_per_head, window;  // window 0: none
    int32_t rotation, has_sinks;  // index of the rotary tables; -1: none
    float scale, softcap;  // softcap 0: none
    const float* sinks;    // [H]
};

struct Layer {
    Norm attention_in, attention_out, cross_in, cross_out, ffn_in, ffn_out;
    Attention attention, cross;
    Linear up, down;       // up: [F, D], or gate and up interleaved by INTERLEAVE rows: [2F, D]
};

struct Model {
    int32_t width, heads, kv_heads, head_dim, inner, layers;
    int32_t gated, activation, post, parallel, has_cross, rotary_dim, vocabulary, padding;
    float embedding_scale, logit_scale, logit_softcap, padding2;
    const float* embedding;  // [V, D]
    Norm embedding_norm, final_norm;
    Linear head;
    const Layer* layer;
};

struct Step {
    int32_t count, columns, capacity, source_columns;
    int32_t tables_per_row, bias_per_row, table_length, rows_per_source, num_outputs;  // num_outputs -1: all
    int32_t first_layer, stop_layer, padding;  // layers to run; stop_layer 0: to the end
    const int64_t* tokens;         // [N]
    const int64_t* positions;      // [N]
    const int64_t* rows;           // [N], ascending, row of the cache; null: one token per row
    const int64_t* token_columns;  // [N], column of the cache; null: the last
    const int64_t* output_tokens;  // [num_outputs], tokens to compute logits for
    const int64_t* key_positions;  // [B, C], -1: padding; null: column = position
    const float* vectors;          // [N, D], added to embeddings; null: none
    const float* const* cosines;   // per table: [B or 1, length, rotary_dim / 2]
    const float* const* sines;
    const float* bias;             // [N or 1, H, S]; null: none
    const int32_t* key_rows;       // [B, C], row that stores key and value of a column; null: the same row
    float* const* keys;            // per layer: [B, K, C, E]
    float* const* values;
    const float* const* source_keys;    // per layer: [sources, K, source_columns, E]
    const float* const* source_values;
    const uint8_t* source_mask;    // [sources, source_columns]; null: all are real
    const int32_t* source_lengths; // [B], columns of the source of each row of the cache; null: see rows_per_source
    float* hidden;                 // [N, D], input of `first_layer` if that is above 0, output of `stop_layer`; null: none
    float* logits;                 // [N or num_outputs, V]
    float* work;
};

void normalize(const Norm& norm, const float* x, float* out, int n) {
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

void rotate(float* x, const float* cosine, const float* sine, int half) {
    for (int i = 0; i < half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cosine[i] - b * sine[i];
        x[i + half] = b * cosine[i] + a * sine[i];
    }
}

// Buffers of one thread.
struct ThreadBuffers {
    ProductInputs inputs;
    std::vector<float> scores;
};

class Runner {
  public:
    Runner(const Model& model, const Step& step, ThreadPool& pool, std::vector<ThreadBuffers>& buffers)
        : m(model), s(step), pool(pool), buffers(buffers), shared_inputs(step.count >= 2 * pool.count()) {
        float* at = s.work;
        const int q = m.heads * m.head_dim, kv = m.kv_heads * m.head_dim;
        x = allocate(at, m.width); attention_out = allocate(at, q); inner = allocate(at, m.inner);
        qkv = allocate(at, q + 2 * kv); sublayer_out = allocate(at, m.width); parallel_out = allocate(at, m.width);
        for (int t = 0; t < (shared_inputs ? 1 : pool.count()); t++)
            buffers[t].inputs.reserve(s.count, std::max({m.width, m.inner, q}));
    }
    void operator()(int t) {
        std::vector<float>& scores = buffers[t].scores;
        const size_t columns = std::max(s.columns, s.source_columns);
        if (scores.size() < columns) scores.resize(columns);
        parallel_for(s.count, t, [&](int b) { embed(b); });
        pool.barrier();
        const int stop = s.stop_layer ? s.stop_layer : m.layers;
        for (int index = s.first_layer; index < stop; index++) layer(m.layer[index], index, t);
        if (s.hidden && s.stop_layer) parallel_for(s.count, t, [&](int64_t b) { std::copy_n(x + b * m.width, m.width, s.hidden + b * m.width); });
        const float* last = x;
        const int count = s.num_outputs < 0 ? s.count : s.num_outputs;
        if (s.num_outputs >= 0) {
            parallel_for(s.num_outputs, t, [&](int64_t b) { std::copy_n(x + s.output_tokens[b] * m.width, m.width, sublayer_out + b * m.width); });
            pool.barrier();
            last = sublayer_out;
        }
        const Input in = prepare(m.final_norm, last, m.head, t, count, m.logit_scale);
        multiply(m.head, in, t, count, [&](int b, int row, const float* numbers, int count) {
            float* to = s.logits + (int64_t)b * m.vocabulary + row;
            if (m.logit_softcap > 0) for (int i = 0; i < count; i++) to[i] = m.logit_softcap * fast_tanh(numbers[i] / m.logit_softcap);
            else std::copy_n(numbers, count, to);
        });
    }

  private:
    const Model& m;
    const Step& s;
    ThreadPool& pool;
    std::vector<ThreadBuffers>& buffers;
    const bool shared_inputs;  // threads split the preparation of inputs; otherwise each does all of it
    float *x, *attention_out, *inner, *qkv, *sublayer_out, *parallel_out;

    float* allocate(float*& at, int width) {
        float* start = at;
        at += (int64_t)s.count * width;
        return start;
    }
    template <class Work> void parallel_for(int count, int t, Work&& work) {
        const Range mine = split_range(count, t, pool.count());
        for (int b = mine.begin; b < mine.end; b++) work(b);
    }
    void embed(int b) {
        float* to = x + (int64_t)b * m.width;
        if (s.first_layer) {
            std::copy_n(s.hidden + (int64_t)b * m.width, m.width, to);
            return;
        }
        const float* from = m.embedding + s.tokens[b] * m.width;
        for (int i = 0; i < m.width; i++) to[i] = from[i] * m.embedding_scale;
        if (s.vectors) for (int i = 0; i < m.width; i++) to[i] += s.vectors[(int64_t)b * m.width + i];
        normalize(m.embedding_norm, to, to, m.width);
    }
    // Inputs of a product, [count, columns]: normalized, and quantized for int8 and int4 weights.
    Input prepare(const Norm& norm, const float* from, const Linear& w, int t, int count, float scale = 1) {
        const int n = w.columns;
        ProductInputs& buffer = buffers[shared_inputs ? 0 : t].inputs;
        const bool unchanged = norm.kind == 0 && scale == 1;
        const auto prepare_token = [&](int64_t b) {
            float* row = buffer.x.data() + b * n;
            if (!unchanged) normalize(norm, from + b * n, row, n);
            if (scale != 1) for (int i = 0; i < n; i++) row[i] *= scale;
            if (w.kind < INT8) return;
            const int64_t group = b * (n / GROUP);
            quantize(unchanged ? from + b * n : row, n, buffer.q.data() + b * n, buffer.scales.data() + group, buffer.shifts.data() + group);
        };
        if (unchanged && w.kind < INT8) return {from, nullptr, nullptr, nullptr, nullptr};
        if (shared_inputs) {
            parallel_for(count, t, prepare_token);
            pool.barrier();
        } else {
            for (int b = 0; b < count; b++) prepare_token(b);
        }
        return {unchanged ? from : buffer.x.data(), buffer.q.data(), buffer.scales.data(), buffer.shifts.data(), nullptr};
    }
    template <class Output> void multiply(const Linear& w, const Input& in, int t, int count, Output&& output) {
        const Range mine = split_range(w.panels(), t, pool.count());
        product(w, mine.begin, mine.end, in, count, output);
    }
    void layer(const Layer& l, int index, int t) {
        self_attention(l.attention, l.attention_in, index, t);
        add_sublayer(l.attention.out, attention_out, l.attention_in, l.attention_out, t, m.parallel ? parallel_out : nullptr);
        if (m.has_cross) {
            cross_attention(l.cross, l.cross_in, index, t);
            add_sublayer(l.cross.out, attention_out, l.cross_in, l.cross_out, t, nullptr);
        }
        const Input in = prepare(m.post ? Norm{} : l.ffn_in, x, l.up, t, s.count);
        multiply(l.up, in, t, s.count, [&](int b, int row, float* numbers, int count) {
            if (!m.gated) {
                activate(m.activation, numbers, PANEL);
                std::copy_n(numbers, count, inner + (int64_t)b * m.inner + row);
                return;
            }
            activate(m.activation, numbers, INTERLEAVE);
            float* to = inner + (int64_t)b * m.inner + row / 2;
            for (int i = 0; i < std::min(INTERLEAVE, m.inner - row / 2); i++) to[i] = numbers[i] * numbers[INTERLEAVE + i];
        });
        pool.barrier();
        add_sublayer(l.down, inner, l.ffn_in, l.ffn_out, t, nullptr);
    }
    // x + norm(W from), or norm(x + W from) for post-norm layers. `deferred`: buffer for the output instead.
    void add_sublayer(const Linear& w, const float* from, const Norm& in, const Norm& out, int t, float* deferred) {
        const bool simple = !m.post && out.kind == 0 && !deferred;
        float* to = deferred ? deferred : sublayer_out;
        multiply(w, prepare(Norm{}, from, w, t, s.count), t, s.count, [&](int b, int row, const float* numbers, int count) {
            const int64_t start = (int64_t)b * m.width + row;
            if (simple) for (int i = 0; i < count; i++) x[start + i] += numbers[i];
            else std::copy_n(numbers, count, to + start);
        });
        pool.barrier();
        if (deferred || (simple && !m.parallel)) return;
        parallel_for(s.count, t, [&](int64_t b) {
            float *row = x + b * m.width, *output = sublayer_out + b * m.width;
            if (!simple) {
                normalize(out, output, output, m.width);
                for (int i = 0; i < m.width; i++) row[i] += output[i];
            }
            if (m.parallel) for (int i = 0; i < m.width; i++) row[i] += parallel_out[b * m.width + i];
            if (m.post) normalize(in, row, row, m.width);
        });
        pool.barrier();
    }
    void self_attention(const Attention& a, const Norm& norm, int index, int t) {
        const int E = m.head_dim, q = m.heads * E, kv = m.kv_heads * E, width = q + 2 * kv;
        project(a, m.post ? Norm{} : norm, width, t);
        if (!a.norm_per_head && a.q_norm.kind) {
            parallel_for(s.count, t, [&](int64_t b) {
                float* row = qkv + b * width;
                normalize(a.q_norm, row, row, q);
                normalize(a.k_norm, row + q, row + q, kv);
            });
            pool.barrier();
        }
        const int half = m.rotary_dim / 2, group_heads = m.heads / m.kv_heads;
        const int64_t stride = (int64_t)m.kv_heads * s.capacity * E;  // between rows of the cache
        // A thread rotates queries and keys of a key-value head and computes its attention. Work is strided
        // over threads, since later tokens of a prompt attend to more keys.
        for (int item = t; item < s.count * m.kv_heads; item += pool.count()) {
            const int64_t b = item / m.kv_heads, group = item % m.kv_heads, cache_row = row_of(b), column = column_of(b);
            float* row = qkv + b * width;
            float *k = row + q + group * E, *v = k + kv, *queries = row + group * group_heads * E;
            if (a.norm_per_head) {
                normalize(a.k_norm, k, k, E);
                for (int h = 0; h < group_heads; h++) normalize(a.q_norm, queries + h * E, queries + h * E, E);
            }
            if (a.rotation >= 0) {
                const int64_t table_start = ((s.tables_per_row ? cache_row * s.table_length : 0) + s.positions[b]) * half;
                const float *cosine = s.cosines[a.rotation] + table_start, *sine = s.sines[a.rotation] + table_start;
                rotate(k, cosine, sine, half);
                for (int h = 0; h < group_heads; h++) rotate(queries + h * E, cosine, sine, half);
            }
            const int64_t start = cache_row * stride + (group * s.capacity + column) * E;
            std::copy_n(k, E, s.keys[index] + start);
            std::copy_n(v, E, s.values[index] + start);
            if (!s.rows) attend_token(a, index, b, group, t);
        }
        pool.barrier();
        if (!s.rows) return;
        for (int item = t; item < s.count * m.kv_heads; item += pool.count()) attend_token(a, index, item / m.kv_heads, item % m.kv_heads, t);
        pool.barrier();
    }
    int64_t row_of(int64_t b) const { return s.rows ? s.rows[b] : b; }
    int64_t column_of(int64_t b) const { return s.token_columns ? s.token_columns[b] : s.columns - 1; }
    // Attention of one token and key-value head to the keys of the cache up to the token.
    void attend_token(const Attention& a, int index, int64_t b, int64_t group, int t) {
        const int E = m.head_dim, q = m.heads * E, group_heads = m.heads / m.kv_heads, columns = column_of(b) + 1;
        const int64_t cache_row = row_of(b), stride = (int64_t)m.kv_heads * s.capacity * E, base = group * s.capacity * E;
        const float* queries = qkv + b * (q + 2 * m.kv_heads * E) + group * group_heads * E;
        const float *keys = s.keys[index] + base, *values = s.values[index] + base;
        const int32_t* rows = s.key_rows ? s.key_rows + b * s.capacity : nullptr;
        if (!rows) { keys += cache_row * stride; values += cache_row * stride; }
        const int64_t* positions = s.key_positions ? s.key_positions + cache_row * s.capacity : nullptr;
        for (int h = 0; h < group_heads; h++) {
            const int head = group * group_heads + h;
            attend_query(a, queries + h * E, keys, values, rows, stride, columns, buffers[t].scores.data(), attention_out + b * q + head * E, head,
                [&](int c) {
                    const int64_t position = positions ? positions[c] : c;
                    return position >= 0 && (!a.window || s.positions[b] - position < a.window);
                },
                s.bias ? s.bias + ((s.bias_per_row ? b * m.heads : 0) + head) * s.columns : nullptr);
        }
    }
    void cross_attention(const Attention& a, const Norm& norm, int index, int t) {
        const int E = m.head_dim, q = m.heads * E;
        project(a, m.post ? Norm{} : norm, q, t);
        if (!a.norm_per_head && a.q_norm.kind) {
            parallel_for(s.count, t, [&](int64_t b) { normalize(a.q_norm, qkv + b * q, qkv + b * q, q); });
            pool.barrier();
        }
        const Range mine = split_range(s.count * m.heads, t, pool.count());
        for (int at = mine.begin; at < mine.end; at++) {
            const int64_t b = at / m.heads, head = at % m.heads, group = head / (m.heads / m.kv_heads);
            float* query = qkv + b * q + head * E;
            if (a.norm_per_head) normalize(a.q_norm, query, query, E);
            const int64_t source = s.source_lengths ? row_of(b) : b / s.rows_per_source;
            const int64_t base = (source * m.kv_heads + group) * s.source_columns * E;
            const int columns = s.source_lengths ? s.source_lengths[source] : s.source_columns;
            attend_query(a, query, s.source_keys[index] + base, s.source_values[index] + base, nullptr, 0, columns,
                buffers[t].scores.data(), attention_out + b * q + head * E, head,
                [&](int c) { return !s.source_mask || s.source_mask[source * s.source_columns + c]; }, nullptr);
        }
        pool.barrier();
    }
    // Projects all tokens to queries, or to queries, keys and values, `width` values each.
    void project(const Attention& a, const Norm& norm, int width, int t) {
        multiply(a.qkv, prepare(norm, x, a.qkv, t, s.count), t, s.count, [&](int b, int row, const float* numbers, int count) {
            std::copy_n(numbers, count, qkv + (int64_t)b * width + row);
        });
        pool.barrier();
    }
    template <class Visible>
    void attend_query(const Attention& a, const float* query, const float* keys, const float* values, const int32_t* rows, int64_t stride,
                      int columns, float* scores, float* out, int head, Visible&& visible, const float* bias) {
        const int E = m.head_dim;
        dot_products(query, keys, rows, stride, columns, E, scores);
        for (int c = 0; c < columns; c++) scores[c] = scores[c] * a.scale + (bias ? bias[c] : 0.0f);
        if (a.softcap > 0) for (int c = 0; c < columns; c++) scores[c] = a.softcap * fast_tanh(scores[c] / a.softcap);
        float max_score = a.has_sinks ? a.sinks[head] : -INFINITY;
        for (int c = 0; c < columns; c++) {
            if (!visible(c)) scores[c] = -INFINITY;
            max_score = std::max(max_score, scores[c]);
        }
        if (max_score == -INFINITY) {  // no key is visible, or no score is a number
            const bool invalid = std::any_of(scores, scores + columns, [](float score) { return is_nan(score); });
            std::fill_n(out, E, invalid ? NAN : 0.0f);
            return;
        }
        float sum = a.has_sinks ? fast_exp(a.sinks[head] - max_score) : 0.0f;
        for (int c = 0; c < columns; c++) scores[c] = fast_exp(scores[c] - max_score);
        for (int c = 0; c < columns; c++) sum += scores[c];
        weighted_sum(scores, values, rows, stride, columns, E, out);
        const float inverse = 1.0f / sum;
        for (int i = 0; i < E; i++) out[i] *= inverse;
    }
};

// The k largest of n logits in descending order, as log-probabilities with token ids.
void top_logprobs(const float* logits, int n, int k, float* logprobs, int64_t* tokens) {
    constexpr int BLOCK = 64;
    int count = 0;
    for (int from = 0; from < n; from += BLOCK) {
        const int end = std::min(n, from + BLOCK);
        float lane_max[8];
        std::fill_n(lane_max, 8, -INFINITY);
        int i = from;
        for (; i + 8 <= end; i += 8)
            for (int j = 0; j < 8; j++) lane_max[j] = logits[i + j] > lane_max[j] ? logits[i + j] : lane_max[j];
        for (; i < end; i++) lane_max[0] = std::max(lane_max[0], logits[i]);
        if (count == k && *std::max_element(lane_max, lane_max + 8) <= logprobs[k - 1]) continue;
        for (i = from; i < end; i++) {
            if (count == k && !(logits[i] > logprobs[k - 1])) continue;
            int rank = count < k ? count++ : k - 1;
            for (; rank > 0 && logits[i] > logprobs[rank - 1]; rank--) {
                logprobs[rank] = logprobs[rank - 1];
                tokens[rank] = tokens[rank - 1];
            }
            logprobs[rank] = logits[i];
            tokens[rank] = i;
        }
    }
    float sum = 0;
    for (int i = 0; i < n; i++) sum += fast_exp(logits[i] - logprobs[0]);
    const float log_sum = logprobs[0] + std::log(sum);
    for (int rank = 0; rank < k; rank++) logprobs[rank] -= log_sum;
}

struct Engine {
    std::mutex mutex;  // streams of several threads may share a model
    ThreadPool pool;
    std::vector<ThreadBuffers> buffers;
    explicit Engine(int threads) : pool(threads), buffers(threads) {}
};

}  // namespace

extern "C" {
void* engine_new(int threads) { return new Engine(threads); }
void engine_free(void* engine) { delete static_cast<Engine*>(engine); }
void engine_step(void* engine, const Model* model, const Step* step) {
    Engine& e = *static_cast<Engine*>(engine);
    const std::lock_guard<std::mutex> lock(e.mutex);
    Runner runner(*model, *step, e.pool, e.buffers);
    e.pool.run(runner);
}
// The k most likely tokens of each row of logits, [rows, n] -> [rows, k].
void engine_top_logprobs(void* engine, const float* logits, int rows, int n, int k, float* logprobs, int64_t* tokens) {
    Engine& e = *static_cast<Engine*>(engine);
    const std::lock_guard<std::mutex> lock(e.mutex);
    e.pool.run([&](int t) {
        const Range mine = split_range(rows, t, e.pool.count());
        for (int64_t b = mine.begin; b < mine.end; b++) top_logprobs(logits + b * n, n, k, logprobs + b * k, tokens + b * k);
    });
}
// Struct sizes, which the caller compares with its own declarations.
void engine_sizes(int64_t* out) {
    out[0] = sizeof(Linear); out[1] = sizeof(Norm); out[2] = sizeof(Attention);
    out[3] = sizeof(Layer); out[4] = sizeof(Model); out[5] = sizeof(Step);
}
// y = x W^T + bias for many rows, [rows, columns] -> [rows, rows of W]. `parallel`: see Parallel; null: one thread.
void engine_multiply_rows(const Linear* w, const float* x, int rows, float* out, int threads, Parallel parallel) {
    multiply_rows(*w, x, rows, out, threads, parallel);
}
// 1 if the build has instructions for products of a kind of weights with rounded inputs, which float32 lacks.
int engine_has_instructions(int kind) { return kind == BF16 ? MULTIPLIES_BF16 : kind != F32 && MULTIPLIES_BYTES; }
void engine_quantize(const float* from, int64_t n, int8_t* to, float* scales) { quantize(from, n, to, scales); }
}
