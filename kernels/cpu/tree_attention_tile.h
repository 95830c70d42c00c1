// One unit of tree attention on the CPU: a partition of the plan for one kv head. The function is
// compiled once for each instruction set; tree_attention.cc picks one at run time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention/tree_plan.h"
#include "kernels/core/dtype.h"

namespace espalier::kernels::cpu {

// Keys are taken this many at a time, from one page.
inline constexpr int kKeyBlock = 16;

// Packed row i is query head i % group of row row_begin + i / group.
struct AttentionTile {
  const PlanEntry* entries;
  int num_entries;
  const RowInterval* slot_rows;  // of the whole plan
  int32_t row_begin;
  int num_rows;
  int group;

  const void* k;  // [num_pages, num_kv_heads, page_size, head_dim]
  const void* v;
  DType kv_dtype;
  int num_kv_heads;
  int kv_head;
  int page_size;
  int head_dim;  // a multiple of 8

  const float* q;  // [packed_rows, head_dim], times softmax scale and log2(e)

  // Without the scales of kE4M3: those of keys are in q, the caller multiplies acc by the values'.
  // The result, initialised by the callee. A row that sees no key keeps sum 0.
  float* acc;  // [packed_rows, head_dim], sum over keys of 2^(score - max) * v
  float* max;  // [packed_rows], of the scores, in log2 units
  float* sum;  // [packed_rows, kKeyBlock], whose total is the sum of 2^(score - max)

  int32_t* row_of;   // [packed_rows], scratch
  float* key_block;  // [2, kKeyBlock, head_dim], scratch
};

void AttendTilePortable(const AttentionTile& tile);
#if defined(__x86_64__)
void AttendTileAvx2(const AttentionTile& tile);
void AttendTileAvx512(const AttentionTile& tile);
#endif

}  // namespace espalier::kernels::cpu
