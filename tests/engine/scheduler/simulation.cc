#include "tests/engine/scheduler/simulation.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace espalier {
namespace {

constexpr uint64_t kPoison = 0xDEADDEADDEADDEAD;
constexpr int kVocab = 12;
constexpr int kMaxJudge = 6;  // tokens of a judge's prompt and an answer

uint64_t Mix(uint64_t x) {
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccd;
  x ^= x >> 33;
  x *= 0xc4ceb9fe1a85ec53;
  return x ^ (x >> 33);
}

uint64_t Extend(uint64_t hash, int32_t token) { return Mix(hash * 31 + token + 1); }

uint64_t PathHash(std::span<const int32_t> tokens) {
  uint64_t hash = 0;
  for (int32_t token : tokens) hash = Extend(hash, token);
  return hash;
}

}  // namespace

Simulation::Simulation(const SimulationOptions& o)
    : options_(o),
      rng_(o.seed),
      pool_(o.num_pages),
      radix_(&pool_, o.page_size),
      tokenizer_(kVocab),
      scheduler_({.sharing = o.sharing,
                  .page_size = o.page_size,
                  .max_batch_tokens = o.max_batch_tokens,
                  .max_logits_rows = o.max_logits_rows,
                  .max_live_branches = o.max_live_branches,
                  .speculative = o.speculative,
                  .draft_shape = o.draft_shape,
                  .draft_max_context = o.max_path_tokens / 2,
                  .draft_vocab_size = kVocab - 1,
                  .stall_timeout = absl::Seconds(100)},
                 &pool_, &radix_),
      kv_(static_cast<size_t>(o.num_pages) * o.page_size, kPoison),
      draft_kv_(kv_) {
  for (int i = 0; i < 4; ++i) {
    // The later ones begin like the first.
    std::vector<int32_t> prompt(Random(1, o.max_path_tokens / 3));
    for (int32_t& token : prompt) token = Random(0, 2);
    if (i > 0) {
      const size_t common = std::min(prompt.size(), prompts_[0].size()) / 2;
      std::copy_n(prompts_[0].begin(), common, prompt.begin());
    }
    prompts_.push_back(prompt);
  }
}

Generation Simulation::RandomGeneration() {
  Generation g;
  g.n = Chance(0.6) ? 1 : Random(2, 5);
  g.min_tokens = Chance(0.2) ? 2 : 0;
  g.ignore_eos = Chance(0.3);
  g.speculative = Chance(0.9);
  if (Chance(0.3)) g.stop = {std::string(1, static_cast<char>(Random(0, kVocab - 2)))};
  if (Chance(0.2)) g.sampling.repetition_penalty = 1.5f;
  if (Chance(0.2)) g.logprobs = 0;
  if (Chance(0.2)) {
    g.search =
        BestOfN{.keep = Random(1, g.n),
                .score = Chance(0.5) ? BranchScore::kMeanLogprob : BranchScore::kCumulativeLogprob};
  } else if (Chance(0.1)) {
    g.search = MajorityVote{.answer_pattern = "."};
  } else if (Chance(0.2)) {
    const int width = Random(1, 4);
    g.n = 1;
    g.stop.clear();
    g.sampling = {};
    const int groups = width % 2 == 0 && Chance(0.5) ? 2 : 1;
    g.search = BeamSearch{.width = width,
                          .num_return = Random(1, width),
                          .early_stopping = static_cast<EarlyStopping>(Random(0, 2)),
                          .groups = groups,
                          .diversity_penalty = groups > 1 ? 0.5f : 0.0f};
  }
  return g;
}

// Where the validator would let it.
void Simulation::AllowAcrossPaths(const std::vector<TreeNode>& nodes, TreeNode& node) {
  int above = node.parent;
  while (above >= 0 && !nodes[above].generation) above = nodes[above].parent;
  BestOfN* const best = std::get_if<BestOfN>(&node.generation->search);
  if (best == nullptr || Chance(0.4)) return;
  const BestOfN* const other =
      above < 0 ? nullptr : std::get_if<BestOfN>(&nodes[above].generation->search);
  best->across_paths = above < 0 || (other != nullptr && other->across_paths);
}

