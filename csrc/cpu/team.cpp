#include "cpu/team.h"

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>

#include "common/parallel.h"
#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace ik::cpu {
namespace {

constexpr int kSpins = 256;  // some 10 us; then the processor is offered to others

struct alignas(64) Counter {
  std::atomic<int64_t> value{0};
};

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

class Team {
 public:
  Team(const std::vector<Region>& regions, int threads, const std::function<void(int64_t, int64_t, int64_t)>& body,
       double* seconds)
      : regions_(regions),
        threads_(threads),
        body_(body),
        seconds_(seconds),
        claimed_(new Counter[regions.size() * threads]),
        complete_(new Counter[regions.size()]) {}

  void work(int thread) {
    try {
      run(thread);
    } catch (...) {
      failed_.store(true, std::memory_order_release);
      throw;
    }
  }

 private:
  using Clock = std::chrono::steady_clock;

  void run(int thread) {
    auto begin = Clock::now();
    for (size_t r = 0; r < regions_.size(); r++) {
      int64_t ran = 0, total = 0;
      for (int i = 0; i < threads_; i++) ran += run_share(r, (thread + i) % threads_);
      for (const int64_t units : regions_[r].units) total += units;
      std::atomic<int64_t>& complete = complete_[r].value;
      if (ran) complete.fetch_add(ran, std::memory_order_acq_rel);
      for (int spins = 0; complete.load(std::memory_order_acquire) < total; spins++) {
        if (failed_.load(std::memory_order_acquire)) return;
        if (spins < kSpins)
          relax();
        else
          std::this_thread::yield();
      }
      if (thread == 0 && seconds_) {
        const auto end = Clock::now();
        seconds_[r] = std::chrono::duration<double>(end - begin).count();
        begin = end;
      }
    }
  }

  // Claims and runs what is left of one thread's share of a region; how many units that was.
  int64_t run_share(size_t r, int share) {
    const std::vector<int64_t>& units = regions_[r].units;
    int64_t ran = 0, member = 0, member_begin = 0;
    for (;;) {
      const int64_t claim = claimed_[r * threads_ + share].value.fetch_add(1, std::memory_order_relaxed);
      int64_t begin, size;
      for (;; member++) {
        if (member == static_cast<int64_t>(units.size())) return ran;
        begin = units[member] * share / threads_;
        size = units[member] * (share + 1) / threads_ - begin;
        if (claim < member_begin + size) break;
        member_begin += size;
      }
      body_(static_cast<int64_t>(r), member, begin + claim - member_begin);
      ran++;
    }
  }

  const std::vector<Region>& regions_;
  const int threads_;
  const std::function<void(int64_t, int64_t, int64_t)>& body_;
  double* const seconds_;
  std::unique_ptr<Counter[]> claimed_, complete_;
  std::atomic<bool> failed_{false};
};

}  // namespace

void run_regions(const std::vector<Region>& regions, int threads,
                 const std::function<void(int64_t, int64_t, int64_t)>& body, double* seconds) {
  Team team(regions, threads, body, seconds);
  if (threads == 1) {
    team.work(0);
    return;
  }
  parallel_for(0, threads, 1, [&](int64_t begin, int64_t) { team.work(static_cast<int>(begin)); });
}

}  // namespace ik::cpu
