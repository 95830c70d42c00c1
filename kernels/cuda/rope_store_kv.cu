// Rotation of q and k, and the store of k and v into the cache, in one pass.
#include "kernels/core/check.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/numbers.cuh"

namespace espalier::kernels::cuda {
namespace {

using espalier::cuda::CheckLaunch;
using espalier::cuda::DispatchActivation;
using espalier::cuda::FromFloat;
using espalier::cuda::kLargest;
using espalier::cuda::StreamOf;
using espalier::cuda::ToFloat;

// Heads that a block works on at a time.
constexpr int kHeadsAtOnce = 8;

template <typename T>
struct RopeArguments {
  const T* qkv;
  T* q;
  const int32_t* positions;
  const int64_t* kv_slots;
  const float* inv_freq;
  float magnitude;
  int num_heads;
  T* k_cache;
  T* v_cache;
  int num_kv_heads;
  int head_dim;
  int page_size;
  uint8_t* row_bad;
};

// Non-finite values would spoil whoever multiplies a whole page: they are stored as 0.
template <typename T>
__device__ T Storable(float value, bool* bad) {
  if (!isfinite(value)) {
    *bad = true;
    return FromFloat<T>(0.0f);
  }
  return FromFloat<T>(fminf(fmaxf(value, -kLargest<T>), kLargest<T>));
}

// Grid: rows. Block: (head_dim / 2, kHeadsAtOnce); a thread keeps its pair's angle for all heads.
template <typename T>
__global__ void RopeStoreKvKernel(const RopeArguments<T> p) {
  const int64_t row = blockIdx.x;
  const int half = p.head_dim / 2;
  const int i = threadIdx.x;
  const int64_t q_width = int64_t{p.num_heads} * p.head_dim;
  const T* q = p.qkv + row * (q_width + 2 * int64_t{p.num_kv_heads} * p.head_dim);
  float sin;
  float cos;
  sincosf(static_cast<float>(p.positions[row]) * p.inv_freq[i], &sin, &cos);
  sin *= p.magnitude;
  cos *= p.magnitude;

  for (int head = threadIdx.y; head < p.num_heads; head += kHeadsAtOnce) {
    const T* from = q + head * p.head_dim;
    const float a = ToFloat(from[i]);
    const float b = ToFloat(from[i + half]);
    T* to = p.q + row * q_width + head * p.head_dim;
    to[i] = FromFloat<T>(a * cos - b * sin);
    to[i + half] = FromFloat<T>(b * cos + a * sin);
  }

  const int64_t slot = p.kv_slots[row];
  if (slot < 0) return;
  bool bad = false;
  for (int head = threadIdx.y; head < p.num_kv_heads; head += kHeadsAtOnce) {
    const T* k = q + q_width + head * p.head_dim;
    const T* v = k + int64_t{p.num_kv_heads} * p.head_dim;
    const int64_t at =
        ((slot / p.page_size * p.num_kv_heads + head) * p.page_size + slot % p.page_size) *
        p.head_dim;
    const float a = ToFloat(k[i]);
    const float b = ToFloat(k[i + half]);
    p.k_cache[at + i] = Storable<T>(a * cos - b * sin, &bad);
    p.k_cache[at + i + half] = Storable<T>(b * cos + a * sin, &bad);
    p.v_cache[at + i] = Storable<T>(ToFloat(v[i]), &bad);
    p.v_cache[at + i + half] = Storable<T>(ToFloat(v[i + half]), &bad);
  }
  if (bad) p.row_bad[row] = 1;
}

}  // namespace

void RopeStoreKv(const Context& ctx, const RopeStoreKvParams& p) {
  if (p.rows == 0) return;
  ESPALIER_CHECK(p.kv.dtype == ctx.activation_dtype());
  ESPALIER_CHECK(p.kv.head_dim % 2 == 0);
  ESPALIER_CHECK(p.kv.head_dim / 2 * kHeadsAtOnce <= 1024);
  const dim3 block(p.kv.head_dim / 2, kHeadsAtOnce);
  DispatchActivation(ctx.activation_dtype(), [&]<typename T>(T) {
    RopeStoreKvKernel<<<p.rows, block, 0, StreamOf(ctx)>>>(
        RopeArguments<T>{.qkv = static_cast<const T*>(p.qkv),
                         .q = static_cast<T*>(p.q),
                         .positions = p.positions,
                         .kv_slots = p.kv_slots,
                         .inv_freq = p.inv_freq,
                         .magnitude = p.rope_magnitude,
                         .num_heads = p.num_heads,
                         .k_cache = static_cast<T*>(p.kv.k),
                         .v_cache = static_cast<T*>(p.kv.v),
                         .num_kv_heads = p.kv.num_kv_heads,
                         .head_dim = p.kv.head_dim,
                         .page_size = p.kv.page_size,
                         .row_bad = p.row_bad});
  });
  CheckLaunch(ctx, "RopeStoreKv");
}

}  // namespace espalier::kernels::cuda
