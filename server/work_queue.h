// Threads that run what was posted, first come first served. Thread-safe.
//
// gRPC's own threads move bytes for every connection and must not block, and the engine thread must
// not wait for a socket: so tokenizing a request and writing an event happen on queues like this.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace espalier {

class WorkQueue {
 public:
  // `capacity` bounds the work that waits.
  WorkQueue(int num_threads, size_t capacity);
  // Runs what is still queued, then joins.
  ~WorkQueue();
  WorkQueue(const WorkQueue&) = delete;
  WorkQueue& operator=(const WorkQueue&) = delete;

  // False when the queue is full; `work` is then dropped.
  [[nodiscard]] bool TryPost(std::function<void()> work);

 private:
  void Run();

  const size_t capacity_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_;
  bool closing_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace espalier
