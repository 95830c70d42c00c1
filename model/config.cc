#include "model/config.h"

#include <cmath>
#include <numbers>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"

namespace espalier {
namespace {

struct Bound {
  const char* field;
  int64_t value;
  int64_t min;
  int64_t max;
};

struct RealBound {
  const char* field;
  double value;
  double min;
  double max;
};

// Llama 3.1's smoothed scaling: long wavelengths are stretched by `factor`, short ones kept.
double Llama3Scaled(double inv_freq, const RopeConfig& rope) {
  const double wavelength = 2 * std::numbers::pi / inv_freq;
  const double longest_kept = rope.original_max_positions / rope.high_freq_factor;
  const double shortest_scaled = rope.original_max_positions / rope.low_freq_factor;
  if (wavelength < longest_kept) return inv_freq;
  if (wavelength > shortest_scaled) return inv_freq / rope.factor;
  const double smooth = (rope.original_max_positions / wavelength - rope.low_freq_factor) /
                        (rope.high_freq_factor - rope.low_freq_factor);
  return (1 - smooth) * inv_freq / rope.factor + smooth * inv_freq;
}

absl::Status ValidateRope(const ModelConfig& config) {
  const RopeConfig& rope = config.rope;
  const RealBound bounds[] = {
      {"rope theta", rope.theta, 1, 1e15},
      {"rope scaling factor", rope.factor, 1e-3, 1e6},
      {"rope low_freq_factor", rope.low_freq_factor, 1e-3, 1e6},
      {"rope high_freq_factor", rope.high_freq_factor, 1e-3, 1e6},
      {"rope original_max_position_embeddings", rope.original_max_positions, 1, 1 << 30},
  };
  for (const RealBound& bound : bounds) {
    // Written so that NaN fails.
    if (!(bound.value >= bound.min && bound.value <= bound.max)) {
      return absl::InvalidArgumentError(absl::StrCat(bound.field, " is ", bound.value, ", not in ",
                                                     bound.min, " to ", bound.max));
    }
  }
  if (rope.scaling == RopeScaling::kLlama3 && rope.high_freq_factor <= rope.low_freq_factor) {
    return absl::InvalidArgumentError(absl::StrCat("rope high_freq_factor ", rope.high_freq_factor,
                                                   " is not above low_freq_factor ",
                                                   rope.low_freq_factor));
  }
  const size_t pairs = static_cast<size_t>(config.head_dim / 2);
  if (!rope.factors.empty() && rope.factors.size() != pairs) {
    return absl::InvalidArgumentError(absl::StrCat("rope has ", rope.factors.size(),
                                                   " frequency factors, head_dim ", config.head_dim,
                                                   " needs ", pairs));
  }
  for (const float factor : rope.factors) {
    if (!(factor >= 1e-3f && factor <= 1e6f)) {
      return absl::InvalidArgumentError(
          absl::StrCat("a rope frequency factor is ", factor, ", not in 1e-3 to 1e6"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateConfig(const ModelConfig& config) {
  // Generous against every published model of the family, small enough that heads * head_dim stays
  // within int and any product of two within int64.
  const Bound bounds[] = {
      {"vocab_size", config.vocab_size, 1, 1 << 24},
      {"hidden_size", config.hidden_size, 1, 1 << 17},
      {"intermediate_size", config.intermediate_size, 1, 1 << 20},
      {"num_layers", config.num_layers, 1, 1024},
      {"num_heads", config.num_heads, 1, 1024},
      {"num_kv_heads", config.num_kv_heads, 1, config.num_heads},
      {"head_dim", config.head_dim, 2, 256},
      {"max_positions", config.max_positions, 1, 1 << 28},
      {"bos_token_id", config.bos_token_id, -1, int64_t{config.vocab_size} - 1},
  };
  for (const Bound& bound : bounds) {
    if (bound.value < bound.min || bound.value > bound.max) {
      return absl::InvalidArgumentError(absl::StrCat(bound.field, " is ", bound.value, ", not in ",
                                                     bound.min, " to ", bound.max));
    }
  }
  for (const int32_t id : config.eos_token_ids) {
    if (id < 0 || id >= config.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat("eos_token_id is ", id, ", not in 0 to ",
                                                     config.vocab_size - 1, " (vocab_size - 1)"));
    }
  }
  if (config.num_heads % config.num_kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat("num_heads ", config.num_heads,
                                                   " is not a multiple of num_kv_heads ",
                                                   config.num_kv_heads));
  }
  if (config.head_dim % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("head_dim is ", config.head_dim, ", which is odd: rotation works on pairs"));
  }
  if (!(config.norm_eps > 0 && config.norm_eps <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("norm_eps is ", config.norm_eps, ", not above 0 and at most 1"));
  }
  return ValidateRope(config);
}

std::vector<float> RopeInvFreq(const ModelConfig& config) {
  const RopeConfig& rope = config.rope;
  const int pairs = config.head_dim / 2;
  ESPALIER_CHECK(rope.factors.empty() || rope.factors.size() == static_cast<size_t>(pairs));
  std::vector<float> inv_freq(pairs);
  for (int i = 0; i < pairs; ++i) {
    double frequency = std::pow(rope.theta, -2.0 * i / config.head_dim);
    switch (rope.scaling) {
      case RopeScaling::kNone:
        break;
      case RopeScaling::kLinear:
        frequency /= rope.factor;
        break;
      case RopeScaling::kLlama3:
        frequency = Llama3Scaled(frequency, rope);
        break;
    }
    if (!rope.factors.empty()) frequency /= rope.factors[i];
    inv_freq[i] = static_cast<float>(frequency);
  }
  return inv_freq;
}

}  // namespace espalier
