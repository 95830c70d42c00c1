#include "engine/sampler/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "engine/sampler/row_math.h"
#include "kernels/core/check.h"

namespace espalier {
namespace {

constexpr float kNegInf = -std::numeric_limits<float>::infinity();
// Dividing by less would overflow; vLLM has the same bound.
constexpr float kGreedyBelowTemperature = 1e-5f;

double LogSumExp(const RowSummary& row) { return row.max + std::log(row.sum_exp); }

}  // namespace

bool HasPenalty(const SamplingParams& p) {
  return p.repetition_penalty != 1.0f || p.frequency_penalty != 0.0f || p.presence_penalty != 0.0f;
}

Sample Sampler::Run(const SampleInput& input) {
  const SamplingParams& params = *input.params;
  Sample sample;
  const RowSummary raw = Summarize(input.logits);
  sample.finite = raw.finite;
  if (!raw.finite) return sample;

  std::span<const float> logits = input.logits;
  int32_t best = raw.argmax;
  float max = raw.max;
  if (!params.logit_bias.empty() || !input.banned.empty() || !input.allowed.empty() ||
      HasPenalty(params)) {
    Process(input);
    logits = processed_;
    const RowSummary processed = Summarize(logits);
    sample.finite = processed.finite;
    if (!processed.finite) return sample;
    best = processed.argmax;
    max = processed.max;
  }

  sample.token = params.temperature < kGreedyBelowTemperature
                     ? best
                     : Draw(logits, max, params, input.uniform);
  const double log_sum = LogSumExp(raw);
  sample.logprob = static_cast<float>(input.logits[sample.token] - log_sum);
  sample.top = TopLogprobs(input.logits, log_sum, input.top_logprobs);
  return sample;
}

Sample Sampler::Score(std::span<const float> logits, int32_t token, int top_logprobs) {
  ESPALIER_CHECK(token >= 0 && static_cast<size_t>(token) < logits.size());
  Sample sample;
  sample.token = token;
  const RowSummary raw = Summarize(logits);
  sample.finite = raw.finite;
  if (!raw.finite) return sample;
  const double log_sum = LogSumExp(raw);
  sample.logprob = static_cast<float>(logits[token] - log_sum);
  sample.top = TopLogprobs(logits, log_sum, top_logprobs);
  return sample;
}

void Sampler::Process(const SampleInput& input) {
  processed_.assign(input.logits.begin(), input.logits.end());
  const auto logit = [this](int32_t token) -> float& {
    ESPALIER_CHECK(token >= 0 && static_cast<size_t>(token) < processed_.size());
    return processed_[token];
  };
  for (const auto& [token, bias] : input.params->logit_bias) logit(token) += bias;
  for (int32_t token : input.banned) logit(token) = kNegInf;
  if (!input.allowed.empty()) {
    ESPALIER_CHECK(input.allowed.size() * 64 >= processed_.size());
    for (size_t i = 0; i < processed_.size(); ++i) {
      if ((input.allowed[i / 64] >> (i % 64) & 1) == 0) processed_[i] = kNegInf;
    }
  }
  if (HasPenalty(*input.params)) {
    ESPALIER_CHECK(input.history != nullptr);
    ApplyPenalties(*input.params, *input.history);
  }
}

void Sampler::ApplyPenalties(const SamplingParams& params, const TokenHistory& history) {
  if (params.repetition_penalty != 1.0f) {
    penalised_.resize(processed_.size());
    const auto repeat = [&](int32_t token) {
      ESPALIER_CHECK(token >= 0 && static_cast<size_t>(token) < processed_.size());
      if (penalised_[token]) return;
      penalised_[token] = 1;
      float& logit = processed_[token];
      logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    };
    for (const auto& prompt : history.prompts()) {
      for (int32_t token : *prompt) repeat(token);
    }
    for (const TokenHistory::Count& count : history.generated()) repeat(count.token);

    for (const auto& prompt : history.prompts()) {
      for (int32_t token : *prompt) penalised_[token] = 0;
    }
    for (const TokenHistory::Count& count : history.generated()) penalised_[count.token] = 0;
  }
  for (const TokenHistory::Count& count : history.generated()) {
    ESPALIER_CHECK(count.token >= 0 && static_cast<size_t>(count.token) < processed_.size());
    processed_[count.token] -=
        params.frequency_penalty * static_cast<float>(count.times) + params.presence_penalty;
  }
}

int32_t Sampler::Draw(std::span<const float> logits, float max, const SamplingParams& params,
                      double uniform) {
  weights_.resize(logits.size());
  ExpWeights(logits, max, 1.0f / params.temperature, weights_, &block_sums_);
  const double total = std::accumulate(block_sums_.begin(), block_sums_.end(), 0.0);
  if (params.top_k <= 0 && params.top_p >= 1.0f && params.min_p <= 0.0f) {
    return DrawFromAll(uniform * total);
  }
  if (params.top_k <= 0 && params.min_p <= 0.0f) {
    // All tokens below the threshold together hold less than (1 - top_p) of the weight, so that
    // they are outside the nucleus. Rounding must not lift it above the largest weight, 1.
    const double spare = (1.0 - params.top_p) * total / static_cast<double>(weights_.size());
    candidates_.Collect(weights_, std::min(static_cast<float>(spare), 1.0f));
    candidates_.KeepWeight(params.top_p * total);
    return candidates_.Draw(uniform);
  }
  const int k = std::max(params.top_k, 0);
  candidates_.Collect(weights_,
                      std::max(params.min_p, KthLargestLowerBound(weights_, k, &maxima_)));
  if (k > 0) candidates_.KeepMostLikely(k);
  if (params.top_p < 1.0f) candidates_.KeepWeight(params.top_p * candidates_.TotalWeight());
  return candidates_.Draw(uniform);
}

int32_t Sampler::DrawFromAll(double target) const {
  size_t block = 0;
  while (block + 1 < block_sums_.size() && block_sums_[block] <= target) {
    target -= block_sums_[block++];
  }
  int32_t last = -1;
  for (size_t i = block * kRowBlock; i < weights_.size(); ++i) {
    if (weights_[i] == 0.0f) continue;
    last = static_cast<int32_t>(i);
    target -= weights_[i];
    if (target < 0) return last;
  }
  // Rounding: the target was the whole weight. The last token that has any.
  for (size_t i = block * kRowBlock; last < 0; --i) {
    if (weights_[i] > 0.0f) last = static_cast<int32_t>(i);
  }
  return last;
}

std::vector<std::pair<int32_t, float>> Sampler::TopLogprobs(std::span<const float> logits,
                                                            double log_sum, int count) {
  std::vector<std::pair<int32_t, float>> top;
  if (count <= 0) return top;
  const float threshold = KthLargestLowerBound(logits, count, &maxima_);
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] >= threshold) top.emplace_back(static_cast<int32_t>(i), logits[i]);
  }
  const auto kept = top.begin() + std::min<ptrdiff_t>(count, std::ssize(top));
  std::partial_sort(top.begin(), kept, top.end(), [](const auto& a, const auto& b) {
    return a.second != b.second ? a.second > b.second : a.first < b.first;
  });
  top.erase(kept, top.end());
  for (auto& [token, logprob] : top) logprob = static_cast<float>(logprob - log_sum);
  return top;
}

}  // namespace espalier
