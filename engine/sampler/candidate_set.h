// The tokens that top-k, top-p and min-p have left for a draw, with their weights, in order of ids.
// Filters never sort: they find the last token to keep by radix selection on the weight's bits,
// three passes over ever fewer tokens, whatever the distribution. Keeps its buffers between rows.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace espalier {

class CandidateSet {
 public:
  // Starts over with the tokens of at least this weight. Weight 0 is never a candidate. Weights
  // are in [0, 1]; at least one token must be left.
  void Collect(std::span<const float> weights, float threshold);
  // Keeps the k most likely; of equally likely tokens those with the lowest ids. k is at least 1.
  void KeepMostLikely(int k);
  // Keeps the fewest most likely tokens that hold the weight together, but at least one.
  void KeepWeight(double wanted);

  double TotalWeight() const;
  // The lowest id whose cumulative weight, in order of ids, exceeds uniform * TotalWeight().
  int32_t Draw(double uniform) const;

 private:
  struct Candidate {
    float weight;
    int32_t token;
  };
  // The border of a filter: every candidate of more weight stays, and the first `ties` of just
  // this weight.
  struct Border {
    float weight;
    int64_t ties;
  };

  // The border at which amount(candidate), summed from the most likely down, reaches `wanted`.
  template <typename Amount>
  Border FindBorder(double wanted, Amount amount);
  void DropBelow(Border border);

  std::vector<Candidate> candidates_;  // [vocab], the first size_ are left
  size_t size_ = 0;
  std::vector<Candidate> selection_;  // [vocab] those that the border lies among
  std::vector<double> histogram_;
};

}  // namespace espalier
