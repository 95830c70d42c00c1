#include "server/event_sink.h"

#include <utility>

#include "kernels/core/check.h"

namespace espalier {

EventSink::EventSink(WorkQueue* queue, std::function<void()> handler)
    : queue_(queue), handler_(std::move(handler)) {}

void EventSink::OnEvents() {
  if (posted_.exchange(true)) return;
  const bool accepted = queue_->TryPost([self = shared_from_this()] { self->Run(); });
  ESPALIER_CHECK(accepted);
}

void EventSink::Detach() {
  std::lock_guard lock(mutex_);
  handler_ = nullptr;
}

void EventSink::Run() {
  std::lock_guard lock(mutex_);
  posted_ = false;  // before the handler looks, so that what comes after its look posts again
  if (handler_) handler_();
}

}  // namespace espalier
