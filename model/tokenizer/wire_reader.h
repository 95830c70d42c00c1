// Walks the fields of a serialised Protocol Buffers message (source: the encoding specification).
// Small and without generated code, so that nothing below the server links Protobuf.
#pragma once

#include <cstdint>
#include <string_view>

namespace espalier {

class WireReader {
 public:
  explicit WireReader(std::string_view message) : rest_(message) {}

  // Moves to the next field; false at the end and on malformed bytes, which ok() tells apart.
  bool Next();
  bool ok() const { return ok_; }

  // The field's number, and its value in the form that it was sent in; another form gives the
  // default.
  uint32_t number() const { return number_; }
  uint64_t varint() const { return wire_type_ == kVarint ? scalar_ : 0; }
  float float32() const;
  std::string_view bytes() const { return wire_type_ == kBytes ? bytes_ : std::string_view(); }

 private:
  enum WireType : uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

  bool ReadVarint(uint64_t* value);
  bool ReadFixed(size_t width);
  bool ReadValue();

  std::string_view rest_;
  uint32_t number_ = 0;
  uint32_t wire_type_ = kVarint;
  uint64_t scalar_ = 0;
  std::string_view bytes_;
  bool ok_ = true;
};

}  // namespace espalier
