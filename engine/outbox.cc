#include "engine/outbox.h"

#include <utility>

#include "kernels/core/check.h"

namespace espalier {

Outbox::Outbox(size_t capacity, std::shared_ptr<OutputSink> sink)
    : capacity_(capacity), sink_(std::move(sink)) {
  ESPALIER_CHECK(capacity_ > 0);
}

void Outbox::Push(TreeEvent event) {
  const std::lock_guard lock(mutex_);
  events_.push_back(std::move(event));
}

bool Outbox::full() const {
  const std::lock_guard lock(mutex_);
  return events_.size() >= capacity_;
}

// Outside the lock: the sink may pop at once.
void Outbox::Notify() {
  if (sink_ != nullptr) sink_->OnEvents();
}

std::optional<TreeEvent> Outbox::Pop() {
  const std::lock_guard lock(mutex_);
  if (events_.empty()) return std::nullopt;
  std::optional<TreeEvent> event(std::move(events_.front()));
  events_.pop_front();
  return event;
}

}  // namespace espalier
