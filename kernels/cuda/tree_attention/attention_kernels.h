// The kernels of tree attention: one for every architecture from sm_80 on, one for sm_90a alone,
// and the merge of their partial states.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/core/dtype.h"
#include "kernels/cuda/tree_attention/device_plan.h"

namespace espalier::cuda {

struct AttentionArguments {
  const void* q;  // [num_queries, num_heads, head_dim]
  const void* k;  // [num_pages, num_kv_heads, page_size, head_dim]
  const void* v;
  const float* k_scale;  // [num_kv_heads] of kE4M3; null with other types of KV
  const float* v_scale;
  int64_t num_kv_rows;  // of K and of V: num_pages * num_kv_heads * page_size
  void* out;            // [num_queries, num_heads, head_dim]
  DevicePlan plan;
  float scale_log2;  // softmax scale times log2(e), above 0
};

// What the launches need to know of the device.
struct AttentionDevice {
  int num_sms;
  int max_shared_bytes;  // of a block
  bool overlaps;         // a kernel may start before the one that it depends on has ended
};

// Runs every unit of the plan: writes the rows that one partition alone sees to `out`, the others
// to their partial states. dtype is kBF16 or kF16, kv_dtype the same or kE4M3, head_dim 64 or 128.
cudaError_t LaunchPortableAttention(const AttentionArguments& arguments, DType dtype,
                                    DType kv_dtype, const AttentionDevice& device,
                                    cudaStream_t stream);

// The same on an sm_90a device.
cudaError_t LaunchHopperAttention(const AttentionArguments& arguments, DType dtype, DType kv_dtype,
                                  const AttentionDevice& device, cudaStream_t stream);

// Combines the partial states in the plan's order and writes those rows to `out`.
cudaError_t LaunchMerge(const AttentionArguments& arguments, DType dtype,
                        const AttentionDevice& device, cudaStream_t stream);

}  // namespace espalier::cuda
