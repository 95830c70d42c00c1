#include "tests/support/naive_attention.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/core/fp8.h"

namespace espalier::testing {

double StoreAs(DType dtype, float value, int64_t element, std::vector<std::byte>* bytes) {
  if (dtype == DType::kF32) {
    std::memcpy(bytes->data() + element * 4, &value, 4);
    return value;
  }
  if (dtype == DType::kF16) {
    const _Float16 half = static_cast<_Float16>(value);
    std::memcpy(bytes->data() + element * 2, &half, 2);
    return static_cast<float>(half);
  }
  if (dtype == DType::kE4M3) {
    (*bytes)[element] = static_cast<std::byte>(FloatToE4M3(value));
    return E4M3ToFloat(static_cast<uint8_t>((*bytes)[element]));
  }
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = std::isnan(value) ? bits : bits + 0x7fff + ((bits >> 16) & 1);
  const uint16_t stored = static_cast<uint16_t>(rounded >> 16);
  std::memcpy(bytes->data() + element * 2, &stored, 2);
  return std::bit_cast<float>(uint32_t{stored} << 16);
}

double LoadAs(DType dtype, int64_t element, const std::vector<std::byte>& bytes) {
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, bytes.data() + element * 4, 4);
    return value;
  }
  if (dtype == DType::kE4M3) return E4M3ToFloat(static_cast<uint8_t>(bytes[element]));
  uint16_t bits;
  std::memcpy(&bits, bytes.data() + element * 2, 2);
  if (dtype == DType::kBF16) return std::bit_cast<float>(uint32_t{bits} << 16);
  return static_cast<float>(std::bit_cast<_Float16>(bits));
}

KvMemory::KvMemory(Rng& rng, const Forest& forest, int num_kv_heads, int head_dim, DType dtype,
                   float unseen, float v_magnitude) {
  view_ = {.k = nullptr,
           .v = nullptr,
           .num_pages = forest.num_pages,
           .num_kv_heads = num_kv_heads,
           .head_dim = head_dim,
           .page_size = forest.shape.page_size,
           .dtype = dtype};
  const int64_t slots = int64_t{forest.num_pages} * forest.shape.page_size;
  const int64_t elements = slots * num_kv_heads * head_dim;
  k_values_.resize(elements);
  v_values_.resize(elements);
  k_bytes_.resize(BytesOf(dtype, elements));
  v_bytes_.resize(k_bytes_.size());

  std::vector<bool> seen(slots, false);
  for (int i = 0; i < forest.shape.num_queries(); ++i) {
    for (const int64_t slot : VisibleSlots(forest.shape, i)) seen[slot] = true;
  }
  const bool scaled = dtype == DType::kE4M3;
  std::uniform_real_distribution<float> scale(0.005f, 0.1f);
  for (int head = 0; head < num_kv_heads; ++head) {
    k_scales_.push_back(scaled ? scale(rng) : 1.0f);
    v_scales_.push_back(scaled ? scale(rng) : 1.0f);
  }
  std::normal_distribution<float> normal;
  for (int64_t slot = 0; slot < slots; ++slot) {
    for (int head = 0; head < num_kv_heads; ++head) {
      for (int d = 0; d < head_dim; ++d) {
        const int64_t element = view_.Offset(slot, head) + d;
        const auto store = [&](float magnitude, float head_scale, std::vector<std::byte>* bytes) {
          const float value = seen[slot] ? magnitude * normal(rng) / head_scale : unseen;
          return StoreAs(dtype, value, element, bytes) * head_scale;
        };
        k_values_[element] = store(1, k_scales_[head], &k_bytes_);
        v_values_[element] = store(v_magnitude, v_scales_[head], &v_bytes_);
      }
    }
  }
}

KvLayerView KvMemory::view() {
  view_.k = k_bytes_.data();
  view_.v = v_bytes_.data();
  if (view_.dtype == DType::kE4M3) {
    view_.k_scale = k_scales_.data();
    view_.v_scale = v_scales_.data();
  }
  return view_;
}

std::vector<double> NaiveAttention(const TreeShape& shape, KvMemory& kv, const float* q,
                                   int num_heads, double scale, ThreadPool* pool) {
  const KvLayerView view = kv.view();
  const int head_dim = view.head_dim;
  const int group = num_heads / view.num_kv_heads;
  std::vector<double> out(size_t(shape.num_queries()) * num_heads * head_dim, 0.0);
  const auto attend = [&](int query, int /*worker*/) {
    const std::vector<int64_t> slots = VisibleSlots(shape, query);
    std::vector<double> weights;
    for (int head = 0; head < num_heads; ++head) {
      const int64_t row = (int64_t{query} * num_heads + head) * head_dim;
      weights.clear();
      double highest = -std::numeric_limits<double>::infinity();
      for (const int64_t slot : slots) {
        const int64_t at = view.Offset(slot, head / group);
        double score = 0;
        for (int d = 0; d < head_dim; ++d) score += double{q[row + d]} * kv.k(at + d);
        weights.push_back(score * scale);
        highest = std::max(highest, weights.back());
      }
      double sum = 0;
      for (double& weight : weights) sum += weight = std::exp(weight - highest);
      for (size_t s = 0; s < slots.size(); ++s) {
        const int64_t at = view.Offset(slots[s], head / group);
        for (int d = 0; d < head_dim; ++d) out[row + d] += weights[s] / sum * kv.v(at + d);
      }
    }
  };
  if (pool != nullptr) {
    pool->Run(shape.num_queries(), attend);
  } else {
    for (int query = 0; query < shape.num_queries(); ++query) attend(query, 0);
  }
  return out;
}

}  // namespace espalier::testing
