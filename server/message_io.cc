#include "server/message_io.h"

#include <grpcpp/support/proto_buffer_reader.h>
#include <grpcpp/support/proto_buffer_writer.h>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "server/wire_guard.h"

namespace espalier {

absl::Status ParseMessage(const grpc::ByteBuffer& bytes, google::protobuf::Message* message) {
  grpc::ByteBuffer shared = bytes;  // a reference to the same slices: readers want it mutable
  {
    grpc::ProtoBufferReader reader(&shared);
    if (!reader.status().ok()) return absl::InvalidArgumentError("message cannot be decompressed");
    absl::Status status = CheckWire(*message->GetDescriptor(), &reader);
    if (!status.ok()) return status;
  }
  grpc::ProtoBufferReader reader(&shared);
  if (message->ParseFromZeroCopyStream(&reader)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(message->GetDescriptor()->name(), ": malformed message"));
}

grpc::ByteBuffer SerializeMessage(const google::protobuf::Message& message) {
  grpc::ByteBuffer bytes;
  const int size = static_cast<int>(message.ByteSizeLong());
  {
    grpc::ProtoBufferWriter writer(&bytes, grpc::kProtoBufferWriterMaxBufferLength, size);
    const bool serialized = message.SerializeToZeroCopyStream(&writer);
    ESPALIER_CHECK(serialized);
  }
  return bytes;
}

}  // namespace espalier
