// Beam search with Hugging Face transformers' meaning, hypothesis for hypothesis and score for
// score: each step the `width` most likely continuations of all hypotheses live on; one that ends
// among the `width` best joins the ended ones, of which the best `width` stay.
// Score of an ended hypothesis: its log-probability divided by the number of its tokens to the
// power of length_penalty, the stop token included in both.
//
// All hypotheses move together: nothing is decided until each has its candidates. Each offers its
// width + num_stop_tokens most likely tokens, for no more of one can survive.
//
// Groups (diverse beam search, Vijayakumar et al., arXiv:1610.02424) are beam searches of
// width / groups hypotheses that choose one after the other; a token loses diversity_penalty for
// every hypothesis of an earlier group that takes it in the same step. As many candidates do: the
// earlier groups take no more tokens than a group is narrower than the whole.
#pragma once

#include <map>
#include <vector>

#include "engine/tree/branch_policy.h"

namespace espalier {

class BeamSearchPolicy : public BranchPolicy {
 public:
  BeamSearchPolicy(const BeamSearch& params, int num_stop_tokens)
      : params_(params),
        group_width_(params.width / params.groups),
        num_candidates_(params.width + num_stop_tokens) {}

  int fanout() const override { return params_.width; }
  int num_candidates() const override { return num_candidates_; }
  SearchDecision Decide(const SearchView& view) const override;

 private:
  struct Group {
    std::vector<BranchView> running;
    std::vector<SearchDecision::Kept> ended;  // best first
  };
  struct Continuation {
    int source = 0;      // index into the running hypotheses
    double logprob = 0;  // of the whole hypothesis
    double value = 0;    // by which it is chosen: less what its token loses
    SearchDecision::Step step;
    bool ends = false;
  };
  // How many hypotheses of earlier groups took a token in this step.
  using Taken = std::map<int32_t, int>;

  std::vector<Group> Groups(const SearchView& view) const;
  bool Over(const SearchView& view, const Group& group) const;
  SearchDecision Finish(const std::vector<Group>& groups) const;
  void Advance(const SearchView& view, const Group& group, Taken* taken,
               SearchDecision* decision) const;
  std::vector<Continuation> Continuations(const SearchView& view, const Group& group,
                                          const Taken& taken) const;
  double Score(double logprob, int tokens) const;

  const BeamSearch params_;
  const size_t group_width_;
  const int num_candidates_;
};

}  // namespace espalier
