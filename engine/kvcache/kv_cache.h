// Owns the memory of the KV pages, one K and one V buffer a layer, zeroed once, and of the scales
// of what they hold.
//
// On the CPU the kernel gives the memory at its first use, so a server that uses few pages stays
// small and starts at once. Create asks beforehand whether the machine could give all of it: a pool
// that cannot fit is refused at start-up instead of being killed for it under load.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/attention/kv_view.h"
#include "kernels/runtime/device_memory.h"

namespace espalier {

// Of a cache of kE4M3, see KvLayerView: normal numbers above 0. Empty with any other type.
struct KvScales {
  std::vector<float> k;  // [num_layers, num_kv_heads]
  std::vector<float> v;  // [num_layers, num_kv_heads]
};

class KvCache {
 public:
  // RESOURCE_EXHAUSTED names the bytes wanted when memory cannot be had; INVALID_ARGUMENT the
  // field of a layout that describes no cache, and what is wrong with the scales.
  static absl::StatusOr<std::unique_ptr<KvCache>> Create(const Context& ctx, const KvLayout& layout,
                                                         int num_pages,
                                                         const KvScales& scales = {});
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  const KvLayout& layout() const { return layout_; }
  int num_pages() const { return num_pages_; }
  KvLayerView layer(int index) const;

 private:
  KvCache(const KvLayout& layout, int num_pages) : layout_(layout), num_pages_(num_pages) {}
  absl::Status Map(size_t bytes);
  absl::Status AllocateOnDevice(const Context& ctx, size_t bytes);
  absl::Status CopyScales(const Context& ctx, const KvScales& scales);

  size_t buffer_bytes() const;

  const KvLayout layout_;
  const int num_pages_;
  std::byte* memory_ = nullptr;  // K of layer 0, V of layer 0, K of layer 1, ...
  size_t memory_bytes_ = 0;
  size_t mapped_bytes_ = 0;     // CPU
  DeviceBuffer device_memory_;  // CUDA
  DeviceBuffer scales_;         // [2, num_layers, num_kv_heads], of K, then of V; kE4M3
};

}  // namespace espalier
