#include "server/convert.h"

#include <algorithm>
#include <string_view>
#include <utility>
#include <variant>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/utf8.h"
#include "kernels/core/check.h"
#include "server/names.h"

namespace espalier {
namespace {

std::vector<int32_t> TakeIds(const v1::TokenIds& message) {
  return {message.ids().begin(), message.ids().end()};
}

std::vector<ChatMessage> TakeMessages(v1::ChatMessages* message) {
  std::vector<ChatMessage> messages;
  messages.reserve(message->messages_size());
  for (v1::ChatMessage& m : *message->mutable_messages()) {
    messages.push_back({std::move(*m.mutable_role()), std::move(*m.mutable_content())});
  }
  return messages;
}

// Of a message whose oneof holds text and perhaps token_ids and messages. False: none is set.
template <class Message>
bool TakeContent(Message& message, Content* content) {
  if (message.has_text()) {
    *content = std::move(*message.mutable_text());
    return true;
  }
  if constexpr (requires { message.token_ids(); }) {
    if (message.has_token_ids()) {
      *content = TakeIds(message.token_ids());
      return true;
    }
  }
  if constexpr (requires { message.messages(); }) {
    if (message.has_messages()) {
      *content = TakeMessages(message.mutable_messages());
      return true;
    }
  }
  return false;
}

Judge TakeJudge(v1::Judge* message) {
  Judge judge;
  TakeContent(*message,
              &judge.prompt);  // without one it is an empty text, which the engine refuses
  for (v1::Judge::Answer& answer : *message->mutable_answers()) {
    judge.answers.push_back({std::move(*answer.mutable_text()), answer.value()});
  }
  return judge;
}

BestOfN TakeBestOfN(v1::BestOfN& message) {
  BestOfN best;
  if (message.has_keep()) best.keep = message.keep();
  if (message.score() == v1::BestOfN::SCORE_CUMULATIVE_LOGPROB) {
    best.score = BranchScore::kCumulativeLogprob;
  }
  best.across_paths = message.across_paths();
  if (message.has_judge()) best.judge = TakeJudge(message.mutable_judge());
  return best;
}

BeamSearch TakeBeamSearch(const v1::BeamSearch& message) {
  BeamSearch beam;
  beam.width = message.width();
  if (message.has_num_return()) beam.num_return = message.num_return();
  if (message.has_length_penalty()) beam.length_penalty = message.length_penalty();
  if (message.early_stopping() == v1::BeamSearch::EARLY_STOPPING_ALWAYS) {
    beam.early_stopping = EarlyStopping::kAlways;
  } else if (message.early_stopping() == v1::BeamSearch::EARLY_STOPPING_NEVER) {
    beam.early_stopping = EarlyStopping::kNever;
  }
  if (message.has_groups()) beam.groups = message.groups();
  if (message.has_diversity_penalty()) beam.diversity_penalty = message.diversity_penalty();
  return beam;
}

// Values that this server's version of the API does not know.
absl::Status CheckEnums(size_t index, const v1::Generation& message) {
  const auto unknown = [index](absl::string_view field, int value) {
    return absl::InvalidArgumentError(absl::StrCat("nodes[", index, "].generation.", field, " is ",
                                                   value, "; must be a value of the enum"));
  };
  if (!v1::BestOfN::Score_IsValid(message.best_of_n().score())) {
    return unknown("best_of_n.score", message.best_of_n().score());
  }
  if (!v1::BestOfN::Score_IsValid(message.choices().score())) {
    return unknown("choices.score", message.choices().score());
  }
  const int early_stopping = message.beam_search().early_stopping();
  if (!v1::BeamSearch::EarlyStopping_IsValid(early_stopping)) {
    return unknown("beam_search.early_stopping", early_stopping);
  }
  return absl::OkStatus();
}

Generation TakeGeneration(v1::Generation* message) {
  Generation generation;
  if (message->has_n()) generation.n = message->n();

  SamplingParams& sampling = generation.sampling;
  if (message->has_temperature()) sampling.temperature = message->temperature();
  // -1 is how others in the field say "off".
  if (message->has_top_k()) sampling.top_k = message->top_k() == -1 ? 0 : message->top_k();
  if (message->has_top_p()) sampling.top_p = message->top_p();
  if (message->has_min_p()) sampling.min_p = message->min_p();
  if (message->has_repetition_penalty()) {
    sampling.repetition_penalty = message->repetition_penalty();
  }
  if (message->has_frequency_penalty()) sampling.frequency_penalty = message->frequency_penalty();
  if (message->has_presence_penalty()) sampling.presence_penalty = message->presence_penalty();
  // A map has no order of its own; equal requests are to be equal below.
  sampling.logit_bias.assign(message->logit_bias().begin(), message->logit_bias().end());
  std::sort(sampling.logit_bias.begin(), sampling.logit_bias.end());

  if (message->has_max_tokens()) generation.max_tokens = message->max_tokens();
  if (message->has_min_tokens()) generation.min_tokens = message->min_tokens();
  generation.stop.reserve(message->stop_size());
  for (std::string& stop : *message->mutable_stop()) generation.stop.push_back(std::move(stop));
  generation.stop_token_ids.assign(message->stop_token_ids().begin(),
                                   message->stop_token_ids().end());
  generation.include_stop_str_in_output = message->include_stop_str_in_output();
  generation.ignore_eos = message->ignore_eos();
  if (message->has_logprobs()) generation.logprobs = message->logprobs();
  if (message->has_speculative()) generation.speculative = message->speculative();
  switch (message->search_case()) {
    case v1::Generation::kBestOfN:
      generation.search = TakeBestOfN(*message->mutable_best_of_n());
      break;
    case v1::Generation::kBeamSearch:
      generation.search = TakeBeamSearch(message->beam_search());
      break;
    case v1::Generation::kMajorityVote:
      generation.search = MajorityVote{
          .answer_pattern = std::move(*message->mutable_majority_vote()->mutable_answer_pattern())};
      break;
    case v1::Generation::kChoices: {
      Choices& choices = generation.search.emplace<Choices>();
      for (std::string& text : *message->mutable_choices()->mutable_texts()) {
        choices.texts.push_back(std::move(text));
      }
      if (message->choices().score() == v1::BestOfN::SCORE_MEAN_LOGPROB) {
        choices.score = BranchScore::kMeanLogprob;
      }
      break;
    }
    case v1::Generation::SEARCH_NOT_SET:
      break;
  }
  generation.regex = std::move(*message->mutable_regex());
  return generation;
}

// All of a node but its place in the tree.
PromptNode TakeNode(v1::PromptNode* message) {
  PromptNode node;
  node.id = std::move(*message->mutable_id());
  TakeContent(*message, &node.content);  // without one it is an empty text, which the engine judges
  if (message->has_generation()) node.generation = TakeGeneration(message->mutable_generation());
  node.score = message->score();
  return node;
}

// Checkpoints name themselves in any bytes, and tokens need not end where characters do.
std::string AsUtf8(std::string_view bytes) {
  std::string text;
  AppendAsUtf8(bytes, &text);
  return text;
}

}  // namespace

absl::StatusOr<TreeRequest> TakeTreeRequest(v1::GenerateRequest message) {
  if (!message.has_root()) return absl::InvalidArgumentError("root: not set");
  TreeRequest request;
  request.request_id = std::move(*message.mutable_request_id());
  request.priority = message.priority();
  request.cache_salt = std::move(*message.mutable_cache_salt());
  if (message.has_seed()) request.seed = message.seed();

  struct Pending {
    v1::PromptNode* message;
    int parent;
  };
  std::vector<Pending> stack = {{message.mutable_root(), -1}};
  while (!stack.empty()) {
    const Pending pending = stack.back();
    stack.pop_back();
    const int index = static_cast<int>(request.nodes.size());
    const absl::Status known = CheckEnums(request.nodes.size(), pending.message->generation());
    if (!known.ok()) return known;
    PromptNode& node = request.nodes.emplace_back(TakeNode(pending.message));
    node.parent = pending.parent;
    auto& children = *pending.message->mutable_children();
    for (auto child = children.rbegin(); child != children.rend(); ++child) {
      stack.push_back({&*child, index});
    }
  }
  return request;
}

absl::StatusOr<TreeRequest> TakeTreeRequest(v1::ScoreRequest message) {
  TreeRequest request;
  request.request_id = std::move(*message.mutable_request_id());
  request.priority = message.priority();
  request.cache_salt = std::move(*message.mutable_cache_salt());

  PromptNode& prompt = request.nodes.emplace_back();
  prompt.id = "prompt";
  if (!TakeContent(message, &prompt.content)) {
    return absl::InvalidArgumentError("prompt: not set");
  }

  absl::StatusOr<std::vector<PromptNode>> continuations =
      TakeContinuations(message.mutable_continuations());
  if (!continuations.ok()) return continuations.status();
  for (PromptNode& continuation : *continuations) {
    continuation.parent = 0;
    request.nodes.push_back(std::move(continuation));
  }
  return request;
}

absl::StatusOr<std::vector<PromptNode>> TakeContinuations(
    google::protobuf::RepeatedPtrField<v1::Continuation>* messages) {
  if (messages->empty()) {
    return absl::InvalidArgumentError("continuations: 0, at least 1 is needed");
  }
  std::vector<PromptNode> nodes;
  nodes.reserve(messages->size());
  for (v1::Continuation& continuation : *messages) {
    PromptNode& node = nodes.emplace_back();
    node.id = absl::StrCat("continuations[", nodes.size() - 1, "]");
    node.score = true;
    if (!TakeContent(continuation, &node.content)) {
      return absl::InvalidArgumentError(absl::StrCat(node.id, ": not set"));
    }
  }
  return nodes;
}

absl::StatusOr<PromptNode> TakePromptNode(v1::AppendTokens message) {
  PromptNode node;
  if (!TakeContent(message, &node.content)) {
    return absl::InvalidArgumentError("append.content: not set");
  }
  node.generation.emplace();  // messages end where the assistant's turn begins
  return node;
}

absl::StatusOr<Generation> TakeGeneration(v1::GenerateBranches message) {
  const absl::Status known = CheckEnums(0, message.generation());
  if (!known.ok()) return known;
  return TakeGeneration(message.mutable_generation());
}

absl::StatusOr<PromptNode> TakePromptNode(v1::TokenizeRequest message) {
  PromptNode node;
  if (!TakeContent(message, &node.content)) {
    return absl::InvalidArgumentError("input: not set");
  }
  // A node that generates is one that ends where the assistant's turn begins.
  if (!message.has_add_generation_prompt() || message.add_generation_prompt()) {
    node.generation.emplace();
  }
  return node;
}

std::vector<std::string> NodeLabels(const TreeRequest& request) {
  std::vector<std::string> labels;
  labels.reserve(request.nodes.size());
  for (const PromptNode& node : request.nodes) {
    labels.push_back(node.id.empty() ? absl::StrCat(labels.size()) : node.id);
  }
  return labels;
}

v1::ContinuationScore ToProto(const NodeScored& scored, bool with_tokens,
                              const Tokenizer& tokenizer) {
  v1::ContinuationScore score;
  double sum = 0;
  for (const TokenLogprob& logprob : scored.logprobs) {
    sum += logprob.logprob;
    if (with_tokens) *score.add_logprobs() = ToProto(logprob, tokenizer);
  }
  const int count = static_cast<int>(scored.logprobs.size());
  score.set_sum_logprob(sum);
  score.set_mean_logprob(count == 0 ? 0 : sum / count);
  score.set_num_tokens(count);
  return score;
}

v1::TokenLogprob ToProto(const TokenLogprob& logprob, const Tokenizer& tokenizer) {
  v1::TokenLogprob message;
  message.set_token_id(logprob.token);
  message.set_logprob(logprob.logprob);
  message.set_token(tokenizer.TokenBytes(logprob.token, /*special=*/false));
  message.mutable_top_logprobs()->Reserve(static_cast<int>(logprob.top.size()));
  for (const auto& [token, value] : logprob.top) {
    v1::TopLogprob* top = message.add_top_logprobs();
    top->set_token_id(token);
    top->set_logprob(value);
    top->set_token(tokenizer.TokenBytes(token, /*special=*/false));
  }
  return message;
}

v1::FinishReason ToProto(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case FinishReason::kPruned:
      return v1::FINISH_REASON_PRUNED;
    case FinishReason::kCancelled:
      return v1::FINISH_REASON_CANCELLED;
    case FinishReason::kDeadline:
      return v1::FINISH_REASON_DEADLINE;
    case FinishReason::kError:
      return v1::FINISH_REASON_ERROR;
  }
  ESPALIER_CHECK(false);
}

