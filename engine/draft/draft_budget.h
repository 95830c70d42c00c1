// What drafting may cost. A drafted token takes a row of the verifying step, and a level of a draft
// tree takes a pass of the draft model: either must bring more tokens than the same time brings
// otherwise. The rate at which tokens come is measured, so a loaded server, whose steps serve many
// branches, drafts little or nothing.
#pragma once

namespace espalier {

class DraftBudget {
 public:
  // A step of `rows` rows, each with logits, took `ms`, beside `draft_ms` of drafting, and brought
  // `tokens`.
  void ObserveStep(int rows, double ms, double draft_ms, int tokens);
  // A pass of the draft model took `ms`. It went on from tokens whose paths had `frontier` of
  // probability in sum, and the tokens worth going on from that it offered have `offered`.
  void ObservePass(double ms, double frontier, double offered);
  // Of tokens that the draft model gave these probabilities in sum, so many were accepted.
  void ObserveAcceptance(double expected, int accepted);

  // By the draft model's word, on its path: that a drafted token must have to be verified.
  double MinProbability() const;
  // Whether another pass may run that goes on from tokens with so much probability.
  bool PassPays(double frontier) const;

 private:
  double TokensPerMs() const;
  double MsPerRow() const;
  // Accepted tokens over the draft model's promises.
  double Trust() const;

  // All decay, so that they follow the load.
  double tokens_ = 0, ms_ = 0;
  double weight_ = 0, sum_rows_ = 0, sum_ms_ = 0, sum_rows2_ = 0, sum_rows_ms_ = 0;
  double pass_ms_ = 0, passes_ = 0;
  double frontier_ = 0, offered_ = 0;
  double expected_ = 0, accepted_ = 0;
};

}  // namespace espalier
