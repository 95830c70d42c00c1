// What one forward step computes: flattened rows, one a query of the tree plan, in the shape's
// query order.
#pragma once

#include <cstdint>
#include <span>

namespace espalier {

struct DevicePlan;
struct TreePlan;

struct ForwardInput {
  std::span<const int32_t> token_ids;       // [rows]
  std::span<const int32_t> positions;       // [rows]
  std::span<const int64_t> kv_slots;        // [rows], -1: the KV exists already
  std::span<const int32_t> logits_rows;     // rows whose logits are wanted, ascending
  const TreePlan* plan = nullptr;           // CPU
  const DevicePlan* device_plan = nullptr;  // CUDA
};

}  // namespace espalier
