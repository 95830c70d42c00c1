// String building over std::string_view. Debian compiles Abseil for C++14, where absl::string_view
// is a type of its own and absl::StrCat does not take the standard one.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <type_traits>

namespace espalier {

// The parts, strings of any kind and numbers, one after the other.
template <typename... Parts>
std::string Concat(const Parts&... parts) {
  std::string text;
  const auto append = [&text](const auto& part) {
    using Part = std::remove_cvref_t<decltype(part)>;
    if constexpr (std::is_arithmetic_v<Part>) {
      text += std::to_string(part);
    } else if constexpr (requires { part.data(); }) {
      text.append(part.data(), part.size());
    } else {
      text += part;
    }
  };
  (append(parts), ...);
  return text;
}

inline bool Contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

// `from` is not empty.
inline std::string ReplaceAll(std::string_view text, std::string_view from, std::string_view to) {
  std::string replaced;
  for (size_t found = text.find(from); found != std::string_view::npos; found = text.find(from)) {
    replaced += text.substr(0, found);
    replaced += to;
    text.remove_prefix(found + from.size());
  }
  replaced += text;
  return replaced;
}

// Lets a table keyed by std::string be asked with a view.
struct TextHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};

}  // namespace espalier
