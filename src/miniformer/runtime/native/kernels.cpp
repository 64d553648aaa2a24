// A step of a Transformer on a CPU: some tokens go through all layers in one call. In decoding that is
// one new token of each row of the cache; when prompts are read, several.
//
// For a few tokens, a step reads every weight once for each of them, so that time is the weights' bytes
// over the memory's bandwidth, if nothing else is in the way. Threads therefore stay together for the
// whole step and meet at a barrier where one needs what another has written.
//
// Letters: N tokens of the step, B rows of the cache, D model width, H query heads, K key-value heads,
// E head width, F inner width, S columns of the cache in use, C its capacity, V vocabulary.

#include <mutex>

#include "pool.h"
#include "products.h"

namespace {

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
    Linear up, down;       // up: [F, D], or gate and up in turns of HALF rows: [2F, D]
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
    int32_t count, columns, capacity, source_columns;
    int32_t tables_per_row, bias_per_row, table_length, rows_per_source, wanted_count, padding;  // wanted_count -1: of all
    const int64_t* tokens;         // [N]
    const int64_t* positions;      // [N]
    const int64_t* rows;           // [N], ascending, a token's row of the cache; null: one of each row
    const int64_t* places;         // [N], and its column; null: the last
    const int64_t* wanted;         // [wanted_count], of which tokens logits are
    const int64_t* key_positions;  // [B, C], -1: padding; null: column = position
    const float* vectors;          // [N, D], added to embeddings; null: nothing
    const float* const* cosines;   // of each table: [B or 1, length, rotated / 2]
    const float* const* sines;
    const float* bias;             // [B or 1, H, S]; null: none
    const int32_t* key_rows;       // [B, C], the row that has a column's key and value; null: its own
    float* const* keys;            // of each layer: [B, K, C, E]
    float* const* values;
    const float* const* source_keys;    // of each layer: [sources, K, source_columns, E]
    const float* const* source_values;
    const uint8_t* source_mask;    // [sources, source_columns]; null: all are real
    float* logits;                 // [N or as many as are wanted, V]
    float* work;
};

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

void turn(float* x, const float* cosine, const float* sine, int half) {
    for (int i = 0; i < half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cosine[i] - b * sine[i];
        x[i + half] = b * cosine[i] + a * sine[i];
    }
}

// Inputs of a product, of all tokens.
struct Prepared {
    std::vector<float> x, scales;
    std::vector<int8_t> q;
    std::vector<int32_t> shifts;
    void fit(size_t rows, size_t n) {
        if (x.size() >= rows * n) return;
        x.resize(rows * n); q.resize(rows * n);
        scales.resize(rows * (n / GROUP + 1)); shifts.resize(scales.size());
    }
};

// What a thread has to itself.
struct Local {
    Prepared inputs;
    std::vector<float> scores;
};

class Runner {
  public:
    Runner(const Model& model, const Step& step, Pool& pool, std::vector<Local>& locals)
        : m(model), s(step), pool(pool), locals(locals), together(step.count >= 2 * pool.count()) {
        float* at = s.work;
        const int q = m.heads * m.head_dim, kv = m.kv_heads * m.head_dim;
        x = take(at, m.width); mixed = take(at, q); inner = take(at, m.inner);
        qkv = take(at, q + 2 * kv); change = take(at, m.width); second = take(at, m.width);
        for (int t = 0; t < (together ? 1 : pool.count()); t++)
            locals[t].inputs.fit(s.count, std::max({m.width, m.inner, q}));
    }
    void operator()(int t) {
        std::vector<float>& scores = locals[t].scores;
        const size_t columns = std::max(s.columns, s.source_columns);
        if (scores.size() < columns) scores.resize(columns);
        each(s.count, t, [&](int b) { embed(b); });
        pool.meet();
        for (int index = 0; index < m.layers; index++) layer(m.layer[index], index, t);
        const float* last = x;
        const int count = s.wanted_count < 0 ? s.count : s.wanted_count;
        if (s.wanted_count >= 0) {
            each(s.wanted_count, t, [&](int64_t b) { std::copy_n(x + s.wanted[b] * m.width, m.width, change + b * m.width); });
            pool.meet();
            last = change;
        }
        const Input in = prepare(m.final_norm, last, m.head, t, count, m.logit_scale);
        multiply(m.head, in, t, count, [&](int b, int row, const float* numbers, int count) {
            float* to = s.logits + (int64_t)b * m.vocabulary + row;
            if (m.logit_softcap > 0) for (int i = 0; i < count; i++) to[i] = m.logit_softcap * tanh_of(numbers[i] / m.logit_softcap);
            else std::copy_n(numbers, count, to);
        });
    }

