// Random matrices in any weight type, and the machines and threads that op tests run on.
#pragma once

#include <algorithm>
#include <bit>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/core/check.h"
#include "kernels/core/half.h"
#include "kernels/core/matrix.h"
#include "kernels/core/quant_blocks.h"
#include "kernels/cpu/dequantize.h"
#include "kernels/runtime/cpu_isa.h"

namespace espalier::testing {

inline std::vector<CpuIsa> IsasOfThisMachine() {
  std::vector<CpuIsa> isas;
  for (CpuIsa isa : {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    if (isa <= BestCpuIsa()) isas.push_back(isa);
  }
  return isas;
}

constexpr DType kAllDTypes[] = {DType::kF32,  DType::kF16,  DType::kBF16, DType::kQ8_0,
                                DType::kQ4_0, DType::kQ4_1, DType::kQ4_K, DType::kQ6_K};

inline std::vector<float> RandomFloats(int64_t count, std::mt19937& rng, float deviation = 1.0f) {
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> values(count);
  for (float& value : values) value = normal(rng);
  return values;
}

// Owns its bytes, which are followed by nothing: reads past the end show under AddressSanitizer.
struct RandomMatrix {
  RandomMatrix(DType dtype, int64_t rows, int64_t cols, std::mt19937& rng)
      : bytes(BytesOf(dtype, rows * cols)),
        view{.data = bytes.data(), .dtype = dtype, .rows = rows, .cols = cols},
        values(rows * cols) {
    Fill(rng);
    kernels::cpu::Dequantize(view, values.data());
  }
  RandomMatrix(const RandomMatrix&) = delete;

  std::vector<std::byte> bytes;
  ConstMatrix view;
  std::vector<float> values;  // dequantised

 private:
  // Random bits everywhere, then scales of a sensible size.
  void Fill(std::mt19937& rng) {
    std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<std::byte>(rng()); });
    const auto scale = [&](float largest) {
      return FloatToHalf(std::uniform_real_distribution<float>(-largest, largest)(rng));
    };
    switch (view.dtype) {
      case DType::kF32:
        return ForEach<float>([&](float& w) { w = RandomFloats(1, rng)[0]; });
      case DType::kF16:
        return ForEach<uint16_t>([&](uint16_t& w) { w = scale(2.0f); });
      case DType::kBF16:
        return ForEach<uint16_t>(
            [&](uint16_t& w) { w = FloatToBFloat16(RandomFloats(1, rng)[0]); });
      case DType::kQ8_0:
        return ForEach<BlockQ8_0>([&](BlockQ8_0& b) { b.d = scale(0.02f); });
      case DType::kQ4_0:
        return ForEach<BlockQ4_0>([&](BlockQ4_0& b) { b.d = scale(0.2f); });
      case DType::kQ4_1:
        return ForEach<BlockQ4_1>([&](BlockQ4_1& b) { b.d = scale(0.2f), b.m = scale(1.0f); });
      case DType::kQ4_K:
        return ForEach<BlockQ4_K>(
            [&](BlockQ4_K& b) { b.d = scale(0.005f), b.dmin = scale(0.02f); });
      case DType::kQ6_K:
        return ForEach<BlockQ6_K>([&](BlockQ6_K& b) { b.d = scale(0.001f); });
      case DType::kE4M3:
        break;
    }
    internal::CheckFailed("not a type of weights", __FILE__, __LINE__);
  }

  template <typename Block, typename Fn>
  void ForEach(const Fn& fn) {
    for (size_t at = 0; at < bytes.size(); at += sizeof(Block)) {
      Block block;
      std::memcpy(&block, bytes.data() + at, sizeof(block));
      fn(block);
      std::memcpy(bytes.data() + at, &block, sizeof(block));
    }
  }
};

}  // namespace espalier::testing
