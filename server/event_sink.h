// Turns the engine's notices into runs of a handler on the event queue, where at most one run waits
// a sink. So the queue is as bounded as the number of calls is, and never refuses.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>

#include "engine/outbox.h"
#include "server/work_queue.h"

namespace espalier {

class EventSink final : public OutputSink, public std::enable_shared_from_this<EventSink> {
 public:
  // The queue outlives the sink.
  EventSink(WorkQueue* queue, std::function<void()> handler);

  // Any thread.
  void OnEvents() override;
  // When it returns, the handler is not running and will not run again. Not from the handler.
  void Detach();

 private:
  void Run();

  WorkQueue* const queue_;
  std::atomic<bool> posted_ = false;
  std::mutex mutex_;
  std::function<void()> handler_;
};

}  // namespace espalier
