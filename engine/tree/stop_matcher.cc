#include "engine/tree/stop_matcher.h"

#include <algorithm>
#include <limits>

#include "kernels/core/check.h"

namespace espalier {

StopMatcher::StopMatcher(const std::vector<std::string>* stop)
    : stop_(stop), automata_(stop->size()) {
  for (size_t s = 0; s < stop->size(); ++s) {
    const std::string& text = (*stop)[s];
    ESPALIER_CHECK(!text.empty() && text.size() <= std::numeric_limits<uint16_t>::max());
    std::vector<uint16_t>& border = automata_[s].border;
    border.assign(text.size() + 1, 0);
    for (size_t i = 1; i < text.size(); ++i) {
      int length = border[i];
      while (length > 0 && text[i] != text[length]) length = border[length];
      border[i + 1] = static_cast<uint16_t>(text[i] == text[length] ? length + 1 : 0);
    }
  }
}

int StopMatcher::Push(char byte) {
  int found = -1;
  for (size_t s = 0; s < automata_.size(); ++s) {
    const std::string& text = (*stop_)[s];
    Automaton& a = automata_[s];
    while (a.matched > 0 && byte != text[a.matched]) a.matched = a.border[a.matched];
    if (byte == text[a.matched]) ++a.matched;
    if (a.matched < static_cast<int>(text.size())) continue;
    a.matched = a.border[a.matched];
    if (found < 0 || text.size() > (*stop_)[found].size()) found = static_cast<int>(s);
  }
  return found;
}

int StopMatcher::pending() const {
  int longest = 0;
  for (const Automaton& a : automata_) longest = std::max(longest, a.matched);
  return longest;
}

}  // namespace espalier
