#include "server/probe.h"

#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/channel_arguments.h>

#include <chrono>
#include <string_view>

#include "absl/strings/str_cat.h"

namespace espalier {
namespace {

constexpr char kCheckMethod[] = "/grpc.health.v1.Health/Check";
// The two messages of the check, as bytes: a request for the server as a whole has no field; the
// answer's field 1 is the status, of which 1 is SERVING.
constexpr std::string_view kServing("\x08\x01", 2);

bool IsServing(const grpc::ByteBuffer& answer) {
  grpc::Slice bytes;
  if (!answer.DumpToSingleSlice(&bytes).ok()) return false;
  return std::string_view(reinterpret_cast<const char*>(bytes.begin()), bytes.size()) == kServing;
}

}  // namespace

absl::Status Probe(const std::string& address, absl::Duration timeout) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);  // the server is never behind the machine's
  grpc::GenericStub stub(
      grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(timeout));

  grpc::CompletionQueue queue;
  const grpc::Slice nothing;
  const auto call =
      stub.PrepareUnaryCall(&context, kCheckMethod, grpc::ByteBuffer(&nothing, 1), &queue);
  call->StartCall();
  grpc::ByteBuffer answer;
  grpc::Status status;
  call->Finish(&answer, &status, /*tag=*/nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);  // always comes: the call has a deadline

  if (!status.ok()) {
    return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                        absl::StrCat(address, ": ", status.error_message()));
  }
  if (!IsServing(answer)) return absl::UnavailableError(absl::StrCat(address, " is not serving"));
  return absl::OkStatus();
}

}  // namespace espalier
