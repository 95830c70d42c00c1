// Any bytes as a pattern: refused, or an automaton in which every state leads to a match.
#include <cstddef>
#include <cstdint>

#include "engine/constraint/byte_automaton.h"
#include "kernels/core/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using espalier::ByteAutomaton;
  const auto tree =
      espalier::ParseRegex(absl::string_view(reinterpret_cast<const char*>(data), size));
  if (!tree.ok()) return 0;
  const auto automaton = ByteAutomaton::Compile(
      *tree, {.max_positions = 1 << 12, .max_transitions = 1 << 14, .max_work = 1'000'000});
  if (!automaton.ok()) return 0;
  for (int state = 0; state < automaton->num_states(); ++state) {
    bool leads_on = false;
    for (int byte = 0; byte < 256; ++byte) {
      const int next = automaton->Advance(state, static_cast<uint8_t>(byte));
      ESPALIER_CHECK(next >= ByteAutomaton::kDead && next < automaton->num_states());
      leads_on = leads_on || next != ByteAutomaton::kDead;
    }
    ESPALIER_CHECK(leads_on == automaton->continues(state));
  }
  return 0;
}
