// "1,50 / 4000,200" as two lists of positive numbers.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <utility>
#include <vector>

namespace espalier::bench {

inline std::vector<int> ParseInts(const std::string& text) {
  std::vector<int> numbers;
  for (const std::string& part : CLI::detail::split(text, ',')) {
    int number = 0;
    if (!CLI::detail::lexical_cast(CLI::detail::trim_copy(part), number) || number < 1) {
      throw CLI::ValidationError("'" + part + "' is not a positive number");
    }
    numbers.push_back(number);
  }
  return numbers;
}

inline std::pair<std::vector<int>, std::vector<int>> ParsePair(const std::string& text) {
  const std::vector<std::string> sides = CLI::detail::split(text, '/');
  if (sides.size() != 2) throw CLI::ValidationError("'" + text + "' is not of the form A / B");
  return {ParseInts(sides[0]), ParseInts(sides[1])};
}

}  // namespace espalier::bench
