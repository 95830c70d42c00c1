#include "model/llama_activations.h"

#include <algorithm>

namespace espalier {
namespace {

// Where the inputs lie in their block.
struct InputLayout {
  explicit InputLayout(std::byte* block, int64_t max_rows)
      : kv_slots(reinterpret_cast<int64_t*>(block)),
        token_ids(reinterpret_cast<int32_t*>(kv_slots + max_rows)),
        positions(token_ids + max_rows),
        logits_rows(positions + max_rows) {}
  static int64_t Bytes(int64_t max_rows, int64_t max_logits_rows) {
    return max_rows * (sizeof(int64_t) + 2 * sizeof(int32_t)) + max_logits_rows * sizeof(int32_t);
  }
  int64_t* kv_slots;
  int32_t* token_ids;
  int32_t* positions;
  int32_t* logits_rows;
};

// Padded entries have `padding`.
template <typename T>
void CopyPadded(std::span<const T> from, int count, T padding, T* to) {
  std::fill(std::copy(from.begin(), from.end(), to), to + count, padding);
}

}  // namespace

LlamaActivations::LlamaActivations(const Context& ctx, const LlamaShape& shape, int max_rows,
                                   int max_logits_rows)
    : max_rows_(max_rows), max_logits_rows_(max_logits_rows) {
  const auto allocate = [&](DType dtype, int64_t rows, int64_t cols) {
    return DeviceBuffer(ctx, BytesOf(dtype, rows * cols));
  };
  const DType act = ctx.activation_dtype();
  x = allocate(DType::kF32, max_rows, shape.hidden);
  delta = allocate(act, max_rows, shape.hidden);
  normed = allocate(act, max_rows, shape.hidden);
  qkv = allocate(act, max_rows, shape.q_width() + 2 * shape.kv_width());
  q = allocate(act, max_rows, shape.q_width());
  attended = allocate(act, max_rows, shape.q_width());
  gate_up = allocate(act, max_rows, 2 * int64_t{shape.intermediate});
  gated = allocate(act, max_rows, shape.intermediate);
  head_input = allocate(act, max_logits_rows, shape.hidden);
  logits = allocate(DType::kF32, max_logits_rows, shape.vocab);
  row_bad = DeviceBuffer(ctx, max_rows);
  inv_freq = allocate(DType::kF32, 1, shape.head_dim / 2);
  inputs_ = DeviceBuffer(ctx, InputLayout::Bytes(max_rows, max_logits_rows));
  staged_inputs_ = StagingBuffer(ctx, InputLayout::Bytes(max_rows, max_logits_rows));
  if (!complete()) return;
  const InputLayout layout(inputs_.As<std::byte>(), max_rows);
  kv_slots = layout.kv_slots;
  token_ids = layout.token_ids;
  positions = layout.positions;
  logits_rows = layout.logits_rows;
  // Attention writes no row of padding; what the next op reads there shall be a number.
  if (ctx.device() == Device::kCuda) FillDevice(ctx, attended.As<void>(), 0, attended.bytes());
}

bool LlamaActivations::complete() const {
  for (const DeviceBuffer* buffer : {&x, &delta, &normed, &qkv, &q, &attended, &gate_up, &gated,
                                     &head_input, &logits, &row_bad, &inv_freq, &inputs_}) {
    if (buffer->empty()) return false;
  }
  return !staged_inputs_.empty();
}

int64_t LlamaActivations::bytes() const {
  int64_t bytes = 0;
  for (const DeviceBuffer* buffer : {&x, &delta, &normed, &qkv, &q, &attended, &gate_up, &gated,
                                     &head_input, &logits, &row_bad, &inv_freq, &inputs_}) {
    bytes += static_cast<int64_t>(buffer->bytes());
  }
  return bytes;
}

void LlamaActivations::UploadInputs(const Context& ctx, const ForwardInput& input, int rows,
                                    int num_logits_rows) {
  const InputLayout staged(staged_inputs_.As<std::byte>(), max_rows_);
  CopyPadded<int64_t>(input.kv_slots, rows, -1, staged.kv_slots);
  CopyPadded<int32_t>(input.token_ids, rows, 0, staged.token_ids);
  CopyPadded<int32_t>(input.positions, rows, 0, staged.positions);
  CopyPadded<int32_t>(input.logits_rows, num_logits_rows, 0, staged.logits_rows);
  CopyToDevice(ctx, inputs_.As<void>(), staged_inputs_.As<void>(),
               InputLayout::Bytes(max_rows_, num_logits_rows));
}

}  // namespace espalier
