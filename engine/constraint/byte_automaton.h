// A deterministic automaton over the bytes of UTF-8 text. Immutable: any thread may read it.
// Every state but the dead one leads to acceptance, so whoever follows it never gets stuck.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/constraint/regex.h"

namespace espalier {

// What one expression may cost. Counts, not times: the same pattern is refused on every machine.
struct AutomatonLimits {
  int max_positions = 1 << 16;     // states of the nondeterministic automaton
  int max_transitions = 1 << 20;   // states x byte classes of the deterministic one
  int64_t max_work = 100'000'000;  // nondeterministic states visited, well below a second
};

class ByteAutomaton {
 public:
  static constexpr int kDead = -1;

  // INVALID_ARGUMENT when a limit is exceeded, or when no text matches.
  static absl::StatusOr<ByteAutomaton> Compile(const RegexTree& tree,
                                               const AutomatonLimits& limits);

  int initial() const { return initial_; }
  // The state behind `byte`; `state` is not kDead.
  int Advance(int state, uint8_t byte) const {
    return next_[static_cast<size_t>(state) * num_classes_ + classes_[byte]];
  }
  // The bytes so far are a match.
  bool accepts(int state) const { return accepts_[state]; }
  // Some longer text matches.
  bool continues(int state) const { return continues_[state]; }
  int num_states() const { return static_cast<int>(accepts_.size()); }

 private:
  friend class AutomatonBuilder;

  void CutDeadEnds();

  int initial_ = kDead;
  size_t num_classes_ = 0;
  std::array<uint8_t, 256> classes_{};  // of a byte: bytes of one class lead the same way
  std::vector<int32_t> next_;           // [states, classes]
  std::vector<bool> accepts_;           // [states]
  std::vector<bool> continues_;         // [states]
};

}  // namespace espalier
