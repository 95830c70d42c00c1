// Between the wire's messages and the engine's types. Limits and ranges are the engine's business:
// here only what the engine's types cannot say is refused.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "engine/event.h"
#include "engine/request.h"
#include "espalier/v1/tree_decoder.pb.h"
#include "model/tokenizer/tokenizer.h"

namespace espalier {

// The prompt tree flattened depth-first, children in order. Iterative: the depth of a request costs
// no stack. Texts are moved out of the message. The deadline is left unset.
absl::StatusOr<TreeRequest> TakeTreeRequest(v1::GenerateRequest message);

// The prompt as the root, the continuations as its scored children, in order.
absl::StatusOr<TreeRequest> TakeTreeRequest(v1::ScoreRequest message);

// A lone node with the command's content.
absl::StatusOr<PromptNode> TakePromptNode(v1::AppendTokens message);
absl::StatusOr<Generation> TakeGeneration(v1::GenerateBranches message);
// Nodes to be scored, without a parent yet.
absl::StatusOr<std::vector<PromptNode>> TakeContinuations(
    google::protobuf::RepeatedPtrField<v1::Continuation>* messages);
// `with_tokens`: with each token's log-probability.
v1::ContinuationScore ToProto(const NodeScored& scored, bool with_tokens,
                              const Tokenizer& tokenizer);

// A lone node with the request's input.
absl::StatusOr<PromptNode> TakePromptNode(v1::TokenizeRequest message);

// What events call each node: its id, or its index where the client gave none.
std::vector<std::string> NodeLabels(const TreeRequest& request);

// Writes the events of one tree. Borrows the tokenizer.
class EventWriter {
 public:
  EventWriter(std::vector<std::string> node_labels, const Tokenizer* tokenizer)
      : node_labels_(std::move(node_labels)), tokenizer_(tokenizer) {}

  v1::GenerateEvent ToProto(TreeEvent event) const;

 private:
  const std::vector<std::string> node_labels_;
  const Tokenizer* const tokenizer_;
};

v1::FinishReason ToProto(FinishReason reason);
v1::TokenLogprob ToProto(const TokenLogprob& logprob, const Tokenizer& tokenizer);
v1::Usage ToProto(const Usage& usage);
v1::GetModelInfoResponse ToProto(const ModelInfo& info);
v1::GetServerStatsResponse ToProto(const EngineStats& stats, const EngineConfig& config);
// At most `max_nodes` of `nodes`.
v1::DescribeTreeResponse ToProto(const std::vector<TreeNodeInfo>& nodes, int max_nodes);

}  // namespace espalier
