#include "kernels/cuda/graph_cache.h"

#include <vector>

#include "kernels/cuda/cuda_state.h"

namespace espalier {
namespace {

struct Entry {
  GraphKey key;
  int64_t generation = 0;
  cudaGraphExec_t graph = nullptr;
};

}  // namespace

struct GraphCache::Impl {
  const Context& ctx;
  const int max_graphs;
  std::vector<Entry> entries;
  std::vector<GraphKey> warmed;

  void Clear() {
    for (Entry& entry : entries) cudaGraphExecDestroy(entry.graph);
    entries.clear();
  }
  // Null, and an error recorded, when the capture failed.
  cudaGraphExec_t Capture(const std::function<void()>& enqueue) {
    const cudaStream_t stream = ctx.cuda().stream;
    cuda::Check(ctx, "begin a capture",
                cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    enqueue();
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    cuda::Check(ctx, "end a capture", cudaStreamEndCapture(stream, &graph));
    if (graph == nullptr) return nullptr;
    cuda::Check(ctx, "instantiate a graph", cudaGraphInstantiate(&executable, graph, 0));
    cudaGraphDestroy(graph);
    return executable;
  }
};

GraphCache::GraphCache(const Context& ctx, int max_graphs)
    : impl_(new Impl{.ctx = ctx, .max_graphs = max_graphs, .entries = {}, .warmed = {}}) {}
GraphCache::~GraphCache() { impl_->Clear(); }

int GraphCache::num_graphs() const { return static_cast<int>(impl_->entries.size()); }

void GraphCache::Run(const GraphKey& key, int64_t generation,
                     const std::function<void()>& enqueue) {
  std::vector<Entry>& entries = impl_->entries;
  if (!entries.empty() && entries.front().generation != generation) impl_->Clear();
  for (const Entry& entry : entries) {
    if (entry.key != key) continue;
    cuda::Check(impl_->ctx, "launch a graph",
                cudaGraphLaunch(entry.graph, impl_->ctx.cuda().stream));
    return;
  }
  bool warm = false;
  for (const GraphKey& seen : impl_->warmed) warm |= seen == key;
  if (!warm) {
    impl_->warmed.push_back(key);
    return enqueue();
  }
  if (static_cast<int>(entries.size()) == impl_->max_graphs) impl_->Clear();
  const cudaGraphExec_t graph = impl_->Capture(enqueue);
  if (graph == nullptr) return;
  entries.push_back({key, generation, graph});
  cuda::Check(impl_->ctx, "launch a graph", cudaGraphLaunch(graph, impl_->ctx.cuda().stream));
}

}  // namespace espalier
