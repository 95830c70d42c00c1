// A row-major matrix that somebody else owns. Rows are contiguous; blocks run along columns.
#pragma once

#include <cstdint>

#include "kernels/core/dtype.h"

namespace espalier {

struct ConstMatrix {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;

  bool empty() const { return data == nullptr; }
};

}  // namespace espalier
