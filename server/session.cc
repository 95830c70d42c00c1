#include "server/session.h"

#include <algorithm>
#include <random>
#include <utility>
#include <variant>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "engine/sampler/sampler.h"
#include "engine/validate.h"
#include "kernels/core/check.h"

namespace espalier {
namespace {

uint64_t RandomSeed() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

// The engine calls a lone content nodes[0]; the client knows it by its command.
absl::Status Rename(const absl::Status& status, absl::string_view command) {
  constexpr absl::string_view kNode = "nodes[0]";
  if (status.ok() || !absl::StartsWith(status.message(), kNode)) return status;
  return absl::Status(status.code(), absl::StrCat(command, status.message().substr(kNode.size())));
}

std::vector<int> Ids(const google::protobuf::RepeatedField<int32_t>& ids) {
  return {ids.begin(), ids.end()};
}

void PrepareAppend(const Engine& engine, Session::Command* command) {
  v1::AppendTokens& append = *command->message.mutable_append();
  const bool at_root = !append.has_branch_id();
  if (!at_root) command->branches = {append.branch_id()};
  command->prefill = append.prefill();
  absl::StatusOr<PromptNode> node = TakePromptNode(std::move(append));
  command->status = node.status();
  if (!node.ok()) return;
  command->is_conversation = std::holds_alternative<std::vector<ChatMessage>>(node->content);
  absl::StatusOr<std::vector<int32_t>> tokens = engine.Tokenize(*node, at_root);
  command->status = Rename(tokens.status(), "append");
  if (!tokens.ok()) return;
  if (tokens->empty()) {
    command->status = absl::InvalidArgumentError("append comes to 0 tokens; must be at least 1");
  }
  command->tokens = *std::move(tokens);
}

}  // namespace

Session::Command Session::Prepare(const Engine& engine, v1::SessionCommand message) {
  Command command;
  command.message = std::move(message);
  v1::SessionCommand& m = command.message;
  switch (m.command_case()) {
    case v1::SessionCommand::kAppend:
      PrepareAppend(engine, &command);
      break;
    case v1::SessionCommand::kFork:
      command.branches = {m.fork().branch_id()};
      break;
    case v1::SessionCommand::kGenerate: {
      command.branches = Ids(m.generate().branch_ids());
      absl::StatusOr<Generation> generation = TakeGeneration(std::move(*m.mutable_generate()));
      command.status = Rename(generation.status(), "generate");
      if (generation.ok()) command.generation = *std::move(generation);
      break;
    }
    case v1::SessionCommand::kScore: {
      command.branches = {m.score().branch_id()};
      auto contents = TakeContinuations(m.mutable_score()->mutable_continuations());
      command.status = contents.status();
      if (contents.ok()) command.contents = *std::move(contents);
      break;
    }
    case v1::SessionCommand::kPrune:
      command.branches = Ids(m.prune().branch_ids());
      break;
    case v1::SessionCommand::kRollback:
      command.branches = {m.rollback().branch_id()};
      break;
    case v1::SessionCommand::kJoin:
      command.branches = {m.join().branch_id(), m.join().under_branch_id()};
      command.prefill = !m.join().has_prefill() || m.join().prefill();
      break;
    case v1::SessionCommand::kOpen:
    case v1::SessionCommand::kSnapshot:
    case v1::SessionCommand::kClose:
      break;
    case v1::SessionCommand::COMMAND_NOT_SET:
      command.status = absl::InvalidArgumentError("command: not set");
      break;
  }
  return command;
}

Session::Session(Engine* engine, std::string id, std::shared_ptr<OutputSink> sink)
    : engine_(engine),
      id_(std::move(id)),
      sink_(std::move(sink)),
      limits_(engine->config().limits),
      tree_(limits_.session, engine->model_info().max_context) {}

Session::~Session() { engine_->UnpinAll(id_); }

void Session::Take(Command command) {
  if (end_) return;
  const uint64_t id = command.message.command_id();
  const bool opens = command.message.command_case() == v1::SessionCommand::kOpen;
  if (opens == opened_) {
    return Fail(id, absl::FailedPreconditionError(
                        opens ? "the session is open already; open must be the first command"
                              : "the session is not open; open must be the first command"));
  }
  if (!command.status.ok()) return Fail(id, command.status);
  if (static_cast<int>(waiting_.size()) >= limits_.session.max_queued_commands) {
    return Fail(id, absl::ResourceExhaustedError(absl::StrCat(
                        waiting_.size(), " commands of the session wait; must be below ",
                        limits_.session.max_queued_commands, " for another one")));
  }
  waiting_.push_back(std::move(command));
  StartCommands();
}

void Session::End(const absl::Status& status) {
  if (end_) return;
  end_ = status;
  waiting_.clear();
}

void Session::Cancel() {
  // NOT_FOUND: it has ended by itself.
  for (Run& run : running_) engine_->Cancel(run.tree.tree_id).IgnoreError();
}

std::optional<absl::Status> Session::finished() const {
  if (!running_.empty() || !ready_.empty()) return std::nullopt;
  if (end_) return end_;
  if (no_more_ && waiting_.empty()) return absl::OkStatus();
  return std::nullopt;
}

std::optional<v1::SessionEvent> Session::NextEvent() {
  while (ready_.empty()) {
    bool moved = false;
    for (auto run = running_.begin(); run != running_.end();) {
      const auto current = run++;
      std::optional<TreeEvent> event = current->tree.outbox->Pop();
      if (!event) continue;
      moved = true;
      if (const auto* last = std::get_if<TreeFinished>(&*event)) {
        const TreeFinished finished = *last;
        std::list<Run> ended;
        ended.splice(ended.begin(), running_, current);
        Finish(ended.front(), finished);
        StartCommands();
      } else {
        Absorb(*current, *std::move(event));
      }
    }
    if (!moved) return std::nullopt;
  }
  std::optional<v1::SessionEvent> event(std::move(ready_.front()));
  ready_.pop_front();
  return event;
}

bool Session::Overlap(const std::vector<int>& a, const std::vector<int>& b) const {
  return std::ranges::any_of(a, [&](int x) {
    return std::ranges::any_of(b,
                               [&](int y) { return tree_.IsBelow(x, y) || tree_.IsBelow(y, x); });
  });
}

bool Session::MustWait(const Command& command, size_t place) const {
  if (command.message.has_close()) return place > 0 || !running_.empty();
  return std::ranges::any_of(
             running_, [&](const Run& run) { return Overlap(command.branches, run.branches); }) ||
         std::any_of(waiting_.begin(), waiting_.begin() + place, [&](const Command& earlier) {
           return Overlap(command.branches, earlier.branches);
         });
}

void Session::StartCommands() {
  for (size_t place = 0; place < waiting_.size() && !end_;) {
    if (MustWait(waiting_[place], place)) {
      ++place;
      continue;
    }
    Command command = std::move(waiting_[place]);
    waiting_.erase(waiting_.begin() + place);
    const uint64_t id = command.message.command_id();
    v1::CommandDone done;
    const bool runs = command.message.has_generate() || command.message.has_score();
    if (absl::Status status = Execute(command, &done); !status.ok()) {
      Fail(id, status);
    } else if (!runs) {
      Done(id, std::move(done));
    }
  }
}

absl::Status Session::Execute(Command& command, v1::CommandDone* done) {
  const v1::SessionCommand& m = command.message;
  const auto report = [&](const absl::StatusOr<int>& branch) {
    if (branch.ok()) Report(*branch, done);
    return branch.status();
  };
  switch (m.command_case()) {
    case v1::SessionCommand::kOpen:
      return Open(m.open(), m.command_id());
    case v1::SessionCommand::kAppend:
      return Append(command, done);
    case v1::SessionCommand::kFork: {
      const absl::StatusOr<std::vector<int>> forks =
          tree_.Fork(m.fork().branch_id(), m.fork().has_n() ? m.fork().n() : 1);
      if (!forks.ok()) return forks.status();
      for (int branch : *forks) Report(branch, done);
      return absl::OkStatus();
    }
    case v1::SessionCommand::kGenerate:
      return Generate(command);
    case v1::SessionCommand::kScore:
      return Score(command);
    case v1::SessionCommand::kPrune: {
      absl::StatusOr<std::vector<int>> gone = tree_.Prune(command.branches);
      if (gone.ok()) Pin({}, *std::move(gone));
      return gone.status();
    }
    case v1::SessionCommand::kRollback: {
      const int branch = m.rollback().branch_id();
      if (absl::Status status = tree_.Rollback(branch, m.rollback().tokens()); !status.ok()) {
        return status;
      }
      Pin({branch}, {});
      return report(branch);
    }
    case v1::SessionCommand::kJoin:
      if (absl::Status status = tree_.CheckExists(m.join().under_branch_id()); !status.ok()) {
        return status;
      }
      if (absl::Status status =
              report(tree_.Join(m.join().branch_id(), m.join().under_branch_id()));
          !status.ok()) {
        return status;
      }
      if (command.prefill) Prefill(m.command_id(), *done);
      return absl::OkStatus();
    case v1::SessionCommand::kSnapshot:
      for (const auto& [id, branch] : tree_.branches()) Report(id, done);
      return absl::OkStatus();
    case v1::SessionCommand::kClose:
      End(absl::OkStatus());
      return absl::OkStatus();
    case v1::SessionCommand::COMMAND_NOT_SET:
      break;
  }
  ESPALIER_CHECK(false && "Prepare refuses a command that is not set");
  return absl::OkStatus();
}

absl::Status Session::Open(const v1::OpenSession& open, uint64_t command_id) {
  const int64_t limit_ms = absl::ToInt64Milliseconds(limits_.session_idle_timeout);
  const int64_t idle_ms = open.has_idle_timeout_ms() ? open.idle_timeout_ms() : limit_ms;
  if (idle_ms < 0 || idle_ms > limit_ms) {
    return absl::InvalidArgumentError(
        absl::StrCat("open.idle_timeout_ms is ", idle_ms, "; must be from 0 to ", limit_ms));
  }
  if (open.cache_salt().size() > static_cast<size_t>(limits_.max_label_bytes)) {
    return absl::InvalidArgumentError(absl::StrCat("open.cache_salt is ", open.cache_salt().size(),
                                                   " bytes; must be at most ",
                                                   limits_.max_label_bytes));
  }
  opened_ = true;
  idle_timeout_ = absl::Milliseconds(idle_ms);
  priority_ = open.priority();
  cache_salt_ = open.cache_salt();
  seed_ = open.has_seed() ? open.seed() : RandomSeed();
  v1::SessionEvent& event = ready_.emplace_back();
  event.set_command_id(command_id);
  event.mutable_opened()->set_session_id(id_);
  event.mutable_opened()->set_seed(seed_);
  return absl::OkStatus();
}

absl::Status Session::Append(Command& command, v1::CommandDone* done) {
  std::vector<int32_t>& tokens = command.tokens;
  int parent = SessionTree::kNoParent;
  if (!command.branches.empty()) {
    parent = command.branches[0];
    if (absl::Status exists = tree_.CheckExists(parent); !exists.ok()) return exists;
    if (command.is_conversation && tree_.at(parent).turn_opened >= 0) {
      const std::vector<int32_t> end = EncodeTurnEnd(engine_->tokenizer());
      tokens.insert(tokens.begin(), end.begin(), end.end());
    }
  }
  const absl::StatusOr<int> branch = tree_.Add(parent, tokens);
  if (!branch.ok()) return branch.status();
  if (command.is_conversation) tree_.OpenTurn(*branch);
  Report(*branch, done);
  if (command.prefill) Prefill(command.message.command_id(), *done);
  return absl::OkStatus();
}

// Of the branch that the command has made. Nobody waits for it, and nobody hears if the engine does
// not take it.
void Session::Prefill(uint64_t command_id, const v1::CommandDone& done) {
  const int branch = done.branches(0).branch_id();
  if (tree_.at(branch).end() < 2) return;
  Run run;
  run.command_id = command_id;
  run.prefilled_branch = branch;
  Submit(std::move(run), espalier::Prefill(tree_, branch).nodes).IgnoreError();
}

absl::Status Session::Generate(Command& command) {
  const Generation& generation = command.generation;
  absl::StatusOr<SessionRequest> request = GenerateFrom(tree_, command.branches, generation);
  if (!request.ok()) return request.status();
  Run run;
  run.in_place = generation.n == 1 && std::holds_alternative<std::monostate>(generation.search);
  const int64_t kept = run.in_place ? 0 : std::max<int64_t>(BranchesKept(generation), 0);
  const int64_t count = static_cast<int64_t>(command.branches.size());
  if (absl::Status room = tree_.CheckRoom(kept * count, 0); !room.ok()) return room;
  std::vector<std::string> labels;
  for (int branch : request->branch_of_node) labels.push_back(absl::StrCat(branch));
  run.writer = std::make_unique<EventWriter>(std::move(labels), &engine_->tokenizer());
  run.command_id = command.message.command_id();
  run.branches = std::move(command.branches);
  run.branch_of_node = std::move(request->branch_of_node);
  return Submit(std::move(run), std::move(request->nodes));
}

absl::Status Session::Score(Command& command) {
  const int branch = command.branches[0];
  absl::StatusOr<SessionRequest> request = ScoreAfter(tree_, branch, std::move(command.contents));
  if (!request.ok()) return request.status();
  Run run;
  run.command_id = command.message.command_id();
  run.branches = std::move(command.branches);
  run.scored_branch = branch;
  run.with_tokens = command.message.score().return_token_logprobs();
  for (size_t i = 1; i < request->nodes.size(); ++i) run.done.add_scores();
  return Submit(std::move(run), std::move(request->nodes));
}

absl::Status Session::Submit(Run run, std::vector<PromptNode> nodes) {
  TreeRequest request;
  request.priority = priority_;
  request.cache_salt = cache_salt_;
  request.seed = BranchSeed(seed_ ^ run.command_id, 0, 0);
  request.nodes = std::move(nodes);
  absl::StatusOr<TreeHandle> tree = engine_->Submit(std::move(request), sink_);
  if (!tree.ok()) return tree.status();
  run.tree = *std::move(tree);
  running_.push_back(std::move(run));
  Pin({}, {});  // not idle any more
  return absl::OkStatus();
}

void Session::Absorb(Run& run, TreeEvent event) {
  if (const auto* started = std::get_if<BranchStarted>(&event)) {
    RunBranch& branch = run.run_branches[started->branch_id];
    branch.node = started->node;
    const auto parent = run.run_branches.find(started->parent_branch_id);
    if (parent != run.run_branches.end()) {
      branch.parent = started->parent_branch_id;
      branch.inherited =
          started->fork_token_index - tree_.at(run.branch_of_node[started->node]).end();
    }
  } else if (const auto* step = std::get_if<StepTokens>(&event)) {
    for (const BranchTokens& moved : step->branches) {
      std::vector<int32_t>& tokens = run.run_branches.at(moved.branch_id).tokens;
      tokens.insert(tokens.end(), moved.token_ids.begin(), moved.token_ids.end());
    }
  } else if (const auto* ended = std::get_if<BranchFinished>(&event)) {
    run.run_branches.at(ended->branch_id).kept = ended->reason != FinishReason::kPruned;
  } else if (const auto* scored = std::get_if<NodeScored>(&event)) {
    if (run.scored_branch < 0) return;
    *run.done.mutable_scores(scored->node - 1) =
        ToProto(*scored, run.with_tokens, engine_->tokenizer());
    return;
  }
  if (run.writer == nullptr) return;
  v1::SessionEvent& out = ready_.emplace_back();
  out.set_command_id(run.command_id);
  *out.mutable_progress() = run.writer->ToProto(std::move(event));
}

std::vector<int32_t> Session::TokensOf(const Run& run, int run_branch) const {
  const RunBranch& branch = run.run_branches.at(run_branch);
  std::vector<int32_t> tokens;
  if (branch.parent >= 0) tokens = TokensOf(run, branch.parent);
  ESPALIER_CHECK(branch.inherited <= static_cast<int>(tokens.size()));
  tokens.resize(branch.inherited);
  tokens.insert(tokens.end(), branch.tokens.begin(), branch.tokens.end());
  return tokens;
}

absl::Status Session::Apply(Run& run, std::vector<int>* computed) {
  std::vector<std::pair<int, std::vector<int32_t>>> grown;  // run branch, its tokens
  int64_t tokens = 0;
  for (const auto& [id, branch] : run.run_branches) {
    if (!branch.kept) continue;
    grown.emplace_back(id, TokensOf(run, id));
    tokens += static_cast<int64_t>(grown.back().second.size());
  }
  const int64_t added = run.in_place ? 0 : static_cast<int64_t>(grown.size());
  if (absl::Status room = tree_.CheckRoom(added, tokens); !room.ok()) return room;
  for (const auto& [id, own] : grown) {
    int branch = run.branch_of_node[run.run_branches.at(id).node];
    if (run.in_place) {
      if (absl::Status status = tree_.Extend(branch, own); !status.ok()) return status;
    } else {
      const absl::StatusOr<int> child = tree_.Add(branch, own);
      if (!child.ok()) return child.status();
      branch = *child;
    }
    computed->push_back(branch);
    Report(branch, &run.done);
    run.done.mutable_branches()->rbegin()->set_run_branch_id(id);
  }
  return absl::OkStatus();
}

void Session::Finish(Run& run, const TreeFinished& last) {
  absl::Status status = last.status;
  std::vector<int> computed;
  if (run.scored_branch >= 0) computed.push_back(run.scored_branch);
  // Later commands may have pruned it.
  if (run.prefilled_branch >= 0 && tree_.CheckExists(run.prefilled_branch).ok()) {
    computed.push_back(run.prefilled_branch);
  }
  if (status.ok() && run.writer != nullptr) status = Apply(run, &computed);
  Pin(status.ok() ? computed : std::vector<int>(), {});
  if (run.prefilled_branch >= 0) return;
  if (!status.ok()) return Fail(run.command_id, status);
  *run.done.mutable_usage() = ToProto(last.usage);
  Done(run.command_id, std::move(run.done));
}

void Session::Pin(const std::vector<int>& pin, std::vector<int> unpin) {
  PinUpdate update;
  update.owner = id_;
  update.name_space = cache_salt_;
  update.priority = priority_;
  for (int branch : pin) update.pin.emplace_back(branch, tree_.PathTokens(branch));
  update.unpin = std::move(unpin);
  if (running_.empty()) update.expires = absl::Now() + idle_timeout_;
  engine_->UpdatePins(std::move(update));
}

void Session::Report(int branch, v1::CommandDone* done) const {
  const SessionTree::Branch& b = tree_.at(branch);
  v1::SessionBranch& message = *done->add_branches();
  message.set_branch_id(branch);
  if (b.parent != SessionTree::kNoParent) message.set_parent_branch_id(b.parent);
  message.set_num_tokens(static_cast<int>(b.tokens.size()));
  message.set_path_tokens(b.end());
  message.set_num_children(b.children);
  message.set_busy(std::ranges::any_of(running_, [&](const Run& run) {
    return std::ranges::find(run.branches, branch) != run.branches.end();
  }));
}

void Session::Done(uint64_t command_id, v1::CommandDone done) {
  v1::SessionEvent& event = ready_.emplace_back();
  event.set_command_id(command_id);
  *event.mutable_done() = std::move(done);
}

void Session::Fail(uint64_t command_id, const absl::Status& status) {
  v1::SessionEvent& event = ready_.emplace_back();
  event.set_command_id(command_id);
  event.mutable_failed()->set_code(static_cast<int>(status.code()));
  event.mutable_failed()->set_message(std::string(Rename(status, "command").message()));
}

}  // namespace espalier
