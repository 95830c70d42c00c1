#include "server/generate_reactor.h"

#include <utility>
#include <variant>

#include "server/call_deadline.h"
#include "server/message_io.h"
#include "server/status.h"

namespace espalier {

GenerateReactor::GenerateReactor(Engine* engine, WorkQueue* event_queue,
                                 grpc::CallbackServerContext* context)
    : engine_(engine),
      context_(context),
      tree_(engine, event_queue, [this] { Advance(std::unique_lock(mutex_)); }) {}

void GenerateReactor::Start(const grpc::ByteBuffer& bytes) {
  if (absl::Status status = Submit(bytes); !status.ok()) return Refuse(status);
  // From here on another thread may finish the call, and this object with it: so the lock is not
  // let go between the two.
  std::unique_lock lock(mutex_);
  busy_ = false;
  Advance(std::move(lock));
}

void GenerateReactor::Refuse(const absl::Status& status) { Finish(ToGrpcStatus(status, context_)); }

absl::Status GenerateReactor::Submit(const grpc::ByteBuffer& bytes) {
  v1::GenerateRequest message;
  if (absl::Status status = ParseMessage(bytes, &message); !status.ok()) return status;
  absl::StatusOr<TreeRequest> request = TakeTreeRequest(std::move(message));
  if (!request.ok()) return request.status();
  request->deadline = CallDeadline(*context_);
  writer_ = std::make_unique<EventWriter>(NodeLabels(*request), &engine_->tokenizer());
  return tree_.Submit(*std::move(request));
}

void GenerateReactor::Advance(std::unique_lock<std::mutex> lock) {
  while (!busy_) {
    if (finished_.has_value()) {
      busy_ = true;
      const grpc::Status status = ToGrpcStatus(*finished_, context_);
      lock.unlock();
      Finish(status);
      return;
    }
    std::optional<TreeEvent> event = tree_.Pop();
    if (!event.has_value()) return;
    if (const auto* last = std::get_if<TreeFinished>(&*event)) finished_ = last->status;
    if (broken_) continue;
    message_ = SerializeMessage(writer_->ToProto(*std::move(event)));
    busy_ = true;
    lock.unlock();
    StartWrite(&message_);
    return;
  }
}

void GenerateReactor::OnWriteDone(bool ok) {
  if (!ok) tree_.Cancel();  // nobody reads any more
  std::unique_lock lock(mutex_);
  busy_ = false;
  if (!ok) broken_ = true;
  Advance(std::move(lock));
}

void GenerateReactor::OnCancel() { tree_.Cancel(); }

void GenerateReactor::OnDone() {
  tree_.Detach();
  delete this;
}

}  // namespace espalier
