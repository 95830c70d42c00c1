// The TreeDecoder service: each method turns bytes into a request, asks the engine, answers.
//
// gRPC's threads call the methods and must not block. What can take long (tokenizing megabytes)
// goes to the request queue, which is bounded: when it is full, calls are refused. What an operator
// needs then (Abort, GetModelInfo, GetServerStats) is answered on the spot.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "absl/status/status.h"
#include "engine/engine.h"
#include "espalier/v1/tree_decoder.grpc.pb.h"
#include "server/session_registry.h"
#include "server/work_queue.h"

namespace espalier {

namespace internal {

// Every method in its raw form: message_io.h says why.
template <class Base>
using RawTreeDecoder = v1::TreeDecoder::WithRawCallbackMethod_Generate<
    v1::TreeDecoder::WithRawCallbackMethod_Session<v1::TreeDecoder::WithRawCallbackMethod_Score<
        v1::TreeDecoder::WithRawCallbackMethod_Tokenize<
            v1::TreeDecoder::WithRawCallbackMethod_Detokenize<
                v1::TreeDecoder::WithRawCallbackMethod_GetModelInfo<
                    v1::TreeDecoder::WithRawCallbackMethod_GetServerStats<
                        v1::TreeDecoder::WithRawCallbackMethod_DescribeTree<
                            v1::TreeDecoder::WithRawCallbackMethod_Abort<Base>>>>>>>>>;

}  // namespace internal

class TreeDecoderService final : public internal::RawTreeDecoder<v1::TreeDecoder::Service> {
 public:
  // All outlive the service. `events` has no capacity limit: tree_call.h says why.
  TreeDecoderService(Engine* engine, WorkQueue* requests, WorkQueue* events);

  // Ends every session once what it runs is done, and takes no other.
  void EndSessions() { sessions_.EndAll(); }

 private:
  using Context = grpc::CallbackServerContext;
  using Bytes = grpc::ByteBuffer;

  grpc::ServerWriteReactor<Bytes>* Generate(Context* context, const Bytes* request) override;
  grpc::ServerBidiReactor<Bytes, Bytes>* Session(Context* context) override;
  grpc::ServerUnaryReactor* Score(Context* context, const Bytes* request, Bytes* response) override;
  grpc::ServerUnaryReactor* Tokenize(Context* context, const Bytes* request,
                                     Bytes* response) override;
  grpc::ServerUnaryReactor* Detokenize(Context* context, const Bytes* request,
                                       Bytes* response) override;
  grpc::ServerUnaryReactor* GetModelInfo(Context* context, const Bytes* request,
                                         Bytes* response) override;
  grpc::ServerUnaryReactor* GetServerStats(Context* context, const Bytes* request,
                                           Bytes* response) override;
  grpc::ServerUnaryReactor* DescribeTree(Context* context, const Bytes* request,
                                         Bytes* response) override;
  grpc::ServerUnaryReactor* Abort(Context* context, const Bytes* request, Bytes* response) override;

  absl::Status DoTokenize(v1::TokenizeRequest request, v1::TokenizeResponse* response);
  absl::Status DoDetokenize(v1::DetokenizeRequest request, v1::DetokenizeResponse* response);
  absl::Status DoDescribeTree(v1::DescribeTreeRequest request, v1::DescribeTreeResponse* response);

  // Runs a reactor's Start on the request queue, or refuses the call.
  template <class Reactor>
  Reactor* Begin(Reactor* reactor, const Bytes* request);

  Engine* const engine_;
  WorkQueue* const requests_;
  WorkQueue* const events_;
  SessionRegistry sessions_;
};

}  // namespace espalier
