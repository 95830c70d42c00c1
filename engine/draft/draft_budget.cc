#include "engine/draft/draft_budget.h"

#include <algorithm>
#include <bit>

namespace espalier {
namespace {

// Of what was observed, a step later: a memory of some fifty steps.
constexpr double kDecay = 0.98;
// Tokens of draft that are believed without being seen.
constexpr double kPriorTokens = 4;
// Steps with drafts and without take turns of so many until each was seen often enough; then the
// slower kind has a turn a period, which grows while nothing changes.
constexpr int kTurn = 4;
constexpr int kEnough = 16;
constexpr int kPeriod = 32;
constexpr int kMaxPeriod = 1024;
constexpr int kWarmUp = 4;
constexpr double kOutlier = 4;  // times what is usual
constexpr double kArmDecay = 0.95;
constexpr double kOldTrials = 0.2;

}  // namespace

int DraftBudget::LoadOf(int branches) {
  return std::min(static_cast<int>(std::bit_width(static_cast<unsigned>(branches))), kLoads - 1);
}

bool DraftBudget::ShouldDraft(int branches) {
  Load& load = loads_[LoadOf(branches)];
  const int step = load.steps++;
  if (load.period == 0) {
    if (load.plain.observed < kEnough || load.drafting.observed < kEnough) {
      return step / kTurn % 2 == 1;
    }
    load = {
        .plain = load.plain, .drafting = load.drafting, .drafts = load.Better(), .period = kPeriod};
  } else if (step == load.period + kTurn) {
    // A trial is over. One that changed nothing is repeated later than the last.
    const bool better = load.Better();
    load.period = better == load.drafts ? std::min(2 * load.period, kMaxPeriod) : kPeriod;
    load.drafts = better;
    load.steps = 1;
  } else if (step >= load.period) {
    // What it did long ago counts as much as one trial.
    if (step == load.period) (load.drafts ? load.plain : load.drafting).Scale(kOldTrials);
    return !load.drafts;
  }
  return load.drafts;
}

void DraftBudget::ObserveStep(const Step& step) {
  Load& load = loads_[LoadOf(step.branches)];
  Arm& arm = step.drafted ? load.drafting : load.plain;
  // First steps set things up, and so do some later ones, when they meet a new shape.
  if (++arm.observed <= kWarmUp) return;
  if (load.plain.steps > 0 && step.total_ms > kOutlier * load.plain.ms / load.plain.steps) return;
  arm.Scale(kArmDecay);
  arm.tokens += step.tokens;
  arm.ms += step.total_ms;
  arm.steps += 1;
  for (double* sum : {&tokens_, &ms_, &weight_, &sum_rows_, &sum_ms_, &sum_rows2_, &sum_rows_ms_,
                      &expected_, &accepted_}) {
    *sum *= kDecay;
  }
  const double rows = step.rows;
  tokens_ += step.tokens;
  ms_ += step.total_ms;
  weight_ += 1;
  sum_rows_ += rows;
  sum_ms_ += step.verify_ms;
  sum_rows2_ += rows * rows;
  sum_rows_ms_ += rows * step.verify_ms;
}

void DraftBudget::ObservePass(double ms, double frontier, double offered) {
  if (++observed_passes_ <= kWarmUp) return;
  if (passes_ > 0 && ms > kOutlier * pass_ms_ / passes_) return;
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
