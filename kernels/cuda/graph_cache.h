// Captured CUDA graphs of whole steps, by shape. No CUDA headers.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "kernels/runtime/context.h"

namespace espalier {

struct GraphKey {
  int rows = 0;
  int logits_rows = 0;
  int requests = 0;  // sampling requests
  bool has_partials = false;
  bool has_pairs = false;
  bool operator==(const GraphKey&) const = default;
};

class GraphCache {
 public:
  // At most `max_graphs` are kept: when they are full, all are dropped.
  GraphCache(const Context& ctx, int max_graphs);
  ~GraphCache();

  // Enqueues what `enqueue` enqueues: by replaying the graph of that key, captured now if it is new
  // or if `generation` (of the memory that its kernels name) has changed. What `enqueue` enqueues
  // must be the same for the same key and generation. The first time a key is met it is enqueued as
  // it is: libraries load modules and choose algorithms then, which a capture forbids.
  void Run(const GraphKey& key, int64_t generation, const std::function<void()>& enqueue);

  int num_graphs() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace espalier
