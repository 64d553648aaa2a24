// Products of a matrix with many rows: the linear layers of an encoder.
//
// Threads take parts, which are blocks of rows. A thread rounds the rows of a part once; they stay in its
// cache for all panels.

#pragma once

#include <atomic>
#include <vector>

#include "products.h"
#include "thread_pool.h"

namespace {

constexpr int PART_ROWS = 4 * TILE;
constexpr int64_t MIN_PARALLEL_WORK = 1 << 18;  // multiplications; fewer take less time than to start threads

// Inputs of a product for several rows.
struct ProductInputs {
    std::vector<float> x, scales;
    std::vector<int8_t> q;
    std::vector<int32_t> shifts;
    std::vector<uint16_t> halves;  // bf16, rows padded to an even number of columns
    void reserve(size_t rows, size_t n) {
        if (x.size() >= rows * n) return;
        x.resize(rows * n); q.resize(rows * n);
        scales.resize(rows * (n / GROUP + 1)); shifts.resize(scales.size());
    }
};

// GOMP_parallel of an OpenMP library: calls work(data) on each of several threads.
typedef void (*Parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags);

// y = x W^T + bias.
struct RowProduct {
    const Linear& w;
    const float* x;  // [rows, columns]
    float* out;      // [rows, rows of W]
    int rows, row_parts, panel_parts;
    std::atomic<int> next{0};

    RowProduct(const Linear& w, const float* x, int rows, float* out, int threads) : w(w), x(x), out(out), rows(rows) {
        row_parts = (rows + PART_ROWS - 1) / PART_ROWS;
        if (rows >= threads * TILE) row_parts = (row_parts + threads - 1) / threads * threads;
        panel_parts = row_parts < threads ? std::min(threads, w.panels()) : 1;
    }
    void work() {
        static thread_local ProductInputs buffer;
        for (int part; (part = next.fetch_add(1, std::memory_order_relaxed)) < row_parts * panel_parts;) {
            const Range mine = split_range(rows, part / panel_parts, row_parts);
            const Range panels = split_range(w.panels(), part % panel_parts, panel_parts);
            const Input in = round_rows(buffer, x + (int64_t)mine.begin * w.columns, mine.end - mine.begin);
            product(w, panels.begin, panels.end, in, mine.end - mine.begin, [&](int b, int row, const float* values, int count) {
                std::copy_n(values, count, out + (int64_t)(mine.begin + b) * w.rows + row);
            });
        }
    }
    Input round_rows(ProductInputs& to, const float* from, int count) const {
        const int64_t n = w.columns, width = padded_width(n);
        if (w.kind == F32) return {from, nullptr, nullptr, nullptr, nullptr};
        to.reserve(count, n);
        if (w.kind != BF16) {
            quantize(from, count * n, to.q.data(), to.scales.data(), to.shifts.data());
            return {from, to.q.data(), to.scales.data(), to.shifts.data(), nullptr};
        }
        if (!MULTIPLIES_BF16) {  // products of float32 with the same values
            for (int64_t i = 0; i < count * n; i++) to.x[i] = from_bf16(to_bf16(from[i]));
            return {to.x.data(), nullptr, nullptr, nullptr, nullptr};
        }
        if (to.halves.size() < (size_t)(count * width)) to.halves.resize(count * width);
        for (int b = 0; b < count; b++) {
            uint16_t* row = to.halves.data() + b * width;
            for (int64_t i = 0; i < n; i++) row[i] = to_bf16(from[b * n + i]);
            if (width > n) row[n] = 0;
        }
        return {from, nullptr, nullptr, nullptr, to.halves.data()};
    }
};

void multiply_rows(const Linear& w, const float* x, int rows, float* out, int threads, Parallel parallel) {
    if (!parallel || (int64_t)rows * w.rows * w.columns < MIN_PARALLEL_WORK) threads = 1;
    RowProduct task(w, x, rows, out, threads);
    if (threads == 1) task.work();
    else parallel([](void* data) { static_cast<RowProduct*>(data)->work(); }, &task, threads, 0);
}

}  // namespace
