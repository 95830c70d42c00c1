// Calls whose messages are plain bytes: for services without stubs, and for bytes that no stub
// would send.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/support/status.h>

#include <memory>
#include <string>

namespace espalier {

// One message out, at most one in. `method` is "/package.Service/Method".
grpc::Status RawUnaryCall(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                          const std::string& request, std::string* response);

// One message out and any number in, which come back one after another.
grpc::Status RawStreamCall(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                           const std::string& request, std::string* response);

}  // namespace espalier