v1::GenerateEvent EventWriter::ToProto(TreeEvent event) const {
  v1::GenerateEvent out;
  // One overload a kind of event: a new kind does not compile until it has one.
  struct Visitor {
    const EventWriter& writer;
    v1::GenerateEvent& out;

    void operator()(TreeStarted& e) {
      v1::TreeStarted& m = *out.mutable_tree_started();
      m.set_tree_id(std::move(e.tree_id));
      m.set_seed(e.seed);
    }
    void operator()(BranchStarted& e) {
      v1::BranchStarted& m = *out.mutable_branch_started();
      m.set_branch_id(e.branch_id);
      if (e.parent_branch_id >= 0) m.set_parent_branch_id(e.parent_branch_id);
      m.set_node_id(writer.node_labels_.at(e.node));
      m.set_sample_index(e.sample);
      m.set_fork_token_index(e.fork_token_index);
    }
    void operator()(StepTokens& e) {
      v1::StepTokens& m = *out.mutable_tokens();
      m.mutable_branches()->Reserve(static_cast<int>(e.branches.size()));
      for (BranchTokens& branch : e.branches) {
        v1::BranchTokens& b = *m.add_branches();
        b.set_branch_id(branch.branch_id);
        b.set_text(std::move(branch.text));
        b.mutable_token_ids()->Add(branch.token_ids.begin(), branch.token_ids.end());
        for (const TokenLogprob& logprob : branch.logprobs) {
          *b.add_logprobs() = espalier::ToProto(logprob, *writer.tokenizer_);
        }
      }
    }
    void operator()(BranchFinished& e) {
      v1::BranchFinished& m = *out.mutable_branch_finished();
      m.set_branch_id(e.branch_id);
      m.set_finish_reason(espalier::ToProto(e.reason));
      m.set_cumulative_logprob(e.cumulative_logprob);
      m.set_completion_tokens(e.completion_tokens);
      m.set_stop_reason(std::move(e.stop_reason));
      if (e.score) m.set_score(*e.score);
      if (e.threshold) m.set_threshold(*e.threshold);
      if (e.rank) m.set_rank(*e.rank);
      if (e.answer) m.set_answer(std::move(*e.answer));
      m.mutable_hypothesis_token_ids()->Add(e.hypothesis_token_ids.begin(),
                                            e.hypothesis_token_ids.end());
      m.set_hypothesis_text(std::move(e.hypothesis_text));
    }
    void operator()(NodeScored& e) {
      v1::NodeScored& m = *out.mutable_node_scored();
      m.set_node_id(writer.node_labels_.at(e.node));
      if (e.parent_branch_id >= 0) m.set_parent_branch_id(e.parent_branch_id);
      for (const TokenLogprob& logprob : e.logprobs) {
        *m.add_logprobs() = espalier::ToProto(logprob, *writer.tokenizer_);
      }
    }
    void operator()(TreeFinished& e) {
      *out.mutable_tree_finished()->mutable_usage() = espalier::ToProto(e.usage);
    }
  };
  std::visit(Visitor{*this, out}, event);
  return out;
}