void Simulation::AddJudge(TreeNode& node) {
  if (!node.generation) return;
  BestOfN* const best = std::get_if<BestOfN>(&node.generation->search);
  if (best == nullptr || Chance(0.5)) return;
  best->judge.emplace();
  const int answers = Random(2, 3);
  for (int i = 0; i < answers; ++i) {
    JudgeAnswer& answer = node.judge.emplace_back();
    answer.prompt_tokens = Random(1, kMaxJudge / 2);
    answer.tokens.resize(answer.prompt_tokens + Random(1, kMaxJudge / 2));
    for (int32_t& token : answer.tokens) token = Random(0, 2);
    answer.value = Random(-1, 1);
  }
}

std::vector<TreeNode> Simulation::RandomNodes() {
  std::vector<TreeNode> nodes;
  std::vector<int> path_tokens;
  // As the validator counts them: every prompt and every generation starts a page.
  std::vector<int> path_pages;
  const auto pages = [&](size_t tokens) {
    return (static_cast<int>(tokens) + options_.page_size - 1) / options_.page_size;
  };
  const int count = Random(1, 6);
  for (int i = 0; i < count; ++i) {
    TreeNode node;
    if (i == 0) {
      node.tokens = prompts_[Random(0, static_cast<int>(prompts_.size()) - 1)];
    } else {
      node.parent = Random(0, i - 1);
      while (nodes[node.parent].score) node.parent = nodes[node.parent].parent;
      node.tokens.resize(Random(1, 6));
      for (int32_t& token : node.tokens) token = Random(0, 2);
      node.score = Chance(0.2);
    }
    const int above = node.parent < 0 ? 0 : path_tokens[node.parent];
    if (!node.score && Chance(0.6)) {
      node.generation = RandomGeneration();
      AllowAcrossPaths(nodes, node);
      node.max_tokens = Random(1, 10);
    }
    const int length = above + static_cast<int>(node.tokens.size()) + node.max_tokens;
    const int length_pages = (node.parent < 0 ? 0 : path_pages[node.parent]) +
                             pages(node.tokens.size()) + pages(node.max_tokens);
    if (length > options_.max_path_tokens || length_pages > options_.num_pages) break;
    if (length_pages + pages(kMaxJudge) <= options_.num_pages) AddJudge(node);
    path_tokens.push_back(length);
    path_pages.push_back(length_pages);
    if (node.parent >= 0) nodes[node.parent].children.push_back(i);
    nodes.push_back(std::move(node));
  }
  return nodes;
}

void Simulation::Submit() {
  const std::string id = absl::StrCat("tree", submitted_++);
  Client& client = clients_[id];
  client.outbox = std::make_shared<Outbox>(8, nullptr);
  client.slow = Chance(options_.slow_client_rate);
  client.arrival = submitted_;
  DecodeTreeInit init{.tree_id = id,
                      .cache_salt = Chance(0.2) ? "other" : "",
                      .priority = Random(0, 2),
                      .seed = rng_(),
                      .deadline = std::nullopt,
                      .nodes = RandomNodes(),
                      .outbox = client.outbox,
                      .tokenizer = &tokenizer_,
                      .submitted = now_};
  if (Chance(0.05)) init.deadline = now_ + absl::Seconds(Random(0, 60));
  auto tree = std::make_unique<DecodeTree>(std::move(init));
  client.tree = tree.get();
  scheduler_.Submit(std::move(tree));
  scheduler_.Emit();
}

