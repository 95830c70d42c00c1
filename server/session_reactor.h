// One Session call: reads commands, writes events, one of each at a time.
//
// Owns itself: deleted in OnDone, as GenerateReactor is. Finish is called once, when the session
// has nothing more to say and no thread is at a command or in a write; it is the last thing that
// any path does. A client that does not read its events is not read from either.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <memory>
#include <mutex>

#include "absl/status/status.h"
#include "engine/engine.h"
#include "server/event_sink.h"
#include "server/session.h"
#include "server/session_registry.h"
#include "server/work_queue.h"

namespace espalier {

class SessionReactor final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  // All outlive the call.
  SessionReactor(Engine* engine, WorkQueue* requests, WorkQueue* events, SessionRegistry* registry,
                 grpc::CallbackServerContext* context);

  // Begins to read, or refuses the call.
  void Start();

 private:
  // gRPC's threads.
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  // Request thread: the message that was read.
  void TakeCommand();
  // Ends the session from outside.
  void End(const absl::Status& status, bool at_once);
  // Starts what can be: a write, a read, the end. Any thread.
  void Advance(std::unique_lock<std::mutex> lock);

  Engine* const engine_;
  WorkQueue* const requests_;
  SessionRegistry* const registry_;
  grpc::CallbackServerContext* const context_;
  const std::shared_ptr<EventSink> sink_;

  std::mutex mutex_;
  Session session_;
  bool reading_ = true;    // until Start, and while a message is awaited
  bool handling_ = false;  // a request thread is at a message, or will be
  bool writing_ = false;
  bool broken_ = false;  // nobody reads any more: events are dropped
  bool finished_ = false;
  bool half_closed_ = false;  // the client sends no more
  grpc::ByteBuffer incoming_;
  grpc::ByteBuffer outgoing_;  // of the write in flight
};

}  // namespace espalier
