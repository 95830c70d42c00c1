#include "kernels/cuda/tree_attention/expand_tokens.h"

namespace espalier::cuda {
namespace {

constexpr int kThreads = 256;
// Threads to an entry: the slots of a small page.
constexpr int kTeam = 16;

// Grid: (num_entries / (kThreads / kTeam)).
__global__ void __launch_bounds__(kThreads) ExpandTokensKernel(const ExpandTokensParams p) {
  const int index = static_cast<int>((blockIdx.x * kThreads + threadIdx.x) / kTeam);
  if (index >= p.num_entries) return;
  const PlanEntryRecord entry = p.entries[index];
  const int in_groups = entry.count / kGroupTokens * kGroupTokens;
  for (int i = static_cast<int>(threadIdx.x) % kTeam; i < entry.count; i += kTeam) {
    const bool in_group = i < in_groups;
    const int to = in_group ? entry.groups_begin + i : entry.rest_begin + i - in_groups;
    uint32_t rows = entry.rows;
    if (entry.slot_rows >= 0) {
      const RowInterval seen = p.slot_rows[entry.slot_rows + i];
      rows = static_cast<uint32_t>((seen.begin - entry.row_begin) * p.group_size) |
             static_cast<uint32_t>((seen.end - entry.row_begin) * p.group_size) << 16;
    }
    const bool starts_group = in_group && i % kGroupTokens == 0;
    const int32_t kv_row = entry.kv_row + i;
    const int32_t word = starts_group ? kv_row | kWholeGroup : kv_row & ~kForBoth;
    p.token_kv_rows[to] = entry.kv_row == kAbsentToken ? kAbsentToken : word;
    p.token_rows[to] = rows;
  }
}

}  // namespace

cudaError_t ExpandTokens(const ExpandTokensParams& p, cudaStream_t stream) {
  if (p.num_entries == 0) return cudaSuccess;
  constexpr int kEntries = kThreads / kTeam;
  ExpandTokensKernel<<<(p.num_entries + kEntries - 1) / kEntries, kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace espalier::cuda
