#include "model/tokenizer/wire_reader.h"

#include <bit>

namespace espalier {

bool WireReader::Next() {
  if (rest_.empty() || !ok_) return false;
  uint64_t key = 0;
  ok_ = ReadVarint(&key) && key >> 3 <= UINT32_MAX;
  if (!ok_) return false;
  number_ = static_cast<uint32_t>(key >> 3);
  wire_type_ = key & 7;
  ok_ = ReadValue();
  return ok_;
}

float WireReader::float32() const {
  return wire_type_ == kFixed32 ? std::bit_cast<float>(static_cast<uint32_t>(scalar_)) : 0.0f;
}

bool WireReader::ReadVarint(uint64_t* value) {
  *value = 0;
  for (int shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
    const uint8_t byte = static_cast<uint8_t>(rest_.front());
    rest_.remove_prefix(1);
    *value |= uint64_t{byte & 0x7Fu} << shift;
    if (byte < 0x80) return true;
  }
  return false;
}

bool WireReader::ReadFixed(size_t width) {
  if (rest_.size() < width) return false;
  scalar_ = 0;
  for (size_t i = 0; i < width; ++i) {
    scalar_ |= uint64_t{static_cast<uint8_t>(rest_[i])} << (8 * i);
  }
  rest_.remove_prefix(width);
  return true;
}

bool WireReader::ReadValue() {
  switch (wire_type_) {
    case kVarint:
      return ReadVarint(&scalar_);
    case kFixed64:
      return ReadFixed(8);
    case kFixed32:
      return ReadFixed(4);
    case kBytes: {
      uint64_t length = 0;
      if (!ReadVarint(&length) || length > rest_.size()) return false;
      bytes_ = rest_.substr(0, length);
      rest_.remove_prefix(length);
      return true;
    }
    default:  // groups, which nobody writes any more, and what is not a wire type
      return false;
  }
}

}  // namespace espalier
