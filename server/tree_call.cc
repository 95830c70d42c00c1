#include "server/tree_call.h"

#include <atomic>
#include <utility>

#include "absl/status/statusor.h"
#include "kernels/core/check.h"

namespace espalier {

// Turns the engine's notices into runs of the handler on the event queue, where at most one run
// waits a tree. So the queue is as bounded as the number of trees is, and never refuses.
class TreeCall::Sink final : public OutputSink, public std::enable_shared_from_this<Sink> {
 public:
  Sink(WorkQueue* queue, std::function<void()> handler)
      : queue_(queue), handler_(std::move(handler)) {}

  void OnEvents() override {
    if (posted_.exchange(true)) return;
    const bool accepted = queue_->TryPost([self = shared_from_this()] { self->Run(); });
    ESPALIER_CHECK(accepted);
  }

  void Detach() {
    std::lock_guard lock(mutex_);
    handler_ = nullptr;
  }

 private:
  void Run() {
    std::lock_guard lock(mutex_);
    posted_ = false;  // before the handler looks, so that what comes after its look posts again
    if (handler_) handler_();
  }

  WorkQueue* const queue_;
  std::atomic<bool> posted_ = false;
  std::mutex mutex_;
  std::function<void()> handler_;
};

TreeCall::TreeCall(Engine* engine, WorkQueue* event_queue, std::function<void()> on_events)
    : engine_(engine), sink_(std::make_shared<Sink>(event_queue, std::move(on_events))) {}

TreeCall::~TreeCall() { Detach(); }

absl::Status TreeCall::Submit(TreeRequest request) {
  {
    std::lock_guard lock(mutex_);
    if (cancelled_) return absl::CancelledError("cancelled before the tree was submitted");
  }
  absl::StatusOr<TreeHandle> tree = engine_->Submit(std::move(request), sink_);
  if (!tree.ok()) return tree.status();

  std::unique_lock lock(mutex_);
  tree_ = *std::move(tree);
  if (cancelled_) {
    lock.unlock();
    // NOT_FOUND: the tree has ended by itself.
    engine_->Cancel(tree_.tree_id).IgnoreError();
  }
  return absl::OkStatus();
}

void TreeCall::Cancel() {
  const std::string id = [&] {
    std::lock_guard lock(mutex_);
    cancelled_ = true;
    return tree_.tree_id;
  }();
  if (!id.empty()) engine_->Cancel(id).IgnoreError();  // NOT_FOUND: it has ended by itself
}

std::optional<TreeEvent> TreeCall::Pop() {
  std::shared_ptr<Outbox> outbox;
  {
    std::lock_guard lock(mutex_);
    outbox = tree_.outbox;
  }
  if (outbox == nullptr) return std::nullopt;
  return outbox->Pop();
}

void TreeCall::Detach() { sink_->Detach(); }

std::string TreeCall::tree_id() const {
  std::lock_guard lock(mutex_);
  return tree_.tree_id;
}

}  // namespace espalier
