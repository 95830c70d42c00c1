// The ceilings of a CUDA device, measured: benchmarks are printed beside them. No CUDA headers.
#pragma once

#include <functional>

#include "kernels/runtime/context.h"

namespace espalier::cuda {

// Device time of what `enqueue` enqueues, in us: the median of `repeats` runs after one that warms
// up. 0 when something failed.
double MedianMicroseconds(const Context& ctx, int repeats, const std::function<void()>& enqueue);

// Bytes a second of reading 8 GiB once, in GB/s. 0 when the memory is not there.
double MeasureReadGbps(const Context& ctx);
// A product of two random 8192 x 8192 matrices of activations, in TFLOP/s. 0 as above.
double MeasureMatMulTflops(const Context& ctx);

}  // namespace espalier::cuda
