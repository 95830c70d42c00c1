#include "engine/tree/branch_policy.h"

#include "engine/tree/beam_search.h"
#include "engine/tree/best_of_n.h"
#include "engine/tree/choice_policy.h"
#include "engine/tree/majority_vote.h"
#include "kernels/core/check.h"

namespace espalier {

std::unique_ptr<const BranchPolicy> MakePolicy(const Generation& generation, int num_stop_tokens) {
  if (const auto* best = std::get_if<BestOfN>(&generation.search)) {
    return std::make_unique<BestOfNPolicy>(*best, generation.n);
  }
  if (const auto* beam = std::get_if<BeamSearch>(&generation.search)) {
    return std::make_unique<BeamSearchPolicy>(*beam, num_stop_tokens);
  }
  if (const auto* vote = std::get_if<MajorityVote>(&generation.search)) {
    absl::StatusOr<AnswerPattern> pattern = AnswerPattern::Compile(vote->answer_pattern);
    ESPALIER_CHECK(pattern.ok());  // the validator compiled it
    return std::make_unique<MajorityVotePolicy>(*std::move(pattern), generation.n);
  }
  if (const auto* choices = std::get_if<Choices>(&generation.search)) {
    return std::make_unique<ChoicePolicy>(choices->score, static_cast<int>(choices->texts.size()));
  }
  return nullptr;
}

}  // namespace espalier
