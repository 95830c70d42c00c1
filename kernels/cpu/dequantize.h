// Dequantisation on the calling thread, for what is loaded once.
#pragma once

#include "kernels/core/matrix.h"

namespace espalier::kernels::cpu {

// out: [matrix.rows, matrix.cols].
void Dequantize(const ConstMatrix& matrix, float* out);

}  // namespace espalier::kernels::cpu
