// cuBLASLt's choice of algorithm for each shape that was met, so that it is asked once.
//
// The choice is made among the library's suggestions by what they are, never by a timing: two
// processes then compute the same bits.
#pragma once

#include <cublasLt.h>

#include <cstdint>
#include <memory>
#include <unordered_map>

#include "kernels/core/dtype.h"

namespace espalier::cuda {

// out [rows, features] = x [rows, depth] * weight [features, depth]^T, all row-major.
struct MatMulShape {
  int rows = 0;
  int64_t features = 0;
  int64_t depth = 0;
  int64_t out_stride = 0;      // elements
  DType dtype = DType::kBF16;  // of x and weight
  bool out_f32 = false;
  bool operator==(const MatMulShape&) const = default;
};

class MatMulPlans {
 public:
  MatMulPlans(cublasLtHandle_t handle, size_t workspace_bytes);
  ~MatMulPlans();

  cublasStatus_t Run(const MatMulShape& shape, const void* x, const void* weight, void* out,
                     void* workspace, cudaStream_t stream);

 private:
  struct Plan;
  struct Hash {
    size_t operator()(const MatMulShape& shape) const;
  };
  // Null when the library has no algorithm.
  const Plan* Find(const MatMulShape& shape);

  const cublasLtHandle_t handle_;
  const size_t workspace_bytes_;
  std::unordered_map<MatMulShape, std::unique_ptr<Plan>, Hash> plans_;
};

}  // namespace espalier::cuda