void Simulation::Read(const std::string& id, Client& client) {
  while (std::optional<TreeEvent> event = client.outbox->Pop()) {
    if (std::get_if<TreeStarted>(&*event) != nullptr) {
      ASSERT_FALSE(client.started);
      client.started = true;
    } else if (const auto* started = std::get_if<BranchStarted>(&*event)) {
      ASSERT_TRUE(client.branches.try_emplace(started->branch_id).second);
    } else if (const auto* tokens = std::get_if<StepTokens>(&*event)) {
      for (const BranchTokens& branch : tokens->branches) {
        ASSERT_TRUE(client.branches.contains(branch.branch_id));
        ASSERT_FALSE(client.ended[branch.branch_id]) << "tokens after the end of a branch";
        auto& all = client.branches[branch.branch_id];
        all.insert(all.end(), branch.token_ids.begin(), branch.token_ids.end());
      }
    } else if (const auto* ended = std::get_if<BranchFinished>(&*event)) {
      ASSERT_TRUE(client.branches.contains(ended->branch_id));
      ASSERT_FALSE(client.ended[ended->branch_id]);
      client.ended[ended->branch_id] = true;
      ASSERT_EQ(ended->threshold.has_value(), ended->reason == FinishReason::kPruned);
      ASSERT_FALSE(ended->rank && ended->threshold) << "a branch both kept and pruned";
      ASSERT_EQ(ended->completion_tokens,
                static_cast<int>(client.branches[ended->branch_id].size()));
    } else if (const auto* finished = std::get_if<TreeFinished>(&*event)) {
      ASSERT_TRUE(client.started);
      ASSERT_NE(finished->status.code(), absl::StatusCode::kInternal) << finished->status;
      ASSERT_TRUE(finished->status.code() != absl::StatusCode::kResourceExhausted ||
                  finished->status.message().find("stall_timeout") != std::string::npos)
          << "a path that fits alone was refused: " << finished->status;
      for (const auto& [branch, unused] : client.branches) {
        ASSERT_TRUE(client.ended[branch]) << "a branch was left open";
      }
      ASSERT_FALSE(client.outbox->Pop().has_value()) << "an event after the end";
      total_.prompt_tokens += finished->usage.prompt_tokens;
      total_.cached_tokens += finished->usage.cached_tokens;
      total_.computed_tokens += finished->usage.computed_tokens;
      total_.drafted_tokens += finished->usage.drafted_tokens;
      total_.accepted_tokens += finished->usage.accepted_tokens;
      ASSERT_LE(finished->usage.accepted_tokens, finished->usage.drafted_tokens);
      ASSERT_LE(finished->usage.kv_tokens_read_unique, finished->usage.kv_tokens_read_logical);
      ++finished_;
      clients_.erase(id);
      return;
    }
  }
}

namespace {

int64_t SlotOf(const TreeShape& shape, int node, int offset) {
  const int at = shape.first_slot[node] + offset;
  const int64_t page = shape.page_ids[shape.page_begin[node] + at / shape.page_size];
  return page * shape.page_size + at % shape.page_size;
}

// The token before a query's own: in its node, or, of a draft, its parent there. -1: none.
int OffsetBefore(const TreeShape& shape, int row) {
  int offset = shape.query_offset[row] - 1;
  const int draft = shape.draft_begin[shape.query_node[row]];
  if (draft < 0) return offset;
  while (offset >= 0 && shape.draft_subtree_end[draft + offset] <= shape.query_offset[row]) {
    --offset;
  }
  return offset;
}

}  // namespace

// Every slot that the row sees must hold the hash of its own path.
void Simulation::CheckRow(const StepBatch& batch, const std::vector<uint64_t>& kv, int row) {
  const TreeShape& shape = batch.shape;
  std::vector<int> path;
  for (int node = shape.query_node[row]; node >= 0; node = shape.parent[node]) {
    path.push_back(node);
  }
  std::ranges::reverse(path);
  uint64_t last = 0;
  int position = 0;
  for (int node : path) {
    const int count = node == path.back() ? shape.query_offset[row] + 1 : shape.num_tokens[node];
    for (int i = 0; i < count; ++i) {
      // Of a draft only the row's ancestors.
      if (shape.draft_begin[node] >= 0 &&
          shape.draft_subtree_end[shape.draft_begin[node] + i] <= shape.query_offset[row]) {
        continue;
      }
      const uint64_t hash = kv[SlotOf(shape, node, i)];
      bool continues = false;
      for (int32_t token = 0; token < kVocab && !continues; ++token) {
        continues = hash == Extend(last, token);
      }
      ASSERT_TRUE(continues) << "row " << row << " sees a foreign KV at position " << position;
      last = hash;
      ++position;
    }
  }
  ASSERT_EQ(position, batch.positions[row] + 1);
}

// Of the trees whose clients read, the one of highest rank.
void Simulation::FindTop() {
  const std::string before = std::exchange(top_, "");
  const auto rank = [](const Client& c) { return std::pair(-c.tree->priority(), c.arrival); };
  for (const auto& [id, client] : clients_) {
    if (!scheduler_.Contains(id) || client.outbox->full()) continue;
    if (top_.empty() || rank(client) < rank(clients_[top_])) top_ = id;
  }
  if (top_ != before) top_waits_ = top_waits_alone_ = 0;
  if (!top_.empty()) top_computed_ = clients_[top_].tree->usage().computed_tokens;
}

