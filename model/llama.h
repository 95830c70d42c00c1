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
#include "model/weight_store.h"

namespace espalier {

class Llama {
 public:
  // On the CPU it borrows the checkpoint's tensors, which must outlive the model. `max_rows` and
  // `max_logits_rows` size the activations, allocated here once on the context's device; later
  // calls name a context of the same device.
  static absl::StatusOr<std::unique_ptr<Llama>> Create(const Context& ctx, Checkpoint* checkpoint,
                                                       int max_rows, int max_logits_rows,
                                                       LoadProgressCallback on_progress = {});
  ~Llama();

  // Memory of the context's device, valid until the next Run.
  struct Output {
    std::span<const float> logits;     // [logits_rows, vocab]
    std::span<const uint8_t> row_bad;  // [rows] 1: a non-finite value appeared in the row
  };

  // A step in two parts, both enqueued. Upload puts the rows where Run reads them and fills up to
  // `rows` and `logits_rows`, at least the input's, with rows that nobody asks for. Run only
  // launches ops: with the same counts and the same plan memory it enqueues the same work, whatever
  // was uploaded, so that it can be captured in a graph. `kv` has one view a layer. Run stores the
  // rows' KV and attends by the plan.
  void Upload(const Context& ctx, const ForwardInput& input, int rows, int logits_rows);
  Output Run(const Context& ctx, const ForwardInput& input, int rows, int logits_rows,
             std::span<const KvLayerView> kv);
  // Both, for the input's own rows.
  Output Forward(const Context& ctx, const ForwardInput& input, std::span<const KvLayerView> kv);

  const ModelConfig& config() const;
  int64_t parameters() const;
  int64_t weight_bytes() const;
  int64_t activation_bytes() const;

 private:
  struct Impl;
  explicit Llama(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace espalier
