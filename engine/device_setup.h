// Which device an engine runs on, and how many KV pages fit there.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "kernels/attention/kv_view.h"

namespace espalier {

// UNIMPLEMENTED names the field, the value and what the CUDA backend takes.
absl::Status CheckCudaRuns(const ModelConfig& model);

// UNAVAILABLE says why the device that was asked for cannot be had, UNIMPLEMENTED why it does not
// run the model; when none was asked for, such a model runs on the CPU. `stored` is the type of the
// checkpoint's matrices.
absl::StatusOr<std::unique_ptr<Context>> OpenContext(const EngineConfig& config,
                                                     const ModelConfig& model, DType stored);

// What the KV cache holds: with kAuto activations on CUDA, on the CPU fp32 or fp16 by the context's
// precision.
DType KvDType(const Context& ctx, KvCacheDType choice);

// That a cache may have, however much memory there is: slots are numbers of 31 bits, on CUDA rows
// of KV, a kv head's of a slot, of 28.
int MostPages(Device device, int page_size, int num_kv_heads);

// Pages for the bytes asked for, or for a share of the memory that is free now; one takes
// `page_bytes`, in all caches together, of which none has more kv heads than `num_kv_heads`.
// INVALID_ARGUMENT when it does not hold two pages.
absl::StatusOr<int> NumPages(const EngineConfig& config, const Context& ctx, size_t page_bytes,
                             int num_kv_heads);

std::string DescribeDevice(const Context& ctx);

}  // namespace espalier