// Whoever ranks highest has a row in every step, or in every few where branches take turns. Against
// its equals it may have to wait until the branches that live have ended.
void Simulation::CheckTopProgressed() {
  if (!scheduler_.Contains(top_)) return;
  const Client& top = clients_[top_];
  bool equals = false;
  for (const auto& [id, client] : clients_) {
    equals |=
        id != top_ && scheduler_.Contains(id) && client.tree->priority() == top.tree->priority();
  }
  const bool waits = top.tree->usage().computed_tokens == top_computed_;
  top_waits_ = waits ? top_waits_ + 1 : 0;
  top_waits_alone_ = waits && !equals ? top_waits_alone_ + 1 : 0;
  ASSERT_LE(top_waits_alone_, 4) << top_ << " has the highest priority and does not progress";
  ASSERT_LE(top_waits_, 64) << top_ << " ranks highest and does not progress";
}

// As in a layer: all rows store first, then all attend. Rows of a path come in order of position.
void Simulation::StoreKv(const StepBatch& batch, std::vector<uint64_t>& kv) {
  std::vector<int> order(batch.num_rows());
  for (int i = 0; i < batch.num_rows(); ++i) order[i] = i;
  std::ranges::stable_sort(order, {}, [&](int i) { return batch.positions[i]; });
  const TreeShape& shape = batch.shape;
  row_hash_.assign(batch.num_rows(), 0);
  for (int row : order) {
    uint64_t before = 0;
    int node = shape.query_node[row];
    int offset = OffsetBefore(shape, row);
    while (offset < 0 && shape.parent[node] >= 0) {
      node = shape.parent[node];
      offset = shape.num_tokens[node] - 1;
    }
    if (offset >= 0) before = kv[SlotOf(shape, node, offset)];
    row_hash_[row] = Extend(before, batch.token_ids[row]);
    if (batch.kv_slots[row] >= 0) kv[batch.kv_slots[row]] = row_hash_[row];
  }
  for (int row = 0; row < batch.num_rows(); ++row) CheckRow(batch, kv, row);
}

// Runs the draft model, which guesses at random, until the step itself is there.
const StepBatch* Simulation::Draft(const StepBatch* batch) {
  while (batch->draft_pass) {
    EXPECT_LE(batch->num_rows(), options_.max_batch_tokens);
    for (int64_t slot : batch->kv_slots) EXPECT_GE(slot, 0);
    StoreKv(*batch, draft_kv_);
    if (testing::Test::HasFatalFailure()) return nullptr;
    samples_.assign(batch->tasks.size(), {});
    for (size_t i = 0; i < batch->tasks.size(); ++i) {
      const uint64_t hash = row_hash_[batch->logits_rows[batch->tasks[i].logits_row]];
      EXPECT_GT(batch->tasks[i].num_candidates, 0);
      for (int k = 0; k < std::min(batch->tasks[i].num_candidates, kVocab); ++k) {
        samples_[i].top.emplace_back(static_cast<int32_t>((hash + 5 * k) % kVocab),
                                     -0.3f - 0.2f * static_cast<float>(k));
      }
      samples_[i].finite = hash % 31 != 0;
    }
    scheduler_.ObserveDraftPassTime(Random(1, 3));
    batch = scheduler_.TakeDraft(samples_);
  }
  return batch;
}

void Simulation::MoveKv(const Scheduler::KvMoves& moves, std::vector<uint64_t>& kv) {
  for (size_t i = 0; i < moves.from.size(); ++i) kv[moves.to[i]] = kv[moves.from[i]];
  kv_moves_ += static_cast<int64_t>(moves.from.size());
}

void Simulation::RunModel(const StepBatch& batch) {
  StoreKv(batch, kv_);
  samples_.assign(batch.tasks.size(), {});
  for (size_t i = 0; i < batch.tasks.size(); ++i) {
    const LogitsTask& task = batch.tasks[i];
    const int row = batch.logits_rows[task.logits_row];
    std::vector<int32_t> path = task.tree->PathTokens(task.segment);
    std::vector<int32_t> drafted;
    for (int at = static_cast<int>(i); batch.tasks[at].above >= 0; at = batch.tasks[at].above) {
      ASSERT_EQ(batch.tasks[at].segment, task.segment);
      drafted.push_back(batch.token_ids[batch.logits_rows[batch.tasks[at].logits_row]]);
    }
    ASSERT_EQ(static_cast<int>(drafted.size()), task.drafted);
    path.insert(path.end(), drafted.rbegin(), drafted.rend());
    const int seen = batch.positions[row] + 1;
    if (task.score_token) {
      ASSERT_EQ(*task.score_token, path[seen]);
      ASSERT_EQ(row_hash_[row], PathHash(std::span(path).subspan(0, seen)));
      samples_[i].token = *task.score_token;
    } else {
      ASSERT_EQ(static_cast<size_t>(seen), path.size());
      ASSERT_EQ(row_hash_[row], PathHash(path)) << "the branch was computed on another's path";
      const DecodeTree::SampleRequest request = task.tree->NextSample(task.segment, task.drafted);
      int32_t token = static_cast<int32_t>(
          Mix(row_hash_[row] ^ static_cast<uint64_t>(request.uniform * 1e9)) % kVocab);
      while (std::ranges::find(request.banned, token) != request.banned.end()) --token;
      samples_[i].token = token;
      samples_[i].logprob = -static_cast<float>(row_hash_[row] % 97) / 50;
      for (int k = 0; k < std::min(request.top_logprobs, kVocab); ++k) {
        samples_[i].top.emplace_back(static_cast<int32_t>((token + 5 * k) % kVocab),
                                     samples_[i].logprob - static_cast<float>(k) / 3);
      }
    }
  }
}

