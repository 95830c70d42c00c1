// Unicode normalization form C.
#pragma once

#include <string>
#include <string_view>

namespace espalier {

// NFC of valid UTF-8. O(n log n) for any text: a long run of combining marks is sorted, not
// bubbled into place.
std::string NormalizeNfc(std::string_view text);

}  // namespace espalier
