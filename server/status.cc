#include "server/status.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "engine/utf8.h"

namespace espalier {
namespace {

// gRPC sends the message in a header, and peers refuse headers above 8 KiB.
constexpr size_t kMaxMessageBytes = 2048;

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status, grpc::CallbackServerContext* context) {
  if (status.ok()) return grpc::Status::OK;
  if (status.code() == absl::StatusCode::kResourceExhausted) {
    // The first is for people and proxies; gRPC's own retry policy reads the second.
    context->AddTrailingMetadata("retry-after-ms", absl::StrCat(kRetryAfterMs));
    context->AddTrailingMetadata("grpc-retry-pushback-ms", absl::StrCat(kRetryAfterMs));
  }
  std::string message;
  AppendAsUtf8({status.message().data(), std::min(status.message().size(), kMaxMessageBytes)},
               &message);
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), message);
}

}  // namespace espalier
