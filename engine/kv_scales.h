// The scales of an E4M3 KV cache: fixed numbers, found before the cache is created by running the
// model over tokens that are the same at every start.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/kvcache/kv_cache.h"
#include "kernels/attention/kv_view.h"
#include "kernels/runtime/context.h"
#include "model/llama.h"
#include "model/tokenizer/tokenizer.h"

namespace espalier {

// What the model is run over: sequences of ids below `vocab_size`, at most `max_context` tokens
// each.
std::vector<std::vector<int32_t>> CalibrationSequences(const Tokenizer& tokenizer, int vocab_size,
                                                       int max_context);

// The smallest power of two with which twice `largest` can be stored; 1 for 0. A power of two, so
// that scaling is exact, and a maximum that comes out a little different on another device or batch
// gives the same scale nearly always.
float ScaleFor(float largest);

struct CalibrationLimits {
  int max_rows = 0;  // that the model takes a step
  int max_context = 0;
};

// The scales of a cache of `layout` for the model; none unless its dtype is kE4M3. Takes memory for
// a few hundred tokens, and gives it back. INVALID_ARGUMENT when every row has a value that is not
// finite; a row that has one counts for nothing otherwise, as it would fail its own request alone.
absl::StatusOr<KvScales> FindKvScales(Context* ctx, Llama* model, const Tokenizer& tokenizer,
                                      const KvLayout& layout, const CalibrationLimits& limits);

}  // namespace espalier