  private:
    const Model& m;
    const Step& s;
    Pool& pool;
    std::vector<Local>& locals;
    const bool together;  // whether threads share the work of preparing inputs, or each does all of it
    float *x, *mixed, *inner, *qkv, *change, *second;

    float* take(float*& at, int width) {
        float* begin = at;
        at += (int64_t)s.count * width;
        return begin;
    }
    template <class Work> void each(int count, int t, Work&& work) {
        const Range mine = share(count, t, pool.count());
        for (int b = mine.begin; b < mine.end; b++) work(b);
    }
    void embed(int b) {
        const float* from = m.embedding + s.tokens[b] * m.width;
        float* to = x + (int64_t)b * m.width;
        for (int i = 0; i < m.width; i++) to[i] = from[i] * m.embedding_scale;
        if (s.vectors) for (int i = 0; i < m.width; i++) to[i] += s.vectors[(int64_t)b * m.width + i];
        normalise(m.embedding_norm, to, to, m.width);
    }
    // What a product reads, [count, columns]: normalised, and in int8 where its weights are.
    Input prepare(const Norm& norm, const float* from, const Linear& w, int t, int count, float scale = 1) {
        const int n = w.columns;
        Prepared& to = locals[together ? 0 : t].inputs;
        const bool as_is = norm.kind == 0 && scale == 1;
        const auto one = [&](int64_t b) {
            float* row = to.x.data() + b * n;
            if (!as_is) normalise(norm, from + b * n, row, n);
            if (scale != 1) for (int i = 0; i < n; i++) row[i] *= scale;
            if (w.kind < INT8) return;
            const int64_t group = b * (n / GROUP);
            quantise(as_is ? from + b * n : row, n, to.q.data() + b * n, to.scales.data() + group, to.shifts.data() + group);
        };
        if (as_is && w.kind < INT8) return {from, nullptr, nullptr, nullptr};
        if (together) {
            each(count, t, one);
            pool.meet();
        } else {
            for (int b = 0; b < count; b++) one(b);
        }
        return {as_is ? from : to.x.data(), to.q.data(), to.scales.data(), to.shifts.data()};
    }
    template <class Take> void multiply(const Linear& w, const Input& in, int t, int count, Take&& take) {
        const Range mine = share(w.panels(), t, pool.count());
        product(w, mine.begin, mine.end, in, count, take);
    }
    void layer(const Layer& l, int index, int t) {
        attend(l.attention, l.attention_in, index, t);
        finish(l.attention.out, mixed, l.attention_in, l.attention_out, t, m.parallel ? second : nullptr);
        if (m.has_cross) {
            cross(l.cross, l.cross_in, index, t);
            finish(l.cross.out, mixed, l.cross_in, l.cross_out, t, nullptr);
        }
        const Input in = prepare(m.post ? Norm{} : l.feed_in, x, l.up, t, s.count);
        multiply(l.up, in, t, s.count, [&](int b, int row, float* numbers, int count) {
            if (!m.gated) {
                activate(m.activation, numbers, PANEL);
                std::copy_n(numbers, count, inner + (int64_t)b * m.inner + row);
                return;
            }
            activate(m.activation, numbers, HALF);
            float* to = inner + (int64_t)b * m.inner + row / 2;
            for (int i = 0; i < std::min(HALF, m.inner - row / 2); i++) to[i] = numbers[i] * numbers[HALF + i];
        });
        pool.meet();
        finish(l.down, inner, l.feed_in, l.feed_out, t, nullptr);
    }
    // x + norm(W from), or of post-norm layers norm(x + W from). `aside`: where it waits instead.
    void finish(const Linear& w, const float* from, const Norm& in, const Norm& out, int t, float* aside) {
        const bool simple = !m.post && out.kind == 0 && !aside;
        float* to = aside ? aside : change;
        multiply(w, prepare(Norm{}, from, w, t, s.count), t, s.count, [&](int b, int row, const float* numbers, int count) {
            const int64_t place = (int64_t)b * m.width + row;
            if (simple) for (int i = 0; i < count; i++) x[place + i] += numbers[i];
            else std::copy_n(numbers, count, to + place);
        });
        pool.meet();
        if (aside || (simple && !m.parallel)) return;
        each(s.count, t, [&](int64_t b) {
            float *row = x + b * m.width, *changed = change + b * m.width;
            if (!simple) {
                normalise(out, changed, changed, m.width);
                for (int i = 0; i < m.width; i++) row[i] += changed[i];
            }
            if (m.parallel) for (int i = 0; i < m.width; i++) row[i] += second[b * m.width + i];
            if (m.post) normalise(in, row, row, m.width);
        });
        pool.meet();
    }
    void attend(const Attention& a, const Norm& norm, int index, int t) {
        const int E = m.head_dim, q = m.heads * E, kv = m.kv_heads * E, all = q + 2 * kv;
        project(a, m.post ? Norm{} : norm, all, t);
        if (!a.each_head && a.q_norm.kind) {
            each(s.count, t, [&](int64_t b) {
                float* row = qkv + b * all;
                normalise(a.q_norm, row, row, q);
                normalise(a.k_norm, row + q, row + q, kv);
            });
            pool.meet();
        }
        const int half = m.rotated / 2, per = m.heads / m.kv_heads;
        const int64_t stride = (int64_t)m.kv_heads * s.capacity * E;  // from a row of the cache to the next
        // A thread turns the queries and keys of its key-value heads, and attends with them. Threads take
        // turns: of a prompt, later tokens see more than earlier ones.
        for (int at = t; at < s.count * m.kv_heads; at += pool.count()) {
            const int64_t b = at / m.kv_heads, group = at % m.kv_heads, of = row_of(b), column = column_of(b);
            float* row = qkv + b * all;
            float *k = row + q + group * E, *v = k + kv, *queries = row + group * per * E;
            if (a.each_head) {
                normalise(a.k_norm, k, k, E);
                for (int h = 0; h < per; h++) normalise(a.q_norm, queries + h * E, queries + h * E, E);
            }
            if (a.rotation >= 0) {
                const int64_t place = ((s.tables_per_row ? of * s.table_length : 0) + s.positions[b]) * half;
                const float *cosine = s.cosines[a.rotation] + place, *sine = s.sines[a.rotation] + place;
                turn(k, cosine, sine, half);
                for (int h = 0; h < per; h++) turn(queries + h * E, cosine, sine, half);
            }
            const int64_t to = of * stride + (group * s.capacity + column) * E;
            std::copy_n(k, E, s.keys[index] + to);
            std::copy_n(v, E, s.values[index] + to);
            if (!s.rows) look(a, index, b, group, t);
        }
        pool.meet();
        if (!s.rows) return;
        for (int at = t; at < s.count * m.kv_heads; at += pool.count()) look(a, index, at / m.kv_heads, at % m.kv_heads, t);
        pool.meet();
    }
    int64_t row_of(int64_t b) const { return s.rows ? s.rows[b] : b; }
    int64_t column_of(int64_t b) const { return s.places ? s.places[b] : s.columns - 1; }
    // The queries of a token and a key-value head look at the cache's keys up to the token's own.
    void look(const Attention& a, int index, int64_t b, int64_t group, int t) {
        const int E = m.head_dim, q = m.heads * E, per = m.heads / m.kv_heads, columns = column_of(b) + 1;
        const int64_t of = row_of(b), stride = (int64_t)m.kv_heads * s.capacity * E, base = group * s.capacity * E;
        const float* queries = qkv + b * (q + 2 * m.kv_heads * E) + group * per * E;
        const float *keys = s.keys[index] + base, *values = s.values[index] + base;
        const int32_t* rows = s.key_rows ? s.key_rows + b * s.capacity : nullptr;
        if (!rows) { keys += of * stride; values += of * stride; }
        const int64_t* places = s.key_positions ? s.key_positions + of * s.capacity : nullptr;
        for (int h = 0; h < per; h++) {
            const int head = group * per + h;
            mix(a, queries + h * E, keys, values, rows, stride, columns, locals[t].scores.data(), mixed + b * q + head * E, head,
                [&](int c) {
                    const int64_t place = places ? places[c] : c;
                    return place >= 0 && (!a.window || s.positions[b] - place < a.window);
                },
                s.bias ? s.bias + ((s.bias_per_row ? b * m.heads : 0) + head) * s.columns : nullptr);
        }
    }
    void cross(const Attention& a, const Norm& norm, int index, int t) {
        const int E = m.head_dim, q = m.heads * E;
        project(a, m.post ? Norm{} : norm, q, t);
        if (!a.each_head && a.q_norm.kind) {
            each(s.count, t, [&](int64_t b) { normalise(a.q_norm, qkv + b * q, qkv + b * q, q); });
            pool.meet();
        }
        const Range mine = share(s.count * m.heads, t, pool.count());
        for (int at = mine.begin; at < mine.end; at++) {
            const int64_t b = at / m.heads, head = at % m.heads, group = head / (m.heads / m.kv_heads);
            float* query = qkv + b * q + head * E;
            if (a.each_head) normalise(a.q_norm, query, query, E);
            const int64_t source = b / s.rows_per_source, base = (source * m.kv_heads + group) * s.source_columns * E;
            mix(a, query, s.source_keys[index] + base, s.source_values[index] + base, nullptr, 0, s.source_columns,
                locals[t].scores.data(), mixed + b * q + head * E, head,
                [&](int c) { return !s.source_mask || s.source_mask[source * s.source_columns + c]; }, nullptr);
        }
        pool.meet();
    }
    // Queries, or queries, keys and values of all tokens, each `width` numbers.
    void project(const Attention& a, const Norm& norm, int width, int t) {
        multiply(a.qkv, prepare(norm, x, a.qkv, t, s.count), t, s.count, [&](int b, int row, const float* numbers, int count) {
            std::copy_n(numbers, count, qkv + (int64_t)b * width + row);
        });
        pool.meet();
    }
    template <class Sees>
    void mix(const Attention& a, const float* query, const float* keys, const float* values, const int32_t* rows, int64_t stride,
             int columns, float* scores, float* out, int head, Sees&& sees, const float* bias) {
        const int E = m.head_dim;
        match(query, keys, rows, stride, columns, E, scores);
        for (int c = 0; c < columns; c++) scores[c] = scores[c] * a.scale + (bias ? bias[c] : 0.0f);
        if (a.softcap > 0) for (int c = 0; c < columns; c++) scores[c] = a.softcap * tanh_of(scores[c] / a.softcap);
        float most = a.has_sinks ? a.sinks[head] : -INFINITY;
        for (int c = 0; c < columns; c++) {
            if (!sees(c)) scores[c] = -INFINITY;
            most = std::max(most, scores[c]);
        }
        if (most == -INFINITY) {
            std::fill_n(out, E, 0.0f);
            return;
        }
        float sum = a.has_sinks ? exp_of(a.sinks[head] - most) : 0.0f;
        for (int c = 0; c < columns; c++) scores[c] = exp_of(scores[c] - most);
        for (int c = 0; c < columns; c++) sum += scores[c];
        weigh(scores, values, rows, stride, columns, E, out);
        const float back = 1.0f / sum;
        for (int i = 0; i < E; i++) out[i] *= back;
    }
};

