// Element types of weights, activations and KV. Quantised types are stored in blocks along the
// last dimension, in ggml's block layouts (source: the GGUF specification and ggml's quants).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace espalier {

// kE4M3 (fp8.h) is a type of KV alone.
enum class DType : uint8_t { kF32, kF16, kBF16, kE4M3, kQ8_0, kQ4_0, kQ4_1, kQ4_K, kQ6_K };

struct DTypeInfo {
  std::string_view name;
  int block_elements;  // elements that share one block; 1 for plain types
  int block_bytes;
};

const DTypeInfo& Info(DType dtype);

// Bytes of `elements` contiguous elements. `elements` must be a multiple of the block.
size_t BytesOf(DType dtype, int64_t elements);

}  // namespace espalier
