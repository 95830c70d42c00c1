// Rotation of q and k, and the store of k and v into the cache, in one pass.
#include "kernels/core/check.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/numbers.cuh"

namespace espalier::kernels::cuda {
namespace {

using espalier::cuda::AwaitKernelBefore;
using espalier::cuda::Check;
using espalier::cuda::DispatchKv;
using espalier::cuda::FromFloat;
using espalier::cuda::kLargest;
using espalier::cuda::LaunchOverlapping;
using espalier::cuda::LetDependentsStart;
using espalier::cuda::StreamOf;
using espalier::cuda::ToFloat;

// Heads of a block: a thread has one pair of one head.
constexpr int kHeads = 8;

template <typename T, typename Kv>
struct RopeArguments {
  const T* qkv;
  T* q;
  const int32_t* positions;
  const int64_t* kv_slots;
  const float* inv_freq;
  float magnitude;
  int num_heads;
  Kv* k_cache;
  Kv* v_cache;
  const float* k_scale;  // null: 1
  const float* v_scale;
  int num_kv_heads;
  int head_dim;
  int page_size;
  uint8_t* row_bad;
};

// Non-finite values would spoil whoever multiplies a whole page: they are stored as 0.
template <typename Kv>
__device__ Kv Storable(float value, float scale, bool* bad) {
  if (!isfinite(value)) {
    *bad = true;
    return FromFloat<Kv>(0.0f);
  }
  return FromFloat<Kv>(fminf(fmaxf(value / scale, -kLargest<Kv>), kLargest<Kv>));
}

// Grid: (rows, q heads and kv heads / kHeads). Block: (head_dim / 2, kHeads).
template <typename T, typename Kv>
__global__ void RopeStoreKvKernel(const RopeArguments<T, Kv> p) {
  // Attention that comes next may begin with KV of earlier steps.
  LetDependentsStart();
  const int64_t row = blockIdx.x;
  const int head = static_cast<int>(blockIdx.y * kHeads + threadIdx.y);
  const int kv_head = head - p.num_heads;
  if (kv_head >= p.num_kv_heads) return;
  const int half = p.head_dim / 2;
  const int i = threadIdx.x;
  const int64_t q_width = int64_t{p.num_heads} * p.head_dim;
  const int64_t kv_width = int64_t{p.num_kv_heads} * p.head_dim;
  // q heads and k heads follow each other in a row.
  const T* from = p.qkv + row * (q_width + 2 * kv_width) + int64_t{head} * p.head_dim;
  float sin;
  float cos;
  sincosf(static_cast<float>(p.positions[row]) * p.inv_freq[i], &sin, &cos);
  sin *= p.magnitude;
  cos *= p.magnitude;
  AwaitKernelBefore();  // inputs of the step were there before its first kernel
  const float a = ToFloat(from[i]);
  const float b = ToFloat(from[i + half]);
  const float rotated_a = a * cos - b * sin;
  const float rotated_b = b * cos + a * sin;
  if (kv_head < 0) {
    T* to = p.q + row * q_width + int64_t{head} * p.head_dim;
    to[i] = FromFloat<T>(rotated_a);
    to[i + half] = FromFloat<T>(rotated_b);
    return;
  }

  const int64_t slot = p.kv_slots[row];
  if (slot < 0) return;
  const T* v = from + kv_width;
  const int64_t at =
      ((slot / p.page_size * p.num_kv_heads + kv_head) * p.page_size + slot % p.page_size) *
      p.head_dim;
  const float k_scale = p.k_scale == nullptr ? 1.0f : p.k_scale[kv_head];
  const float v_scale = p.v_scale == nullptr ? 1.0f : p.v_scale[kv_head];
  bool bad = false;
  p.k_cache[at + i] = Storable<Kv>(rotated_a, k_scale, &bad);
  p.k_cache[at + i + half] = Storable<Kv>(rotated_b, k_scale, &bad);
  p.v_cache[at + i] = Storable<Kv>(ToFloat(v[i]), v_scale, &bad);
  p.v_cache[at + i + half] = Storable<Kv>(ToFloat(v[i + half]), v_scale, &bad);
  if (bad) p.row_bad[row] = 1;
}

}  // namespace

void RopeStoreKv(const Context& ctx, const RopeStoreKvParams& p) {
  if (p.rows == 0) return;
  ESPALIER_CHECK(p.kv.head_dim % 2 == 0);
  ESPALIER_CHECK(p.kv.head_dim / 2 * kHeads <= 1024);
  const dim3 grid(p.rows, (p.num_heads + p.kv.num_kv_heads + kHeads - 1) / kHeads);
  const dim3 block(p.kv.head_dim / 2, kHeads);
  DispatchKv(ctx.activation_dtype(), p.kv.dtype, [&]<typename T, typename Kv>() {
    const cudaError_t error =
        LaunchOverlapping(RopeStoreKvKernel<T, Kv>, {.blocks = grid, .threads = block},
                          ctx.cuda().overlaps(), StreamOf(ctx),
                          RopeArguments<T, Kv>{.qkv = static_cast<const T*>(p.qkv),
                                               .q = static_cast<T*>(p.q),
                                               .positions = p.positions,
                                               .kv_slots = p.kv_slots,
                                               .inv_freq = p.inv_freq,
                                               .magnitude = p.rope_magnitude,
                                               .num_heads = p.num_heads,
                                               .k_cache = static_cast<Kv*>(p.kv.k),
                                               .v_cache = static_cast<Kv*>(p.kv.v),
                                               .k_scale = p.kv.k_scale,
                                               .v_scale = p.kv.v_scale,
                                               .num_kv_heads = p.kv.num_kv_heads,
                                               .head_dim = p.kv.head_dim,
                                               .page_size = p.kv.page_size,
                                               .row_bad = p.row_bad});
    Check(ctx, "RopeStoreKv", error);
  });
}

}  // namespace espalier::kernels::cuda
