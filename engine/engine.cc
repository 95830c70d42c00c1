#include "engine/engine.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "engine/constraint/constraint_cache.h"
#include "engine/device_setup.h"
#include "engine/draft_model.h"
#include "engine/engine_thread.h"
#include "engine/executor/executor.h"
#include "engine/kv_scales.h"
#include "engine/kvcache/kv_cache.h"
#include "engine/tokenize_tree.h"
#include "engine/validate.h"
#include "kernels/core/check.h"
#include "kernels/runtime/device_memory.h"
#include "model/checkpoint/random_checkpoint.h"
#include "model/llama.h"

namespace espalier {
namespace {

// Rows a step whose logits are computed: more would take memory (vocab * 4 bytes a row), not save
// time, for the output projection is compute-bound from a few dozen rows on; on CUDA from a few
// hundred.
constexpr int kMaxLogitsRowsCpu = 256;
constexpr int kMaxLogitsRowsCuda = 1024;
constexpr int kBatchTokensCpu = 512;
constexpr int kBatchTokensCuda = 2048;
constexpr int kDescribedTokens = 16;
// Rows to which drafts fill a step: so many cost little more than one, for the weights must be read
// either way.
constexpr int kSpeculativeRowsCpu = 16;
constexpr int kSpeculativeRowsCuda = 64;

uint64_t RandomWord() {
  static thread_local std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

absl::Status CheckAtLeast(std::string_view field, int64_t value, int64_t limit) {
  if (value >= limit) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(absl::string_view(field.data(), field.size()),
                                                 " is ", value, "; must be at least ", limit));
}

absl::Status CheckConfig(const EngineConfig& config) {
  absl::Status status;
  status.Update(CheckAtLeast("threads", config.num_threads, 0));
  status.Update(CheckAtLeast("max_batch_tokens", config.max_batch_tokens, 0));
  status.Update(CheckAtLeast("max_live_branches", config.max_live_branches, 1));
  status.Update(CheckAtLeast("max_context", config.max_context, 0));
  status.Update(CheckAtLeast("outbox_capacity", static_cast<int64_t>(config.outbox_capacity), 1));
  if (config.page_size != 16 && config.page_size != 32 && config.page_size != 64) {
    status.Update(absl::InvalidArgumentError(
        absl::StrCat("page_size is ", config.page_size, "; must be 16, 32 or 64")));
  }
  if (!(config.gpu_memory_fraction > 0 && config.gpu_memory_fraction <= 1)) {
    status.Update(absl::InvalidArgumentError(absl::StrCat(
        "gpu_memory_fraction is ", config.gpu_memory_fraction, "; must be above 0, at most 1")));
  }
  status.Update(CheckDraftConfig(config));
  return status;
}

absl::Status OfDraftModel(const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat("draft_model: ", status.message()));
}

absl::StatusOr<std::unique_ptr<Checkpoint>> OpenCheckpoint(const std::string& path,
                                                           uint64_t random_weights) {
  if (random_weights != 0) return RandomCheckpoint::Open(path, random_weights);
  return Checkpoint::Open(path);
}

// Of the matrices, which are of one type or nearly so.
absl::StatusOr<DType> StoredType(Checkpoint& checkpoint) {
  const char* const name = "model.layers.0.mlp.down_proj.weight";
  const ModelConfig& model = checkpoint.config();
  if (checkpoint.Random(name, model.intermediate_size)) return DType::kBF16;
  absl::StatusOr<ConstMatrix> matrix =
      checkpoint.Tensor(name, model.hidden_size, model.intermediate_size);
  if (!matrix.ok()) return matrix.status();
  return matrix->dtype;
}

}  // namespace

struct Engine::Impl {
  // What a request's constraints and choices are in tokens, for `tree`. Sets the max_tokens of
  // choices.
  absl::Status PrepareConstraints(TreeRequest* request, std::vector<TreeNode>* tree);
  // What its judges append. Returns how much, a node.
  absl::StatusOr<std::vector<JudgeTokens>> PrepareJudges(const TreeRequest& request,
                                                         std::span<const char> turn_is_open,
                                                         std::vector<TreeNode>* tree);

