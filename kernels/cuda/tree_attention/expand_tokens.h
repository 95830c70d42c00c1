// Turns a plan's entries into one word a token, once a step for all layers and kv heads.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/attention/tree_plan.h"
#include "kernels/cuda/tree_attention/device_plan.h"

namespace espalier::cuda {

struct ExpandTokensParams {
  const PlanEntryRecord* entries;  // [num_entries]
  int num_entries;
  const RowInterval* slot_rows;  // of the whole plan
  int group_size;
  int32_t* token_kv_rows;
  uint32_t* token_rows;
};
cudaError_t ExpandTokens(const ExpandTokensParams& p, cudaStream_t stream);

}  // namespace espalier::cuda
