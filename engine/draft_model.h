// The small model that drafts tokens: weights, activations and KV on the device of the model that
// verifies them. Its KV cache has the same pages, so that a token's slot is the same in both.
#pragma once

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "engine/executor/executor.h"
#include "engine/kvcache/kv_cache.h"
#include "model/checkpoint/checkpoint.h"
#include "model/llama.h"
#include "model/tokenizer/tokenizer.h"

namespace espalier {

// INVALID_ARGUMENT names the first token that is not the same in both: a draft is of token ids.
absl::Status CheckSameTokens(const Tokenizer& model, const Tokenizer& draft);

// The fields of `config` about drafting. INVALID_ARGUMENT names field, value and limit.
absl::Status CheckDraftConfig(const EngineConfig& config);

class DraftModel {
 public:
  // Loads the weights. Borrows the context. UNIMPLEMENTED when the device does not run the model.
  static absl::StatusOr<std::unique_ptr<DraftModel>> Create(Context* ctx,
                                                            std::unique_ptr<Checkpoint> checkpoint,
                                                            const ExecutorOptions& options);

  KvLayout kv_layout(int page_size, DType dtype) const;
  // Once the number of pages is known, before the first pass.
  absl::Status CreateKv(const KvLayout& layout, int num_pages, const KvScales& scales);

  Llama* model() { return model_.get(); }
  const ModelConfig& config() const { return model_->config(); }
  int64_t weight_bytes() const { return model_->weight_bytes(); }
  int64_t activation_bytes() const { return model_->activation_bytes(); }
  Executor* executor() { return executor_.get(); }

 private:
  DraftModel(Context* ctx, const ExecutorOptions& options) : ctx_(ctx), options_(options) {}

  Context* const ctx_;
  const ExecutorOptions options_;
  std::unique_ptr<Checkpoint> checkpoint_;  // on the CPU the model reads it in place
  std::unique_ptr<Llama> model_;
  std::unique_ptr<KvCache> kv_;
  std::unique_ptr<Executor> executor_;
};

}  // namespace espalier
