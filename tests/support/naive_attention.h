// Attention by its definition, in double precision, and KV memory for tests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/attention/kv_view.h"
#include "kernels/attention/tree_shape.h"
#include "kernels/runtime/thread_pool.h"
#include "tests/support/random_forest.h"

namespace espalier::testing {

// Rounds to the dtype (kF32, kF16, kBF16 or kE4M3), stores it and returns the value stored.
double StoreAs(DType dtype, float value, int64_t element, std::vector<std::byte>* bytes);
double LoadAs(DType dtype, int64_t element, const std::vector<std::byte>& bytes);

// One layer's K and V. Slots that some query sees hold normal values, rounded to the dtype; all
// others hold `unseen`. With kE4M3 heads have scales of their own, all well away from 1. V's values
// are `v_magnitude` times normal ones.
class KvMemory {
 public:
  KvMemory(Rng& rng, const Forest& forest, int num_kv_heads, int head_dim, DType dtype,
           float unseen = std::numeric_limits<float>::quiet_NaN(), float v_magnitude = 1);

  KvLayerView view();
  // The value, with its scale. `element` is an offset of KvLayerView::Offset plus a dimension.
  double k(int64_t element) const { return k_values_[element]; }
  double v(int64_t element) const { return v_values_[element]; }

 private:
  KvLayerView view_;
  std::vector<double> k_values_;
  std::vector<double> v_values_;
  std::vector<std::byte> k_bytes_;
  std::vector<std::byte> v_bytes_;
  std::vector<float> k_scales_;
  std::vector<float> v_scales_;
};

// out[num_queries, num_heads, head_dim]; softmax over exactly the keys that each query sees.
std::vector<double> NaiveAttention(const TreeShape& shape, KvMemory& kv, const float* q,
                                   int num_heads, double scale, ThreadPool* pool = nullptr);

}  // namespace espalier::testing
