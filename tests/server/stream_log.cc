#include "tests/server/stream_log.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "engine/utf8.h"

namespace espalier {

void StreamLog::Add(const v1::GenerateEvent& event) {
  EXPECT_FALSE(usage.has_value()) << "an event after TreeFinished";
  EXPECT_EQ(num_events == 0, event.has_tree_started()) << "TreeStarted comes first, and once";
  ++num_events;
  switch (event.event_case()) {
    case v1::GenerateEvent::kTreeStarted:
      tree_id = event.tree_started().tree_id();
      seed = event.tree_started().seed();
      break;
    case v1::GenerateEvent::kBranchStarted: {
      const v1::BranchStarted& started = event.branch_started();
      EXPECT_FALSE(branches.contains(started.branch_id()));
      if (started.has_parent_branch_id()) {
        EXPECT_TRUE(branches.contains(started.parent_branch_id()));
      }
      branches[started.branch_id()].started = started;
      break;
    }
    case v1::GenerateEvent::kTokens:
      for (const v1::BranchTokens& tokens : event.tokens().branches()) {
        ASSERT_TRUE(branches.contains(tokens.branch_id())) << "tokens before BranchStarted";
        BranchLog& branch = branches[tokens.branch_id()];
        EXPECT_FALSE(branch.finished.has_value()) << "tokens after BranchFinished";
        EXPECT_TRUE(IsValidUtf8(tokens.text()));
        branch.text += tokens.text();
        branch.token_ids.insert(branch.token_ids.end(), tokens.token_ids().begin(),
                                tokens.token_ids().end());
        for (const v1::TokenLogprob& logprob : tokens.logprobs()) {
          branch.logprobs.push_back(logprob.logprob());
        }
      }
      break;
    case v1::GenerateEvent::kBranchFinished: {
      const v1::BranchFinished& finished = event.branch_finished();
      ASSERT_TRUE(branches.contains(finished.branch_id()));
      EXPECT_FALSE(branches[finished.branch_id()].finished.has_value()) << "finished twice";
      branches[finished.branch_id()].finished = finished;
      break;
    }
    case v1::GenerateEvent::kNodeScored:
      scored.push_back(event.node_scored());
      break;
    case v1::GenerateEvent::kTreeFinished:
      for (const auto& [id, branch] : branches) {
        EXPECT_TRUE(branch.finished.has_value()) << "branch " << id << " was left open";
      }
      usage = event.tree_finished().usage();
      break;
    case v1::GenerateEvent::EVENT_NOT_SET:
      ADD_FAILURE() << "an empty event";
      break;
  }
}

std::vector<BranchLog> StreamLog::OfNode(const std::string& id) const {
  std::vector<BranchLog> found;
  for (const auto& [branch_id, branch] : branches) {
    if (branch.started.node_id() == id) found.push_back(branch);
  }
  std::stable_sort(found.begin(), found.end(), [](const BranchLog& a, const BranchLog& b) {
    return a.started.sample_index() < b.started.sample_index();
  });
  return found;
}

int StreamLog::num_tokens() const {
  size_t count = 0;
  for (const auto& [id, branch] : branches) count += branch.token_ids.size();
  return static_cast<int>(count);
}

StreamLog ReadAll(grpc::ClientReader<v1::GenerateEvent>* reader) {
  StreamLog log;
  v1::GenerateEvent event;
  while (reader->Read(&event)) log.Add(event);
  log.status = reader->Finish();
  return log;
}

StreamLog Generate(v1::TreeDecoder::Stub* stub, const v1::GenerateRequest& request) {
  grpc::ClientContext context;
  return ReadAll(stub->Generate(&context, request).get());
}

}  // namespace espalier
