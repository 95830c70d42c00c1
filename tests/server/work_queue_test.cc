#include "server/work_queue.h"

#include <gtest/gtest.h>

#include <atomic>
#include <latch>
#include <memory>
#include <vector>

namespace espalier {
namespace {

TEST(WorkQueueTest, OneThreadKeepsTheOrder) {
  std::vector<int> order;
  {
    WorkQueue queue(1, 1000);
    for (int i = 0; i < 1000; ++i) ASSERT_TRUE(queue.TryPost([&order, i] { order.push_back(i); }));
  }  // runs what is left
  ASSERT_EQ(order.size(), 1000u);
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(order[i], i);
}

TEST(WorkQueueTest, RefusesWhenFullAndOnlyThen) {
  std::latch started(1);
  std::latch release(1);
  std::atomic<int> ran = 0;
  {
    WorkQueue queue(1, 2);
    ASSERT_TRUE(queue.TryPost([&] {
      started.count_down();
      release.wait();
    }));
    started.wait();  // the running one no longer counts
    EXPECT_TRUE(queue.TryPost([&] { ++ran; }));
    EXPECT_TRUE(queue.TryPost([&] { ++ran; }));
    EXPECT_FALSE(queue.TryPost([&] { ran += 100; }));
    release.count_down();
  }
  EXPECT_EQ(ran, 2);
}

TEST(WorkQueueTest, DestroysWorkAfterRunningItAndNotUnderTheLock) {
  // The captured object posts from its destructor: with the lock held, that would never return.
  struct PostsWhenDestroyed {
    WorkQueue* queue;
    std::atomic<int>* count;
    ~PostsWhenDestroyed() {
      EXPECT_TRUE(queue->TryPost([c = count] { ++*c; }));
    }
  };
  std::atomic<int> count = 0;
  {
    WorkQueue queue(2, 100);
    auto object = std::make_shared<PostsWhenDestroyed>(&queue, &count);
    ASSERT_TRUE(queue.TryPost([moved = std::move(object)] {}));
  }
  EXPECT_EQ(count, 1);
}

TEST(WorkQueueTest, ManyPostersAndThreadsLoseNothing) {
  std::atomic<int> count = 0;
  {
    WorkQueue queue(3, 100000);
    std::vector<std::thread> posters;
    for (int t = 0; t < 4; ++t) {
      posters.emplace_back([&] {
        for (int i = 0; i < 5000; ++i) EXPECT_TRUE(queue.TryPost([&] { ++count; }));
      });
    }
    for (std::thread& poster : posters) poster.join();
  }
  EXPECT_EQ(count, 20000);
}

}  // namespace
}  // namespace espalier
