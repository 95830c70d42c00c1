// The one place that names the page layout of the KV cache.
//
// A page is `page_size` token slots. One layer stores K and V as [page][kv_head][slot][head_dim],
// so that one (page, kv head) is one contiguous slab of page_size * head_dim elements.
// A slot id is page * page_size + slot in page, the same in every layer.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/core/dtype.h"

namespace espalier {

struct KvLayout {
  int num_layers = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int page_size = 16;
  DType dtype = DType::kF32;  // kF32, kF16, kBF16 or kE4M3

  int64_t page_elements() const { return int64_t{num_kv_heads} * page_size * head_dim; }
  // Bytes of K and V of one page over all layers.
  size_t page_bytes() const { return 2 * num_layers * BytesOf(dtype, page_elements()); }
};

// K and V of one layer. Borrowed.
struct KvLayerView {
  void* k = nullptr;  // [num_pages, num_kv_heads, page_size, head_dim]
  void* v = nullptr;
  int num_pages = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int page_size = 16;
  DType dtype = DType::kF32;
  // With kE4M3, and only then: [num_kv_heads] in the device's memory, normal numbers above 0. An
  // element's value is what is stored times its head's scale.
  const float* k_scale = nullptr;
  const float* v_scale = nullptr;

  // On the CPU.
  float KeyScale(int kv_head) const { return k_scale == nullptr ? 1.0f : k_scale[kv_head]; }
  float ValueScale(int kv_head) const { return v_scale == nullptr ? 1.0f : v_scale[kv_head]; }

  // Element offset of (slot id, kv head).
  int64_t Offset(int64_t slot, int kv_head) const {
    const int64_t page = slot / page_size;
    return ((page * num_kv_heads + kv_head) * page_size + slot % page_size) * head_dim;
  }
};

}  // namespace espalier
