// How Hopper's copy engine finds rows of K or V.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/core/dtype.h"

namespace espalier::cuda {

// Of [num_rows, head_dim] elements: boxes of `box_rows` rows. Of 16-bit types in blocks of 64
// dimensions that come one behind the other, 128 bytes a row and swizzled over 128 bytes; of kE4M3
// as they lie. Rows from num_rows on are zeros. `rows` is a multiple of 16.
cudaError_t MapRows(const void* rows, int64_t num_rows, int head_dim, int box_rows, DType dtype,
                    CUtensorMap* map);

}  // namespace espalier::cuda
