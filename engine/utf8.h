// UTF-8 as the Unicode standard decodes it. Bytes that a model generates are arbitrary, and what
// goes to a client must be valid.
// Source: Unicode 15.0, table 3-7 (well-formed sequences) and section 3.9, "U+FFFD Substitution of
// Maximal Subparts"; the WHATWG Encoding Standard's decoder gives the same result.
#pragma once

#include <string>
#include <string_view>

namespace espalier {

// What a decoder takes from the front of `bytes` (not empty) in one go.
struct Utf8Unit {
  enum class Kind {
    kCharacter,   // a well-formed sequence
    kInvalid,     // a maximal subpart of an ill-formed one: becomes one U+FFFD
    kIncomplete,  // all of `bytes`: more may complete it
  };
  Kind kind;
  int length;  // bytes, 1 to 4
};
Utf8Unit NextUtf8Unit(std::string_view bytes);

bool IsValidUtf8(std::string_view bytes);

// Appends `bytes` to `text`, each ill-formed subpart and an incomplete end as one U+FFFD.
void AppendAsUtf8(std::string_view bytes, std::string* text);

}  // namespace espalier
