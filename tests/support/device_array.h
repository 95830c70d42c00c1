// Arrays on a context's device, filled from and read back as plain vectors.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/core/fp8.h"
#include "kernels/core/half.h"
#include "kernels/runtime/device_memory.h"

namespace espalier::testing {

// Element by element as DType stores it; kF32, kF16, kBF16 or kE4M3.
inline std::vector<std::byte> Encode(DType dtype, std::span<const float> values) {
  std::vector<std::byte> bytes(BytesOf(dtype, static_cast<int64_t>(values.size())));
  auto* words = reinterpret_cast<uint16_t*>(bytes.data());
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::kF32) reinterpret_cast<float*>(bytes.data())[i] = values[i];
    if (dtype == DType::kF16) words[i] = FloatToHalf(values[i]);
    if (dtype == DType::kBF16) words[i] = FloatToBFloat16(values[i]);
    if (dtype == DType::kE4M3) bytes[i] = static_cast<std::byte>(FloatToE4M3(values[i]));
  }
  return bytes;
}

inline std::vector<float> Decode(DType dtype, std::span<const std::byte> bytes) {
  std::vector<float> values(bytes.size() / BytesOf(dtype, 1));
  const auto* words = reinterpret_cast<const uint16_t*>(bytes.data());
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::kF32) values[i] = reinterpret_cast<const float*>(bytes.data())[i];
    if (dtype == DType::kF16) values[i] = HalfToFloat(words[i]);
    if (dtype == DType::kBF16) values[i] = BFloat16ToFloat(words[i]);
    if (dtype == DType::kE4M3) values[i] = E4M3ToFloat(static_cast<uint8_t>(bytes[i]));
  }
  return values;
}

// What is left of values when DType stores them.
inline std::vector<float> Rounded(DType dtype, std::span<const float> values) {
  return Decode(dtype, Encode(dtype, values));
}

class DeviceArray {
 public:
  // Every byte is 0xff, a NaN in every floating-point type.
  DeviceArray(const Context& ctx, size_t bytes) : ctx_(ctx), memory_(ctx, bytes) {
    FillDevice(ctx, memory_.As<void>(), 0xff, bytes);
  }
  DeviceArray(const Context& ctx, DType dtype, std::span<const float> values)
      : DeviceArray(ctx, BytesOf(dtype, static_cast<int64_t>(values.size()))) {
    const std::vector<std::byte> bytes = Encode(dtype, values);
    CopyToDevice(ctx, memory_.As<void>(), bytes.data(), bytes.size());
    Synchronize(ctx);
  }
  template <typename T>
  DeviceArray(const Context& ctx, const std::vector<T>& values)
      : DeviceArray(ctx, values.size() * sizeof(T)) {
    CopyToDevice(ctx, memory_.As<void>(), values.data(), values.size() * sizeof(T));
    Synchronize(ctx);
  }

  void* data() const { return memory_.As<void>(); }
  template <typename T>
  T* As() const {
    return memory_.As<T>();
  }
  std::vector<std::byte> Bytes() const {
    std::vector<std::byte> bytes(memory_.bytes());
    CopyToHost(ctx_, bytes.data(), memory_.As<void>(), bytes.size());
    Synchronize(ctx_);
    return bytes;
  }
  std::vector<float> Floats(DType dtype) const { return Decode(dtype, Bytes()); }

 private:
  const Context& ctx_;
  DeviceBuffer memory_;
};

}  // namespace espalier::testing