// The `many` largest of n logits, the largest first, as log-probabilities; and which they are.
void best_of(const float* logits, int n, int many, float* log_p, int64_t* tokens) {
    constexpr int BLOCK = 64;
    int found = 0;
    for (int from = 0; from < n; from += BLOCK) {
        const int end = std::min(n, from + BLOCK);
        float most[8];
        std::fill_n(most, 8, -INFINITY);
        int i = from;
        for (; i + 8 <= end; i += 8)
            for (int j = 0; j < 8; j++) most[j] = logits[i + j] > most[j] ? logits[i + j] : most[j];
        for (; i < end; i++) most[0] = std::max(most[0], logits[i]);
        if (found == many && *std::max_element(most, most + 8) <= log_p[many - 1]) continue;
        for (i = from; i < end; i++) {
            if (found == many && !(logits[i] > log_p[many - 1])) continue;
            int place = found < many ? found++ : many - 1;
            for (; place > 0 && logits[i] > log_p[place - 1]; place--) {
                log_p[place] = log_p[place - 1];
                tokens[place] = tokens[place - 1];
            }
            log_p[place] = logits[i];
            tokens[place] = i;
        }
    }
    float sum = 0;
    for (int i = 0; i < n; i++) sum += exp_of(logits[i] - log_p[0]);
    const float whole = log_p[0] + std::log(sum);
    for (int k = 0; k < many; k++) log_p[k] -= whole;
}

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
// Of each row of logits [rows, n] the `many` likeliest tokens, [rows, many].
void engine_best(void* engine, const float* logits, int rows, int n, int many, float* log_p, int64_t* tokens) {
    Engine& e = *static_cast<Engine*>(engine);
    const std::lock_guard<std::mutex> alone(e.one_at_a_time);
    e.pool.run([&](int t) {
        const Range mine = share(rows, t, e.pool.count());
        for (int64_t b = mine.begin; b < mine.end; b++) best_of(logits + b * n, n, many, log_p + b * many, tokens + b * many);
    });
}
// Sizes, to be held against those of the caller's own declarations.
void engine_sizes(int64_t* out) {
    out[0] = sizeof(Linear); out[1] = sizeof(Norm); out[2] = sizeof(Attention);
    out[3] = sizeof(Layer); out[4] = sizeof(Model); out[5] = sizeof(Step);
}
void engine_quantise(const float* from, int64_t n, int8_t* to, float* scales) { quantise(from, n, to, scales); }
}
