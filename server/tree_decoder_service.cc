#include "server/tree_decoder_service.h"

#include <span>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/utf8.h"
#include "server/convert.h"
#include "server/generate_reactor.h"
#include "server/message_io.h"
#include "server/score_reactor.h"
#include "server/session_reactor.h"
#include "server/status.h"

namespace espalier {
namespace {

constexpr int kDefaultTreeNodes = 1024;
constexpr int kMaxTreeNodes = 65536;

absl::Status QueueFull() {
  return absl::ResourceExhaustedError("too many requests wait to be tokenized");
}

// Parses, asks `handler` (Request, Response*) -> absl::Status, and serializes.
template <class Request, class Response, class Handler>
absl::Status Answer(const grpc::ByteBuffer& bytes, grpc::ByteBuffer* response_bytes,
                    const Handler& handler) {
  Request request;
  if (absl::Status status = ParseMessage(bytes, &request); !status.ok()) return status;
  Response response;
  if (absl::Status status = handler(std::move(request), &response); !status.ok()) return status;
  *response_bytes = SerializeMessage(response);
  return absl::OkStatus();
}

template <class Request, class Response, class Handler>
grpc::ServerUnaryReactor* AnswerNow(grpc::CallbackServerContext* context,
                                    const grpc::ByteBuffer* request, grpc::ByteBuffer* response,
                                    const Handler& handler) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(Answer<Request, Response>(*request, response, handler), context));
  return reactor;
}

template <class Request, class Response, class Handler>
grpc::ServerUnaryReactor* AnswerOn(WorkQueue* queue, grpc::CallbackServerContext* context,
                                   const grpc::ByteBuffer* request, grpc::ByteBuffer* response,
                                   Handler handler) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const bool accepted = queue->TryPost([=] {
    reactor->Finish(ToGrpcStatus(Answer<Request, Response>(*request, response, handler), context));
  });
  if (!accepted) reactor->Finish(ToGrpcStatus(QueueFull(), context));
  return reactor;
}

}  // namespace

TreeDecoderService::TreeDecoderService(Engine* engine, WorkQueue* requests, WorkQueue* events)
    : engine_(engine),
      requests_(requests),
      events_(events),
      sessions_(engine->config().limits.max_sessions) {}

