#include "server/score_reactor.h"

#include <optional>
#include <utility>
#include <variant>

#include "kernels/core/check.h"
#include "server/call_deadline.h"
#include "server/convert.h"
#include "server/message_io.h"
#include "server/status.h"

namespace espalier {

ScoreReactor::ScoreReactor(Engine* engine, WorkQueue* event_queue,
                           grpc::CallbackServerContext* context, grpc::ByteBuffer* response)
    : engine_(engine),
      context_(context),
      response_(response),
      tree_(engine, event_queue, [this] { Advance(std::unique_lock(mutex_)); }) {}

void ScoreReactor::Start(const grpc::ByteBuffer& bytes) {
  if (absl::Status status = Submit(bytes); !status.ok()) return Refuse(status);
  std::unique_lock lock(mutex_);  // not let go in between, as in GenerateReactor::Start
  busy_ = false;
  Advance(std::move(lock));
}

void ScoreReactor::Refuse(const absl::Status& status) { Finish(ToGrpcStatus(status, context_)); }

absl::Status ScoreReactor::Submit(const grpc::ByteBuffer& bytes) {
  v1::ScoreRequest message;
  if (absl::Status status = ParseMessage(bytes, &message); !status.ok()) return status;
  return_token_logprobs_ = message.return_token_logprobs();
  absl::StatusOr<TreeRequest> request = TakeTreeRequest(std::move(message));
  if (!request.ok()) return request.status();
  request->deadline = CallDeadline(*context_);
  for (size_t i = 1; i < request->nodes.size(); ++i) scores_.add_scores();
  return tree_.Submit(*std::move(request));
}

void ScoreReactor::Advance(std::unique_lock<std::mutex> lock) {
  while (!busy_) {
    std::optional<TreeEvent> event = tree_.Pop();
    if (!event.has_value()) return;
    if (const auto* scored = std::get_if<NodeScored>(&*event)) Add(*scored);
    if (const auto* last = std::get_if<TreeFinished>(&*event)) {
      busy_ = true;
      if (last->status.ok()) {
        *scores_.mutable_usage() = ToProto(last->usage);
        *response_ = SerializeMessage(scores_);
      }
      const grpc::Status status = ToGrpcStatus(last->status, context_);
      lock.unlock();
      Finish(status);
      return;
    }
  }
}

void ScoreReactor::Add(const NodeScored& scored) {
  ESPALIER_CHECK(scored.node >= 1 && scored.node <= scores_.scores_size());
  *scores_.mutable_scores(scored.node - 1) =
      ToProto(scored, return_token_logprobs_, engine_->tokenizer());
}

void ScoreReactor::OnCancel() { tree_.Cancel(); }

void ScoreReactor::OnDone() {
  tree_.Detach();
  delete this;
}

}  // namespace espalier
