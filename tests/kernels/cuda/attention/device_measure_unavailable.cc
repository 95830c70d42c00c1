// Of a build without CUDA, where no context leads here.
#include "kernels/core/check.h"
#include "tests/kernels/cuda/attention/device_measure.h"

namespace espalier::testing {

void ReferenceAttention(const Context&, const TreeShape&, const KvLayerView&, const void*, int,
                        float, float*) {
  internal::CheckFailed("this build has a CUDA backend", __FILE__, __LINE__);
}

}  // namespace espalier::testing
