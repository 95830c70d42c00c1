// One Generate call: starts a tree, then writes its events, one write at a time.
//
// Owns itself: deleted in OnDone, which gRPC calls once after Finish, when no other reaction runs.
// So Finish is the last thing that any path does, outside of the lock; tree_call.h has the rest.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <memory>
#include <mutex>
#include <optional>

#include "absl/status/status.h"
#include "engine/engine.h"
#include "server/convert.h"
#include "server/tree_call.h"
#include "server/work_queue.h"

namespace espalier {

class GenerateReactor final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  GenerateReactor(Engine* engine, WorkQueue* event_queue, grpc::CallbackServerContext* context);

  // Request thread, once: parses, submits, and writes what is there already.
  void Start(const grpc::ByteBuffer& bytes);
  // Ends a call that was not started.
  void Refuse(const absl::Status& status);

 private:
  // gRPC's threads.
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  absl::Status Submit(const grpc::ByteBuffer& bytes);
  // Writes the next event, or finishes after the last one, if nobody else is at it. Any thread.
  void Advance(std::unique_lock<std::mutex> lock);

  Engine* const engine_;
  grpc::CallbackServerContext* const context_;
  TreeCall tree_;
  std::unique_ptr<EventWriter> writer_;  // made before the tree is submitted

  std::mutex mutex_;
  bool busy_ = true;                      // until Start is over, in a write, and after Finish
  bool broken_ = false;                   // a write failed: events are popped and dropped
  std::optional<absl::Status> finished_;  // TreeFinished was popped
  grpc::ByteBuffer message_;              // of the write in flight
};

}  // namespace espalier
