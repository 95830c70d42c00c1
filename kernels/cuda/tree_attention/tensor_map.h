// How Hopper's copy engine finds rows of K or V.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/core/dtype.h"

namespace espalier::cuda {

// Of [num_rows, head_dim] 16-bit elements: boxes of `box_rows` rows, in blocks of 64 dimensions
// that come one behind the other, 128 bytes a row and swizzled over 128 bytes. Rows from num_rows
// on are zeros. `rows` is a multiple of 16.
cudaError_t MapRows(const void* rows, int64_t num_rows, int head_dim, int box_rows, DType dtype,
                    CUtensorMap* map);

}  // namespace espalier::cuda
