// One Score call: runs a tree whose children are scored, collects the scores, answers once.
// Lifetime as in generate_reactor.h.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <mutex>

#include "absl/status/status.h"
#include "engine/engine.h"
#include "espalier/v1/score.pb.h"
#include "server/tree_call.h"
#include "server/work_queue.h"

namespace espalier {

class ScoreReactor final : public grpc::ServerUnaryReactor {
 public:
  // `response` is the call's, valid until Finish.
  ScoreReactor(Engine* engine, WorkQueue* event_queue, grpc::CallbackServerContext* context,
               grpc::ByteBuffer* response);

  // Request thread, once: parses and submits.
  void Start(const grpc::ByteBuffer& bytes);
  // Ends a call that was not started.
  void Refuse(const absl::Status& status);

 private:
  // gRPC's threads.
  void OnCancel() override;
  void OnDone() override;

  absl::Status Submit(const grpc::ByteBuffer& bytes);
  // Takes in what the tree has to say, and finishes after its last event. Any thread.
  void Advance(std::unique_lock<std::mutex> lock);
  void Add(const NodeScored& scored);

  Engine* const engine_;
  grpc::CallbackServerContext* const context_;
  grpc::ByteBuffer* const response_;
  TreeCall tree_;

  std::mutex mutex_;
  bool busy_ = true;  // until Start is over, and after Finish
  bool return_token_logprobs_ = false;
  v1::ScoreResponse scores_;
};

}  // namespace espalier
