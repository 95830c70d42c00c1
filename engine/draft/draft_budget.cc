#include "engine/draft/draft_budget.h"

#include <algorithm>

namespace espalier {
namespace {

// Of what was observed, a step later: a memory of some fifty steps.
constexpr double kDecay = 0.98;
// Tokens of draft that are believed without being seen.
constexpr double kPriorTokens = 4;

}  // namespace

void DraftBudget::ObserveStep(int rows, double ms, double draft_ms, int tokens) {
  for (double* sum : {&tokens_, &ms_, &weight_, &sum_rows_, &sum_ms_, &sum_rows2_, &sum_rows_ms_,
                      &expected_, &accepted_}) {
    *sum *= kDecay;
  }
  tokens_ += tokens;
  ms_ += ms + draft_ms;
  weight_ += 1;
  sum_rows_ += rows;
  sum_ms_ += ms;
  sum_rows2_ += static_cast<double>(rows) * rows;
  sum_rows_ms_ += rows * ms;
}

void DraftBudget::ObservePass(double ms, double frontier, double offered) {
  for (double* sum : {&pass_ms_, &passes_, &frontier_, &offered_}) *sum *= kDecay;
  pass_ms_ += ms;
  passes_ += 1;
  frontier_ += frontier;
  offered_ += offered;
}

void DraftBudget::ObserveAcceptance(double expected, int accepted) {
  expected_ += expected;
  accepted_ += accepted;
}

double DraftBudget::TokensPerMs() const { return ms_ > 0 ? tokens_ / ms_ : 0; }

// The slope of a step's time over its rows, by least squares.
double DraftBudget::MsPerRow() const {
  const double spread = weight_ * sum_rows2_ - sum_rows_ * sum_rows_;
  if (spread < 1e-3 * sum_rows2_) return 0;
  return std::max(0.0, (weight_ * sum_rows_ms_ - sum_rows_ * sum_ms_) / spread);
}

double DraftBudget::Trust() const {
  return (accepted_ + kPriorTokens) / (expected_ + kPriorTokens);
}

double DraftBudget::MinProbability() const { return MsPerRow() * TokensPerMs() / Trust(); }

bool DraftBudget::PassPays(double frontier) const {
  if (frontier_ <= 0) return frontier > 0;
  return frontier * (offered_ / frontier_) * Trust() > pass_ms_ / passes_ * TokensPerMs();
}

}  // namespace espalier
