// What one step computes: the rows, the forest that they query, and what becomes of the logits.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "engine/tree/decode_tree.h"
#include "kernels/attention/tree_shape.h"

namespace espalier {

// A token to draw or to score from one row of logits.
struct LogitsTask {
  int logits_row = 0;  // index into StepBatch::logits_rows
  DecodeTree* tree = nullptr;
  int segment = 0;
  // Draw when empty, otherwise score this token.
  std::optional<int32_t> score_token;
  // Draws the token that follows so many drafted ones. A branch's tasks with 1, 2, … drafted tokens
  // stand side by side; their rows hold the draft.
  int drafted = 0;
};

struct StepBatch {
  uint64_t step = 0;
  TreeShape shape;
  std::vector<int32_t> token_ids;    // [rows]
  std::vector<int32_t> positions;    // [rows]
  std::vector<int64_t> kv_slots;     // [rows], -1: the KV exists
  std::vector<int32_t> logits_rows;  // ascending
  std::vector<LogitsTask> tasks;

  int num_rows() const { return static_cast<int>(token_ids.size()); }
  void Clear();
};

}  // namespace espalier
