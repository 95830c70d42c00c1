// Bounded queue of events from the engine thread to the request's owner. Thread-safe. What is
// pushed stays with the engine thread until it is delivered: the engine publishes a step's
// statistics in between, so that whoever has an event finds it counted.
#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "engine/event.h"

namespace espalier {

// Told after new events were delivered. Called on the engine thread: must return at once, and may
// be called once more after the owner popped TreeFinished, so the owner keeps it alive until then.
class OutputSink {
 public:
  virtual ~OutputSink() = default;
  virtual void OnEvents() = 0;
};

class Outbox {
 public:
  Outbox(size_t capacity, std::shared_ptr<OutputSink> sink);

  // Engine thread. Never refuses: the engine looks at `full` before it schedules a tree's branches,
  // so a queue exceeds its capacity by at most one step's events.
  void Push(TreeEvent event);
  // `more` events are on their way.
  bool full(size_t more = 0) const;
  // Hands over what was pushed and tells the sink. Does nothing when nothing was.
  void Deliver();

  // Owner.
  std::optional<TreeEvent> Pop();

 private:
  const size_t capacity_;
  const std::shared_ptr<OutputSink> sink_;
  std::vector<TreeEvent> pushed_;  // engine thread only
  mutable std::mutex mutex_;
  std::deque<TreeEvent> events_;
};

}  // namespace espalier
