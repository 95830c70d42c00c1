#include "kernels/cuda/matmul_plans.h"

#include <cmath>
#include <span>

namespace espalier::cuda {
namespace {

// Shapes that a process meets: layers' widths times bucketed row counts. A bound all the same.
constexpr size_t kMaxPlans = 4096;

cudaDataType_t CudaType(DType dtype) {
  switch (dtype) {
    case DType::kF16:
      return CUDA_R_16F;
    case DType::kBF16:
      return CUDA_R_16BF;
    default:
      return CUDA_R_32F;
  }
}

// Up to so many rows a product takes as long as its weights take to come from memory.
constexpr int kFewRows = 64;
constexpr int kSuggestions = 8;

int SplitsOfDepth(const cublasLtMatmulAlgo_t& algorithm) {
  int splits = 1;
  size_t written = 0;
  cublasLtMatmulAlgoConfigGetAttribute(&algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &splits,
                                       sizeof(splits), &written);
  return splits;
}

// With few rows all SMs should read all the time: that is many waves of tiles, the last nearly
// full, and no sums of a split depth, which a kernel of their own makes. Where no suggestion is
// like that, and with many rows, the library's first (figures: tests/bench/RESULTS.md).
const cublasLtMatmulHeuristicResult_t& Choose(
    std::span<const cublasLtMatmulHeuristicResult_t> suggestions, int rows) {
  constexpr float kNearlyFull = 0.84f;
  const cublasLtMatmulHeuristicResult_t* best = &suggestions.front();
  if (rows > kFewRows) return *best;
  float most_waves = 0;
  for (const cublasLtMatmulHeuristicResult_t& suggestion : suggestions) {
    const float waves = suggestion.wavesCount;
    if (waves < kNearlyFull * std::ceil(waves) || waves <= most_waves) continue;
    if (SplitsOfDepth(suggestion.algo) > 1) continue;
    most_waves = waves;
    best = &suggestion;
  }
  return *best;
}

}  // namespace

// cuBLASLt is column-major: out^T [features, rows] = weight (transposed) * x^T.
struct MatMulPlans::Plan {
  explicit Plan(const MatMulShape& shape) {
    const cudaDataType_t type = CudaType(shape.dtype);
    cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    const cublasOperation_t transpose = CUBLAS_OP_T;
    cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_TRANSA, &transpose,
                                   sizeof(transpose));
    cublasLtMatrixLayoutCreate(&weight, type, shape.depth, shape.features, shape.depth);
    cublasLtMatrixLayoutCreate(&x, type, shape.depth, shape.rows, shape.depth);
    cublasLtMatrixLayoutCreate(&out, shape.out_f32 ? CUDA_R_32F : type, shape.features, shape.rows,
                               shape.out_stride);
  }
  ~Plan() {
    cublasLtMatrixLayoutDestroy(out);
    cublasLtMatrixLayoutDestroy(x);
    cublasLtMatrixLayoutDestroy(weight);
    cublasLtMatmulDescDestroy(operation);
  }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t weight = nullptr;
  cublasLtMatrixLayout_t x = nullptr;
  cublasLtMatrixLayout_t out = nullptr;
  cublasLtMatmulAlgo_t algorithm = {};
};

size_t MatMulPlans::Hash::operator()(const MatMulShape& shape) const {
  uint64_t hash = 0;
  for (const int64_t part : {int64_t{shape.rows}, shape.features, shape.depth, shape.out_stride,
                             static_cast<int64_t>(shape.dtype) * 2 + int64_t{shape.out_f32}}) {
    hash = (hash ^ static_cast<uint64_t>(part)) * 0x9e3779b97f4a7c15;
    hash ^= hash >> 32;
  }
  return hash;
}

MatMulPlans::MatMulPlans(cublasLtHandle_t handle, size_t workspace_bytes)
    : handle_(handle), workspace_bytes_(workspace_bytes) {}
MatMulPlans::~MatMulPlans() = default;

const MatMulPlans::Plan* MatMulPlans::Find(const MatMulShape& shape) {
  if (const auto it = plans_.find(shape); it != plans_.end()) return it->second.get();
  auto plan = std::make_unique<Plan>(shape);
  cublasLtMatmulPreference_t preference = nullptr;
  cublasLtMatmulPreferenceCreate(&preference);
  cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                       &workspace_bytes_, sizeof(workspace_bytes_));
  cublasLtMatmulHeuristicResult_t suggestions[kSuggestions] = {};
  int found = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(handle_, plan->operation, plan->weight, plan->x, plan->out,
                                     plan->out, preference, kSuggestions, suggestions, &found);
  cublasLtMatmulPreferenceDestroy(preference);
  if (status != CUBLAS_STATUS_SUCCESS || found == 0) return nullptr;
  plan->algorithm = Choose({suggestions, static_cast<size_t>(found)}, shape.rows).algo;
  if (plans_.size() >= kMaxPlans) plans_.clear();
  return plans_.emplace(shape, std::move(plan)).first->second.get();
}

cublasStatus_t MatMulPlans::Run(const MatMulShape& shape, const void* x, const void* weight,
                                void* out, void* workspace, cudaStream_t stream) {
  const Plan* plan = Find(shape);
  if (plan == nullptr) return CUBLAS_STATUS_NOT_SUPPORTED;
  const float one = 1.0f;
  const float zero = 0.0f;
  return cublasLtMatmul(handle_, plan->operation, &one, weight, plan->weight, x, plan->x, &zero,
                        out, plan->out, out, plan->out, &plan->algorithm, workspace,
                        workspace_bytes_, stream);
}

}  // namespace espalier::cuda
