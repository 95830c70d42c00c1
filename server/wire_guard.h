// Looks at a message's bytes before protobuf does. Parsing makes an object of up to a hundred bytes
// out of two bytes of an empty submessage, so that a 16 MiB message could take gigabytes: what a
// message will allocate is counted first.
#pragma once

#include "absl/status/status.h"

namespace google::protobuf {
class Descriptor;
namespace io {
class ZeroCopyInputStream;
}  // namespace io
}  // namespace google::protobuf

namespace espalier {

// Submessages, strings and unknown fields that a message may hold, over all levels.
inline constexpr int kMaxWireElements = 1 << 18;
// Messages inside each other. Protobuf itself gives up at 100.
inline constexpr int kMaxWireDepth = 96;

// INVALID_ARGUMENT for bytes that are not a well-formed `type`, hold a string that is not UTF-8, or
// exceed a limit above. Iterative: depth costs no stack.
absl::Status CheckWire(const google::protobuf::Descriptor& type,
                       google::protobuf::io::ZeroCopyInputStream* bytes);

}  // namespace espalier
