// Fork-join over a fixed set of threads. The caller works too, so a pool of one has no threads.
//
// One job at a time, submitted by one thread at a time; a job must not submit another. Tasks are
// claimed one by one from an atomic counter: a worker that is late, or that the kernel has not
// scheduled because other threads hold the cores, delays nobody. Workers spin for a moment after a
// job, because an op is usually followed by the next, and then sleep: an idle pool costs nothing.
// Submitting allocates nothing.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace espalier {

class ThreadPool {
 public:
  // `num_threads` counts the caller; at least 1.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(threads_.size()) + 1; }

  // Calls body(task, worker) once for each task in [0, num_tasks), in no fixed order, and returns
  // when all are done. `worker` is in [0, num_threads()), 0 is the caller; two calls that run at
  // the same time have different workers. What the caller wrote before is visible to the tasks,
  // and what they wrote is visible to the caller afterwards.
  template <typename Body>
  void Run(int num_tasks, const Body& body) {
    if (num_tasks <= 1 || threads_.empty()) {
      for (int task = 0; task < num_tasks; ++task) body(task, 0);
      return;
    }
    Submit(
        num_tasks,
        [](const void* context, int task, int worker) {
          (*static_cast<const Body*>(context))(task, worker);
        },
        &body);
  }

  // Calls body(begin, end, worker) for disjoint ranges that cover [0, count). Ranges hold at least
  // `grain` items, so that work not worth a fork runs on the caller alone.
  template <typename Body>
  void ParallelFor(int64_t count, int64_t grain, const Body& body) {
    if (count <= 0) return;
    const int64_t most = std::max<int64_t>(count / std::max<int64_t>(grain, 1), 1);
    const int tasks = static_cast<int>(std::min<int64_t>(most, num_threads() * kTasksPerThread));
    Run(tasks, [&](int task, int worker) {
      body(count * task / tasks, count * (task + 1) / tasks, worker);
    });
  }

 private:
  // More tasks than threads, so that a thread which loses its core hands its share to the others.
  static constexpr int kTasksPerThread = 4;

  using TaskFn = void (*)(const void* context, int task, int worker);

  void Submit(int num_tasks, TaskFn fn, const void* context);
  void WorkerLoop(int worker);
  // Claims and runs tasks until none is left.
  void RunTasks(int worker);
  // Returns when there may be a task, or when stopping.
  void AwaitTasks();
  bool HasTasks() const;

  // The job. Written by the submitter while no task is claimed; read after a claim.
  TaskFn fn_ = nullptr;
  const void* context_ = nullptr;
  // Tasks of the job in the high half, tasks claimed in the low one. A successful claim is valid
  // whatever job it was meant for, so no generation count is needed.
  alignas(64) std::atomic<uint64_t> claims_{0};
  alignas(64) std::atomic<int> num_unfinished_{0};

  alignas(64) std::atomic<int> num_sleeping_{0};
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> threads_;
};

}  // namespace espalier
