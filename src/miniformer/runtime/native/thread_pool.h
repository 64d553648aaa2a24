// Thread pool with a barrier.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

// Threads spin between consecutive runs and sleep after a longer pause.
class ThreadPool {
  public:
    explicit ThreadPool(int count) : count_(count) {
        for (int t = 1; t < count; t++) threads_.emplace_back([this, t] { worker_loop(t); });
    }
    ~ThreadPool() {
        stopped_ = true;
        round_.fetch_add(1);
        round_.notify_all();
        for (auto& thread : threads_) thread.join();
    }
    int count() const { return count_; }
    template <class Work> void run(Work&& work) {
        struct Call {
            static void invoke(void* work, int t) { (*static_cast<std::remove_reference_t<Work>*>(work))(t); }
        };
        call_ = &Call::invoke;
        work_ = (void*)&work;
        remaining_.store(count_ - 1);
        round_.fetch_add(1, std::memory_order_release);
        round_.notify_all();
        work(0);
        for (int spins = 0; remaining_.load(std::memory_order_acquire) > 0; spins++) pause(spins);
    }
    void barrier() {  // blocks until all threads arrive
        const int generation = generation_.load(std::memory_order_acquire);
        if (waiting_.fetch_add(1, std::memory_order_acq_rel) == count_ - 1) {
            waiting_.store(0, std::memory_order_relaxed);
            generation_.store(generation + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; generation_.load(std::memory_order_acquire) == generation; spins++) pause(spins);
    }

  private:
    static void pause(int spins) {
#if defined(__x86_64__)
        if (spins < 2000) { _mm_pause(); return; }
#endif
        std::this_thread::yield();
    }
    void worker_loop(int t) {
        int last_round = 0;
        while (true) {
            int spins = 0;
            while (round_.load(std::memory_order_acquire) == last_round) {
                if (++spins < 20000) pause(0);
                else round_.wait(last_round);
            }
            last_round = round_.load(std::memory_order_acquire);
            if (stopped_) return;
            call_(work_, t);
            remaining_.fetch_sub(1, std::memory_order_acq_rel);
        }
    }
    const int count_;
    std::vector<std::thread> threads_;
    std::atomic<int> round_{0}, remaining_{0}, waiting_{0}, generation_{0};
    std::atomic<bool> stopped_{false};
    void (*call_)(void*, int) = nullptr;
    void* work_ = nullptr;
};

struct Range { int begin, end; };
Range split_range(int n, int t, int count) { return {(int)((int64_t)n * t / count), (int)((int64_t)n * (t + 1) / count)}; }

}  // namespace
