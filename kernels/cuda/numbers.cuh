// Element types on the device: conversion, and eight activations in one 16-byte access.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

#include "kernels/core/check.h"
#include "kernels/core/dtype.h"
#include "kernels/core/fp8.h"

namespace espalier::cuda {

// The KV type of kernels/core/fp8.h, before its scale.
struct E4M3 {
  uint8_t bits;
};

__device__ inline float ToFloat(float value) { return value; }
__device__ inline float ToFloat(__half value) { return __half2float(value); }
__device__ inline float ToFloat(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ inline float ToFloat(E4M3 value) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(value.bits, __NV_E4M3)));
}

template <typename T>
__device__ T FromFloat(float value);
template <>
__device__ inline float FromFloat<float>(float value) {
  return value;
}
template <>
__device__ inline __half FromFloat<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ inline __nv_bfloat16 FromFloat<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

template <>
__device__ inline E4M3 FromFloat<E4M3>(float value) {
  return {__nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3)};
}

template <typename T>
inline constexpr float kLargest = 0;
template <>
inline constexpr float kLargest<__half> = 65504.0f;
template <>
inline constexpr float kLargest<__nv_bfloat16> = 3.38953139e38f;
template <>
inline constexpr float kLargest<E4M3> = kLargestE4M3;

// Eight activations, one access.
template <typename T>
struct alignas(16) Eight {
  T at[8];
};
static_assert(sizeof(Eight<__half>) == 16);

// Calls f with a value of the activation type.
template <typename F>
void DispatchActivation(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kF16:
      return f(__half{});
    case DType::kBF16:
      return f(__nv_bfloat16{});
    default:
      internal::CheckFailed("activations are bf16 or fp16", __FILE__, __LINE__);
  }
}

// Calls `f<T, Kv>()` of the activation type and that of KV, which is the same or kE4M3.
template <typename F>
void DispatchKv(DType dtype, DType kv_dtype, const F& f) {
  ESPALIER_CHECK(kv_dtype == dtype || kv_dtype == DType::kE4M3);
  DispatchActivation(dtype, [&]<typename T>(T) {
    if (kv_dtype == DType::kE4M3) {
      f.template operator()<T, E4M3>();
    } else {
      f.template operator()<T, T>();
    }
  });
}

}  // namespace espalier::cuda
