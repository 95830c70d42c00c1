#include <algorithm>
#include <vector>

#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/device_rates.h"
#include "kernels/ops.h"
#include "kernels/runtime/device_memory.h"
#include "kernels/weight_ops.h"

namespace espalier::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kBlocksPerSm = 4;
constexpr int kLoadsInFlight = 8;
constexpr size_t kReadBytes = size_t{8} << 30;
constexpr int64_t kMatrix = 8192;
constexpr int kRepeats = 12;

// Reads `count` 16-byte words, a multiple of what the grid reads in one turn; the sum keeps the
// loads alive.
__global__ void __launch_bounds__(kThreads)
    ReadKernel(const uint4* data, int64_t count, uint32_t* sum) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  uint32_t folded = 0;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count;
       i += stride * kLoadsInFlight) {
    uint4 words[kLoadsInFlight];
#pragma unroll
    for (int k = 0; k < kLoadsInFlight; ++k) {
      words[k] = __ldcs(data + i + k * stride);
    }
#pragma unroll
    for (const uint4& word : words) folded ^= word.x ^ word.y ^ word.z ^ word.w;
  }
  if (folded == 0x12345678) atomicAdd(sum, folded);
}

}  // namespace

double MedianMicroseconds(const Context& ctx, int repeats, const std::function<void()>& enqueue) {
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  Check(ctx, "create an event", cudaEventCreate(&begin));
  Check(ctx, "create an event", cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i <= repeats; ++i) {
    Check(ctx, "record an event", cudaEventRecord(begin, StreamOf(ctx)));
    enqueue();
    Check(ctx, "record an event", cudaEventRecord(end, StreamOf(ctx)));
    float ms = 0;
    Check(ctx, "wait for an event", cudaEventSynchronize(end));
    Check(ctx, "read a time", cudaEventElapsedTime(&ms, begin, end));
    if (i > 0) times.push_back(ms);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::ranges::nth_element(times, times.begin() + times.size() / 2);
  return times[times.size() / 2] * 1000.0;
}

double MeasureReadGbps(const Context& ctx) {
  const DeviceBuffer data(ctx, kReadBytes);
  const DeviceBuffer sum(ctx, sizeof(uint32_t));
  if (data.empty() || sum.empty()) return 0;
  kernels::FillRandom(ctx, {.weights = {.seed = 1, .deviation = 1},
                            .elements = static_cast<int64_t>(kReadBytes / sizeof(float)),
                            .dtype = DType::kF32,
                            .out = data.As<void>()});
  const int blocks = ctx.cuda().num_sms * kBlocksPerSm;
  const int64_t turn = int64_t{blocks} * kThreads * kLoadsInFlight;
  const int64_t words = static_cast<int64_t>(kReadBytes / sizeof(uint4)) / turn * turn;
  const double us = MedianMicroseconds(ctx, kRepeats, [&] {
    ReadKernel<<<blocks, kThreads, 0, StreamOf(ctx)>>>(data.As<uint4>(), words,
                                                       sum.As<uint32_t>());
    CheckLaunch(ctx, "read");
  });
  return us > 0 ? static_cast<double>(words) * sizeof(uint4) / us * 1e-3 : 0;
}

double MeasureMatMulTflops(const Context& ctx) {
  const DType dtype = ctx.activation_dtype();
  const size_t bytes = BytesOf(dtype, kMatrix * kMatrix);
  const DeviceBuffer a(ctx, bytes);
  const DeviceBuffer b(ctx, bytes);
  const DeviceBuffer out(ctx, bytes);
  if (a.empty() || b.empty() || out.empty()) return 0;
  for (const DeviceBuffer* matrix : {&a, &b}) {
    kernels::FillRandom(ctx, {.weights = {.seed = matrix == &a ? 1u : 2u, .deviation = 1},
                              .elements = kMatrix * kMatrix,
                              .dtype = dtype,
                              .out = matrix->As<void>()});
  }
  const double us = MedianMicroseconds(ctx, kRepeats, [&] {
    kernels::MatMul(ctx, {.x = a.As<void>(),
                          .weight = {b.As<void>(), dtype, kMatrix, kMatrix},
                          .bias = nullptr,
                          .rows = kMatrix,
                          .out = out.As<void>()});
  });
  return us > 0 ? 2.0 * kMatrix * kMatrix * kMatrix / us * 1e-6 : 0;
}

}  // namespace espalier::cuda
