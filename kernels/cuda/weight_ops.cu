// Stored weights, quantised blocks too, to the activation type; and random ones. Once a model, so
// written to be read.
#include "kernels/core/check.h"
#include "kernels/core/quant_blocks.h"
#include "kernels/core/random_weight.h"
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/numbers.cuh"
#include "kernels/weight_ops.h"

namespace espalier::kernels::cuda {
namespace {

using espalier::cuda::CheckLaunch;
using espalier::cuda::DispatchActivation;
using espalier::cuda::FromFloat;
using espalier::cuda::StreamOf;
using espalier::cuda::ToFloat;

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 16;

int GridFor(int64_t elements) {
  return static_cast<int>(std::min((elements + kThreads - 1) / kThreads, kMaxBlocks));
}

// Inside a file's tensor blocks are aligned to two bytes only.
__device__ float Half(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }

// Element j of a block, by the formulas of quant_blocks.h: products and sums rounded one by one.
__device__ float Element(const BlockQ8_0& block, int j) {
  return Half(block.d) * static_cast<float>(block.qs[j]);
}

__device__ int Nibble(const uint8_t* qs, int j) { return j < 16 ? qs[j] & 15 : qs[j - 16] >> 4; }

__device__ float Element(const BlockQ4_0& block, int j) {
  return Half(block.d) * static_cast<float>(Nibble(block.qs, j) - 8);
}

__device__ float Element(const BlockQ4_1& block, int j) {
  return __fadd_rn(__fmul_rn(Half(block.d), static_cast<float>(Nibble(block.qs, j))),
                   Half(block.m));
}

__device__ float Element(const BlockQ4_K& block, int j) {
  const int s = j / 32;
  const uint8_t* scales = block.scales;
  const int scale = s < 4 ? scales[s] & 63 : (scales[s + 4] & 15) | (scales[s - 4] >> 6) << 4;
  const int min = s < 4 ? scales[s + 4] & 63 : scales[s + 4] >> 4 | (scales[s] >> 6) << 4;
  const uint8_t packed = block.qs[32 * (s / 2) + j % 32];
  const int q = s % 2 == 0 ? packed & 15 : packed >> 4;
  const float scaled =
      __fmul_rn(__fmul_rn(Half(block.d), static_cast<float>(scale)), static_cast<float>(q));
  return __fsub_rn(scaled, __fmul_rn(Half(block.dmin), static_cast<float>(min)));
}

__device__ float Element(const BlockQ6_K& block, int j) {
  const int quarter = j % 128 / 32;
  const int l = j % 32;
  const uint8_t* ql = block.ql + 64 * (j / 128);
  const int high = block.qh[32 * (j / 128) + l] >> (2 * quarter) & 3;
  const uint8_t packed = ql[l + 32 * (quarter % 2)];
  const int low = quarter < 2 ? packed & 15 : packed >> 4;
  const float scale = __fmul_rn(Half(block.d), static_cast<float>(block.scales[j / 16]));
  return __fmul_rn(scale, static_cast<float>((low | high << 4) - 32));
}

template <typename Block>
struct Blocks {
  static constexpr int kElements = Block::kElements;
  const Block* data;
  __device__ float at(int64_t i) const { return Element(data[i / kElements], i % kElements); }
};

template <typename T>
struct Plain {
  const T* data;
  __device__ float at(int64_t i) const { return ToFloat(data[i]); }
};

template <typename Source, typename T>
__global__ void ConvertKernel(Source from, int64_t elements, T* out) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < elements;
       i += int64_t{gridDim.x} * kThreads) {
    out[i] = FromFloat<T>(from.at(i));
  }
}

template <typename T>
__global__ void FillKernel(uint64_t seed, float mean, float scale, int64_t elements, T* out) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < elements;
       i += int64_t{gridDim.x} * kThreads) {
    out[i] = FromFloat<T>(__fadd_rn(mean, __fmul_rn(scale, UniformWeight(seed, i))));
  }
}

template <typename T>
void Convert(const Context& ctx, const ConvertWeightsParams& p) {
  const int64_t elements = p.from.rows * p.from.cols;
  const auto run = [&](auto source) {
    ConvertKernel<<<GridFor(elements), kThreads, 0, StreamOf(ctx)>>>(source, elements,
                                                                     static_cast<T*>(p.out));
  };
  const auto blocks = [&]<typename Block>(Block*) {
    run(Blocks<Block>{static_cast<const Block*>(p.from.data)});
  };
  switch (p.from.dtype) {
    case DType::kF32:
      return run(Plain<float>{static_cast<const float*>(p.from.data)});
    case DType::kF16:
      return run(Plain<__half>{static_cast<const __half*>(p.from.data)});
    case DType::kBF16:
      return run(Plain<__nv_bfloat16>{static_cast<const __nv_bfloat16*>(p.from.data)});
    case DType::kQ8_0:
      return blocks(static_cast<BlockQ8_0*>(nullptr));
    case DType::kQ4_0:
      return blocks(static_cast<BlockQ4_0*>(nullptr));
    case DType::kQ4_1:
      return blocks(static_cast<BlockQ4_1*>(nullptr));
    case DType::kQ4_K:
      return blocks(static_cast<BlockQ4_K*>(nullptr));
    case DType::kQ6_K:
      return blocks(static_cast<BlockQ6_K*>(nullptr));
    case DType::kE4M3:
      internal::CheckFailed("not a type of weights", __FILE__, __LINE__);
  }
}

}  // namespace

void ConvertWeights(const Context& ctx, const ConvertWeightsParams& p) {
  DispatchActivation(ctx.activation_dtype(), [&]<typename T>(T) { Convert<T>(ctx, p); });
  CheckLaunch(ctx, "ConvertWeights");
}

void FillRandom(const Context& ctx, const FillRandomParams& p) {
  const float scale = p.weights.deviation * kUniformToDeviation;
  const auto fill = [&]<typename T>(T* out) {
    FillKernel<<<GridFor(p.elements), kThreads, 0, StreamOf(ctx)>>>(p.weights.seed, p.weights.mean,
                                                                    scale, p.elements, out);
  };
  if (p.dtype == DType::kF32) {
    fill(static_cast<float*>(p.out));
  } else {
    DispatchActivation(p.dtype, [&]<typename T>(T) { fill(static_cast<T*>(p.out)); });
  }
  CheckLaunch(ctx, "FillRandom");
}

}  // namespace espalier::kernels::cuda
