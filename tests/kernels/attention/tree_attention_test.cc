// The CPU backend against attention by its definition, on random forests. Slots that no query sees
// and the output hold NaN before.
#include "kernels/cpu/tree_attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <tuple>

#include "kernels/attention/tree_plan.h"
#include "tests/support/naive_attention.h"
#include "tests/support/random_forest.h"

namespace espalier {
namespace {

using testing::Forest;
using testing::ForestKind;
using testing::kAllForestKinds;
using testing::KvMemory;
using testing::NaiveAttention;
using testing::RandomChance;
using testing::RandomForest;
using testing::RandomInt;
using testing::Rng;

// A random problem; everything follows from the seed.
struct Problem {
  Problem(uint64_t seed, DType dtype) : rng(seed) {
    constexpr int kPageSizes[] = {16, 32, 64};
    constexpr int kGroups[] = {1, 3, 4, 8};
    constexpr int kHeadDims[] = {8, 24, 40, 64, 64, 128};
    forest = RandomForest(rng, kAllForestKinds[seed % std::size(kAllForestKinds)],
                          kPageSizes[RandomInt(rng, 0, 2)]);
    group = kGroups[RandomInt(rng, 0, 3)];
    num_kv_heads = RandomInt(rng, 1, 2);
    head_dim = kHeadDims[RandomInt(rng, 0, 5)];
    scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
    kv = std::make_unique<KvMemory>(rng, forest, num_kv_heads, head_dim, dtype);
    // Now and then scores are so far apart that one key takes all the weight.
    std::normal_distribution<float> normal(0.0f, RandomChance(rng, 0.3) ? 8.0f : 1.0f);
    q.resize(size_t(forest.shape.num_queries()) * num_heads() * head_dim);
    for (float& x : q) x = normal(rng);
  }

  int num_heads() const { return group * num_kv_heads; }

  PlanOptions RandomOptions(AttentionVariant variant) {
    return {.variant = variant,
            .group_size = group,
            .num_kv_heads = num_kv_heads,
            .num_workers = RandomInt(rng, 1, 8),
            .tile_rows = RandomChance(rng, 0.5) ? 128 : RandomInt(rng, 1, 40),
            .block_tokens = RandomChance(rng, 0.5) ? 0 : RandomInt(rng, 1, 100),
            .cost = {.min_piece = RandomChance(rng, 0.5) ? 1 : 4096,
                     .merge = RandomChance(rng, 0.5) ? 0 : int64_t{1} << RandomInt(rng, 0, 40)}};
  }

  std::vector<float> Attend(const Context& ctx, const TreePlan& plan) {
    std::vector<float> out(q.size(), std::numeric_limits<float>::quiet_NaN());
    kernels::cpu::TreeAttention(ctx, {.q = q.data(),
                                      .kv = kv->view(),
                                      .plan = &plan,
                                      .num_heads = num_heads(),
                                      .scale = scale,
                                      .out = out.data()});
    return out;
  }

  std::vector<double> Expected() {
    return NaiveAttention(forest.shape, *kv, q.data(), num_heads(), scale);
  }

