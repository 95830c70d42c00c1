// The one thread that owns scheduler, radix tree, page pool and trees: takes messages, schedules,
// runs the model, commits, emits. Everything here is thread-safe; messages wait in a bounded inbox
// and take effect before the next step.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "engine/executor/executor.h"
#include "engine/scheduler/scheduler.h"

namespace espalier {

struct EngineThreadStats {
  SchedulerStats scheduler;
  ExecutorTimes executor;
  double draft_ms = 0;     // passes of the draft model
  double schedule_ms = 0;  // messages and schedule
  double emit_ms = 0;      // commit and emit; the latter while a device works, as in forward
  int pages_free = 0, pages_cached = 0, pages_locked = 0, pages_retiring = 0;
};

class EngineThread {
 public:
  // Called once, on the engine thread, when the device has failed: every tree has ended, none can
  // be submitted any more.
  using OnFailure = std::function<void(const absl::Status& failure)>;

  // Borrows the executors; `draft_executor` runs the draft model, null without one.
  // `max_waiting_trees` bounds the trees that have not started.
  EngineThread(const SchedulerConfig& config, int num_pages, int max_waiting_trees,
               Executor* executor, Executor* draft_executor, OnFailure on_failure);
  // Cancels what is left.
  ~EngineThread();

  // RESOURCE_EXHAUSTED when too many trees wait, UNAVAILABLE when draining, INTERNAL after a
  // failure of the device.
  absl::Status Submit(std::unique_ptr<DecodeTree> tree);
  // NOT_FOUND when no such tree is waiting or running.
  absl::Status Cancel(std::string_view tree_id);
  // Runs `read` between two steps and waits for it.
  void Inspect(const std::function<void(const RadixTree&)>& read);
  // Both take effect before the next step.
  void UpdatePins(PinUpdate update);
  void UnpinAll(std::string_view owner);
  // Refuses new trees; ends with UNAVAILABLE what still lives after `timeout`. Returns when nothing
  // does.
  void Drain(absl::Duration timeout);

  EngineThreadStats Stats() const;

 private:
  using Message = std::function<void()>;  // runs on the engine thread, between two steps

  void Run();
  // Waits until there are messages or `scheduler_` may have something to do; false: stop.
  bool TakeMessages(bool idle);
  void Step();
  // The open step failed.
  void Fail(const absl::Status& failure);
  // Publishes the statistics, then emits: who has an event finds it counted.
  void Publish();
  void Post(Message message);

  PagePool pool_;
  RadixTree radix_;
  Scheduler scheduler_;
  Executor* const executor_;
  Executor* const draft_executor_;
  const int max_waiting_trees_;
  const OnFailure on_failure_;
  EngineThreadStats running_stats_;       // engine thread only
  bool stepped_ = false;                  // the last turn ran a step
  int taken_trees_ = 0;                   // taken from the inbox since the last Publish
  std::vector<std::string> running_ids_;  // trees that the scheduler has or had at the last Publish

  mutable std::mutex mutex_;
  std::condition_variable changed_;  // inbox_ or stopping_
  std::condition_variable ended_;    // live_ids_
  std::deque<Message> inbox_;
  std::deque<Message> taken_;                  // engine thread only
  absl::flat_hash_set<std::string> live_ids_;  // submitted, not ended
  int unstarted_ = 0;                          // in the inbox, not yet in stats_
  EngineThreadStats stats_;
  bool draining_ = false;
  absl::Status failure_;  // of the device; no step runs after it
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace espalier
