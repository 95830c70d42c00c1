#include "engine/engine_thread.h"

#include <chrono>
#include <future>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace espalier {
namespace {

using Clock = std::chrono::steady_clock;

double MsSince(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// How soon a tree whose client did not read is looked at again: reading does not wake the engine.
constexpr std::chrono::milliseconds kStalledPoll(2);

}  // namespace

EngineThread::EngineThread(const SchedulerConfig& config, int num_pages, int max_waiting_trees,
                           Executor* executor, Executor* draft_executor, OnFailure on_failure)
    : pool_(num_pages),
      radix_(&pool_, config.page_size),
      scheduler_(config, &pool_, &radix_),
      executor_(executor),
      draft_executor_(draft_executor),
      max_waiting_trees_(max_waiting_trees),
      on_failure_(std::move(on_failure)) {
  Publish();
  thread_ = std::thread([this] { Run(); });
}

EngineThread::~EngineThread() {
  Drain(absl::ZeroDuration());
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

absl::Status EngineThread::Submit(std::unique_ptr<DecodeTree> tree) {
  {
    const std::lock_guard lock(mutex_);
    if (!failure_.ok()) return failure_;
    if (draining_) return absl::UnavailableError("the server is shutting down");
    const int waiting = unstarted_ + stats_.scheduler.trees_waiting;
    if (waiting >= max_waiting_trees_) {
      return absl::ResourceExhaustedError(
          absl::StrCat(waiting, " trees are waiting; must be below ", max_waiting_trees_,
                       " (max_waiting_trees): try again later"));
    }
    ++unstarted_;
    live_ids_.insert(tree->id());
    // std::function wants copyable captures.
    auto shared = std::make_shared<std::unique_ptr<DecodeTree>>(std::move(tree));
    inbox_.push_back([this, shared] {
      ++taken_trees_;
      running_ids_.push_back((*shared)->id());
      scheduler_.Submit(std::move(*shared));
    });
  }
  changed_.notify_one();
  return absl::OkStatus();
}

absl::Status EngineThread::Cancel(std::string_view tree_id) {
  std::string id(tree_id);
  {
    const std::lock_guard lock(mutex_);
    if (!live_ids_.contains(id)) {
      return absl::NotFoundError(absl::StrCat("no tree with id \"", id, "\" is running"));
    }
  }
  Post([this, id = std::move(id)] { scheduler_.Cancel(id, absl::Now()); });
  return absl::OkStatus();
}

void EngineThread::Inspect(const std::function<void(const RadixTree&)>& read) {
  std::promise<void> done;
  Post([&] {
    read(radix_);
    done.set_value();
  });
  done.get_future().wait();
}

void EngineThread::UpdatePins(PinUpdate update) {
  // std::function wants copyable captures; the paths are long.
  auto shared = std::make_shared<PinUpdate>(std::move(update));
  Post([this, shared] { scheduler_.pins().Update(*shared); });
}

void EngineThread::UnpinAll(std::string_view owner) {
  Post([this, owner = std::string(owner)] { scheduler_.pins().UnpinAll(owner); });
}

void EngineThread::Drain(absl::Duration timeout) {
  std::unique_lock lock(mutex_);
  draining_ = true;
  const auto nothing_lives = [&] { return live_ids_.empty(); };
  if (ended_.wait_for(lock, absl::ToChronoMilliseconds(timeout), nothing_lives)) return;
  inbox_.push_back([this] {
    scheduler_.CancelAll(absl::UnavailableError("the server is shutting down"), absl::Now());
  });
  changed_.notify_one();
  ended_.wait(lock, nothing_lives);
}

EngineThreadStats EngineThread::Stats() const {
  const std::lock_guard lock(mutex_);
  EngineThreadStats stats = stats_;
  stats.scheduler.trees_waiting += unstarted_;
  return stats;
}

void EngineThread::Post(Message message) {
  {
    const std::lock_guard lock(mutex_);
    inbox_.push_back(std::move(message));
  }
  changed_.notify_one();
}

void EngineThread::Run() {
  while (TakeMessages(!stepped_)) {
    const Clock::time_point start = Clock::now();
    for (Message& message : taken_) message();
    // Trees that were accepted while the step failed.
    if (!failure_.ok()) scheduler_.CancelAll(failure_, absl::Now());
    const bool changed = !taken_.empty() || scheduler_.pins().NextExpiry() <= absl::Now();
    scheduler_.pins().Expire(absl::Now());
    running_stats_.schedule_ms += MsSince(start);
    // A client hears of what it asked for before the step that may take a while.
    if (changed) Publish();
    taken_.clear();
    Step();
  }
}

bool EngineThread::TakeMessages(bool idle) {
  std::unique_lock lock(mutex_);
  const auto awake = [&] { return stopping_ || !inbox_.empty(); };
  if (idle && scheduler_.empty()) {
    const absl::Time expiry = scheduler_.pins().NextExpiry();
    if (expiry == absl::InfiniteFuture()) {
      changed_.wait(lock, awake);
    } else {
      changed_.wait_until(lock, absl::ToChronoTime(expiry), awake);
    }
  } else if (idle) {
    changed_.wait_for(lock, kStalledPoll, awake);
  }
  if (stopping_) return false;
  std::swap(taken_, inbox_);
  return true;
}

void EngineThread::Step() {
  const Clock::time_point schedule_start = Clock::now();
  Clock::time_point start = schedule_start;
  const StepBatch* batch = scheduler_.Schedule(absl::Now());
  running_stats_.schedule_ms += MsSince(start);
  stepped_ = batch != nullptr;
  if (batch == nullptr) return Publish();

  // A device need not wait until the step before is told of.
  const auto publish = [this] { Publish(); };
  const Clock::time_point draft_start = Clock::now();
  while (batch->draft_pass) {
    start = Clock::now();
    const absl::StatusOr<Executor::Result> result = draft_executor_->Run(*batch, publish);
    if (!result.ok()) return Fail(result.status());
    scheduler_.ObserveDraftPassTime(MsSince(start));
    batch = scheduler_.TakeDraft(result->samples);
  }
  running_stats_.draft_ms += MsSince(draft_start);

  const Clock::time_point step_start = Clock::now();
  const absl::StatusOr<Executor::Result> result = executor_->Run(*batch, publish);
  if (!result.ok()) return Fail(result.status());
  start = Clock::now();
  scheduler_.Commit(result->samples, result->row_bad, absl::Now());
  const double verify_ms = MsSince(step_start);
  executor_->MoveKv(scheduler_.moves().from, scheduler_.moves().to);
  if (draft_executor_ != nullptr) {
    draft_executor_->MoveKv(scheduler_.draft_moves().from, scheduler_.draft_moves().to);
  }
  scheduler_.ObserveStepTime(verify_ms, MsSince(schedule_start));
  running_stats_.emit_ms += MsSince(start);
}

void EngineThread::Fail(const absl::Status& failure) {
  scheduler_.Abandon(failure, absl::Now());
  if (!absl::IsInternal(failure)) return;  // short of memory: smaller steps may follow
  {
    const std::lock_guard lock(mutex_);
    failure_ = failure;
  }
  if (on_failure_) on_failure_(failure);
}

void EngineThread::Publish() {
  const int64_t finished_before = running_stats_.scheduler.trees_finished;
  running_stats_.scheduler = scheduler_.Stats();
  running_stats_.executor = executor_->times();
  running_stats_.pages_free = pool_.num_free();
  running_stats_.pages_cached = radix_.num_cached_pages();
  running_stats_.pages_locked = radix_.num_locked_pages();
  running_stats_.pages_retiring = pool_.num_retiring();

  {
    const std::lock_guard lock(mutex_);
    stats_ = running_stats_;
    unstarted_ -= std::exchange(taken_trees_, 0);
  }
  const Clock::time_point start = Clock::now();
  scheduler_.Emit();
  running_stats_.emit_ms += MsSince(start);

  if (running_stats_.scheduler.trees_finished == finished_before) return;
  std::vector<std::string> ended;
  std::erase_if(running_ids_, [&](const std::string& id) {
    if (scheduler_.Contains(id)) return false;
    ended.push_back(id);
    return true;
  });
  const std::lock_guard lock(mutex_);
  for (const std::string& id : ended) live_ids_.erase(id);
  if (live_ids_.empty()) ended_.notify_all();
}

}  // namespace espalier
