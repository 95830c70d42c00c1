// Timing on a CUDA device, and attention by its definition, in fp32 and without a plan. No CUDA
// headers.
#pragma once

#include <functional>
#include <vector>

#include "kernels/attention/kv_view.h"
#include "kernels/attention/tree_shape.h"
#include "kernels/runtime/context.h"

namespace espalier::testing {

// Captures what `enqueue` enqueues in a graph and replays it; after two replays that do not count,
// microseconds of each by the device's clock.
std::vector<double> TimeReplays(const Context& ctx, int replays,
                                const std::function<void()>& enqueue);

size_t L2Bytes(const Context& ctx);

// out[num_queries, num_heads, head_dim] in fp32, by a walk from each query's node to the root.
// Reads exactly the slots that the query sees. `q` is of the context's activation type, `kv` of
// that or of kE4M3.
void ReferenceAttention(const Context& ctx, const TreeShape& shape, const KvLayerView& kv,
                        const void* q, int num_heads, float scale, float* out);

}  // namespace espalier::testing
