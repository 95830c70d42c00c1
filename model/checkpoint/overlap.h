// Finds tensors of an untrusted file that claim the same bytes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

namespace espalier {

struct NamedRange {
  std::string_view name;
  uint64_t begin;  // byte offset
  uint64_t end;    // one past the last
};

// The names of two ranges that overlap, or nothing. Sorts `ranges` by their begin.
inline std::optional<std::pair<std::string_view, std::string_view>> FindOverlap(
    std::vector<NamedRange>& ranges) {
  std::ranges::sort(ranges, {},
                    [](const NamedRange& range) { return std::pair(range.begin, range.end); });
  for (size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i].begin < ranges[i - 1].end) return {{ranges[i - 1].name, ranges[i].name}};
  }
  return std::nullopt;
}

}  // namespace espalier