  EngineConfig config;
  std::unique_ptr<Checkpoint> checkpoint;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<ConstraintCache> constraints;
  ModelInfo info;
  ModelFacts facts;
  absl::Time started = absl::Now();
  std::unique_ptr<Context> ctx;
  std::unique_ptr<Llama> model;
  std::unique_ptr<KvCache> kv;
  std::unique_ptr<Executor> executor;
  std::unique_ptr<DraftModel> draft;     // null: there is none
  std::unique_ptr<EngineThread> thread;  // last: ends before what it borrows
};

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() = default;

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(const EngineConfig& config) {
  absl::Status valid = CheckConfig(config);
  if (!valid.ok()) return valid;
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint =
      OpenCheckpoint(config.model_path, config.random_weights);
  if (!checkpoint.ok()) return checkpoint.status();
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = (*checkpoint)->LoadTokenizer();
  if (!tokenizer.ok()) return tokenizer.status();
  if (config.speculative != Speculative::kDraft) {
    return Create(config, *std::move(checkpoint), *std::move(tokenizer));
  }
  absl::StatusOr<std::unique_ptr<Checkpoint>> draft =
      OpenCheckpoint(config.draft_model_path, config.random_weights);
  if (!draft.ok()) return OfDraftModel(draft.status());
  absl::StatusOr<std::unique_ptr<Tokenizer>> draft_tokenizer = (*draft)->LoadTokenizer();
  if (!draft_tokenizer.ok()) return OfDraftModel(draft_tokenizer.status());
  if (absl::Status same = CheckSameTokens(**tokenizer, **draft_tokenizer); !same.ok()) return same;
  return Create(config, *std::move(checkpoint), *std::move(tokenizer), *std::move(draft));
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(
    const EngineConfig& config, std::unique_ptr<Checkpoint> checkpoint,
    std::unique_ptr<Tokenizer> tokenizer, std::unique_ptr<Checkpoint> draft_checkpoint) {
  absl::Status valid = CheckConfig(config);
  if (!valid.ok()) return valid;
  ESPALIER_CHECK((draft_checkpoint != nullptr) == (config.speculative == Speculative::kDraft));
  const ModelConfig& model = checkpoint->config();
  if (tokenizer->vocab_size() > model.vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat("the tokenizer has ", tokenizer->vocab_size(),
                                                   " tokens, more than the model's vocabulary of ",
                                                   model.vocab_size));
  }

  absl::StatusOr<DType> stored = StoredType(*checkpoint);
  if (!stored.ok()) return stored.status();
  auto impl = std::make_unique<Impl>();
  absl::StatusOr<std::unique_ptr<Context>> opened = OpenContext(config, model, *stored);
  if (!opened.ok()) return opened.status();
  impl->ctx = *std::move(opened);
  const Context& ctx = *impl->ctx;
  const bool cuda = ctx.device() == Device::kCuda;
  impl->config = config;
  impl->config.device = ctx.device();
  impl->config.num_threads = ctx.pool().num_threads();
  if (config.max_batch_tokens == 0) {
    impl->config.max_batch_tokens = cuda ? kBatchTokensCuda : kBatchTokensCpu;
  }
  if (cuda && config.limits.max_logprobs > DeviceSampler::kMaxTopLogprobs) {
    return absl::InvalidArgumentError(absl::StrCat("max_logprobs is ", config.limits.max_logprobs,
                                                   "; must be at most ",
                                                   DeviceSampler::kMaxTopLogprobs, " on CUDA"));
  }
  const int max_rows = impl->config.max_batch_tokens;
  const int logits_rows = std::min(max_rows, cuda ? kMaxLogitsRowsCuda : kMaxLogitsRowsCpu);
  if (config.speculative_rows == 0) {
    impl->config.speculative_rows = cuda ? kSpeculativeRowsCuda : kSpeculativeRowsCpu;
  }

  absl::StatusOr<std::unique_ptr<Llama>> llama =
      Llama::Create(ctx, checkpoint.get(), max_rows, logits_rows, config.on_load_progress);
  if (!llama.ok()) return llama.status();
  impl->model = *std::move(llama);
  if (draft_checkpoint != nullptr) {
    absl::StatusOr<std::unique_ptr<DraftModel>> draft =
        DraftModel::Create(impl->ctx.get(), std::move(draft_checkpoint),
                           {.attention = config.attention,
                            .cuda_graphs = config.cuda_graphs,
                            .plan_ahead = false,
                            .max_rows = max_rows,
                            .max_logits_rows = std::min(max_rows, impl->config.speculative_rows)});
    if (!draft.ok()) return OfDraftModel(draft.status());
    impl->draft = *std::move(draft);
  }

  const KvLayout layout{.num_layers = model.num_layers,
                        .num_kv_heads = model.num_kv_heads,
                        .head_dim = model.head_dim,
                        .page_size = config.page_size,
                        .dtype = KvDType(ctx, config.kv_dtype)};
  const int context = config.max_context == 0 ? model.max_positions
                                              : std::min(config.max_context, model.max_positions);
  absl::StatusOr<KvScales> scales =
      FindKvScales(impl->ctx.get(), impl->model.get(), *tokenizer, layout, {max_rows, context});
  if (!scales.ok()) return scales.status();
  KvLayout draft_layout;
  KvScales draft_scales;
  size_t page_bytes = layout.page_bytes();
  if (impl->draft != nullptr) {
    draft_layout = impl->draft->kv_layout(config.page_size, layout.dtype);
    absl::StatusOr<KvScales> found =
        FindKvScales(impl->ctx.get(), impl->draft->model(), *tokenizer, draft_layout,
                     {max_rows, impl->draft->config().max_positions});
    if (!found.ok()) return OfDraftModel(found.status());
    draft_scales = *std::move(found);
    page_bytes += draft_layout.page_bytes();
  }
  absl::StatusOr<int> num_pages =
      NumPages(config, ctx, page_bytes, std::max(layout.num_kv_heads, draft_layout.num_kv_heads));
  if (!num_pages.ok()) return num_pages.status();
  if (impl->draft != nullptr) {
    absl::Status created = impl->draft->CreateKv(draft_layout, *num_pages, draft_scales);
    if (!created.ok()) return created;
  }
  absl::StatusOr<std::unique_ptr<KvCache>> kv = KvCache::Create(ctx, layout, *num_pages, *scales);
  if (!kv.ok()) return kv.status();
  impl->kv = *std::move(kv);

  absl::StatusOr<std::unique_ptr<Executor>> executor =
      Executor::Create(impl->ctx.get(), impl->model.get(), impl->kv.get(),
                       {.attention = config.attention,
                        .cuda_graphs = config.cuda_graphs,
                        .max_rows = max_rows,
                        .max_logits_rows = logits_rows});
  if (!executor.ok()) return executor.status();
  impl->executor = *std::move(executor);

  impl->facts = {.vocab_size = model.vocab_size,
                 .max_context = context,
                 .chat_format = tokenizer->chat_format(),
                 .page_size = config.page_size,
                 .num_pages = *num_pages,
                 .num_eos = static_cast<int>(tokenizer->eos().size())};
  impl->info = {.name = model.name,
                .config = model,
                .weight_type = std::string(Info(*stored).name),
                .kv_type = std::string(Info(layout.dtype).name),
                .parameters = impl->model->parameters(),
                .weight_bytes = impl->model->weight_bytes(),
                .max_context = context,
                .chat_format = tokenizer->chat_format(),
                .device = ctx.device(),
                .device_name = DescribeDevice(ctx),
                .memory = {.weights = impl->model->weight_bytes(),
                           .activations = impl->model->activation_bytes(),
                           .kv = static_cast<int64_t>(page_bytes) * *num_pages}};
  if (impl->draft != nullptr) {
    impl->info.draft_name = impl->draft->config().name;
    impl->info.draft_weight_bytes = impl->draft->weight_bytes();
    impl->info.memory.weights += impl->draft->weight_bytes();
    impl->info.memory.activations += impl->draft->activation_bytes();
  }
  if (cuda) {
    const DeviceMemory memory = QueryDeviceMemory(ctx);
    impl->info.memory.total = static_cast<int64_t>(memory.total_bytes);
    impl->info.memory.free = static_cast<int64_t>(memory.free_bytes);
  }
  impl->checkpoint = std::move(checkpoint);
  impl->tokenizer = std::move(tokenizer);
  impl->constraints = std::make_unique<ConstraintCache>(impl->tokenizer.get());
  SchedulerConfig scheduling{.sharing = config.sharing,
                             .page_size = config.page_size,
                             .max_batch_tokens = max_rows,
                             .max_logits_rows = logits_rows,
                             .max_live_branches = config.max_live_branches,
                             .speculative = config.speculative,
                             .speculative_rows = impl->config.speculative_rows,
                             .draft_shape = config.draft_shape,
                             .stall_timeout = config.stall_timeout};
  if (impl->draft != nullptr) {
    const ModelConfig& draft = impl->draft->config();
    scheduling.draft_max_context = draft.max_positions;
    scheduling.draft_vocab_size = std::min(draft.vocab_size, model.vocab_size);
  }
  impl->thread = std::make_unique<EngineThread>(
      scheduling, *num_pages, config.limits.max_waiting_trees, impl->executor.get(),
      impl->draft != nullptr ? impl->draft->executor() : nullptr, config.on_failure);
  return std::unique_ptr<Engine>(new Engine(std::move(impl)));
}

