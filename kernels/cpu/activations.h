// On the CPU activations are fp32.
#pragma once

namespace espalier::kernels::cpu {

inline const float* Floats(const void* activations) {
  return static_cast<const float*>(activations);
}
inline float* Floats(void* activations) { return static_cast<float*>(activations); }

}  // namespace espalier::kernels::cpu
