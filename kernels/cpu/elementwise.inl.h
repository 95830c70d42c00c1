// Row kernels other than products. Plain loops that the including file's flags vectorise.
#include <bit>
#include <cmath>

#include "kernels/core/check.h"
#include "kernels/core/fp8.h"
#include "kernels/core/half.h"
#include "kernels/cpu/kernel_table.h"

namespace espalier::kernels::cpu {
namespace {

// 1.5 * 2^23: adding it leaves the nearest integer in the low bits, ties to even.
constexpr float kRoundMagic = 12582912.0f;

void Quantize(const float* x, int64_t elements, int8_t* q, ActivationScale* scales) {
  for (int64_t block = 0; block < elements / kQuantBlock; ++block) {
    const float* values = x + block * kQuantBlock;
    int8_t* quants = q + block * kQuantBlock;
    // As integers, so that NaN and infinity compare above every finite value.
    int32_t largest_bits = 0;
    for (int j = 0; j < kQuantBlock; ++j) {
      const int32_t bits = std::bit_cast<int32_t>(values[j]) & 0x7fffffff;
      largest_bits = bits > largest_bits ? bits : largest_bits;
    }
    const float largest = std::bit_cast<float>(largest_bits);
    const float scale = largest / 127.0f;
    // A block of subnormals has no usable inverse: it counts as 0.
    const float inverse = largest > 0x1p-100f ? 127.0f / largest : 0.0f;
    int32_t sum = 0;
    for (int j = 0; j < kQuantBlock; ++j) {
      const int32_t rounded = std::bit_cast<int32_t>(values[j] * inverse + kRoundMagic) -
                              std::bit_cast<int32_t>(kRoundMagic);
      quants[j] = static_cast<int8_t>(rounded);
      sum += quants[j];
    }
    scales[block] = {scale, scale * static_cast<float>(sum)};
  }
}

void RmsNormRow(float* x, const float* residual, const float* weight, float eps, int64_t n,
                float* out) {
  if (residual != nullptr) {
    for (int64_t i = 0; i < n; ++i) x[i] += residual[i];
  }
  const float scale = 1.0f / std::sqrt(DotF32(x, x, n) / static_cast<float>(n) + eps);
  for (int64_t i = 0; i < n; ++i) out[i] = weight[i] * (x[i] * scale);
}

// e^x within 2 ulp for x in [-87, 88]; clamped outside, NaN stays. exp(x) = 2^n * exp(r) with
// |r| <= ln 2 / 2, whose Taylor series to degree 7 has a relative error below 2^-26.
inline float Exp(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float shifted = x * 1.44269504f + kRoundMagic;
  const float n = shifted - kRoundMagic;
  // ln 2 in two parts; the product with the first is exact.
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  const int32_t exponent = std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(kRoundMagic);
  return p * std::bit_cast<float>((exponent + 127) << 23);
}

void SwiGluRow(const float* gate, const float* up, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = gate[i] / (1.0f + Exp(-gate[i])) * up[i];
}

void Rotate(const float* a, const float* b, const float* cos, const float* sin, int64_t n,
            float* out_a, float* out_b) {
  for (int64_t i = 0; i < n; ++i) {
    const float x = a[i];
    const float y = b[i];
    out_a[i] = x * cos[i] - y * sin[i];
    out_b[i] = y * cos[i] + x * sin[i];
  }
}

bool AllFinite(const float* values, int64_t n) {
  int32_t bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    bad |= (std::bit_cast<int32_t>(values[i]) & 0x7f800000) == 0x7f800000 ? 1 : 0;
  }
  return bad == 0;
}

// Non-finite becomes 0; the rest is clamped to the largest value of the stored type.
inline float Storable(float value, float largest) {
  const bool finite = (std::bit_cast<int32_t>(value) & 0x7f800000) != 0x7f800000;
  value = finite ? value : 0.0f;
  value = value > largest ? largest : value;
  return value < -largest ? -largest : value;
}

bool StoreKv(const float* values, int64_t n, DType dtype, float scale, std::byte* out) {
  constexpr float kLargestHalf = 65504.0f;
  constexpr float kLargestBFloat16 = 0x1.fep127f;
  constexpr float kLargestFloat = 0x1.fffffep127f;
  switch (dtype) {
    case DType::kF32: {
      float* stored = reinterpret_cast<float*>(out);
      for (int64_t i = 0; i < n; ++i) stored[i] = Storable(values[i], kLargestFloat);
      break;
    }
    case DType::kF16: {
      uint16_t* stored = reinterpret_cast<uint16_t*>(out);
      int64_t i = 0;
      for (; i + Simd::kLanes <= n; i += Simd::kLanes) {
        float clamped[Simd::kLanes];
        for (int j = 0; j < Simd::kLanes; ++j) clamped[j] = Storable(values[i + j], kLargestHalf);
        Simd::StoreHalf(stored + i, Simd::Load(clamped));
      }
      for (; i < n; ++i) stored[i] = FloatToHalf(Storable(values[i], kLargestHalf));
      break;
    }
    case DType::kBF16: {
      uint16_t* stored = reinterpret_cast<uint16_t*>(out);
      for (int64_t i = 0; i < n; ++i) {
        stored[i] = FloatToBFloat16(Storable(values[i], kLargestBFloat16));
      }
      break;
    }
    case DType::kE4M3: {
      uint8_t* stored = reinterpret_cast<uint8_t*>(out);
      for (int64_t i = 0; i < n; ++i) {
        stored[i] = FloatToE4M3(Storable(values[i], kLargestFloat) / scale);
      }
      break;
    }
    case DType::kQ8_0:
    case DType::kQ4_0:
    case DType::kQ4_1:
    case DType::kQ4_K:
    case DType::kQ6_K:
      internal::CheckFailed("KV is not stored in blocks", __FILE__, __LINE__);
  }
  return !AllFinite(values, n);
}

}  // namespace
}  // namespace espalier::kernels::cpu
