// Messages from and to the bytes of a call. Methods take raw bytes, because gRPC answers a message
// that it cannot parse with an empty UNIMPLEMENTED; and to look at the bytes before parsing them.
#pragma once

#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>

#include "absl/status/status.h"

namespace espalier {

// INVALID_ARGUMENT for bytes that are no such message, or would take too much memory.
absl::Status ParseMessage(const grpc::ByteBuffer& bytes, google::protobuf::Message* message);

grpc::ByteBuffer SerializeMessage(const google::protobuf::Message& message);

}  // namespace espalier