absl::Status Engine::Impl::PrepareConstraints(TreeRequest* request, std::vector<TreeNode>* tree) {
  for (size_t i = 0; i < request->nodes.size(); ++i) {
    std::optional<Generation>& generation = request->nodes[i].generation;
    if (!generation) continue;
    if (!generation->regex.empty()) {
      auto constraint = constraints->Get(generation->regex);
      if (!constraint.ok()) {
        return absl::InvalidArgumentError(
            absl::StrCat("nodes[", i, "].generation.regex: ", constraint.status().message()));
      }
      (*tree)[i].constraint = *std::move(constraint);
    }
    if (const auto* choices = std::get_if<Choices>(&generation->search)) {
      size_t longest = 0;
      for (size_t c = 0; c < choices->texts.size(); ++c) {
        std::vector<int32_t> ids = tokenizer->Encode(choices->texts[c], false);
        if (ids.empty()) {
          return absl::InvalidArgumentError(
              absl::StrCat("nodes[", i, "].generation.choices.texts[", c,
                           "] comes to 0 tokens; must be at least 1"));
        }
        longest = std::max(longest, ids.size());
        (*tree)[i].choices.push_back(std::move(ids));
      }
      generation->max_tokens = static_cast<int>(longest);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<JudgeTokens>> Engine::Impl::PrepareJudges(
    const TreeRequest& request, std::span<const char> turn_is_open, std::vector<TreeNode>* tree) {
  std::vector<JudgeTokens> lengths(request.nodes.size());
  for (size_t i = 0; i < request.nodes.size(); ++i) {
    const std::optional<Generation>& generation = request.nodes[i].generation;
    const Judge* judge = generation ? JudgeOf(*generation) : nullptr;
    if (judge == nullptr) continue;
    absl::StatusOr<TokenizedJudge> ids =
        TokenizeJudge(*judge, static_cast<int>(i), *tokenizer, turn_is_open[i] != 0);
    if (!ids.ok()) return ids.status();
    for (size_t a = 0; a < judge->answers.size(); ++a) {
      JudgeAnswer& answer = (*tree)[i].judge.emplace_back();
      answer.tokens = ids->prompt;
      answer.tokens.insert(answer.tokens.end(), ids->answers[a].begin(), ids->answers[a].end());
      answer.prompt_tokens = static_cast<int>(ids->prompt.size());
      answer.value = judge->answers[a].value;
      const int length = static_cast<int>(answer.tokens.size());
      lengths[i].longest = std::max(lengths[i].longest, length);
      lengths[i].total += length;
    }
  }
  return lengths;
}

absl::StatusOr<TreeHandle> Engine::Submit(TreeRequest request, std::shared_ptr<OutputSink> sink) {
  const Limits& limits = impl_->config.limits;
  absl::Status valid = ValidateTree(request, impl_->facts, limits);
  if (!valid.ok()) return valid;
  absl::StatusOr<TokenizedTree> tokens = TokenizeTree(request, *impl_->tokenizer);
  if (!tokens.ok()) return tokens.status();
  std::vector<TreeNode> tree(request.nodes.size());
  if (absl::Status status = impl_->PrepareConstraints(&request, &tree); !status.ok()) {
    return status;
  }
  absl::StatusOr<std::vector<JudgeTokens>> judges =
      impl_->PrepareJudges(request, tokens->turn_is_open, &tree);
  if (!judges.ok()) return judges.status();
  std::vector<int> lengths;
  for (const std::vector<int32_t>& ids : tokens->ids)
    lengths.push_back(static_cast<int>(ids.size()));
  absl::StatusOr<TreeExpansion> expansion =
      ExpandTree(request, lengths, impl_->facts, limits, *judges);
  if (!expansion.ok()) return expansion.status();

  DecodeTreeInit init{
      .tree_id = NewId(),
      .cache_salt = std::move(request.cache_salt),
      .priority = request.priority,
      .seed = request.seed ? *request.seed : RandomWord(),
      .deadline = request.deadline,
      .nodes = std::move(tree),
      .outbox = std::make_shared<Outbox>(impl_->config.outbox_capacity, std::move(sink)),
      .tokenizer = impl_->tokenizer.get(),
      .submitted = absl::Now()};
  for (size_t i = 0; i < request.nodes.size(); ++i) {
    PromptNode& from = request.nodes[i];
    TreeNode& node = init.nodes[i];
    node.parent = from.parent;
    node.tokens = std::move(tokens->ids[i]);
    node.generation = std::move(from.generation);
    node.max_tokens = expansion->nodes[i].max_tokens;
    node.score = from.score;
    if (node.parent >= 0) init.nodes[node.parent].children.push_back(static_cast<int>(i));
  }
  TreeHandle handle{.tree_id = init.tree_id, .outbox = init.outbox};
  absl::Status submitted = impl_->thread->Submit(std::make_unique<DecodeTree>(std::move(init)));
  if (!submitted.ok()) return submitted;
  return handle;
}

absl::Status Engine::Cancel(std::string_view tree_id) { return impl_->thread->Cancel(tree_id); }

void Engine::UpdatePins(PinUpdate update) {
  if (impl_->config.sharing != Sharing::kCache) return;
  update.name_space = Scheduler::CacheNamespace(update.name_space);
  impl_->thread->UpdatePins(std::move(update));
}

void Engine::UnpinAll(std::string_view owner) { impl_->thread->UnpinAll(owner); }

void Engine::Drain(absl::Duration timeout) { impl_->thread->Drain(timeout); }

std::string Engine::NewId() { return absl::StrFormat("%016x%016x", RandomWord(), RandomWord()); }

const Tokenizer& Engine::tokenizer() const { return *impl_->tokenizer; }
const EngineConfig& Engine::config() const { return impl_->config; }
const ModelInfo& Engine::model_info() const { return impl_->info; }

EngineStats Engine::Stats() const {
  const EngineThreadStats stats = impl_->thread->Stats();
  const Usage& total = stats.scheduler.total;
  return {
      .pages_total = impl_->kv->num_pages(),
      .pages_free = stats.pages_free,
      .pages_cached = stats.pages_cached,
      .pages_locked = stats.pages_locked,
      .pages_retiring = stats.pages_retiring,
      .page_size = impl_->config.page_size,
      .kv_bytes = static_cast<int64_t>(impl_->kv->layout().page_bytes()) * impl_->kv->num_pages(),
      .trees_waiting = stats.scheduler.trees_waiting,
      .trees_running = stats.scheduler.trees_running,
      .branches_live = stats.scheduler.branches_live,
      .trees_finished = stats.scheduler.trees_finished,
      .steps = stats.scheduler.steps,
      .preemptions = stats.scheduler.preemptions,
      .prompt_tokens = total.prompt_tokens,
      .cached_tokens = total.cached_tokens,
      .computed_tokens = total.computed_tokens,
      .completion_tokens = total.completion_tokens,
      .kv_tokens_read_unique = total.kv_tokens_read_unique,
      .kv_tokens_read_logical = total.kv_tokens_read_logical,
      .drafted_tokens = total.drafted_tokens,
      .accepted_tokens = total.accepted_tokens,
      .verify_steps = total.verify_steps,
      .schedule_ms = stats.schedule_ms,
      .plan_ms = stats.executor.plan_ms,
      .forward_ms = stats.executor.forward_ms,
      .sample_ms = stats.executor.sample_ms,
      .emit_ms = stats.emit_ms,
      .draft_ms = stats.draft_ms,
      .uptime_s = absl::ToDoubleSeconds(absl::Now() - impl_->started)};
}

absl::StatusOr<std::vector<TreeNodeInfo>> Engine::DescribeTree(std::string_view salt,
                                                               int max_nodes) {
  if (impl_->config.sharing != Sharing::kCache) {
    return absl::FailedPreconditionError("requests share no cache (sharing is not \"cache\")");
  }
  const std::string name_space = Scheduler::CacheNamespace(salt);
  std::vector<RadixTree::NodeSnapshot> snapshot;
  impl_->thread->Inspect([&](const RadixTree& radix) {
    snapshot = radix.Describe(name_space, max_nodes, kDescribedTokens);
  });
  std::vector<TreeNodeInfo> nodes;
  nodes.reserve(snapshot.size());
  for (const RadixTree::NodeSnapshot& node : snapshot) {
    nodes.push_back({.parent = node.parent,
                     .num_tokens = node.num_tokens,
                     .filled = node.filled,
                     .locks = node.locks,
                     .num_pages = node.num_pages,
                     .indexed = node.indexed,
                     .head_text = impl_->tokenizer->Decode(node.head_tokens, /*special=*/true)});
  }
  return nodes;
}

absl::StatusOr<std::vector<int32_t>> Engine::Tokenize(const PromptNode& node, bool at_root) const {
  absl::Status valid = ValidateContent(0, node, impl_->facts, impl_->config.limits);
  if (!valid.ok()) return valid;
  return TokenizeNode(node, 0, *impl_->tokenizer, at_root, node.generation.has_value());
}

}  // namespace espalier
