// Memory of a step between its ops, and of its inputs, allocated once.
#pragma once

#include <cstdint>

#include "kernels/runtime/device_memory.h"
#include "model/forward_input.h"
#include "model/llama_weights.h"

namespace espalier {

struct LlamaActivations {
  LlamaActivations(const Context& ctx, const LlamaShape& shape, int max_rows, int max_logits_rows);

  bool complete() const;  // false: the device lacked memory
  int64_t bytes() const;

  // Enqueues one copy. Padding rows are token 0 at position 0 and store nothing.
  void UploadInputs(const Context& ctx, const ForwardInput& input, int rows, int logits_rows);

  DeviceBuffer x;           // fp32 [rows, hidden], the residual stream
  DeviceBuffer delta;       // [rows, hidden], what the last sub-layer adds to it
  DeviceBuffer normed;      // [rows, hidden]
  DeviceBuffer qkv;         // [rows, q_width + 2 * kv_width]
  DeviceBuffer q;           // [rows, q_width], rotated
  DeviceBuffer attended;    // [rows, q_width]
  DeviceBuffer gate_up;     // [rows, 2 * intermediate]
  DeviceBuffer gated;       // [rows, intermediate]
  DeviceBuffer head_input;  // [logits_rows, hidden]
  DeviceBuffer logits;      // fp32 [logits_rows, vocab]
  DeviceBuffer row_bad;     // uint8 [rows]
  DeviceBuffer inv_freq;    // fp32 [head_dim / 2]

  // Inputs, in one block of memory.
  int64_t* kv_slots = nullptr;
  int32_t* token_ids = nullptr;
  int32_t* positions = nullptr;
  int32_t* logits_rows = nullptr;

 private:
  const int max_rows_;
  const int max_logits_rows_;
  DeviceBuffer inputs_;
  StagingBuffer staged_inputs_;
};

}  // namespace espalier
