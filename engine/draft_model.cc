#include "engine/draft_model.h"

#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/device_setup.h"

namespace espalier {
namespace {

// A level of a tree is a pass of the draft model over at most so many tokens, and all of a step's
// drafts together are verified in rows.
constexpr int kMaxDraftRows = 256;
constexpr int kMaxDraftDepth = 16;
constexpr int kMaxDraftWidth = 16;

absl::Status CheckBetween(std::string_view field, int64_t value, int64_t min, int64_t max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(std::string(field), " is ", value, "; must be between ", min, " and ", max));
}

}  // namespace

absl::Status CheckDraftConfig(const EngineConfig& config) {
  const bool drafts = config.speculative == Speculative::kDraft;
  if (drafts && config.draft_model_path.empty()) {
    return absl::InvalidArgumentError("speculative is draft, and draft_model is not set");
  }
  if (!drafts && !config.draft_model_path.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("draft_model is \"", config.draft_model_path,
                                                   "\", and speculative is not draft"));
  }
  const DraftShape& shape = config.draft_shape;
  absl::Status status;
  status.Update(CheckBetween("speculative_rows", config.speculative_rows, 0, kMaxDraftRows));
  status.Update(CheckBetween("draft_depth", shape.depth, 1, kMaxDraftDepth));
  status.Update(CheckBetween("draft_width", shape.width, 1, kMaxDraftWidth));
  status.Update(CheckBetween("draft_tokens", shape.max_tokens, 1, kMaxDraftRows));
  status.Update(CheckBetween("the number of levels of draft_shape",
                             static_cast<int64_t>(shape.children.size()), 0, kMaxDraftDepth));
  int64_t level = 1;
  int64_t tokens = 0;
  for (int children : shape.children) {
    status.Update(CheckBetween("a level of draft_shape", children, 1, kMaxDraftWidth));
    if (!status.ok()) return status;
    tokens += level *= children;
    status.Update(CheckBetween("the number of tokens of draft_shape", tokens, 1, kMaxDraftRows));
  }
  return status;
}

absl::Status CheckSameTokens(const Tokenizer& model, const Tokenizer& draft) {
  if (model.vocab_size() != draft.vocab_size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("draft_model has a tokenizer of ", draft.vocab_size(),
                     " tokens; it must be the model's, which has ", model.vocab_size()));
  }
  for (int32_t id = 0; id < model.vocab_size(); ++id) {
    if (model.TokenBytes(id, /*special=*/true) == draft.TokenBytes(id, /*special=*/true)) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("token ", id, " of draft_model's tokenizer is \"", draft.TokenBytes(id, true),
                     "\"; it must be the model's, \"", model.TokenBytes(id, true), "\""));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<DraftModel>> DraftModel::Create(
    Context* ctx, std::unique_ptr<Checkpoint> checkpoint, const ExecutorOptions& options) {
  if (ctx->device() == Device::kCuda) {
    if (absl::Status runs = CheckCudaRuns(checkpoint->config()); !runs.ok()) return runs;
  }
  std::unique_ptr<DraftModel> draft(new DraftModel(ctx, options));
  draft->checkpoint_ = std::move(checkpoint);
  absl::StatusOr<std::unique_ptr<Llama>> model =
      Llama::Create(*ctx, draft->checkpoint_.get(), options.max_rows, options.max_logits_rows);
  if (!model.ok()) return model.status();
  draft->model_ = *std::move(model);
  return draft;
}

KvLayout DraftModel::kv_layout(int page_size, DType dtype) const {
  return {.num_layers = config().num_layers,
          .num_kv_heads = config().num_kv_heads,
          .head_dim = config().head_dim,
          .page_size = page_size,
          .dtype = dtype};
}

absl::Status DraftModel::CreateKv(const KvLayout& layout, int num_pages, const KvScales& scales) {
  absl::StatusOr<std::unique_ptr<KvCache>> kv = KvCache::Create(*ctx_, layout, num_pages, scales);
  if (!kv.ok()) return kv.status();
  kv_ = *std::move(kv);
  absl::StatusOr<std::unique_ptr<Executor>> executor =
      Executor::Create(ctx_, model_.get(), kv_.get(), options_);
  if (!executor.ok()) return executor.status();
  executor_ = *std::move(executor);
  return absl::OkStatus();
}

}  // namespace espalier
