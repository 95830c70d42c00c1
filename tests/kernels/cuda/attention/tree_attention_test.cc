// Tree attention on CUDA against attention by its definition: every variant, element type, of KV
// too, head size, group size and page size, on random forests. Before a run the output and the
// partial states hold NaN, and slots that no query sees hold NaN or the largest finite value.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/attention/tree_plan.h"
#include "kernels/cuda/graph_cache.h"
#include "kernels/cuda/tree_attention/device_plan.h"
#include "tests/kernels/cuda/attention/device_problem.h"
#include "tests/support/cuda_test.h"
#include "tests/support/forest_builder.h"

namespace espalier {
namespace {

using testing::AttentionError;
using testing::DeviceProblem;
using testing::DeviceProblemOptions;
using testing::Forest;
using testing::ForestBuilder;
using testing::kAllForestKinds;
using testing::RandomChance;
using testing::RandomForest;
using testing::RandomInt;
using testing::Rng;

constexpr AttentionVariant kAllVariants[] = {
    AttentionVariant::kSequence, AttentionVariant::kNode, AttentionVariant::kNodeChunk,
    AttentionVariant::kFlatten, AttentionVariant::kDefault};

constexpr AttentionKernel kAllKernels[] = {AttentionKernel::kBest, AttentionKernel::kPortable,
                                           AttentionKernel::kPairs};
const char* NameOf(AttentionKernel kernel) {
  constexpr const char* kNames[] = {"best kernel", "portable kernel", "pairs"};
  return kNames[static_cast<int>(kernel)];
}

// Of the softmax weights and of the output, which are rounded to the element type.
double RelativeTolerance(DType dtype) { return dtype == DType::kF16 ? 3e-3 : 8e-3; }
double LargestTolerance(DType dtype) { return dtype == DType::kF16 ? 1e-2 : 6e-2; }

float LargestFinite(DType dtype) { return dtype == DType::kF16 ? 65504.0f : 3.3e38f; }

std::unique_ptr<Context> OpenContext(DType dtype, std::string* why_not) {
  return Context::Cuda(0, dtype, /*num_threads=*/16, why_not);
}

// Plans with many pieces, blocks and tiles of odd sizes, so that partial states abound.
PlanOptions RandomOptions(Rng& rng, const Context& ctx, AttentionVariant variant,
                          const DeviceProblem& problem, AttentionKernel kernel) {
  PlanOptions options =
      CudaPlanOptions(ctx, variant, problem.num_heads(), problem.options().num_kv_heads,
                      problem.options().kv_dtype(), kernel);
  if (RandomChance(rng, 0.5)) options.tile_rows = RandomInt(rng, 1, options.tile_rows);
  if (RandomChance(rng, 0.5)) options.block_tokens = RandomInt(rng, 1, 200);
  if (RandomChance(rng, 0.7)) options.cost.min_piece = 1;
  if (RandomChance(rng, 0.3)) options.cost.merge = int64_t{1} << 40;
  return options;
}

// Runs the plan twice. The second run's bits must be those of the first.
void AttendAndCompare(const Context& ctx, const DeviceProblem& problem, const TreePlan& plan,
                      PlanBuffers& buffers, AttentionError* worst) {
  ASSERT_TRUE(buffers.Upload(plan));
  std::vector<std::byte> outs[2];
  for (std::vector<std::byte>& out : outs) {
    problem.Poison(ctx, buffers, plan);
    problem.Attend(ctx, buffers);
    out = problem.Download(ctx);
  }
  const std::optional<std::string> device_error = ctx.TakeError();
  ASSERT_FALSE(device_error.has_value()) << *device_error;
  EXPECT_TRUE(outs[0] == outs[1]) << "two runs differ";
  const AttentionError error = problem.ErrorOf(outs[0]);
  EXPECT_LE(error.relative, RelativeTolerance(problem.options().dtype));
  EXPECT_LE(error.largest, LargestTolerance(problem.options().dtype));
  worst->Include(error);
}

void PrintWorst(const std::string& what, const AttentionError& worst) {
  std::printf("             %-32s relative %.2e, largest %.2e\n", what.c_str(), worst.relative,
              worst.largest);
}

// Element type, whether KV is E4M3, head_dim, group size.
using Shape = std::tuple<DType, bool, int, int>;
class CudaTreeAttention : public ::testing::TestWithParam<Shape> {};

TEST_P(CudaTreeAttention, EveryVariantEqualsTheDefinition) {
  const auto [dtype, e4m3_kv, head_dim, group_size] = GetParam();
  std::string why_not;
  const std::unique_ptr<Context> ctx = OpenContext(dtype, &why_not);
  if (ctx == nullptr) GTEST_SKIP() << why_not;

  constexpr int kPageSizes[] = {4, 16, 32, 64};
  constexpr int kNumKinds = static_cast<int>(std::size(kAllForestKinds));
  constexpr int kNumProblems = static_cast<int>(std::size(kPageSizes)) * kNumKinds;
  std::vector<std::unique_ptr<DeviceProblem>> problems(kNumProblems);
  ctx->pool().Run(kNumProblems, [&, dtype = dtype, e4m3_kv = e4m3_kv, head_dim = head_dim,
                                 group_size = group_size](int i, int /*worker*/) {
    const uint64_t seed = 1000 * head_dim + 10 * group_size + i;
    Rng rng(seed);
    Forest forest = RandomForest(rng, kAllForestKinds[i % kNumKinds], kPageSizes[i / kNumKinds]);
    problems[i] = std::make_unique<DeviceProblem>(
        seed, std::move(forest),
        DeviceProblemOptions{
            .dtype = dtype,
            .e4m3_kv = e4m3_kv,
            .head_dim = head_dim,
            .group_size = group_size,
            .num_kv_heads = RandomInt(rng, 1, 2),
            .unseen = i % 2 == 0 ? std::numeric_limits<float>::quiet_NaN() : LargestFinite(dtype),
            // Now and then one key takes all the weight.
            .q_spread = RandomChance(rng, 0.3) ? 8.0f : 1.0f});
  });

  AttentionError worst;
  TreePlanner planner;
  // Buffers that meet plans of all sizes, for each kernel and number of heads.
  std::unique_ptr<PlanBuffers> buffers[std::size(kAllKernels)][2];
  int num_plans_with_pairs = 0;
  bool takes_pairs = false;
  for (int i = 0; i < kNumProblems; ++i) {
    DeviceProblem& problem = *problems[i];
    problem.Upload(*ctx);
    const auto buffers_of = [&, head_dim = head_dim](AttentionKernel kernel) -> PlanBuffers& {
      std::unique_ptr<PlanBuffers>& reused =
          buffers[static_cast<int>(kernel)][problem.options().num_kv_heads - 1];
      if (reused == nullptr) {
        reused = std::make_unique<PlanBuffers>(*ctx, problem.num_heads(), head_dim,
                                               problem.options().kv_dtype(), kernel);
      }
      return *reused;
    };
    for (const AttentionVariant variant : kAllVariants) {
      SCOPED_TRACE("problem " + std::to_string(i) + ", page size " +
                   std::to_string(problem.shape().page_size) + ", variant " +
                   std::to_string(static_cast<int>(variant)));
      for (const AttentionKernel kernel : kAllKernels) {
        Rng rng(100 * i + static_cast<int>(variant));
        const PlanOptions options = RandomOptions(rng, *ctx, variant, problem, kernel);
        SCOPED_TRACE(std::string(NameOf(kernel)) + ", tile rows " +
                     std::to_string(options.tile_rows) + ", block tokens " +
                     std::to_string(options.block_tokens) + ", least piece " +
                     std::to_string(options.cost.min_piece));
        PlanBuffers& reused = buffers_of(kernel);
        AttendAndCompare(*ctx, problem, planner.Plan(problem.shape(), options), reused, &worst);
        if (HasFatalFailure()) return;
        num_plans_with_pairs += reused.device_plan().has_pairs;
        takes_pairs |= reused.device_plan().runs_on_hopper && !e4m3_kv;
      }
    }
  }
  EXPECT_EQ(num_plans_with_pairs > 0, takes_pairs);
  PrintWorst(std::string(Info(dtype).name) + (e4m3_kv ? ", E4M3 KV, x " : " x ") +
                 std::to_string(head_dim) + ", group " + std::to_string(group_size),
             worst);
}

std::string ParamName(const ::testing::TestParamInfo<Shape>& info) {
  const auto [dtype, e4m3_kv, head_dim, group_size] = info.param;
  return std::string(Info(dtype).name) + (e4m3_kv ? "_E4M3" : "") + "_" + std::to_string(head_dim) +
         "_group" + std::to_string(group_size);
}

INSTANTIATE_TEST_SUITE_P(Shapes, CudaTreeAttention,
                         ::testing::Combine(::testing::Values(DType::kBF16, DType::kF16),
                                            ::testing::Bool(), ::testing::Values(64, 128),
                                            ::testing::Values(1, 2, 3, 4, 5, 7, 8, 16)),
                         ParamName);

// Forests of one kind of work each, too large for chance.
Forest WideTree(int page_size) {
  Rng rng(5);
  ForestBuilder forest(page_size);
  const int root = forest.AddNode(-1, 300);
  for (int i = 0; i < 1024; ++i) forest.AddLeaf(root, RandomInt(rng, 1, 40));
  return forest.Finish();
}

Forest ManyLevels(int page_size) {
  Rng rng(6);
  ForestBuilder forest(page_size);
  std::vector<int> level = {forest.AddNode(-1, 500)};
  for (const int fan_out : {4, 4, 4}) {
    std::vector<int> next;
    for (const int parent : level) {
      for (int i = 0; i < fan_out; ++i) {
        next.push_back(forest.AddNode(parent, RandomInt(rng, 1, 90)));
      }
    }
    level = next;
  }
  for (const int parent : level) {
    for (int i = 0; i < 3; ++i) forest.AddLeaf(parent, RandomInt(rng, 1, 3));
  }
  return forest.Finish();
}

Forest LongPrefill(int page_size) {
  ForestBuilder forest(page_size);
  const int prompt = forest.AddNode(-1, 3000);
  forest.AddRun(prompt, 0, 700);
  forest.AddLeaf(prompt, 130);
  return forest.Finish();
}

Forest ChunkOfPrefill(int page_size) {
  ForestBuilder forest(page_size);
  forest.AddRun(-1, 517, 200);
  forest.AddLeaf(-1, 900);
  forest.AddRun(-1, 0, 33);
  return forest.Finish();
}

Forest Drafts(int page_size) {
  Rng rng(7);
  ForestBuilder forest(page_size);
  const int prompt = forest.AddNode(-1, 1000);
  for (const int tokens : {1, 5, 64, 96, 200}) {
    forest.AddDraft(rng, forest.AddNode(prompt, RandomInt(rng, 1, 100)), tokens);
  }
  return forest.Finish();
}

Forest LongChain(int page_size) {
  ForestBuilder forest(page_size);
  forest.AddLeaf(-1, 8000);
  return forest.Finish();
}

struct LargeCase {
  const char* name;
  Forest (*make)(int page_size);
};
void PrintTo(const LargeCase& large, std::ostream* out) { *out << large.name; }

class CudaTreeAttentionLarge : public ::testing::TestWithParam<LargeCase> {};

TEST_P(CudaTreeAttentionLarge, EveryVariantEqualsTheDefinition) {
  constexpr DeviceProblemOptions kShapes[] = {
      {.dtype = DType::kBF16, .head_dim = 128, .group_size = 4, .num_kv_heads = 1},
      {.dtype = DType::kF16, .head_dim = 64, .group_size = 7, .num_kv_heads = 1},
      {.dtype = DType::kBF16, .e4m3_kv = true, .head_dim = 128, .group_size = 4, .num_kv_heads = 1},
      {.dtype = DType::kF16, .e4m3_kv = true, .head_dim = 64, .group_size = 2, .num_kv_heads = 2}};
  for (DeviceProblemOptions options : kShapes) {
    const std::string types = std::string(Info(options.dtype).name) + ", KV " +
                              std::string(Info(options.kv_dtype()).name);
    SCOPED_TRACE(types);
    std::string why_not;
    const std::unique_ptr<Context> ctx = OpenContext(options.dtype, &why_not);
    if (ctx == nullptr) GTEST_SKIP() << why_not;
    options.unseen = std::numeric_limits<float>::quiet_NaN();
    DeviceProblem problem(3, GetParam().make(16), options, &ctx->pool());
    problem.Upload(*ctx);
    TreePlanner planner;
    AttentionError worst;
    for (const AttentionKernel kernel : {AttentionKernel::kBest, AttentionKernel::kPairs}) {
      PlanBuffers buffers(*ctx, problem.num_heads(), options.head_dim, options.kv_dtype(), kernel);
      for (const AttentionVariant variant : kAllVariants) {
        SCOPED_TRACE(std::string(NameOf(kernel)) + ", variant " +
                     std::to_string(static_cast<int>(variant)));
        const PlanOptions plan_options = CudaPlanOptions(
            *ctx, variant, problem.num_heads(), options.num_kv_heads, options.kv_dtype(), kernel);
        AttendAndCompare(*ctx, problem, planner.Plan(problem.shape(), plan_options), buffers,
                         &worst);
        if (HasFatalFailure()) return;
      }
    }
    PrintWorst(std::string(GetParam().name) + ", " + types, worst);
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, CudaTreeAttentionLarge,
                         ::testing::Values(LargeCase{"WideTree", WideTree},
                                           LargeCase{"ManyLevels", ManyLevels},
                                           LargeCase{"LongPrefill", LongPrefill},
                                           LargeCase{"ChunkOfPrefill", ChunkOfPrefill},
                                           LargeCase{"Drafts", Drafts},
                                           LargeCase{"LongChain", LongChain}),
                         [](const auto& param_info) { return param_info.param.name; });

// What benchmarks compare with, in fp32 throughout.
TEST(CudaReferenceAttention, EqualsTheDefinition) {
  std::string why_not;
  const std::unique_ptr<Context> ctx = OpenContext(DType::kBF16, &why_not);
  if (ctx == nullptr) GTEST_SKIP() << why_not;
  for (uint64_t seed = 0; seed < 10; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    DeviceProblem problem(seed, RandomForest(rng, kAllForestKinds[seed % 5], 16),
                          {.e4m3_kv = seed % 2 == 1,
                           .head_dim = seed < 5 ? 64 : 128,
                           .group_size = 3,
                           .unseen = std::numeric_limits<float>::quiet_NaN()});
    problem.Upload(*ctx);
    EXPECT_LE(problem.ErrorOfReference(*ctx).relative, 1e-5);
  }
}

// bf16 goes far beyond fp16, which partial states are of.
using CudaTreeAttentionPartials = testing::CudaTest;
TEST_F(CudaTreeAttentionPartials, HoldValuesOfAnyMagnitude) {
  for (const float v_spread : {0x1p-90f, 0x1p-20f, 0x1p20f, 0x1p100f}) {
    SCOPED_TRACE(v_spread);
    DeviceProblem problem(10, ManyLevels(16), {.num_kv_heads = 1, .v_spread = v_spread});
    problem.Upload(ctx());
    for (const AttentionKernel kernel : kAllKernels) {
      PlanBuffers buffers(ctx(), problem.num_heads(), problem.options().head_dim, dtype(), kernel);
      PlanOptions options = CudaPlanOptions(ctx(), AttentionVariant::kFlatten, problem.num_heads(),
                                            1, dtype(), kernel);
      TreePlanner planner;
      const TreePlan& plan = planner.Plan(problem.shape(), options);
      ASSERT_GT(plan.stats.partial_rows, 0);
      ASSERT_TRUE(buffers.Upload(plan));
      problem.Poison(ctx(), buffers, plan);
      problem.Attend(ctx(), buffers);
      EXPECT_LE(problem.ErrorOf(problem.Download(ctx())).relative, RelativeTolerance(DType::kBF16));
    }
  }
}

using CudaTreeAttentionGraph = testing::CudaTest;
using CudaTreeAttentionPlan = testing::CudaTest;

// A captured graph reads whatever plan of its kind is in the buffers, of whichever size, with other
// partitions, rows and numbers of partial states than at its capture.
TEST_F(CudaTreeAttentionGraph, ReplaysWithOtherPlans) {
  DeviceProblem problem(9, ManyLevels(16), {.num_kv_heads = 2});
  problem.Upload(ctx());
  PlanBuffers buffers(ctx(), problem.num_heads(), problem.options().head_dim, dtype(),
                      AttentionKernel::kPairs);
  TreePlanner planner;
  const auto plan_of = [&](AttentionVariant variant, int tile_rows) -> const TreePlan& {
    PlanOptions options = CudaPlanOptions(ctx(), variant, problem.num_heads(),
                                          problem.options().num_kv_heads, dtype());
    options.tile_rows = tile_rows;
    options.cost.min_piece = 1;
    return planner.Plan(problem.shape(), options);
  };
  // The largest first, so that nothing moves afterwards.
  for (const AttentionVariant variant : kAllVariants) {
    ASSERT_TRUE(buffers.Upload(plan_of(variant, 4)));
    Synchronize(ctx());
  }
  const int generation = buffers.generation();
  GraphCache graphs(ctx(), 4);
  int num_runs[2] = {0, 0};  // of plans without pairs, and with
  const auto run = [&] {
    const bool has_pairs = buffers.device_plan().has_pairs;
    ++num_runs[has_pairs];
    graphs.Run({.has_partials = true, .has_pairs = has_pairs}, generation,
               [&] { problem.Attend(ctx(), buffers); });
  };
  ASSERT_TRUE(buffers.Upload(plan_of(AttentionVariant::kNode, 64)));
  run();  // as it is
  run();  // captured
  ASSERT_EQ(graphs.num_graphs(), 1);
  int num_replays = 0;
  for (const int tile_rows : {128, 20, 4, 128}) {
    for (const AttentionVariant variant : kAllVariants) {
      SCOPED_TRACE("tile rows " + std::to_string(tile_rows) + ", variant " +
                   std::to_string(static_cast<int>(variant)));
      const TreePlan& plan = plan_of(variant, tile_rows);
      ASSERT_TRUE(buffers.Upload(plan));
      ASSERT_EQ(buffers.generation(), generation);
      problem.Poison(ctx(), buffers, plan);
      run();
      const AttentionError error = problem.ErrorOf(problem.Download(ctx()));
      EXPECT_LE(error.relative, RelativeTolerance(DType::kBF16));
      EXPECT_LE(error.largest, LargestTolerance(DType::kBF16));
      ++num_replays;
    }
  }
  EXPECT_EQ(graphs.num_graphs(), (num_runs[0] > 1) + (num_runs[1] > 1));
  EXPECT_EQ(num_runs[1] > 1, buffers.device_plan().runs_on_hopper);
  std::printf("             %d replays, %d of plans with pairs\n", num_replays, num_runs[1]);
}

// The next step's plan is uploaded behind a step that still reads its own, rightly or wrongly.
TEST_F(CudaTreeAttentionPlan, IsUploadedAhead) {
  DeviceProblem problem(9, ManyLevels(16), {.num_kv_heads = 2});
  problem.Upload(ctx());
  PlanBuffers buffers(ctx(), problem.num_heads(), problem.options().head_dim, dtype());
  TreePlanner planners[std::size(kAllVariants)];
  const auto plan_of = [&](int i) -> const TreePlan& {
    PlanOptions options = CudaPlanOptions(ctx(), kAllVariants[i], problem.num_heads(),
                                          problem.options().num_kv_heads, dtype());
    options.tile_rows = 16;
    return planners[i].Plan(problem.shape(), options);
  };
  const int generation = buffers.generation();
  EXPECT_FALSE(buffers.UploadAhead(plan_of(0))) << "there is no memory yet";
  EXPECT_EQ(buffers.generation(), generation);
  for (size_t i = 0; i < std::size(kAllVariants); ++i) ASSERT_TRUE(buffers.Upload(plan_of(i)));

  Rng rng(1);
  const auto any = [&] { return RandomInt(rng, 0, static_cast<int>(std::size(kAllVariants)) - 1); };
  int guess = -1;
  for (int step = 0; step < 50; ++step) {
    const int next = guess >= 0 && RandomChance(rng, 0.7) ? guess : any();
    SCOPED_TRACE("step " + std::to_string(step) + ", variant " + std::to_string(next));
    if (next != guess) {
      ASSERT_TRUE(buffers.Upload(plan_of(next)));
    }
    problem.Poison(ctx(), buffers, plan_of(next));
    problem.Attend(ctx(), buffers);
    guess = RandomChance(rng, 0.8) ? any() : -1;
    if (guess >= 0) {
      ASSERT_TRUE(buffers.UploadAhead(plan_of(guess)));
    }
    const AttentionError error = problem.ErrorOf(problem.Download(ctx()));
    EXPECT_LE(error.relative, RelativeTolerance(DType::kBF16));
    EXPECT_LE(error.largest, LargestTolerance(DType::kBF16));
  }
}

}  // namespace
}  // namespace espalier
