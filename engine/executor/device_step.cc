#include "engine/executor/device_step.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/tree_attention/device_plan.h"

namespace espalier {
namespace {

// Shapes that are kept captured: decode widths times, mostly, one count of logits rows.
constexpr int kMaxGraphs = 128;
// Beyond this many rows launches are small beside the work.
constexpr int kMaxGraphRows = 1024;

// The next size at which products are as fast as at `count`, so that few shapes are met.
int Bucket(int count, int limit) {
  int step = 64;
  if (count <= 2) {
    step = 1;
  } else if (count <= 16) {
    step = 4;
  } else if (count <= 64) {
    step = 8;
  } else if (count <= 256) {
    step = 16;
  }
  return std::min((count + step - 1) / step * step, limit);
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceStep>> DeviceStep::Create(const Context& ctx, Llama* model,
                                                               std::vector<KvLayerView> layers,
                                                               const DeviceStepOptions& options) {
  std::unique_ptr<DeviceStep> step(new DeviceStep(ctx, model, std::move(layers), options));
  if (!step->sampler_.ok() || step->row_bad_.empty()) {
    return absl::ResourceExhaustedError("there is no device memory for sampling");
  }
  return step;
}

DeviceStep::DeviceStep(const Context& ctx, Llama* model, std::vector<KvLayerView> layers,
                       const DeviceStepOptions& options)
    : ctx_(ctx),
      model_(model),
      layers_(std::move(layers)),
      options_(options),
      plan_buffers_(ctx, model->config().num_heads, model->config().head_dim,
                    layers_.front().dtype),
      sampler_(ctx, model->config().vocab_size, options.max_logits_rows),
      graphs_(ctx, kMaxGraphs),
      done_(ctx),
      row_bad_(ctx, options.max_rows) {}

bool DeviceStep::UploadRequests(const StepBatch& batch) {
  requests_.clear();
  for (const LogitsTask& task : batch.tasks) {
    DeviceSampleRequest& request = requests_.emplace_back();
    request.logits_row = task.logits_row;
    if (task.num_candidates > 0) {
      request.score_token = 0;
      request.top_logprobs = task.num_candidates;
      continue;
    }
    if (task.score_token) {
      request.score_token = *task.score_token;
      request.top_logprobs = task.tree->top_logprobs(task.segment);
      continue;
    }
    const DecodeTree::SampleRequest from = task.tree->NextSample(task.segment, task.drafted);
    request.top_logprobs = from.top_logprobs;
    if (from.forced) {
      request.score_token = *from.forced;
      continue;
    }
    const SamplingParams& params = *from.params;
    request.temperature = params.temperature;
    request.min_p = params.min_p;
    request.top_k = params.top_k;
    request.top_p = params.top_p;
    request.repetition_penalty = params.repetition_penalty;
    request.frequency_penalty = params.frequency_penalty;
    request.presence_penalty = params.presence_penalty;
    request.uniform = from.uniform;
    request.logit_bias = params.logit_bias;
    request.banned = from.banned;
    request.allowed = from.allowed;
    if (from.history != nullptr && HasPenalty(params)) {
      for (const auto& tokens : from.history->prompts()) request.prompt_tokens.push_back(*tokens);
      request.generated = from.history->generated();
    }
  }
  return sampler_.Upload(requests_);
}

bool DeviceStep::UploadPlanAhead(const TreePlan& plan) { return plan_buffers_.UploadAhead(plan); }

absl::Status DeviceStep::Launch(const StepBatch& batch, const TreePlan& plan, bool uploaded) {
  cuda::UseDevice(ctx_);
  const int rows = Bucket(batch.num_rows(), options_.max_rows);
  const int logits_rows =
      Bucket(static_cast<int>(batch.logits_rows.size()), options_.max_logits_rows);
  const int requests = Bucket(static_cast<int>(batch.tasks.size()), options_.max_logits_rows);
  if (!uploaded && !plan_buffers_.Upload(plan)) {
    return absl::ResourceExhaustedError(absl::StrCat("there is no device memory for a plan of ",
                                                     plan.entries.size(), " entries and ",
                                                     plan.stats.partial_rows, " partial states"));
  }
  const ForwardInput input{.token_ids = batch.token_ids,
                           .positions = batch.positions,
                           .kv_slots = batch.kv_slots,
                           .logits_rows = batch.logits_rows,
                           .device_plan = &plan_buffers_.device_plan()};
  model_->Upload(ctx_, input, rows, logits_rows);
  if (!batch.tasks.empty() && !UploadRequests(batch)) {
    return absl::ResourceExhaustedError("there is no device memory for the step's sampling lists");
  }

  const auto run = [&] {
    const Llama::Output output = model_->Run(ctx_, input, rows, logits_rows, layers_);
    if (requests > 0) sampler_.Run(output.logits.data(), requests);
    CopyToHost(ctx_, row_bad_.As<uint8_t>(), output.row_bad.data(), rows);
  };
  // Passes of a draft model have a row more of some branches.
  const bool decode = 2 * batch.logits_rows.size() >= batch.token_ids.size();
  if (options_.graphs && decode && rows <= kMaxGraphRows) {
    graphs_.Run({.rows = rows,
                 .logits_rows = logits_rows,
                 .requests = requests,
                 .has_partials = plan_buffers_.device_plan().has_partials,
                 .has_pairs = plan_buffers_.device_plan().has_pairs},
                int64_t{plan_buffers_.generation()} << 32 | sampler_.generation(), run);
  } else {
    run();
  }
  if (requests > 0) sampler_.Download();
  done_.Record();
  rows_ = batch.token_ids.size();
  return absl::OkStatus();
}

absl::Status DeviceStep::Wait(const StepBatch& batch, std::vector<Sample>* samples) {
  if (const std::optional<std::string> error = ctx_.TakeError(done_)) {
    return absl::InternalError(
        absl::StrCat("the CUDA device failed in step ", batch.step, ": ", *error));
  }
  samples->resize(batch.tasks.size());
  if (batch.tasks.empty()) return absl::OkStatus();
  const std::span<const DeviceSample> results = sampler_.Results();
  for (size_t i = 0; i < samples->size(); ++i) {
    Sample& sample = (*samples)[i];
    sample.token = results[i].token;
    sample.logprob = results[i].logprob;
    sample.finite = results[i].finite;
    sample.top.assign(results[i].top.begin(), results[i].top.end());
  }
  return absl::OkStatus();
}

}  // namespace espalier
