// One tree that one call runs: submits it, cancels it, hands out its events.
//
// Lifetimes. The reactor of a call owns a TreeCall and dies in gRPC's OnDone. The engine holds the
// sink of the outbox, which may outlive both: so the sink is an object of its own, and Detach cuts
// it from the reactor. The order is: OnDone -> Detach -> delete.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <optional>

#include "absl/status/status.h"
#include "engine/engine.h"
#include "server/event_sink.h"
#include "server/work_queue.h"

namespace espalier {

class TreeCall {
 public:
  // `on_events` runs on `event_queue` after the engine pushed events; it pops until Pop gives none.
  // Both pointers outlive the call.
  TreeCall(Engine* engine, WorkQueue* event_queue, std::function<void()> on_events);

  // Once. CANCELLED when Cancel came first; the engine's refusals otherwise. When it is not OK,
  // there will be no events.
  absl::Status Submit(TreeRequest request);
  // Any thread, any time, any number of times. The engine ends the tree at its next step, and its
  // last event is TreeFinished as ever.
  void Cancel();
  // Nothing before Submit returned.
  std::optional<TreeEvent> Pop();
  // When it returns, on_events is not running and will not run again. Before the destructor, and
  // not from on_events.
  void Detach();

 private:
  Engine* const engine_;
  const std::shared_ptr<EventSink> sink_;
  std::mutex mutex_;
  bool cancelled_ = false;
  TreeHandle tree_;  // no outbox until Submit returned
};

}  // namespace espalier
