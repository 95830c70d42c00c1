#include "engine/kvcache/page_pool.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

namespace espalier {
namespace {

std::vector<int32_t> TakeAll(PagePool& pool) {
  std::vector<int32_t> pages;
  while (const auto page = pool.Acquire()) pages.push_back(*page);
  return pages;
}

TEST(PagePoolTest, HandsOutEveryPageOnceAndThenNone) {
  PagePool pool(5);
  const std::vector<int32_t> pages = TakeAll(pool);
  EXPECT_EQ(std::set<int32_t>(pages.begin(), pages.end()), (std::set<int32_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(pool.num_free(), 0);
  EXPECT_EQ(pool.num_used(), 5);
  EXPECT_FALSE(pool.Acquire());
  pool.CheckInvariants();
}

TEST(PagePoolTest, ListsThePagesThatItHandsOutNext) {
  PagePool pool(5);
  const std::vector<int32_t> taken = TakeAll(pool);
  for (int i : {3, 0, 4}) pool.Release(taken[i]);
  std::vector<int32_t> next;
  pool.ListNext(2, &next);
  EXPECT_EQ(next.size(), 2);
  pool.ListNext(9, &next);
  ASSERT_EQ(next.size(), 5);
  const std::vector<int32_t> given = TakeAll(pool);
  EXPECT_EQ(std::vector(next.begin() + 2, next.end()), given);
  EXPECT_EQ(std::vector(next.begin(), next.begin() + 2),
            std::vector(given.begin(), given.begin() + 2));
}

TEST(PagePoolTest, KeepsAPageUntilItsLastOwnerGoes) {
  PagePool pool(1);
  const int32_t page = *pool.Acquire();
  pool.AddOwner(page);
  EXPECT_EQ(pool.owners(page), 2);
  EXPECT_FALSE(pool.Release(page));
  EXPECT_FALSE(pool.Acquire());
  EXPECT_TRUE(pool.Release(page));
  EXPECT_EQ(pool.Acquire(), page);
}

TEST(PagePoolTest, ReusesAReleasedPageOnlyAfterTheNewestStepInFlight) {
  PagePool pool(2);
  const std::vector<int32_t> pages = TakeAll(pool);
  pool.StepSubmitted(7);
  pool.Release(pages[0]);
  pool.StepSubmitted(9);
  pool.Release(pages[1]);
  EXPECT_EQ(pool.num_retiring(), 2);
  EXPECT_EQ(pool.num_used(), 0);
  EXPECT_FALSE(pool.Acquire());
  pool.StepDone(7);
  EXPECT_EQ(pool.num_retiring(), 1);
  EXPECT_EQ(pool.Acquire(), pages[0]);
  EXPECT_FALSE(pool.Acquire());
  pool.StepDone(9);
  EXPECT_EQ(pool.Acquire(), pages[1]);
  pool.CheckInvariants();
}

TEST(PagePoolTest, FreesAtOnceWithNoStepInFlight) {
  PagePool pool(1);
  pool.StepSubmitted(0);
  pool.StepDone(0);
  pool.Release(*pool.Acquire());
  EXPECT_EQ(pool.num_free(), 1);
}

TEST(PagePoolTest, AnOwnerThatNoStepInFlightReadsForDoesNotDelayThePage) {
  PagePool pool(2);
  const std::vector<int32_t> pages = TakeAll(pool);
  const PagePool::Fence before = pool.fence();
  pool.StepSubmitted(1);
  EXPECT_FALSE(pool.Passed(pool.fence()));
  pool.Release(pages[0], before);
  EXPECT_EQ(pool.num_free(), 1);

  // Of several owners the latest reader counts, whoever lets go last.
  pool.AddOwner(pages[1]);
  pool.Release(pages[1], pool.fence());
  pool.Release(pages[1], before);
  EXPECT_EQ(pool.num_retiring(), 1);
  pool.StepDone(1);
  EXPECT_EQ(pool.num_free(), 2);
  pool.CheckInvariants();
}

TEST(PagePoolDeathTest, RefusesMisuse) {
  PagePool pool(2);
  EXPECT_DEATH(pool.Release(0), "check failed");
  EXPECT_DEATH(pool.AddOwner(1), "check failed");
  EXPECT_DEATH(pool.StepDone(0), "check failed");
  pool.StepSubmitted(3);
  EXPECT_DEATH(pool.StepSubmitted(3), "check failed");
  EXPECT_DEATH(pool.StepDone(4), "check failed");
}

}  // namespace
}  // namespace espalier