v1::Usage ToProto(const Usage& usage) {
  v1::Usage message;
  message.set_prompt_tokens(usage.prompt_tokens);
  message.set_cached_tokens(usage.cached_tokens);
  message.set_computed_tokens(usage.computed_tokens);
  message.set_completion_tokens(usage.completion_tokens);
  message.set_kv_tokens_read_unique(usage.kv_tokens_read_unique);
  message.set_kv_tokens_read_logical(usage.kv_tokens_read_logical);
  message.set_steps(usage.steps);
  message.set_preemptions(usage.preemptions);
  message.set_drafted_tokens(usage.drafted_tokens);
  message.set_accepted_tokens(usage.accepted_tokens);
  message.set_verify_steps(usage.verify_steps);
  message.set_queue_ms(usage.queue_ms);
  message.set_first_token_ms(usage.first_token_ms);
  message.set_total_ms(usage.total_ms);
  return message;
}

v1::GetModelInfoResponse ToProto(const ModelInfo& info) {
  const ModelConfig& config = info.config;
  v1::GetModelInfoResponse message;
  message.set_name(AsUtf8(info.name));
  message.set_architecture(AsUtf8(config.architecture));
  message.set_parameters(info.parameters);
  message.set_weight_type(info.weight_type);
  message.set_weight_bytes(info.weight_bytes);
  message.set_kv_type(info.kv_type);
  message.set_max_context(info.max_context);
  message.set_max_positions(config.max_positions);
  message.set_vocab_size(config.vocab_size);
  message.set_hidden_size(config.hidden_size);
  message.set_intermediate_size(config.intermediate_size);
  message.set_num_layers(config.num_layers);
  message.set_num_heads(config.num_heads);
  message.set_num_kv_heads(config.num_kv_heads);
  message.set_head_dim(config.head_dim);
  if (config.bos_token_id >= 0) message.set_bos_token_id(config.bos_token_id);
  message.mutable_eos_token_ids()->Add(config.eos_token_ids.begin(), config.eos_token_ids.end());
  message.set_chat_format(std::string(NameOf(info.chat_format)));
  v1::RopeInfo& rope = *message.mutable_rope();
  rope.set_theta(config.rope.theta);
  rope.set_scaling(std::string(NameOf(config.rope.scaling)));
  rope.set_factor(config.rope.factor);
  rope.set_low_freq_factor(config.rope.low_freq_factor);
  rope.set_high_freq_factor(config.rope.high_freq_factor);
  rope.set_original_max_positions(config.rope.original_max_positions);
  message.set_norm_eps(config.norm_eps);
  message.set_tied_embeddings(config.tied_embeddings);
  message.set_qkv_bias(config.qkv_bias);
  return message;
}

