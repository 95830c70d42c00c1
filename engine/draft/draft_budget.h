// What drafting may cost. Steps with and without drafts take turns until it is known which bring
// more tokens a ms at the present load, and again now and then; so a loaded server, whose steps
// serve many branches, does not draft. Within a step that drafts, a drafted token takes a row and a
// level of a draft tree takes a pass of the draft model: either must bring more tokens than the
// same time brings otherwise.
#pragma once

#include <array>

namespace espalier {

class DraftBudget {
 public:
  // Whether a step of so many branches should draft. Asked once a step.
  bool ShouldDraft(int branches);

  struct Step {
    int branches = 0;
    bool drafted = false;  // as ShouldDraft said
    int rows = 0;          // all with logits
    double verify_ms = 0;  // of the model that verifies
    double total_ms = 0;   // with drafting and scheduling
    int tokens = 0;        // that it brought
  };
  void ObserveStep(const Step& step);
  // A pass of the draft model took `ms`. It went on from tokens whose paths had `frontier` of
  // probability in sum, and the tokens worth going on from that it offered have `offered`.
  void ObservePass(double ms, double frontier, double offered);
  // Of tokens that the draft model gave these probabilities in sum, so many were accepted.
  void ObserveAcceptance(double expected, int accepted);

  // By the draft model's word, on its path: that a drafted token must have to be verified.
  double MinProbability() const;
  // Whether a pass more may run that goes on from tokens with so much probability.
  bool PassPays(double frontier) const;

 private:
  // What steps of a load bring with drafts, or without.
  struct Arm {
    double tokens = 0, ms = 0, steps = 0;  // of the last few
    int observed = 0;
    void Scale(double by) { tokens *= by, ms *= by, steps *= by; }
    double rate() const { return ms > 0 ? tokens / ms : 0; }
  };
  struct Load {
    Arm plain, drafting;
    bool drafts = false;  // what steps do outside of trials
    int steps = 0;        // since the last trial began
    int period = 0;       // steps between trials; 0: both kinds are still being learnt
    bool Better() const { return drafting.rate() > plain.rate(); }
  };
  static constexpr int kLoads = 12;
  static int LoadOf(int branches);  // by powers of 2

  double TokensPerMs() const;
  double MsPerRow() const;
  // Accepted tokens over the draft model's promises.
  double Trust() const;

  std::array<Load, kLoads> loads_;
  // All decay, so that they follow the load.
  double tokens_ = 0, ms_ = 0;
  double weight_ = 0, sum_rows_ = 0, sum_ms_ = 0, sum_rows2_ = 0, sum_rows_ms_ = 0;
  double pass_ms_ = 0, passes_ = 0;
  int observed_passes_ = 0;
  double frontier_ = 0, offered_ = 0;
  double expected_ = 0, accepted_ = 0;
};

}  // namespace espalier
