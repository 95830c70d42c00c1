// Which branches of a generation live on: the seam of the search policies. A policy sees what the
// branches hold and answers what becomes of them. It knows nothing of KV, scheduling or clients.
//
// Decide is a pure function of its view, so that one policy serves every instance of its prompt
// node and a replayed history decides alike. It is asked after every step in which a branch of the
// search moved.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/request.h"

namespace espalier {

struct BranchView {
  int branch = 0;  // its name in the decision
  int sample = 0;  // which of the prompt's branches it is, or was forked from
  // The branch ended by itself, by a stop or by length, and waits for the search's end.
  bool ended = false;
  int tokens = 0;  // from the search's beginning; for a policy that chooses tokens with the stop
  double logprob = 0;  // sum over these tokens
  // The most likely next tokens and their log-probabilities, best first, where the policy chooses
  // tokens itself. Empty while they are being computed.
  std::span<const std::pair<int32_t, float>> candidates;
  // What the judge of an ended branch says, once it has said it.
  std::optional<double> judgement = {};
  // What the policy found in the text of an ended branch. Null: it grows, or there is none.
  const std::string* answer = nullptr;
};

struct SearchView {
  std::vector<BranchView> branches;  // all that are neither pruned nor kept, oldest first
  int unstarted = 0;                 // branches that are still to begin at the prompt
  int max_tokens = 0;
  // What ends a branch from here on, as its next token.
  std::span<const int32_t> stop_tokens;
  // What may not be chosen as the next token.
  std::span<const int32_t> banned;
};

struct SearchDecision {
  // A branch takes a token. Of a branch that goes on in several ways all but one are forks.
  struct Step {
    int branch = 0;
    int32_t token = 0;
    float logprob = 0;
    bool stops = false;  // a stop token: it ends the branch and is not part of it
    bool fork = false;   // a new branch takes it; `branch` stays as it is
  };
  struct Pruned {
    int branch = 0;
    double score = 0;      // what it had, or could at most have reached
    double threshold = 0;  // the lowest score that went on
  };
  struct Kept {
    int branch = 0;
    double score = 0;
  };
  std::vector<Step> steps;
  std::vector<Pruned> pruned;
  // Best first. Not empty: the search is over, and every branch is either here or pruned.
  std::vector<Kept> kept;
};

class BranchPolicy {
 public:
  virtual ~BranchPolicy() = default;
  // Branches that begin at the prompt.
  virtual int fanout() const = 0;
  // How many of the most likely next tokens the policy wants to choose from; 0: branches draw.
  virtual int num_candidates() const = 0;
  // What the policy compares of an ended branch's text; asked once a branch.
  virtual std::optional<std::string> Answer(std::string_view /*text*/) const {
    return std::nullopt;
  }
  virtual SearchDecision Decide(const SearchView& view) const = 0;
};

// Null for independent samples. `num_stop_tokens`: distinct tokens that end a branch.
std::unique_ptr<const BranchPolicy> MakePolicy(const Generation& generation, int num_stop_tokens);

}  // namespace espalier
