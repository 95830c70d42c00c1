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
  const bool narrow = dtype == DType::kE4M3;
  const int block = narrow ? head_dim : 64;  // dimensions
  const cuuint64_t row_bytes = BytesOf(dtype, head_dim);
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(block), static_cast<cuuint64_t>(num_rows),
                              static_cast<cuuint64_t>(head_dim / block)};
  const cuuint64_t strides[] = {row_bytes, BytesOf(dtype, block)};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(block), static_cast<cuuint32_t>(box_rows),
                            static_cast<cuuint32_t>(head_dim / block)};
  const cuuint32_t steps[] = {1, 1, 1};
  const CUtensorMapDataType type = narrow                 ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                                   : dtype == DType::kF16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                          : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const CUresult result =
      encode(map, type, /*tensorRank=*/3, const_cast<void*>(rows), sizes, strides, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE,
             narrow ? CU_TENSOR_MAP_SWIZZLE_NONE : CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace espalier::cuda
