// The sampler's definition in double precision, by full sorts: what the tests compare with.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <span>
#include <vector>

#include "engine/request.h"

namespace espalier {

struct ReferenceHistory {
  std::set<int32_t> on_path;
  std::map<int32_t, int> generated;
};

inline std::vector<double> ReferenceLogits(std::span<const float> raw, const SamplingParams& p,
                                           const ReferenceHistory& history,
                                           std::span<const int32_t> banned) {
  std::vector<double> logits(raw.begin(), raw.end());
  for (const auto& [token, bias] : p.logit_bias) logits[token] += bias;
  for (int32_t token : history.on_path) {
    double& l = logits[token];
    l = l > 0 ? l / p.repetition_penalty : l * p.repetition_penalty;
  }
  for (const auto& [token, times] : history.generated) {
    logits[token] -= static_cast<double>(p.frequency_penalty) * times;
    logits[token] -= p.presence_penalty;
  }
  for (int32_t token : banned) logits[token] = -std::numeric_limits<double>::infinity();
  return logits;
}

struct ReferenceDistribution {
  std::vector<double> probabilities;  // [vocab], 0: filtered out
  // Whether rounding could move the border between kept and dropped tokens.
  bool ambiguous = false;
};

inline ReferenceDistribution ReferenceFilter(const std::vector<double>& logits,
                                             const SamplingParams& p) {
  constexpr double kClose = 1e-5;
  const double max = *std::ranges::max_element(logits);
  ReferenceDistribution result;
  std::vector<double>& weights = result.probabilities;
  for (double l : logits) weights.push_back(std::exp((l - max) / p.temperature));

  for (double& w : weights) {
    result.ambiguous |= p.min_p > 0 && w != 1 && std::abs(w / p.min_p - 1) < kClose;
    if (w < p.min_p) w = 0;
  }
  std::vector<int32_t> order(weights.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](int a, int b) { return weights[a] > weights[b]; });
  const auto cut = [&](size_t kept) {
    if (kept >= order.size()) return;
    // Tokens as likely as the last kept go by id; rounding decides about almost as likely ones.
    const double last = weights[order[kept - 1]];
    for (double w : weights) {
      result.ambiguous |= w != last && std::abs(w / last - 1) < kClose;
    }
    for (size_t i = kept; i < order.size(); ++i) weights[order[i]] = 0;
  };
  if (p.top_k > 0) cut(p.top_k);
  if (p.top_p < 1) {
    const double wanted = p.top_p * std::reduce(weights.begin(), weights.end());
    double sum = 0;
    size_t kept = 0;
    do {
      sum += weights[order[kept++]];
      result.ambiguous |= std::abs(sum / wanted - 1) < kClose;
    } while (sum < wanted && kept < order.size());
    cut(kept);
  }
  const double total = std::reduce(weights.begin(), weights.end());
  for (double& w : weights) w /= total;
  return result;
}

inline std::vector<double> ReferenceLogSoftmax(std::span<const float> raw) {
  const double max = *std::ranges::max_element(raw);
  double sum = 0;
  for (float l : raw) sum += std::exp(l - max);
  std::vector<double> result;
  for (float l : raw) result.push_back(l - max - std::log(sum));
  return result;
}

}  // namespace espalier
