// What follows when the device fails in a step: every tree ends, nothing runs any more, somebody is
// told once.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <utility>

#include "absl/time/clock.h"
#include "engine/engine_thread.h"
#include "tests/support/fake_tokenizer.h"
#include "tests/support/tiny_engine.h"

namespace espalier {
namespace {

using ::testing::HasSubstr;

class DeviceFailureTest : public testing::Test {
 protected:
  static constexpr int kPages = 64;
  static constexpr int kRows = 64;

  class Sink : public OutputSink {
   public:
    void OnEvents() override {
      if (std::function<void()> run = std::exchange(at_first, nullptr)) run();
      ++events;
      events.notify_all();
    }
    std::atomic<int> events = 0;
    std::function<void()> at_first;  // runs on the engine thread
  };
  struct Call {
    std::shared_ptr<Sink> sink = std::make_shared<Sink>();
    std::shared_ptr<Outbox> outbox = std::make_shared<Outbox>(256, sink);

    absl::Status Wait() {
      for (int seen = 0;; sink->events.wait(seen)) {
        seen = sink->events;
        while (std::optional<TreeEvent> event = outbox->Pop()) {
          if (const auto* end = std::get_if<TreeFinished>(&*event)) return end->status;
        }
      }
    }
  };

  DeviceFailureTest() : checkpoint_(OpenTinyCheckpoint("llama-gqa8-linear")) {
    model_ = *Llama::Create(ctx_, checkpoint_.get(), kRows, kRows);
    const ModelConfig& config = model_->config();
    kv_ = *KvCache::Create(ctx_,
                           {.num_layers = config.num_layers,
                            .num_kv_heads = config.num_kv_heads,
                            .head_dim = config.head_dim},
                           kPages);
    executor_ = *Executor::Create(&ctx_, model_.get(), kv_.get(),
                                  {.max_rows = kRows, .max_logits_rows = kRows});
    thread_ = std::make_unique<EngineThread>(
        SchedulerConfig{.max_batch_tokens = kRows, .max_logits_rows = kRows}, kPages,
        /*max_waiting_trees=*/16, executor_.get(), /*draft_executor=*/nullptr,
        [this](const absl::Status& status) {
          ++failures_;
          failure_ = status;
        });
  }

  absl::Status Submit(Call& call, const std::string& id, int tokens) {
    DecodeTreeInit init{.tree_id = id,
                        .cache_salt = "",
                        .priority = 0,
                        .seed = 1,
                        .deadline = std::nullopt,
                        .nodes = std::vector<TreeNode>(1),
                        .outbox = call.outbox,
                        .tokenizer = &tokenizer_,
                        .submitted = absl::Now()};
    init.nodes[0].tokens = {1, 2, 3};
    init.nodes[0].generation = Greedy(tokens);
    init.nodes[0].max_tokens = tokens;
    return thread_->Submit(std::make_unique<DecodeTree>(std::move(init)));
  }

  Context ctx_ = Context::Cpu(1, CpuPrecision::kF32);
  const FakeTokenizer tokenizer_{kTinyVocab};
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<Llama> model_;
  std::unique_ptr<KvCache> kv_;
  std::unique_ptr<Executor> executor_;
  int failures_ = 0;  // engine thread
  absl::Status failure_;
  std::unique_ptr<EngineThread> thread_;
};

TEST_F(DeviceFailureTest, EndsTreesNamesTheOpAndTellsOnce) {
  Call before;
  ASSERT_TRUE(Submit(before, "before", 5).ok());
  EXPECT_TRUE(before.Wait().ok());

  ctx_.RecordError("TreeAttention", "an illegal memory access was encountered");
  Call first, second;
  ASSERT_TRUE(Submit(first, "first", 30).ok());
  const absl::Status second_submitted = Submit(second, "second", 30);
  const absl::Status status = first.Wait();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("TreeAttention: an illegal memory access"));
  // The second came before the failure, and ended with it, or after it, and was refused.
  const absl::Status second_status = second_submitted.ok() ? second.Wait() : second_submitted;
  EXPECT_EQ(second_status.code(), absl::StatusCode::kInternal);

  Call after;
  EXPECT_EQ(Submit(after, "after", 5).code(), absl::StatusCode::kInternal);
  thread_.reset();
  EXPECT_EQ(failures_, 1);
  EXPECT_THAT(std::string(failure_.message()), HasSubstr("TreeAttention"));
}

TEST_F(DeviceFailureTest, EndsTreeAcceptedWhileTheStepFailed) {
  Call first, second;
  absl::Status second_submitted = absl::UnknownError("the first tree's start was not told");
  // The start is told before the step; what is submitted then waits until after it.
  first.sink->at_first = [&] {
    ctx_.RecordError("TreeAttention", "an illegal memory access was encountered");
    second_submitted = Submit(second, "second", 30);
  };
  ASSERT_TRUE(Submit(first, "first", 30).ok());
  EXPECT_EQ(first.Wait().code(), absl::StatusCode::kInternal);
  ASSERT_TRUE(second_submitted.ok()) << second_submitted;
  const absl::Status status = second.Wait();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("TreeAttention"));
  thread_.reset();
  EXPECT_EQ(failures_, 1);
}

}  // namespace
}  // namespace espalier
