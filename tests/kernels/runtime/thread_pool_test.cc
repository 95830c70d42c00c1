#include "kernels/runtime/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <ctime>
#include <random>
#include <thread>
#include <vector>

namespace espalier {
namespace {

class ThreadPoolTest : public ::testing::TestWithParam<int> {
 protected:
  ThreadPool pool_{GetParam()};
};

TEST_P(ThreadPoolTest, RunsEachTaskOnceAndSeesItsWrites) {
  std::mt19937 rng(GetParam());
  std::vector<int> runs(300);
  for (int job = 0; job < 2000; ++job) {
    const int tasks = std::uniform_int_distribution<int>(0, 40)(rng);
    const int input = job;  // written by the caller, read by the tasks
    std::fill(runs.begin(), runs.end(), 0);
    // Plain ints: the thread sanitizer sees a missing happens-before.
    pool_.Run(tasks, [&](int task, int worker) {
      ASSERT_GE(worker, 0);
      ASSERT_LT(worker, pool_.num_threads());
      runs[task] += input + 1;
    });
    for (int task = 0; task < 300; ++task) {
      ASSERT_EQ(runs[task], task < tasks ? job + 1 : 0) << "job " << job << " task " << task;
    }
  }
}

TEST_P(ThreadPoolTest, NeverGivesAWorkerTwoTasksAtOnce) {
  std::vector<std::atomic<int>> busy(pool_.num_threads());
  std::atomic<int> collisions = 0;
  for (int job = 0; job < 200; ++job) {
    pool_.Run(32, [&](int, int worker) {
      if (busy[worker].fetch_add(1) != 0) ++collisions;
      for (std::atomic<int> i = 0; i < 200;) ++i;
      busy[worker].fetch_sub(1);
    });
  }
  EXPECT_EQ(collisions, 0);
}

TEST_P(ThreadPoolTest, ParallelForCoversTheRangeOnce) {
  for (int64_t count : {0, 1, 2, 7, 100, 1000}) {
    for (int64_t grain : {1, 3, 50, 5000}) {
      SCOPED_TRACE(::testing::Message() << "count " << count << " grain " << grain);
      std::vector<int> covered(count);
      std::atomic<int64_t> smallest = count;
      pool_.ParallelFor(count, grain, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) ++covered[i];
        int64_t seen = smallest;
        while (end - begin < seen && !smallest.compare_exchange_weak(seen, end - begin)) {
        }
      });
      EXPECT_EQ(covered, std::vector<int>(count, 1));
      EXPECT_GE(smallest, std::min(count, grain));
    }
  }
}

TEST_P(ThreadPoolTest, WakesAfterTheWorkersSlept) {
  for (int job = 0; job < 20; ++job) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    std::atomic<int> runs = 0;
    pool_.Run(8, [&](int, int) { ++runs; });
    ASSERT_EQ(runs, 8);
  }
}

TEST_P(ThreadPoolTest, UsesTheOtherThreads) {
  if (GetParam() == 1) GTEST_SKIP() << "a pool of one has no other thread";
  // Each of the first two tasks waits for the other: one thread alone would never finish.
  std::atomic<int> arrived = 0;
  pool_.Run(2, [&](int, int) {
    ++arrived;
    while (arrived < 2) std::this_thread::yield();
  });
}

TEST_P(ThreadPoolTest, BurnsNoCpuWhenIdle) {
  pool_.Run(8, [](int, int) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(50));  // past the spinning
  const std::clock_t before = std::clock();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  const double cpu_ms = 1e3 * static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC;
  EXPECT_LT(cpu_ms, 30);
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest, ::testing::Values(1, 2, 5),
                         [](const auto& param) { return std::to_string(param.param); });

}  // namespace
}  // namespace espalier
