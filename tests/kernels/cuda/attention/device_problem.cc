#include "tests/kernels/cuda/attention/device_problem.h"

#include <algorithm>
#include <cmath>

#include "kernels/cuda/tree_attention/device_plan.h"
#include "kernels/ops.h"
#include "tests/kernels/cuda/attention/device_measure.h"

namespace espalier::testing {
namespace {

float Scale(int head_dim) { return 1.0f / std::sqrt(static_cast<float>(head_dim)); }

AttentionError Compare(const std::vector<double>& got, const std::vector<double>& expected) {
  double error = 0;
  double norm = 0;
  double largest = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double difference = got[i] - expected[i];
    error += difference * difference;
    norm += expected[i] * expected[i];
    if (!(std::abs(difference) <= largest)) largest = std::abs(difference);
  }
  return {.relative = std::sqrt(error / norm), .largest = largest};
}

}  // namespace

void AttentionError::Include(const AttentionError& other) {
  if (!(other.relative <= relative)) relative = other.relative;
  if (!(other.largest <= largest)) largest = other.largest;
}

DeviceProblem::DeviceProblem(uint64_t seed, Forest forest, const DeviceProblemOptions& options,
                             ThreadPool* pool)
    : forest_(std::move(forest)), options_(options) {
  Rng rng(seed);
  kv_ = std::make_unique<KvMemory>(rng, forest_, options_.num_kv_heads, options_.head_dim,
                                   options_.kv_dtype(), options_.unseen, options_.v_spread);
  std::normal_distribution<float> normal(0.0f, options_.q_spread);
  const int64_t elements = int64_t{shape().num_queries()} * num_heads() * options_.head_dim;
  std::vector<float> q(elements);
  q_.resize(elements * 2);
  for (int64_t i = 0; i < elements; ++i) {
    q[i] = static_cast<float>(StoreAs(options_.dtype, normal(rng), i, &q_));
  }
  expected_ = NaiveAttention(shape(), *kv_, q.data(), num_heads(), Scale(options_.head_dim), pool);
}

void DeviceProblem::Upload(const Context& ctx) {
  const KvLayerView kv = kv_->view();
  const size_t bytes =
      BytesOf(kv.dtype, kv.num_pages * int64_t{kv.num_kv_heads} * kv.page_size * kv.head_dim);
  k_device_ = DeviceBuffer(ctx, bytes);
  v_device_ = DeviceBuffer(ctx, bytes);
  q_device_ = DeviceBuffer(ctx, q_.size());
  out_device_ = DeviceBuffer(ctx, q_.size());
  CopyToDevice(ctx, k_device_.As<void>(), kv.k, bytes);
  CopyToDevice(ctx, v_device_.As<void>(), kv.v, bytes);
  CopyToDevice(ctx, q_device_.As<void>(), q_.data(), q_.size());
  if (kv.k_scale == nullptr) return;
  const size_t scale_bytes = kv.num_kv_heads * sizeof(float);
  scales_device_ = DeviceBuffer(ctx, 2 * scale_bytes);
  CopyToDevice(ctx, scales_device_.As<float>(), kv.k_scale, scale_bytes);
  CopyToDevice(ctx, scales_device_.As<float>() + kv.num_kv_heads, kv.v_scale, scale_bytes);
}

KvLayerView DeviceProblem::DeviceKv() const {
  KvLayerView kv = kv_->view();
  kv.k = k_device_.As<void>();
  kv.v = v_device_.As<void>();
  if (kv.k_scale != nullptr) {
    kv.k_scale = scales_device_.As<float>();
    kv.v_scale = kv.k_scale + kv.num_kv_heads;
  }
  return kv;
}

void DeviceProblem::Attend(const Context& ctx, const PlanBuffers& buffers) const {
  kernels::TreeAttention(ctx, {.q = q_device_.As<void>(),
                               .kv = DeviceKv(),
                               .plan = nullptr,
                               .device_plan = &buffers.device_plan(),
                               .num_heads = num_heads(),
                               .scale = Scale(options_.head_dim),
                               .out = out_device_.As<void>()});
}

void DeviceProblem::Poison(const Context& ctx, const PlanBuffers& buffers,
                           const TreePlan& plan) const {
  constexpr int kNan = 0xff;  // in every byte
  const size_t states = plan.stats.partial_rows * num_heads();
  const DevicePlan& device_plan = buffers.device_plan();
  FillDevice(ctx, device_plan.partial_out, kNan, states * options_.head_dim * sizeof(uint16_t));
  FillDevice(ctx, device_plan.partial_weights, kNan, states * sizeof(PartialWeight));
  FillDevice(ctx, out_device_.As<void>(), kNan, out_bytes());
}

std::vector<std::byte> DeviceProblem::Download(const Context& ctx) const {
  std::vector<std::byte> out(out_bytes());
  CopyToHost(ctx, out.data(), out_device_.As<void>(), out.size());
  Synchronize(ctx);
  return out;
}

AttentionError DeviceProblem::ErrorOf(const std::vector<std::byte>& out) const {
  std::vector<double> values(expected_.size());
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = LoadAs(options_.dtype, static_cast<int64_t>(i), out);
  }
  return Compare(values, expected_);
}

AttentionError DeviceProblem::ErrorOfReference(const Context& ctx) const {
  const DeviceBuffer out(ctx, expected_.size() * sizeof(float));
  FillDevice(ctx, out.As<void>(), 0xff, out.bytes());
  ReferenceAttention(ctx, shape(), DeviceKv(), q_device_.As<void>(), num_heads(),
                     Scale(options_.head_dim), out.As<float>());
  std::vector<float> values(expected_.size());
  CopyToHost(ctx, values.data(), out.As<void>(), out.bytes());
  Synchronize(ctx);
  return Compare({values.begin(), values.end()}, expected_);
}

}  // namespace espalier::testing
