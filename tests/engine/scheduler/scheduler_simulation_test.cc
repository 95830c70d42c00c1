// The scheduler against random histories. Each run prints its seed on failure; a seed replays it.
#include <gtest/gtest.h>

#include "tests/engine/scheduler/simulation.h"

namespace espalier {
namespace {

void RunFor(Simulation& simulation, int64_t steps) {
  while (simulation.steps() < steps) {
    simulation.Step();
    if (testing::Test::HasFatalFailure()) return;
  }
  simulation.Drain();
}

// A pool that holds several requests at once, and one that holds barely one.
class SchedulerSimulation : public testing::TestWithParam<Sharing> {};

TEST_P(SchedulerSimulation, KeepsInvariantsAfterEveryStep) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Simulation simulation({.seed = seed, .sharing = GetParam()});
    RunFor(simulation, 1000);
    if (HasFatalFailure()) return;
    EXPECT_GT(simulation.trees_finished(), 10);
  }
}

TEST_P(SchedulerSimulation, VerifiesDrafts) {
  Usage total;
  for (uint64_t seed = 50; seed < 70; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Simulation simulation({.seed = seed,
                           .sharing = GetParam(),
                           .num_pages = 16 + static_cast<int>(seed % 4) * 16,
                           .speculative = Speculative::kNgram});
    RunFor(simulation, 1000);
    if (HasFatalFailure()) return;
    total.drafted_tokens += simulation.total().drafted_tokens;
    total.accepted_tokens += simulation.total().accepted_tokens;
  }
  EXPECT_GT(total.drafted_tokens, 100);
  EXPECT_GT(total.accepted_tokens, 5);
}

TEST_P(SchedulerSimulation, VerifiesTreesOfDrafts) {
  Usage total;
  int64_t moves = 0;
  for (uint64_t seed = 200; seed < 230; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    const DraftShape shapes[] = {{},
                                 {.depth = 3, .width = 3, .max_tokens = 5},
                                 {.children = {3, 2, 1}},
                                 {.children = {2}, .adaptive = false}};
    Simulation simulation({.seed = seed,
                           .sharing = GetParam(),
                           .num_pages = 16 + static_cast<int>(seed % 3) * 20,
                           .speculative = Speculative::kDraft,
                           .draft_shape = shapes[seed % 4]});
    RunFor(simulation, 1000);
    if (HasFatalFailure()) return;
    total.drafted_tokens += simulation.total().drafted_tokens;
    total.accepted_tokens += simulation.total().accepted_tokens;
    moves += simulation.kv_moves();
  }
  EXPECT_GT(total.drafted_tokens, 1000);
  EXPECT_GT(total.accepted_tokens, 100);
  EXPECT_GT(moves, 50);
}

TEST_P(SchedulerSimulation, PreemptsAndFinishesWhenPagesAreScarce) {
  int64_t preemptions = 0;
  for (uint64_t seed = 100; seed <= 120; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    // Requests are as large as the validator lets them be: some need every page for one path.
    const int num_pages = 12 + static_cast<int>(seed % 14);
    Simulation simulation({.seed = seed, .sharing = GetParam(), .num_pages = num_pages});
    RunFor(simulation, 1000);
    if (HasFatalFailure()) return;
    EXPECT_GT(simulation.trees_finished(), 5);
    preemptions += simulation.preemptions();
  }
  EXPECT_GT(preemptions, 100);
}

TEST_P(SchedulerSimulation, NeverLeaksInAMillionSteps) {
  constexpr int kSeeds = 8;
  constexpr int64_t kSteps = 350'000 / kSeeds;
  int64_t finished = 0;
  int64_t steps = 0;
  for (uint64_t seed = 1000; seed < 1000 + kSeeds; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Simulation simulation({.seed = seed,
                           .sharing = GetParam(),
                           .num_pages = 20 + static_cast<int>(seed % 4) * 16,
                           .speculative = static_cast<Speculative>(seed % 3),
                           .check_every = 97});
    RunFor(simulation, kSteps);
    if (HasFatalFailure()) return;
    finished += simulation.trees_finished();
    steps += simulation.steps();
  }
  RecordProperty("trees", static_cast<int>(finished));
  EXPECT_GE(steps, kSteps * kSeeds);
}

INSTANTIATE_TEST_SUITE_P(EverySharing, SchedulerSimulation,
                         testing::Values(Sharing::kNone, Sharing::kTree, Sharing::kCache),
                         [](const auto& sharing) {
                           return std::string(sharing.param == Sharing::kNone   ? "None"
                                              : sharing.param == Sharing::kTree ? "Tree"
                                                                                : "Cache");
                         });

}  // namespace
}  // namespace espalier