template <class Reactor>
Reactor* TreeDecoderService::Begin(Reactor* reactor, const Bytes* request) {
  if (!requests_->TryPost([reactor, request] { reactor->Start(*request); })) {
    reactor->Refuse(QueueFull());
  }
  return reactor;
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* TreeDecoderService::Generate(Context* context,
                                                                         const Bytes* request) {
  return Begin(new GenerateReactor(engine_, events_, context), request);
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* TreeDecoderService::Session(
    Context* context) {
  auto* reactor = new SessionReactor(engine_, requests_, events_, &sessions_, context);
  reactor->Start();
  return reactor;
}

grpc::ServerUnaryReactor* TreeDecoderService::Score(Context* context, const Bytes* request,
                                                    Bytes* response) {
  return Begin(new ScoreReactor(engine_, events_, context, response), request);
}

grpc::ServerUnaryReactor* TreeDecoderService::Tokenize(Context* context, const Bytes* request,
                                                       Bytes* response) {
  return AnswerOn<v1::TokenizeRequest, v1::TokenizeResponse>(
      requests_, context, request, response,
      [this](v1::TokenizeRequest in, v1::TokenizeResponse* out) {
        return DoTokenize(std::move(in), out);
      });
}

grpc::ServerUnaryReactor* TreeDecoderService::Detokenize(Context* context, const Bytes* request,
                                                         Bytes* response) {
  return AnswerOn<v1::DetokenizeRequest, v1::DetokenizeResponse>(
      requests_, context, request, response,
      [this](v1::DetokenizeRequest in, v1::DetokenizeResponse* out) {
        return DoDetokenize(std::move(in), out);
      });
}

grpc::ServerUnaryReactor* TreeDecoderService::GetModelInfo(Context* context, const Bytes* request,
                                                           Bytes* response) {
  return AnswerNow<v1::GetModelInfoRequest, v1::GetModelInfoResponse>(
      context, request, response, [this](const auto&, v1::GetModelInfoResponse* out) {
        *out = ToProto(engine_->model_info());
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* TreeDecoderService::GetServerStats(Context* context, const Bytes* request,
                                                             Bytes* response) {
  return AnswerNow<v1::GetServerStatsRequest, v1::GetServerStatsResponse>(
      context, request, response, [this](const auto&, v1::GetServerStatsResponse* out) {
        *out = ToProto(engine_->Stats(), engine_->config());
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* TreeDecoderService::DescribeTree(Context* context, const Bytes* request,
                                                           Bytes* response) {
  return AnswerOn<v1::DescribeTreeRequest, v1::DescribeTreeResponse>(
      requests_, context, request, response,
      [this](v1::DescribeTreeRequest in, v1::DescribeTreeResponse* out) {
        return DoDescribeTree(std::move(in), out);
      });
}

grpc::ServerUnaryReactor* TreeDecoderService::Abort(Context* context, const Bytes* request,
                                                    Bytes* response) {
  return AnswerNow<v1::AbortRequest, v1::AbortResponse>(
      context, request, response, [this](const v1::AbortRequest& in, v1::AbortResponse*) {
        if (in.tree_id().empty()) return absl::InvalidArgumentError("tree_id: not set");
        if (sessions_.Abort(in.tree_id()).ok()) return absl::OkStatus();
        return engine_->Cancel(in.tree_id());
      });
}

absl::Status TreeDecoderService::DoTokenize(v1::TokenizeRequest request,
                                            v1::TokenizeResponse* response) {
  const bool at_root = !request.has_at_root() || request.at_root();
  absl::StatusOr<PromptNode> node = TakePromptNode(std::move(request));
  if (!node.ok()) return node.status();
  absl::StatusOr<std::vector<int32_t>> ids = engine_->Tokenize(*node, at_root);
  if (!ids.ok()) return ids.status();
  response->mutable_token_ids()->Add(ids->begin(), ids->end());
  return absl::OkStatus();
}

absl::Status TreeDecoderService::DoDetokenize(v1::DetokenizeRequest request,
                                              v1::DetokenizeResponse* response) {
  const int vocab_size = engine_->model_info().config.vocab_size;
  const std::span<const int32_t> ids(request.token_ids().data(), request.token_ids_size());
  for (size_t i = 0; i < ids.size(); ++i) {
    const int32_t id = ids[i];
    if (id < 0 || id >= vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat("token_ids[", i, "]: ", id,
                                                     " is not from 0 to ", vocab_size - 1,
                                                     ", the vocabulary's last"));
    }
  }
  const bool special = request.has_skip_special_tokens() && !request.skip_special_tokens();
  std::string bytes = engine_->tokenizer().Decode(ids, special);
  AppendAsUtf8(bytes, response->mutable_text());
  response->set_text_bytes(std::move(bytes));
  return absl::OkStatus();
}

absl::Status TreeDecoderService::DoDescribeTree(v1::DescribeTreeRequest request,
                                                v1::DescribeTreeResponse* response) {
  const int max_nodes = request.has_max_nodes() ? request.max_nodes() : kDefaultTreeNodes;
  if (max_nodes < 1 || max_nodes > kMaxTreeNodes) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_nodes: ", max_nodes, " is not between 1 and ", kMaxTreeNodes));
  }
  // One more than is shown, to know whether there are more.
  absl::StatusOr<std::vector<TreeNodeInfo>> nodes =
      engine_->DescribeTree(request.cache_salt(), max_nodes + 1);
  if (!nodes.ok()) return nodes.status();
  *response = ToProto(*nodes, max_nodes);
  return absl::OkStatus();
}

}  // namespace espalier
