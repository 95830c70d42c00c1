// The straight-line Llama forward over one step's flattened rows.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/attention/kv_view.h"
#include "kernels/runtime/context.h"
#include "model/checkpoint/checkpoint.h"
#include "model/forward_input.h"

namespace espalier {

class Llama {
 public:
  // Borrows the checkpoint's tensors: it must outlive the model. `max_rows` and `max_logits_rows`
  // size the activations, allocated here once.
  static absl::StatusOr<std::unique_ptr<Llama>> Create(Checkpoint* checkpoint, int max_rows,
                                                       int max_logits_rows);
  ~Llama();

  struct Output {
    std::span<const float> logits;     // [logits_rows, vocab]; valid until the next Forward
    std::span<const uint8_t> row_bad;  // [rows] 1: a non-finite value appeared in the row
  };
  // `kv` has one view a layer. Stores the rows' KV, attends by the plan.
  Output Forward(const Context& ctx, const ForwardInput& input, std::span<const KvLayerView> kv);

  const ModelConfig& config() const;
  int64_t parameters() const;
  int64_t weight_bytes() const;

 private:
  struct Impl;
  explicit Llama(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace espalier
