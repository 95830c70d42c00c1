#include "kernels/runtime/thread_pool.h"

#include <chrono>

#include "kernels/core/check.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace espalier {
namespace {

// A worker that finds nothing spins this long before it sleeps. Long enough to bridge the serial
// gaps inside a step, short enough not to take a core from the server's other threads.
constexpr std::chrono::microseconds kSpinTime{100};
constexpr int kPausesBetweenClockReads = 64;
// After this many pauses the awaited thread has probably lost its core: offer ours.
constexpr int kPausesBeforeYield = 4096;

void Pause() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  ESPALIER_CHECK(num_threads >= 1);
  threads_.reserve(num_threads - 1);
  for (int worker = 1; worker < num_threads; ++worker) {
    threads_.emplace_back([this, worker] { WorkerLoop(worker); });
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    stopping_.store(true);
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::Submit(int num_tasks, TaskFn fn, const void* context) {
  ESPALIER_CHECK(num_unfinished_.load(std::memory_order_relaxed) == 0);
  fn_ = fn;
  context_ = context;
  num_unfinished_.store(num_tasks, std::memory_order_relaxed);
  // Sequentially consistent against the sleeper's count: either the worker sees the tasks before
  // it sleeps, or we see that it sleeps.
  claims_.store(static_cast<uint64_t>(num_tasks) << 32);
  if (num_sleeping_.load() > 0) {
    { std::lock_guard lock(mutex_); }
    wake_.notify_all();
  }
  RunTasks(0);
  for (int pauses = 0; num_unfinished_.load(std::memory_order_acquire) != 0; ++pauses) {
    if (pauses < kPausesBeforeYield) {
      Pause();
    } else {
      std::this_thread::yield();
    }
  }
}

void ThreadPool::RunTasks(int worker) {
  uint64_t claims = claims_.load(std::memory_order_acquire);
  while (static_cast<uint32_t>(claims) < (claims >> 32)) {
    if (!claims_.compare_exchange_weak(claims, claims + 1, std::memory_order_acquire)) continue;
    fn_(context_, static_cast<int>(static_cast<uint32_t>(claims)), worker);
    num_unfinished_.fetch_sub(1, std::memory_order_release);
    claims = claims_.load(std::memory_order_acquire);
  }
}

bool ThreadPool::HasTasks() const {
  const uint64_t claims = claims_.load();
  return static_cast<uint32_t>(claims) < (claims >> 32);
}

void ThreadPool::AwaitTasks() {
  const auto deadline = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < kPausesBetweenClockReads; ++i) {
      if (HasTasks()) return;
      Pause();
    }
  } while (std::chrono::steady_clock::now() < deadline);

  std::unique_lock lock(mutex_);
  num_sleeping_.fetch_add(1);
  wake_.wait(lock, [this] { return stopping_.load() || HasTasks(); });
  num_sleeping_.fetch_sub(1);
}

void ThreadPool::WorkerLoop(int worker) {
  while (!stopping_.load(std::memory_order_relaxed)) {
    RunTasks(worker);
    AwaitTasks();
  }
}

}  // namespace espalier
