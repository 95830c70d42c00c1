// Enumerations as flags, configuration files and the API write them.
#pragma once

#include <array>
#include <string_view>
#include <utility>

#include "engine/engine.h"
#include "kernels/core/check.h"

namespace espalier {

template <class Enum>
struct NamesOf;  // kAll: an array of (name, value), every value once

template <>
struct NamesOf<Device> {
  static constexpr std::array<std::pair<std::string_view, Device>, 2> kAll = {
      {{"cpu", Device::kCpu}, {"cuda", Device::kCuda}}};
};

template <>
struct NamesOf<DeviceDType> {
  static constexpr std::array<std::pair<std::string_view, DeviceDType>, 3> kAll = {
      {{"auto", DeviceDType::kAuto}, {"bf16", DeviceDType::kBF16}, {"f16", DeviceDType::kF16}}};
};

template <>
struct NamesOf<KvCacheDType> {
  static constexpr std::array<std::pair<std::string_view, KvCacheDType>, 2> kAll = {
      {{"auto", KvCacheDType::kAuto}, {"fp8", KvCacheDType::kFp8}}};
};

template <>
struct NamesOf<AttentionVariant> {
  static constexpr std::array<std::pair<std::string_view, AttentionVariant>, 5> kAll = {
      {{"default", AttentionVariant::kDefault},
       {"sequence", AttentionVariant::kSequence},
       {"node", AttentionVariant::kNode},
       {"node-chunk", AttentionVariant::kNodeChunk},
       {"flatten", AttentionVariant::kFlatten}}};
};

template <>
struct NamesOf<CpuPrecision> {
  static constexpr std::array<std::pair<std::string_view, CpuPrecision>, 2> kAll = {
      {{"auto", CpuPrecision::kAuto}, {"f32", CpuPrecision::kF32}}};
};

template <>
struct NamesOf<Sharing> {
  static constexpr std::array<std::pair<std::string_view, Sharing>, 3> kAll = {
      {{"none", Sharing::kNone}, {"tree", Sharing::kTree}, {"cache", Sharing::kCache}}};
};

template <>
struct NamesOf<Speculative> {
  static constexpr std::array<std::pair<std::string_view, Speculative>, 3> kAll = {
      {{"off", Speculative::kOff}, {"ngram", Speculative::kNgram}, {"draft", Speculative::kDraft}}};
};

template <>
struct NamesOf<ChatFormat> {
  static constexpr std::array<std::pair<std::string_view, ChatFormat>, 3> kAll = {
      {{"", ChatFormat::kNone}, {"chatml", ChatFormat::kChatMl}, {"llama3", ChatFormat::kLlama3}}};
};

template <>
struct NamesOf<RopeScaling> {
  static constexpr std::array<std::pair<std::string_view, RopeScaling>, 3> kAll = {
      {{"none", RopeScaling::kNone},
       {"linear", RopeScaling::kLinear},
       {"llama3", RopeScaling::kLlama3}}};
};

template <class Enum>
constexpr std::string_view NameOf(Enum value) {
  for (const auto& [name, named] : NamesOf<Enum>::kAll) {
    if (named == value) return name;
  }
  ESPALIER_CHECK(false);
}

}  // namespace espalier
