// Beam search with Hugging Face transformers' meaning, hypothesis for hypothesis and score for
// score: each step the `width` most likely continuations of all hypotheses live on; one that ends
// among the `width` best joins the ended ones, of which the best `width` stay.
// Score of an ended hypothesis: its log-probability divided by the number of its tokens to the
// power of length_penalty, the stop token included in both.
//
// All hypotheses move together: nothing is decided until each has its candidates. Each offers its
// width + num_stop_tokens most likely tokens, for no more of one can survive.
#pragma once

#include "engine/tree/branch_policy.h"

namespace espalier {

class BeamSearchPolicy : public BranchPolicy {
 public:
  BeamSearchPolicy(const BeamSearch& params, int num_stop_tokens)
      : params_(params), num_candidates_(params.width + num_stop_tokens) {}

  int fanout() const override { return params_.width; }
  int num_candidates() const override { return num_candidates_; }
  SearchDecision Decide(const SearchView& view) const override;

 private:
  struct Continuation {
    int source = 0;      // index into the running hypotheses
    double logprob = 0;  // of the whole hypothesis
    SearchDecision::Step step;
    bool ends = false;
  };

  bool Over(const SearchView& view, const std::vector<BranchView>& running,
            const std::vector<SearchDecision::Kept>& ended) const;
  SearchDecision Advance(const SearchView& view, const std::vector<BranchView>& running,
                         const std::vector<SearchDecision::Kept>& ended) const;
  std::vector<Continuation> Continuations(const SearchView& view,
                                          const std::vector<BranchView>& running) const;
  double Score(double logprob, int tokens) const;

  const BeamSearch params_;
  const int num_candidates_;
};

}  // namespace espalier