v1::GetServerStatsResponse ToProto(const EngineStats& stats, const EngineConfig& config) {
  v1::GetServerStatsResponse message;
  message.set_version(ESPALIER_VERSION);
  message.set_uptime_s(stats.uptime_s);
  message.set_device(std::string(NameOf(config.device.value_or(Device::kCpu))));
  message.set_sharing(std::string(NameOf(config.sharing)));
  message.set_pages_total(stats.pages_total);
  message.set_pages_free(stats.pages_free);
  message.set_pages_cached(stats.pages_cached);
  message.set_pages_locked(stats.pages_locked);
  message.set_pages_retiring(stats.pages_retiring);
  message.set_page_size(stats.page_size);
  message.set_kv_bytes(stats.kv_bytes);
  message.set_trees_waiting(stats.trees_waiting);
  message.set_trees_running(stats.trees_running);
  message.set_branches_live(stats.branches_live);
  message.set_trees_finished(stats.trees_finished);
  message.set_steps(stats.steps);
  message.set_preemptions(stats.preemptions);
  message.set_prompt_tokens(stats.prompt_tokens);
  message.set_cached_tokens(stats.cached_tokens);
  message.set_computed_tokens(stats.computed_tokens);
  message.set_completion_tokens(stats.completion_tokens);
  message.set_kv_tokens_read_unique(stats.kv_tokens_read_unique);
  message.set_kv_tokens_read_logical(stats.kv_tokens_read_logical);
  message.set_schedule_ms(stats.schedule_ms);
  message.set_plan_ms(stats.plan_ms);
  message.set_forward_ms(stats.forward_ms);
  message.set_sample_ms(stats.sample_ms);
  message.set_emit_ms(stats.emit_ms);
  message.set_draft_ms(stats.draft_ms);
  message.set_drafted_tokens(stats.drafted_tokens);
  message.set_accepted_tokens(stats.accepted_tokens);
  message.set_verify_steps(stats.verify_steps);
  return message;
}

v1::DescribeTreeResponse ToProto(const std::vector<TreeNodeInfo>& nodes, int max_nodes) {
  v1::DescribeTreeResponse message;
  const size_t count = std::min(nodes.size(), static_cast<size_t>(max_nodes));
  message.set_truncated(count < nodes.size());
  message.mutable_nodes()->Reserve(static_cast<int>(count));
  for (size_t i = 0; i < count; ++i) {
    const TreeNodeInfo& node = nodes[i];
    v1::TreeNode& m = *message.add_nodes();
    if (node.parent >= 0) m.set_parent(node.parent);
    m.set_num_tokens(node.num_tokens);
    m.set_num_filled(node.filled);
    m.set_num_locks(node.locks);
    m.set_num_pages(node.num_pages);
    m.set_indexed(node.indexed);
    m.set_head_text(AsUtf8(node.head_text));
  }
  return message;
}

}  // namespace espalier
