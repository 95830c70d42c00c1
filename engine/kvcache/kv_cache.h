// Owns the memory of the KV pages, one K and one V buffer a layer, zeroed once.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/attention/kv_view.h"

namespace espalier {

class KvCache {
 public:
  // RESOURCE_EXHAUSTED names the bytes wanted when memory cannot be had.
  static absl::StatusOr<std::unique_ptr<KvCache>> Create(const KvLayout& layout, int num_pages);
  ~KvCache();

  const KvLayout& layout() const { return layout_; }
  int num_pages() const { return num_pages_; }
  KvLayerView layer(int index) const;

 private:
  KvCache(const KvLayout& layout, int num_pages);

  KvLayout layout_;
  int num_pages_;
  std::vector<float*> buffers_;  // (the implementer chooses the owning type)
};

}  // namespace espalier
