// Histories that the simulation meets too rarely.
#include "engine/scheduler/scheduler.h"

#include <gtest/gtest.h>

#include <numeric>

#include "tests/support/fake_tokenizer.h"

namespace espalier {
namespace {

constexpr int kPageSize = 16;

class SchedulerTest : public testing::TestWithParam<Sharing> {
 protected:
  // A prompt that generates exactly `max_tokens`; its events are in the returned outbox.
  std::shared_ptr<Outbox> Submit(int priority, int prompt_tokens, int max_tokens) {
    TreeNode node;
    node.max_tokens = max_tokens;
    node.tokens.resize(prompt_tokens);
    std::iota(node.tokens.begin(), node.tokens.end(), 100 * priority);
    node.generation.emplace().ignore_eos = true;
    auto outbox = std::make_shared<Outbox>(1000, nullptr);
    scheduler_.Submit(
        std::make_unique<DecodeTree>(DecodeTreeInit{.tree_id = std::to_string(priority),
                                                    .cache_salt = "",
                                                    .priority = priority,
                                                    .seed = 1,
                                                    .deadline = std::nullopt,
                                                    .nodes = {node},
                                                    .outbox = outbox,
                                                    .tokenizer = &tokenizer_,
                                                    .submitted = absl::UnixEpoch()}));
    return outbox;
  }

  // Every branch draws token 7.
  void Step() {
    const StepBatch* batch = scheduler_.Schedule(absl::UnixEpoch());
    ASSERT_NE(batch, nullptr);
    std::vector<Sample> samples(batch->tasks.size());
    for (Sample& sample : samples) sample.token = 7;
    scheduler_.Commit(samples, std::vector<uint8_t>(batch->num_rows(), 0), absl::UnixEpoch());
    scheduler_.Emit();
    scheduler_.CheckInvariants();
  }

  static absl::Status End(Outbox& outbox) {
    while (std::optional<TreeEvent> event = outbox.Pop()) {
      if (const auto* end = std::get_if<TreeFinished>(&*event)) return end->status;
    }
    return absl::UnknownError("the tree has not ended");
  }

  FakeTokenizer tokenizer_{256};
  PagePool pool_{2};
  RadixTree radix_{&pool_, kPageSize};
  Scheduler scheduler_{
      {.sharing = GetParam(), .page_size = kPageSize, .max_batch_tokens = 64}, &pool_, &radix_};
};

// A page of prompt and a page of generated tokens. When the path is computed again, its known
// tokens fill one page and begin another: the rest must not want a third.
TEST_P(SchedulerTest, APathFitsIntoAPoolOfItsSizeAfterAPreemptionToo) {
  const std::shared_ptr<Outbox> path = Submit(/*priority=*/0, kPageSize, kPageSize);
  for (int i = 0; i < 3; ++i) Step();
  const std::shared_ptr<Outbox> urgent = Submit(/*priority=*/1, kPageSize, 2);
  while (!scheduler_.empty()) {
    Step();
    if (HasFatalFailure()) return;
  }
  EXPECT_EQ(End(*urgent), absl::OkStatus());
  EXPECT_EQ(End(*path), absl::OkStatus());
  EXPECT_GT(scheduler_.Stats().preemptions, 0);
}

INSTANTIATE_TEST_SUITE_P(EverySharing, SchedulerTest,
                         testing::Values(Sharing::kNone, Sharing::kTree, Sharing::kCache));

}  // namespace
}  // namespace espalier