void Simulation::Step() {
  now_ += absl::Seconds(1);
  if (static_cast<int>(clients_.size()) < options_.max_trees && Chance(0.3)) Submit();
  std::vector<std::string> ids;
  bool stalled = false;
  for (auto& [id, client] : clients_) ids.push_back(id);
  for (const std::string& id : ids) {
    Client& client = clients_[id];
    if (Chance(options_.cancel_rate)) scheduler_.Cancel(id, now_);
    scheduler_.Emit();
    if (!client.slow || Chance(0.02)) Read(id, client);
    if (clients_.contains(id)) stalled |= clients_[id].outbox->full();
  }
  FindTop();
  const StepBatch* batch = scheduler_.Schedule(now_);
  ++steps_;
  if (batch == nullptr) {
    scheduler_.Emit();
    // Only a client that does not read may hold everything up.
    bool waiting = false;
    for (const auto& [id, client] : clients_) waiting |= scheduler_.Contains(id);
    ASSERT_TRUE(!waiting || stalled) << "trees wait, nothing runs, and no client is slow";
    return;
  }
  batch = Draft(batch);
  if (testing::Test::HasFatalFailure()) return;
  ASSERT_LE(batch->num_rows(), options_.max_batch_tokens);
  ASSERT_LE(static_cast<int>(batch->logits_rows.size()), options_.max_logits_rows);
  RunModel(*batch);
  if (testing::Test::HasFatalFailure()) return;
  row_bad_.assign(batch->num_rows(), 0);
  scheduler_.Commit(samples_, row_bad_, now_);
  const double verify_ms = 10 + batch->num_rows() / 8;
  scheduler_.ObserveStepTime(verify_ms, verify_ms + Random(0, 5));
  MoveKv(scheduler_.moves(), kv_);
  MoveKv(scheduler_.draft_moves(), draft_kv_);
  scheduler_.Emit();
  CheckTopProgressed();
  if (steps_ % options_.check_every == 0) scheduler_.CheckInvariants();
}

void Simulation::Drain() {
  for (int i = 0; !clients_.empty(); ++i) {
    ASSERT_LT(i, 200000) << clients_.size() << " trees never end";
    now_ += absl::Seconds(1);
    std::vector<std::string> ids;
    for (auto& [id, client] : clients_) ids.push_back(id);
    for (const std::string& id : ids) Read(id, clients_[id]);
    if (testing::Test::HasFatalFailure()) return;
    const StepBatch* batch = scheduler_.Schedule(now_);
    if (batch == nullptr) {
      scheduler_.Emit();
      continue;
    }
    batch = Draft(batch);
    if (testing::Test::HasFatalFailure()) return;
    RunModel(*batch);
    if (testing::Test::HasFatalFailure()) return;
    row_bad_.assign(batch->num_rows(), 0);
    scheduler_.Commit(samples_, row_bad_, now_);
    MoveKv(scheduler_.moves(), kv_);
    MoveKv(scheduler_.draft_moves(), draft_kv_);
    scheduler_.Emit();
    scheduler_.CheckInvariants();
  }
  ASSERT_TRUE(scheduler_.empty());
  ASSERT_EQ(radix_.num_locked_pages(), 0);
  ASSERT_EQ(pool_.num_retiring(), 0);
  ASSERT_EQ(pool_.num_free() + radix_.num_cached_pages(), pool_.num_pages());
  // What is cached can all be had again.
  ASSERT_TRUE(radix_.Reserve(pool_.num_pages()));
}

}  // namespace espalier
