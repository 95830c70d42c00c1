#include "kernels/cuda/device_sampler_pack.h"

#include <algorithm>
#include <climits>
#include <cstring>
#include <functional>

#include "kernels/core/check.h"

namespace espalier::device_sampler {
namespace {

// As the CPU sampler: dividing by less would overflow.
constexpr float kGreedyBelowTemperature = 1e-5f;

template <typename T>
constexpr size_t kWords = sizeof(T) / sizeof(int32_t);
static_assert(kWords<std::pair<int32_t, float>> == 2);
static_assert(kWords<DeviceSampleRequest::TokenCount> == 2);

bool HasPenalty(const DeviceSampleRequest& r) {
  return r.repetition_penalty != 1.0f || r.frequency_penalty != 0.0f || r.presence_penalty != 0.0f;
}

bool IsProcessed(const DeviceSampleRequest& r) {
  return !r.logit_bias.empty() || !r.banned.empty() || !r.allowed.empty() || HasPenalty(r);
}

// Only the repetition penalty looks at the prompts.
std::span<const std::span<const int32_t>> PromptsOf(const DeviceSampleRequest& r) {
  if (r.repetition_penalty == 1.0f) return {};
  return r.prompt_tokens;
}

std::span<const DeviceSampleRequest::TokenCount> GeneratedOf(const DeviceSampleRequest& r) {
  if (!HasPenalty(r)) return {};
  return r.generated;
}

}  // namespace

bool StepPacker::ByAddress::operator()(const SharedList& a, const SharedList& b) const {
  return a.data != b.data ? std::less<>()(a.data, b.data) : a.words < b.words;
}

template <typename T>
void StepPacker::AddShared(std::span<const T> list) {
  if (!list.empty()) shared_.push_back({list.data(), list.size() * kWords<T>, 0});
}

template <typename T>
List StepPacker::FindShared(std::span<const T> list) const {
  if (list.empty()) return {};
  const SharedList wanted{list.data(), list.size() * kWords<T>, 0};
  const auto at = std::lower_bound(shared_.begin(), shared_.end(), wanted, ByAddress());
  return {static_cast<int32_t>(at->begin), static_cast<int32_t>(list.size())};
}

template <typename T>
List StepPacker::Append(std::span<const T> list) {
  const List at{static_cast<int32_t>(end_), static_cast<int32_t>(list.size())};
  if (!list.empty()) std::memcpy(step_ + end_, list.data(), list.size_bytes());
  end_ += list.size() * kWords<T>;
  return at;
}

size_t StepPacker::Measure(std::span<const DeviceSampleRequest> requests) {
  shared_.clear();
  size_t words = kWords<StepHeader> + requests.size() * kWords<Request>;
  for (const DeviceSampleRequest& r : requests) {
    AddShared(r.logit_bias);
    AddShared(r.allowed);
    for (const std::span<const int32_t> prompt : PromptsOf(r)) AddShared(prompt);
    words += r.banned.size() + 2 * GeneratedOf(r).size() + kWords<List> * PromptsOf(r).size();
  }
  std::sort(shared_.begin(), shared_.end(), ByAddress());
  const auto same = [](const SharedList& a, const SharedList& b) {
    return a.data == b.data && a.words == b.words;
  };
  shared_.erase(std::unique(shared_.begin(), shared_.end(), same), shared_.end());
  for (const SharedList& list : shared_) words += list.words;
  ESPALIER_CHECK(words <= INT_MAX);
  return words;
}

void StepPacker::Pack(std::span<const DeviceSampleRequest> requests, int32_t* step) {
  step_ = step;
  end_ = kWords<StepHeader> + requests.size() * kWords<Request>;
  for (SharedList& list : shared_) {
    list.begin = end_;
    std::memcpy(step_ + end_, list.data, list.words * sizeof(int32_t));
    end_ += list.words;
  }
  StepHeader header{};
  header.num_requests = static_cast<int32_t>(requests.size());
  std::memcpy(step_, &header, sizeof(header));
  int32_t* to = step_ + kWords<StepHeader>;
  for (const DeviceSampleRequest& r : requests) {
    const Request packed = PackRequest(r);
    std::memcpy(to, &packed, sizeof(packed));
    to += kWords<Request>;
  }
}

Request StepPacker::PackRequest(const DeviceSampleRequest& r) {
  Request packed{};
  packed.uniform = r.uniform;
  packed.greedy = r.temperature < kGreedyBelowTemperature;
  packed.inverse_temperature = packed.greedy ? 0.0f : 1.0f / r.temperature;
  packed.min_p = r.min_p;
  packed.top_p = r.top_p;
  packed.repetition_penalty = r.repetition_penalty;
  packed.frequency_penalty = r.frequency_penalty;
  packed.presence_penalty = r.presence_penalty;
  packed.logits_row = r.logits_row;
  packed.score_token = r.score_token;
  packed.top_k = r.top_k;
  packed.top_logprobs = r.top_logprobs;
  packed.processed = IsProcessed(r);
  packed.bias = FindShared(r.logit_bias);
  packed.banned = Append(r.banned);
  packed.allowed = FindShared(r.allowed);
  packed.generated = Append(GeneratedOf(r));
  packed.prompts = {static_cast<int32_t>(end_), static_cast<int32_t>(PromptsOf(r).size())};
  for (const std::span<const int32_t> prompt : PromptsOf(r)) {
    const List list = FindShared(prompt);
    std::memcpy(step_ + end_, &list, sizeof(list));
    end_ += kWords<List>;
  }
  return packed;
}

}  // namespace espalier::device_sampler
