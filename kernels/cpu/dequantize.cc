#include "kernels/cpu/dequantize.h"

#include "kernels/cpu/kernel_table.h"

namespace espalier::kernels::cpu {

void Dequantize(const ConstMatrix& matrix, float* out) {
  KernelsFor(BestCpuIsa())
      .dequantize(matrix.dtype, static_cast<const std::byte*>(matrix.data),
                  matrix.rows * matrix.cols, out);
}

}  // namespace espalier::kernels::cpu
