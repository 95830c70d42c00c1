#include "server/wire_guard.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream.h>
#include <google/protobuf/wire_format_lite.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/utf8.h"

namespace espalier {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;

// A message that the walk is inside of.
struct Level {
  const Descriptor* type;
  CodedInputStream::Limit outer_limit;
};

class Walk {
 public:
  Walk(const Descriptor& type, google::protobuf::io::ZeroCopyInputStream* bytes)
      : type_(type), in_(bytes) {}

  absl::Status Run() {
    levels_.push_back({&type_, 0});
    while (true) {
      const uint32_t tag = in_.ReadTag();
      if (tag == 0) {
        if (!in_.ConsumedEntireMessage()) return Malformed();
        if (levels_.size() == 1) return absl::OkStatus();
        in_.PopLimit(levels_.back().outer_limit);
        levels_.pop_back();
      } else if (absl::Status status = Field(tag); !status.ok()) {
        return status;
      }
    }
  }

 private:
  absl::Status Field(uint32_t tag) {
    const FieldDescriptor* field =
        levels_.back().type->FindFieldByNumber(WireFormatLite::GetTagFieldNumber(tag));
    if (field == nullptr && ++elements_ > kMaxWireElements) return TooMany();
    switch (WireFormatLite::GetTagWireType(tag)) {
      case WireFormatLite::WIRETYPE_VARINT: {
        uint64_t value;
        return in_.ReadVarint64(&value) ? absl::OkStatus() : Malformed();
      }
      case WireFormatLite::WIRETYPE_FIXED32:
        return in_.Skip(4) ? absl::OkStatus() : Malformed();
      case WireFormatLite::WIRETYPE_FIXED64:
        return in_.Skip(8) ? absl::OkStatus() : Malformed();
      case WireFormatLite::WIRETYPE_LENGTH_DELIMITED:
        return LengthDelimited(field);
      case WireFormatLite::WIRETYPE_START_GROUP:  // proto3 has none, and each opens a level
      case WireFormatLite::WIRETYPE_END_GROUP:
        return Malformed();
    }
    return Malformed();
  }

  absl::Status LengthDelimited(const FieldDescriptor* field) {
    uint32_t size;
    if (!in_.ReadVarint32(&size) || size > static_cast<uint32_t>(INT32_MAX)) return Malformed();
    const bool is_message =
        field != nullptr && field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
    const bool is_string = field != nullptr && field->cpp_type() == FieldDescriptor::CPPTYPE_STRING;
    if ((is_message || is_string) && ++elements_ > kMaxWireElements) return TooMany();
    if (field != nullptr && field->type() == FieldDescriptor::TYPE_STRING) {
      return Text(*field, static_cast<int>(size));
    }
    if (!is_message) return in_.Skip(static_cast<int>(size)) ? absl::OkStatus() : Malformed();

    if (levels_.size() >= kMaxWireDepth) {
      return absl::InvalidArgumentError(absl::StrCat(type_.name(), ": ", field->name(),
                                                     " is nested deeper than ", kMaxWireDepth,
                                                     " messages"));
    }
    if (const int left = in_.BytesUntilLimit(); left >= 0 && left < static_cast<int>(size)) {
      return Malformed();
    }
    levels_.push_back({field->message_type(), in_.PushLimit(static_cast<int>(size))});
    return absl::OkStatus();
  }

  // Protobuf would refuse it as well, but without saying which field it is.
  absl::Status Text(const FieldDescriptor& field, int size) {
    if (!in_.ReadString(&text_, size)) return Malformed();
    if (IsValidUtf8(text_)) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(field.containing_type()->name(), ".", field.name(), ": not valid UTF-8"));
  }

  absl::Status Malformed() const {
    return absl::InvalidArgumentError(absl::StrCat(type_.name(), ": malformed message"));
  }
  absl::Status TooMany() const {
    return absl::InvalidArgumentError(
        absl::StrCat(type_.name(), ": more than ", kMaxWireElements, " strings and submessages"));
  }

  const Descriptor& type_;
  CodedInputStream in_;
  std::vector<Level> levels_;
  int elements_ = 0;
  std::string text_;  // of the field at hand
};

}  // namespace

absl::Status CheckWire(const Descriptor& type, google::protobuf::io::ZeroCopyInputStream* bytes) {
  return Walk(type, bytes).Run();
}

}  // namespace espalier
