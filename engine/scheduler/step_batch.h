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
  std::optional<int32_t> score_token = {};
  // Draws the token that follows a drafted one, which this task's row holds: its depth in the
  // draft, and the task that draws the token before it. 0: the branch's own.
  int drafted = 0;
  int above = -1;
  // Of a pass of the draft model: only the most likely tokens are wanted, so many.
  int num_candidates = 0;
};

struct StepBatch {
  uint64_t step = 0;
  // A pass of the draft model: nothing is drawn, and its KV goes to that model's cache.
  bool draft_pass = false;
  TreeShape shape;
  std::vector<int32_t> token_ids;    // [rows]
  std::vector<int32_t> positions;    // [rows]
  std::vector<int64_t> kv_slots;     // [rows], -1: the KV exists
  std::vector<int32_t> logits_rows;  // ascending
  std::vector<LogitsTask> tasks;
  std::vector<int32_t> next_pages;  // at most one a row: what nodes that grow will probably begin

  int num_rows() const { return static_cast<int>(token_ids.size()); }
  void Clear();
};

}  // namespace espalier
