#include "engine/sampler/sampler.h"

namespace espalier {
namespace {

// SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA
// 2014): output i of a stream is a hash of state + (i + 1) * gamma, so any output can be had
// without the ones before it.
constexpr uint64_t kGamma = 0x9E3779B97F4A7C15;

uint64_t Mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

uint64_t SplitMix(uint64_t state, uint64_t index) { return Mix(state + (index + 1) * kGamma); }

}  // namespace

uint64_t BranchSeed(uint64_t parent_seed, int node, int sample) {
  const uint64_t of_node = SplitMix(parent_seed, static_cast<uint64_t>(node));
  return SplitMix(of_node, static_cast<uint64_t>(sample));
}

double BranchUniform(uint64_t branch_seed, int64_t token_index) {
  const uint64_t bits = SplitMix(branch_seed, static_cast<uint64_t>(token_index));
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace espalier
