#include "engine/executor/executor.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "kernels/ops.h"

namespace espalier {
namespace {

// Adds the time of its life to a sum.
class Timer {
 public:
  explicit Timer(double* sum_ms) : sum_ms_(sum_ms), start_(Clock::now()) {}
  ~Timer() { *sum_ms_ += std::chrono::duration<double, std::milli>(Clock::now() - start_).count(); }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

 private:
  using Clock = std::chrono::steady_clock;
  double* const sum_ms_;
  const Clock::time_point start_;
};

}  // namespace

Executor::Executor(Context* ctx, Llama* model, KvCache* kv, const ExecutorOptions& options)
    : ctx_(ctx), model_(model) {
  const ModelConfig& config = model->config();
  for (int layer = 0; layer < config.num_layers; ++layer) layers_.push_back(kv->layer(layer));
  if (ctx->device() == Device::kCuda) {
    plan_options_ = CudaPlanOptions(*ctx, options.attention, config.num_heads, config.num_kv_heads,
                                    layers_.front().dtype);
    return;
  }
  plan_options_.variant = options.attention;
  plan_options_.group_size = config.num_heads / config.num_kv_heads;
  plan_options_.num_kv_heads = config.num_kv_heads;
  plan_options_.num_workers = ctx->pool().num_threads();
  samplers_.resize(ctx->pool().num_threads());
}

absl::StatusOr<std::unique_ptr<Executor>> Executor::Create(Context* ctx, Llama* model, KvCache* kv,
                                                           const ExecutorOptions& options) {
  std::unique_ptr<Executor> executor(new Executor(ctx, model, kv, options));
  if (ctx->device() == Device::kCuda) {
    absl::StatusOr<std::unique_ptr<DeviceStep>> step =
        DeviceStep::Create(*ctx, model, executor->layers_,
                           {.graphs = options.cuda_graphs,
                            .max_rows = options.max_rows,
                            .max_logits_rows = options.max_logits_rows});
    if (!step.ok()) return step.status();
    executor->device_step_ = *std::move(step);
    if (options.plan_ahead) {
      executor->plan_ahead_ = std::make_unique<PlanAhead>(executor->plan_options_);
    }
    const size_t bytes = 2 * static_cast<size_t>(options.max_logits_rows) * sizeof(int64_t);
    executor->move_slots_ = DeviceBuffer(*ctx, bytes);
    executor->move_staging_ = StagingBuffer(*ctx, bytes);
    if (executor->move_slots_.empty() || executor->move_staging_.empty()) {
      return absl::ResourceExhaustedError("there is no device memory for moving KV");
    }
  }
  return executor;
}

absl::StatusOr<Executor::Result> Executor::Run(const StepBatch& batch,
                                               absl::FunctionRef<void()> meanwhile) {
  const TreePlan* plan;
  {
    const Timer timer(&times_.plan_ms);
    plan = plan_ahead_ != nullptr ? &plan_ahead_->Plan(batch.shape)
                                  : &planner_.Plan(batch.shape, plan_options_);
  }
  if (device_step_ != nullptr) return RunOnDevice(batch, *plan, meanwhile);
  meanwhile();
  return RunOnCpu(batch, *plan);
}

absl::StatusOr<Executor::Result> Executor::RunOnCpu(const StepBatch& batch, const TreePlan& plan) {
  Llama::Output output;
  {
    const Timer timer(&times_.forward_ms);
    output = model_->Forward(*ctx_,
                             {.token_ids = batch.token_ids,
                              .positions = batch.positions,
                              .kv_slots = batch.kv_slots,
                              .logits_rows = batch.logits_rows,
                              .plan = &plan},
                             layers_);
  }
  if (const std::optional<std::string> error = ctx_->TakeError()) {
    return absl::InternalError(absl::StrCat("step ", batch.step, " failed: ", *error));
  }
  const Timer timer(&times_.sample_ms);
  DrawSamples(batch, output.logits);
  return Result{.samples = samples_, .row_bad = output.row_bad};
}

absl::StatusOr<Executor::Result> Executor::RunOnDevice(const StepBatch& batch, const TreePlan& plan,
                                                       absl::FunctionRef<void()> meanwhile) {
  const Timer timer(&times_.forward_ms);
  const bool uploaded = std::exchange(plan_uploaded_, false) && plan_ahead_->came_true();
  if (absl::Status status = device_step_->Launch(batch, plan, uploaded); !status.ok()) {
    return status;
  }
  meanwhile();
  PlanNext(batch);
  if (absl::Status status = device_step_->Wait(batch, &samples_); !status.ok()) return status;
  return Result{.samples = samples_, .row_bad = device_step_->row_bad()};
}

void Executor::PlanNext(const StepBatch& batch) {
  if (plan_ahead_ == nullptr) return;
  const TreePlan* const next = plan_ahead_->Prepare(batch.shape, batch.next_pages);
  // A pass of a draft model is seldom followed by one like it.
  if (next != nullptr && !batch.draft_pass) plan_uploaded_ = device_step_->UploadPlanAhead(*next);
}

void Executor::MoveKv(std::span<const int64_t> from, std::span<const int64_t> to) {
  ESPALIER_CHECK(from.size() == to.size());
  if (from.empty()) return;
  const int64_t* slots[] = {from.data(), to.data()};
  if (ctx_->device() == Device::kCuda) {
    // The last step's end was waited for, so nobody reads the staging any more.
    auto* staging = move_staging_.As<int64_t>();
    ESPALIER_CHECK(2 * from.size_bytes() <= move_staging_.bytes());
    std::ranges::copy(from, staging);
    std::ranges::copy(to, staging + from.size());
    CopyToDevice(*ctx_, move_slots_.As<void>(), staging, 2 * from.size_bytes());
    slots[0] = move_slots_.As<int64_t>();
    slots[1] = slots[0] + from.size();
  }
  const ptrdiff_t layer_bytes = layers_.size() < 2 ? 0
                                                   : static_cast<std::byte*>(layers_[1].k) -
                                                         static_cast<std::byte*>(layers_[0].k);
  kernels::CopySlots(*ctx_, {.kv = layers_[0],
                             .num_layers = static_cast<int>(layers_.size()),
                             .layer_bytes = layer_bytes,
                             .from = slots[0],
                             .to = slots[1],
                             .count = static_cast<int>(from.size())});
}

void Executor::DrawSamples(const StepBatch& batch, std::span<const float> logits) {
  const size_t vocab = model_->config().vocab_size;
  samples_.resize(batch.tasks.size());
  ctx_->pool().Run(static_cast<int>(batch.tasks.size()), [&](int i, int worker) {
    const LogitsTask& task = batch.tasks[i];
    const std::span<const float> row = logits.subspan(task.logits_row * vocab, vocab);
    Sampler& sampler = samplers_[worker];
    if (task.num_candidates > 0) {
      samples_[i] = sampler.Score(row, 0, task.num_candidates);
      return;
    }
    if (task.score_token) {
      samples_[i] = sampler.Score(row, *task.score_token, task.tree->top_logprobs(task.segment));
      return;
    }
    const DecodeTree::SampleRequest request = task.tree->NextSample(task.segment, task.drafted);
    if (request.forced) {
      samples_[i] = sampler.Score(row, *request.forced, request.top_logprobs);
      return;
    }
    samples_[i] = sampler.Run({.logits = row,
                               .params = request.params,
                               .history = request.history,
                               .banned = request.banned,
                               .allowed = request.allowed,
                               .uniform = request.uniform,
                               .top_logprobs = request.top_logprobs});
  });
}

}  // namespace espalier
