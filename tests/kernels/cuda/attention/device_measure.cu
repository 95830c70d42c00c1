#include <cuda_runtime_api.h>

#include <algorithm>

#include "kernels/cuda/block_reduce.cuh"
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/numbers.cuh"
#include "kernels/runtime/device_memory.h"
#include "tests/kernels/cuda/attention/device_measure.h"

namespace espalier::testing {
namespace {

using cuda::StreamOf;
using cuda::ToFloat;

constexpr int kThreads = 256;

struct DeviceShape {
  const int32_t* parent;
  const int32_t* num_tokens;
  const int32_t* first_slot;
  const int32_t* page_begin;
  const int32_t* page_ids;
  const int32_t* draft_begin;
  const int32_t* draft_subtree_end;
  const int32_t* query_node;
  const int32_t* query_offset;
  int page_size;
};

// Grid: (num_heads / warps of a block, num_queries); a warp takes a (query, head), key by key.
template <typename T, typename Kv, int kHeadDim>
__global__ void __launch_bounds__(kThreads)
    ReferenceKernel(DeviceShape shape, KvLayerView kv, const T* q, int num_heads, float scale,
                    float* out) {
  constexpr int kColumns = kHeadDim / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int head = static_cast<int>(blockIdx.x * kThreads + threadIdx.x) / 32;
  if (head >= num_heads) return;
  const int query = static_cast<int>(blockIdx.y);
  const int64_t row = (int64_t{query} * num_heads + head) * kHeadDim + lane * kColumns;
  const int kv_head = head / (num_heads / kv.num_kv_heads);
  float queries[kColumns];
  float sums[kColumns] = {};
  const float k_scale = kv.k_scale == nullptr ? 1.0f : kv.k_scale[kv_head];
  const float v_scale = kv.v_scale == nullptr ? 1.0f : kv.v_scale[kv_head];
  for (int c = 0; c < kColumns; ++c) queries[c] = ToFloat(q[row + c]) * scale * k_scale;
  float highest = -INFINITY;
  float total = 0;
  const int own = shape.query_node[query];
  const int offset = shape.query_offset[query];
  for (int node = own; node >= 0; node = shape.parent[node]) {
    const int tokens = node == own ? offset + 1 : shape.num_tokens[node];
    const int draft = node == own ? shape.draft_begin[node] : -1;
    for (int t = 0; t < tokens; ++t) {
      if (draft >= 0 && shape.draft_subtree_end[draft + t] <= offset) continue;
      const int slot = shape.first_slot[node] + t;
      const int64_t page = shape.page_ids[shape.page_begin[node] + slot / shape.page_size];
      const int64_t at =
          ((page * kv.num_kv_heads + kv_head) * kv.page_size + slot % shape.page_size) * kHeadDim +
          lane * kColumns;
      float score = 0;
      for (int c = 0; c < kColumns; ++c) {
        score += queries[c] * ToFloat(static_cast<const Kv*>(kv.k)[at + c]);
      }
      score = cuda::WarpSum(score);
      const float new_highest = fmaxf(highest, score);
      const float factor = expf(highest - new_highest);
      const float weight = expf(score - new_highest);
      highest = new_highest;
      total = total * factor + weight;
      for (int c = 0; c < kColumns; ++c) {
        sums[c] = sums[c] * factor + weight * ToFloat(static_cast<const Kv*>(kv.v)[at + c]);
      }
    }
  }
  for (int c = 0; c < kColumns; ++c) out[row + c] = sums[c] / total * v_scale;
}

class ShapeOnDevice {
 public:
  ShapeOnDevice(const Context& ctx, const TreeShape& shape)
      : view_{.parent = Put(ctx, shape.parent),
              .num_tokens = Put(ctx, shape.num_tokens),
              .first_slot = Put(ctx, shape.first_slot),
              .page_begin = Put(ctx, shape.page_begin),
              .page_ids = Put(ctx, shape.page_ids),
              .draft_begin = Put(ctx, shape.draft_begin),
              .draft_subtree_end = Put(ctx, shape.draft_subtree_end),
              .query_node = Put(ctx, shape.query_node),
              .query_offset = Put(ctx, shape.query_offset),
              .page_size = shape.page_size} {}
  const DeviceShape& view() const { return view_; }

 private:
  const int32_t* Put(const Context& ctx, const std::vector<int32_t>& values) {
    const size_t bytes = values.size() * sizeof(int32_t);
    arrays_.emplace_back(ctx, std::max<size_t>(bytes, 4));
    CopyToDevice(ctx, arrays_.back().As<void>(), values.data(), bytes);
    return arrays_.back().As<int32_t>();
  }
  std::vector<DeviceBuffer> arrays_;
  DeviceShape view_;
};

}  // namespace

std::vector<double> TimeReplays(const Context& ctx, int replays,
                                const std::function<void()>& enqueue) {
  const cudaStream_t stream = StreamOf(ctx);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  const auto check = [&](cudaError_t error) { cuda::Check(ctx, "TimeReplays", error); };
  enqueue();  // as it is, so that modules are loaded
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  enqueue();
  check(cudaStreamEndCapture(stream, &graph));
  check(cudaGraphInstantiate(&executable, graph, 0));
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  std::vector<double> microseconds;
  for (int i = -2; i < replays; ++i) {
    check(cudaEventRecord(begin, stream));
    check(cudaGraphLaunch(executable, stream));
    check(cudaEventRecord(end, stream));
    check(cudaEventSynchronize(end));
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin, end));
    if (i >= 0) microseconds.push_back(milliseconds * 1e3);
  }
  cudaEventDestroy(end);
  cudaEventDestroy(begin);
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  return microseconds;
}

size_t L2Bytes(const Context& ctx) { return ctx.cuda().l2_bytes; }

void ReferenceAttention(const Context& ctx, const TreeShape& shape, const KvLayerView& kv,
                        const void* q, int num_heads, float scale, float* out) {
  ESPALIER_CHECK(kv.head_dim == 64 || kv.head_dim == 128);
  const ShapeOnDevice on_device(ctx, shape);
  const dim3 grid((num_heads * 32 + kThreads - 1) / kThreads, shape.num_queries());
  cuda::DispatchKv(ctx.activation_dtype(), kv.dtype, [&]<typename T, typename Kv>() {
    const auto kernel =
        kv.head_dim == 64 ? ReferenceKernel<T, Kv, 64> : ReferenceKernel<T, Kv, 128>;
    kernel<<<grid, kThreads, 0, StreamOf(ctx)>>>(on_device.view(), kv, static_cast<const T*>(q),
                                                 num_heads, scale, out);
  });
  cuda::CheckLaunch(ctx, "ReferenceAttention");
  Synchronize(ctx);  // before the shape's arrays go
}

}  // namespace espalier::testing
