// Weights that stand in for trained ones, the same on every device and in every order.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define ESPALIER_HOST_DEVICE __host__ __device__
#else
#define ESPALIER_HOST_DEVICE
#endif

namespace espalier {

// A tensor of uniform numbers, each a hash of the seed and its index.
struct RandomWeights {
  uint64_t seed = 0;
  float mean = 0;
  float deviation = 0;  // standard deviation
};

// Uniform in [-1, 1): 24 bits of the SplitMix64 output at `index` of the stream that starts at
// `seed` (Steele, Lea, Flood 2014).
ESPALIER_HOST_DEVICE inline float UniformWeight(uint64_t seed, uint64_t index) {
  uint64_t z = seed + (index + 1) * 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  z ^= z >> 31;
  return static_cast<float>(static_cast<int32_t>(z >> 40) - (1 << 23)) * 0x1p-23f;
}

// Standard deviation of UniformWeight is 1 / sqrt(3).
inline constexpr float kUniformToDeviation = 1.7320508f;

}  // namespace espalier
