#include "engine/outbox.h"

#include <utility>

#include "kernels/core/check.h"

namespace espalier {

Outbox::Outbox(size_t capacity, std::shared_ptr<OutputSink> sink)
    : capacity_(capacity), sink_(std::move(sink)) {
  ESPALIER_CHECK(capacity_ > 0);
}

void Outbox::Push(TreeEvent event) { pushed_.push_back(std::move(event)); }

bool Outbox::full(size_t more) const {
  const std::lock_guard lock(mutex_);
  return events_.size() + pushed_.size() + more >= capacity_;
}

void Outbox::Deliver() {
  if (pushed_.empty()) return;
  {
    const std::lock_guard lock(mutex_);
    for (TreeEvent& event : pushed_) events_.push_back(std::move(event));
  }
  pushed_.clear();
  // Outside the lock: the sink may pop at once.
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
