// Finds stop strings in a growing text, byte by byte: Knuth, Morris and Pratt's automaton for each
// string, so a byte costs amortised constant time a string whatever the text.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace espalier {

class StopMatcher {
 public:
  // Borrows `stop`. No string is empty or longer than 65535 bytes.
  explicit StopMatcher(const std::vector<std::string>* stop);

  // Takes the text's next byte. Returns the stop string that ends with it, the longest if several
  // do, the first of equal ones; -1: none.
  int Push(char byte);
  // The longest end of the text so far that may become a stop string, in bytes. Whole matches
  // count as far as they may begin another one.
  int pending() const;

 private:
  struct Automaton {
    std::vector<uint16_t> border;  // [i]: longest proper prefix that also ends the first i bytes
    int matched = 0;               // bytes of the string that end the text
  };

  const std::vector<std::string>* stop_;
  std::vector<Automaton> automata_;
};

}  // namespace espalier
