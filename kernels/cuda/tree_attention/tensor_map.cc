#include "kernels/cuda/tree_attention/tensor_map.h"

#include "kernels/core/check.h"

namespace espalier::cuda {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's function, without a link to the driver, which build machines lack. Null: not there.
Encode FindEncode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             12000, cudaEnableDefault, &found);
  const bool is_there = error == cudaSuccess && found == cudaDriverEntryPointSuccess;
  return is_there ? reinterpret_cast<Encode>(function) : nullptr;
}

}  // namespace

cudaError_t MapRows(const void* rows, int64_t num_rows, int head_dim, int box_rows, DType dtype,
                    CUtensorMap* map) {
  static const Encode encode = FindEncode();
  if (encode == nullptr) return cudaErrorCallRequiresNewerDriver;
  ESPALIER_CHECK(head_dim % 64 == 0);
  const cuuint64_t row_bytes = head_dim * 2;
  const cuuint64_t sizes[] = {64, static_cast<cuuint64_t>(num_rows),
                              static_cast<cuuint64_t>(head_dim / 64)};
  const cuuint64_t strides[] = {row_bytes, 128};
  const cuuint32_t box[] = {64, static_cast<cuuint32_t>(box_rows),
                            static_cast<cuuint32_t>(head_dim / 64)};
  const cuuint32_t steps[] = {1, 1, 1};
  const CUresult result = encode(
      map,
      dtype == DType::kF16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
      /*tensorRank=*/3, const_cast<void*>(rows), sizes, strides, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace espalier::cuda
