#include "engine/outbox.h"

#include <atomic>
#include <thread>

#include "gtest/gtest.h"

namespace espalier {
namespace {

class CountingSink : public OutputSink {
 public:
  void OnEvents() override { ++calls; }
  std::atomic<int> calls = 0;
};

StepTokens Event(int branch) {
  StepTokens event;
  event.branches.push_back({.branch_id = branch, .text = "text", .token_ids = {1}, .logprobs = {}});
  return event;
}

int BranchOf(const TreeEvent& event) { return std::get<StepTokens>(event).branches[0].branch_id; }

TEST(OutboxTest, HandsEventsOverInOrder) {
  Outbox outbox(2, nullptr);
  EXPECT_FALSE(outbox.Pop().has_value());
  for (int i = 0; i < 5; ++i) outbox.Push(Event(i));
  EXPECT_FALSE(outbox.Pop().has_value()) << "an event that was not delivered";
  outbox.Deliver();
  for (int i = 0; i < 5; ++i) {
    const std::optional<TreeEvent> event = outbox.Pop();
    ASSERT_TRUE(event.has_value());
    EXPECT_EQ(BranchOf(*event), i);
  }
  EXPECT_FALSE(outbox.Pop().has_value());
}

TEST(OutboxTest, IsFullAtItsCapacityButTakesMore) {
  Outbox outbox(2, nullptr);
  outbox.Push(Event(0));
  EXPECT_FALSE(outbox.full());
  outbox.Push(Event(1));
  EXPECT_TRUE(outbox.full());
  outbox.Push(Event(2));
  EXPECT_TRUE(outbox.full());
  outbox.Deliver();
  EXPECT_TRUE(outbox.full());
  outbox.Pop();
  EXPECT_TRUE(outbox.full());
  outbox.Pop();
  EXPECT_FALSE(outbox.full());
}

TEST(OutboxTest, TellsItsSinkOfWhatItDelivers) {
  auto sink = std::make_shared<CountingSink>();
  Outbox outbox(2, sink);
  outbox.Push(Event(0));
  EXPECT_EQ(sink->calls, 0);
  outbox.Deliver();
  EXPECT_EQ(sink->calls, 1);
  outbox.Deliver();
  EXPECT_EQ(sink->calls, 1);
}

// A sink that pops at once, as the owner's thread may.
class PoppingSink : public OutputSink {
 public:
  void OnEvents() override {
    while (outbox->Pop()) ++popped;
  }
  Outbox* outbox = nullptr;
  int popped = 0;
};

TEST(OutboxTest, ASinkMayPop) {
  auto sink = std::make_shared<PoppingSink>();
  Outbox outbox(8, sink);
  sink->outbox = &outbox;
  outbox.Push(Event(0));
  outbox.Push(Event(1));
  outbox.Deliver();
  EXPECT_EQ(sink->popped, 2);
}

TEST(OutboxTest, LosesAndReordersNothingBetweenTwoThreads) {
  constexpr int kEvents = 20000;
  constexpr size_t kCapacity = 16;
  auto sink = std::make_shared<CountingSink>();
  Outbox outbox(kCapacity, sink);
  std::thread engine([&] {
    for (int i = 0; i < kEvents;) {
      if (outbox.full()) {
        std::this_thread::yield();
        continue;
      }
      outbox.Push(Event(i++));
      outbox.Deliver();
    }
  });
  for (int expected = 0; expected < kEvents;) {
    const std::optional<TreeEvent> event = outbox.Pop();
    if (!event) {
      std::this_thread::yield();
      continue;
    }
    ASSERT_EQ(BranchOf(*event), expected++);
  }
  engine.join();
  EXPECT_EQ(sink->calls, kEvents);
  EXPECT_FALSE(outbox.Pop().has_value());
}

}  // namespace
}  // namespace espalier
