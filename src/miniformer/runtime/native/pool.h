// Threads that share a step.

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
#if defined(__x86_64__)
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
Range share(int n, int t, int count) { return {(int)((int64_t)n * t / count), (int)((int64_t)n * (t + 1) / count)}; }

}  // namespace