  Rng rng;
  Forest forest;
  int group;
  int num_kv_heads;
  int head_dim;
  float scale;
  std::unique_ptr<KvMemory> kv;
  std::vector<float> q;
};

void ExpectClose(const std::vector<float>& got, const std::vector<double>& want) {
  ASSERT_EQ(got.size(), want.size());
  // fp32 rounding of scores of up to about 100, for values of about 1.
  constexpr double kTolerance = 4e-5;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_TRUE(std::abs(got[i] - want[i]) <= kTolerance)
        << "element " << i << ": " << got[i] << " against " << want[i];
  }
}

constexpr AttentionVariant kAllVariants[] = {
    AttentionVariant::kSequence, AttentionVariant::kNode, AttentionVariant::kNodeChunk,
    AttentionVariant::kFlatten, AttentionVariant::kDefault};

class TreeAttentionTest : public ::testing::TestWithParam<std::tuple<CpuIsa, DType>> {
 protected:
  void SetUp() override {
    if (isa() > BestCpuIsa()) {
      GTEST_SKIP() << "this machine has no " << CpuIsaName(isa());
    }
  }
  CpuIsa isa() const { return std::get<0>(GetParam()); }
  DType dtype() const { return std::get<1>(GetParam()); }
};

TEST_P(TreeAttentionTest, EveryVariantEqualsTheDefinition) {
  const Context ctx = Context::Cpu(2, CpuPrecision::kF32, isa());
  TreePlanner planner;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(seed);
    Problem problem(seed, dtype());
    const std::vector<double> expected = problem.Expected();
    for (const AttentionVariant variant : kAllVariants) {
      SCOPED_TRACE(static_cast<int>(variant));
      const PlanOptions options = problem.RandomOptions(variant);
      ExpectClose(problem.Attend(ctx, planner.Plan(problem.forest.shape, options)), expected);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(TreeAttentionTest, SameBitsWhateverTheThreads) {
  TreePlanner planner;
  const Context one = Context::Cpu(1, CpuPrecision::kF32, isa());
  const Context three = Context::Cpu(3, CpuPrecision::kF32, isa());
  for (uint64_t seed = 1000; seed < 1020; ++seed) {
    SCOPED_TRACE(seed);
    Problem problem(seed, dtype());
    const AttentionVariant variant = kAllVariants[seed % std::size(kAllVariants)];
    const TreePlan& plan = planner.Plan(problem.forest.shape, problem.RandomOptions(variant));
    const std::vector<float> first = problem.Attend(one, plan);
    for (int run = 0; run < 3; ++run) {
      const std::vector<float> again = problem.Attend(three, plan);
      ASSERT_EQ(std::memcmp(first.data(), again.data(), first.size() * sizeof(float)), 0);
    }
  }
}

std::string ParamName(const ::testing::TestParamInfo<std::tuple<CpuIsa, DType>>& info) {
  return std::string(CpuIsaName(std::get<0>(info.param))) + "_" +
         std::string(Info(std::get<1>(info.param)).name);
}

INSTANTIATE_TEST_SUITE_P(
    Isas, TreeAttentionTest,
    ::testing::Combine(::testing::Values(CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512),
                       ::testing::Values(DType::kF32, DType::kF16, DType::kBF16, DType::kE4M3)),
    ParamName);

// A long chunk of prefill over a long context, in many tiles, beside decoding branches.
TEST(TreeAttentionPrefill, LongRunBesideDecodes) {
  Rng rng(7);
  Forest forest;
  TreeShape& shape = forest.shape;
  int32_t next_page = 0;
  const auto pages = [&](int tokens) {
    std::vector<int32_t> ids((tokens + 15) / 16);
    for (int32_t& id : ids) id = next_page++;
    return ids;
  };
  const int root = shape.AddNode(-1, 100, 0, pages(100));
  const int prompt = shape.AddNode(root, 300, 0, pages(300));
  for (int t = 60; t < 290; ++t) shape.AddQuery(prompt, t);
  for (int i = 0; i < 10; ++i)
    shape.AddQuery(shape.AddNode(root, 20 + i, 0, pages(20 + i)), 19 + i);
  forest.num_pages = next_page;

  constexpr int kHeads = 6;
  constexpr int kHeadDim = 32;
  KvMemory kv(rng, forest, 2, kHeadDim, DType::kF16);
  std::normal_distribution<float> normal;
  std::vector<float> q(size_t(shape.num_queries()) * kHeads * kHeadDim);
  for (float& x : q) x = normal(rng);
  const std::vector<double> expected = NaiveAttention(shape, kv, q.data(), kHeads, 0.2);
  const Context ctx = Context::Cpu(2, CpuPrecision::kF32);
  TreePlanner planner;
  for (const AttentionVariant variant : kAllVariants) {
    SCOPED_TRACE(static_cast<int>(variant));
    std::vector<float> out(q.size(), std::numeric_limits<float>::quiet_NaN());
    const TreePlan& plan = planner.Plan(
        shape, {.variant = variant, .group_size = 3, .num_kv_heads = 2, .num_workers = 2});
    kernels::cpu::TreeAttention(ctx, {.q = q.data(),
                                      .kv = kv.view(),
                                      .plan = &plan,
                                      .num_heads = kHeads,
                                      .scale = 0.2f,
                                      .out = out.data()});
    ExpectClose(out, expected);
  }
}

}  // namespace
}  // namespace espalier
