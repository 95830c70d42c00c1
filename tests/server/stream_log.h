// What a Generate stream said, put together a branch at a time, with the order of events checked.
#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/support/status.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "espalier/v1/tree_decoder.grpc.pb.h"

namespace espalier {

struct BranchLog {
  v1::BranchStarted started;
  std::string text;
  std::vector<int> token_ids;
  std::vector<float> logprobs;
  std::optional<v1::BranchFinished> finished;
};

struct StreamLog {
  std::string tree_id;
  uint64_t seed = 0;
  std::map<int, BranchLog> branches;
  std::vector<v1::NodeScored> scored;
  std::optional<v1::Usage> usage;
  int num_events = 0;
  grpc::Status status;

  // Expects that `event` may come now.
  void Add(const v1::GenerateEvent& event);

  // The branches of a node, by sample.
  std::vector<BranchLog> OfNode(const std::string& id) const;
  int num_tokens() const;
};

// Reads to the end.
StreamLog ReadAll(grpc::ClientReader<v1::GenerateEvent>* reader);

StreamLog Generate(v1::TreeDecoder::Stub* stub, const v1::GenerateRequest& request);

}  // namespace espalier
