#include "server/session_reactor.h"

#include <optional>
#include <utility>

#include "server/message_io.h"
#include "server/status.h"

namespace espalier {
namespace {

// Events that wait for a slow client before its commands are no longer read.
constexpr size_t kMaxReadyEvents = 64;

}  // namespace

SessionReactor::SessionReactor(Engine* engine, WorkQueue* requests, WorkQueue* events,
                               SessionRegistry* registry, grpc::CallbackServerContext* context)
    : engine_(engine),
      requests_(requests),
      registry_(registry),
      context_(context),
      sink_(std::make_shared<EventSink>(events, [this] { Advance(std::unique_lock(mutex_)); })),
      session_(engine, Engine::NewId(), sink_) {}

void SessionReactor::Start() {
  const absl::Status added = registry_->Add(
      session_.id(), [this](const absl::Status& status, bool at_once) { End(status, at_once); });
  std::unique_lock lock(mutex_);
  reading_ = false;
  if (!added.ok()) session_.End(added);
  Advance(std::move(lock));
}

void SessionReactor::OnReadDone(bool ok) {
  std::unique_lock lock(mutex_);
  reading_ = false;
  // Of a read that was under way when the call was finished: nothing may hold on to this object.
  if (finished_) return;
  if (!ok) {
    half_closed_ = true;
    session_.TakeLast();
    return Advance(std::move(lock));
  }
  handling_ = true;
  lock.unlock();
  if (requests_->TryPost([this] { TakeCommand(); })) return;
  lock.lock();
  handling_ = false;
  session_.End(absl::ResourceExhaustedError("too many requests wait to be tokenized"));
  Advance(std::move(lock));
}

void SessionReactor::TakeCommand() {
  v1::SessionCommand message;
  const absl::Status parsed = ParseMessage(incoming_, &message);
  std::optional<Session::Command> command;
  if (parsed.ok()) command = Session::Prepare(*engine_, std::move(message));
  std::unique_lock lock(mutex_);
  handling_ = false;
  if (command) {
    session_.Take(*std::move(command));
  } else {
    session_.End(parsed);  // without an id there is no command to fail
    session_.Cancel();
  }
  Advance(std::move(lock));
}

void SessionReactor::Advance(std::unique_lock<std::mutex> lock) {
  if (finished_) return;
  bool write = false;
  while (!writing_) {
    std::optional<v1::SessionEvent> event = session_.NextEvent();
    if (!event) break;
    if (broken_) continue;
    outgoing_ = SerializeMessage(*event);
    writing_ = write = true;
  }
  const std::optional<absl::Status> end = session_.finished();
  if (end && !writing_ && !handling_) {
    finished_ = true;
    const grpc::Status status = ToGrpcStatus(*end, context_);
    lock.unlock();
    return Finish(status);
  }
  const bool read = !end && !reading_ && !handling_ && !half_closed_ && !broken_ &&
                    session_.num_ready() < kMaxReadyEvents;
  if (read) reading_ = true;
  // Under the lock: once it is let go, another thread may finish the call, and this object with it.
  if (write) StartWrite(&outgoing_);
  if (read) StartRead(&incoming_);
}

void SessionReactor::OnWriteDone(bool ok) {
  std::unique_lock lock(mutex_);
  writing_ = false;
  if (!ok) {
    broken_ = true;
    session_.End(absl::CancelledError("the client is gone"));
    session_.Cancel();
  }
  Advance(std::move(lock));
}

void SessionReactor::OnCancel() {
  std::unique_lock lock(mutex_);
  broken_ = true;
  session_.End(absl::CancelledError("the client is gone"));
  session_.Cancel();
  Advance(std::move(lock));
}

void SessionReactor::End(const absl::Status& status, bool at_once) {
  {
    std::lock_guard lock(mutex_);
    session_.End(status);
    if (at_once) session_.Cancel();
  }
  sink_->OnEvents();  // its thread goes on: this one holds the registry
}

void SessionReactor::OnDone() {
  registry_->Remove(session_.id());
  sink_->Detach();
  delete this;
}

}  // namespace espalier
