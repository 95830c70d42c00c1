// Ranges of code points as sequences of byte ranges.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/constraint/regex.h"

namespace espalier {

struct ByteRange {
  uint8_t first;
  uint8_t last;  // inclusive
};

// Sequences of one to four byte ranges; together they match exactly the UTF-8 of the range's code
// points. The range holds no surrogate.
std::vector<std::vector<ByteRange>> Utf8Ranges(CodePointRange range);

}  // namespace espalier
