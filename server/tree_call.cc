#include "server/tree_call.h"

#include <string>
#include <utility>
#include <variant>

#include "absl/status/statusor.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/log.h"

namespace espalier {
namespace {

void LogSubmitted(const std::string& tree_id, const std::string& label) {
  if (!LogEnabled(LogLevel::kDebug)) return;
  Log(LogLevel::kDebug, absl::StrCat("tree ", tree_id, " submitted for request \"",
                                     absl::Utf8SafeCEscape(label), "\""));
}

void LogFinished(const std::string& tree_id, const TreeFinished& finished) {
  if (!LogEnabled(LogLevel::kDebug)) return;
  Log(LogLevel::kDebug, absl::StrFormat("tree %s finished: %s, %d tokens in %.0f ms", tree_id,
                                        absl::StatusCodeToString(finished.status.code()),
                                        finished.usage.completion_tokens, finished.usage.total_ms));
}

}  // namespace

TreeCall::TreeCall(Engine* engine, WorkQueue* event_queue, std::function<void()> on_events)
    : engine_(engine), sink_(std::make_shared<EventSink>(event_queue, std::move(on_events))) {}

absl::Status TreeCall::Submit(TreeRequest request) {
  {
    std::lock_guard lock(mutex_);
    if (cancelled_) return absl::CancelledError("cancelled before the tree was submitted");
  }
  const std::string label = request.request_id;
  absl::StatusOr<TreeHandle> tree = engine_->Submit(std::move(request), sink_);
  if (!tree.ok()) return tree.status();
  LogSubmitted(tree->tree_id, label);

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
  const TreeHandle tree = [&] {
    std::lock_guard lock(mutex_);
    return tree_;
  }();
  if (tree.outbox == nullptr) return std::nullopt;
  std::optional<TreeEvent> event = tree.outbox->Pop();
  if (event.has_value()) {
    if (const auto* last = std::get_if<TreeFinished>(&*event)) LogFinished(tree.tree_id, *last);
  }
  return event;
}

void TreeCall::Detach() { sink_->Detach(); }

}  // namespace espalier
