#include "engine/draft/draft_budget.h"

#include <gtest/gtest.h>

namespace espalier {
namespace {

// Steps of alternating widths that take `base` ms and `per_row` ms a row.
void Observe(DraftBudget& budget, double base, double per_row, int branches, int steps = 300) {
  for (int i = 0; i < steps; ++i) {
    const int rows = branches + i % 4;
    const double ms = base + per_row * rows;
    budget.ObserveStep(
        {.branches = branches, .rows = rows, .verify_ms = ms, .total_ms = ms, .tokens = branches});
  }
}

TEST(DraftBudgetTest, DraftsBeforeAnythingIsKnown) {
  const DraftBudget budget;
  EXPECT_EQ(budget.MinProbability(), 0);
  EXPECT_TRUE(budget.PassPays(1));
  EXPECT_FALSE(budget.PassPays(0));
}

TEST(DraftBudgetTest, ARowMustEarnItsTime) {
  DraftBudget free_rows;
  Observe(free_rows, 10, 0, 1);
  EXPECT_NEAR(free_rows.MinProbability(), 0, 1e-9);
  // One branch: a token in 11 ms, a row in 1 ms.
  DraftBudget dear_rows;
  Observe(dear_rows, 10, 1, 1);
  EXPECT_NEAR(dear_rows.MinProbability(), 1 / 12.5, 0.01);
  // 100 branches: a row costs what a token does elsewhere, nearly.
  DraftBudget loaded;
  Observe(loaded, 10, 1, 100);
  EXPECT_NEAR(loaded.MinProbability(), 100 / 111.5, 0.02);
}

TEST(DraftBudgetTest, APassMustEarnItsTime) {
  DraftBudget budget;
  Observe(budget, 10, 0, 1);
  // 2 ms bring 0.2 tokens otherwise. A pass offers half of the frontier.
  for (int i = 0; i < 100; ++i) budget.ObservePass(2, 1, 0.5);
  EXPECT_TRUE(budget.PassPays(0.5));
  EXPECT_FALSE(budget.PassPays(0.3));
  // Under load the same pass would have to bring more than there is.
  Observe(budget, 10, 0, 8);
  EXPECT_FALSE(budget.PassPays(1));
  EXPECT_TRUE(budget.PassPays(8));
}

TEST(DraftBudgetTest, ADraftModelThatIsWrongIsAskedLess) {
  DraftBudget budget;
  for (int i = 0; i < 100; ++i) {
    Observe(budget, 10, 1, 1, 4);
    budget.ObservePass(2, 1, 0.8);
    budget.ObserveAcceptance(3, 0);
  }
  EXPECT_FALSE(budget.PassPays(1));
  EXPECT_GT(budget.MinProbability(), 0.3);
  // It is asked again after a while.
  Observe(budget, 10, 1, 1, 400);
  EXPECT_TRUE(budget.PassPays(1));
}

// Steps that draft while `draft_ms` more bring `drafted` tokens a branch; returns how many drafted.
int Drive(DraftBudget& budget, int branches, double draft_ms, double drafted, int steps) {
  int drafting = 0;
  for (int i = 0; i < steps; ++i) {
    const bool drafts = budget.ShouldDraft(branches);
    drafting += drafts ? 1 : 0;
    budget.ObserveStep({.branches = branches,
                        .drafted = drafts,
                        .rows = branches,
                        .verify_ms = 10,
                        .total_ms = 10 + (drafts ? draft_ms : 0),
                        .tokens = static_cast<int>(branches * (drafts ? 1 + drafted : 1))});
  }
  return drafting;
}

TEST(DraftBudgetTest, DraftsWhereItBringsMore) {
  DraftBudget budget;
  EXPECT_GT(Drive(budget, 1, 5, 1, 1000), 950);
  // At another load it is learnt anew, and a loss costs only the trials.
  EXPECT_LT(Drive(budget, 8, 20, 1, 1000), 60);
  EXPECT_GT(Drive(budget, 1, 5, 1, 1000), 960);
  // What changes is noticed.
  Drive(budget, 1, 30, 1, 2000);
  EXPECT_LT(Drive(budget, 1, 30, 1, 1000), 40);
  Drive(budget, 1, 5, 1, 3000);
  EXPECT_GT(Drive(budget, 1, 5, 1, 1000), 960);
}

TEST(DraftBudgetTest, WhatIsSetUpOnceDoesNotCount) {
  DraftBudget budget;
  int drafting = 0;
  for (int i = 0; i < 2000; ++i) {
    const bool drafts = budget.ShouldDraft(1);
    drafting += drafts ? 1 : 0;
    const double once = drafts && (drafting < 4 || drafting % 20 == 0) ? 500 : 0;
    budget.ObserveStep({.branches = 1,
                        .drafted = drafts,
                        .rows = 1,
                        .verify_ms = 10,
                        .total_ms = 10 + (drafts ? 5 + once : 0),
                        .tokens = drafts ? 2 : 1});
  }
  EXPECT_GT(drafting, 1800);
}

}  // namespace
}  // namespace espalier
