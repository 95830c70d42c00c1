// What one session does: takes commands, keeps its tree of branches, runs Generate and Score as
// trees of the engine, and says what came of them. Moves no bytes; session_reactor does.
//
// Not thread-safe, but for Prepare. The engine's part ends by itself: whoever drops a session calls
// End and takes events until finished().
#pragma once

#include <cstdint>
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "engine/session/session_request.h"
#include "engine/session/session_tree.h"
#include "espalier/v1/tree_decoder.pb.h"
#include "server/convert.h"

namespace espalier {

class Session {
 public:
  // A command whose texts are read; the slow part, which needs no session.
  struct Command {
    v1::SessionCommand message;
    absl::Status status;               // refused already
    std::vector<int32_t> tokens;       // Append
    bool is_conversation = false;      // Append
    bool prefill = false;              // of Append and Join
    Generation generation;             // Generate
    std::vector<PromptNode> contents;  // Score
    std::vector<int> branches;         // that it uses
  };
  static Command Prepare(const Engine& engine, v1::SessionCommand message);

  // `sink` is told when NextEvent may have more.
  Session(Engine* engine, std::string id, std::shared_ptr<OutputSink> sink);
  // Lets go of the session's KV.
  ~Session();

  void Take(Command command);
  // No more commands come: the session ends when those that came are done.
  void TakeLast() { no_more_ = true; }
  // Drops what waits, and ends with this status once nothing runs. The first call counts.
  void End(const absl::Status& status);
  // Cancels what runs.
  void Cancel();

  std::optional<v1::SessionEvent> NextEvent();
  // Events that wait, not counting what running commands have to say.
  size_t num_ready() const { return ready_.size(); }
  // The status to end with, when all is said.
  std::optional<absl::Status> finished() const;
  const std::string& id() const { return id_; }

 private:
  struct RunBranch {
    int node = 0;
    int parent = -1;    // run branch that it was forked off; -1: none
    int inherited = 0;  // tokens that it took over from there
    bool kept = false;
    std::vector<int32_t> tokens;  // after those
  };
  // A command that the engine works on.
  struct Run {
    uint64_t command_id = 0;
    std::vector<int> branches;
    std::vector<int> branch_of_node;
    std::unique_ptr<EventWriter> writer;  // null for Score
    bool in_place = false;                // what is generated makes the leaves longer
    bool with_tokens = false;             // Score
    int scored_branch = -1;
    int prefilled_branch = -1;
    TreeHandle tree;
    std::map<int, RunBranch> run_branches;
    v1::CommandDone done;
  };

  void StartCommands();
  bool MustWait(const Command& command, size_t place) const;
  bool Overlap(const std::vector<int>& a, const std::vector<int>& b) const;
  absl::Status Execute(Command& command, v1::CommandDone* done);
  absl::Status Open(const v1::OpenSession& open, uint64_t command_id);
  absl::Status Append(Command& command, v1::CommandDone* done);
  absl::Status Generate(Command& command);
  absl::Status Score(Command& command);
  void Prefill(uint64_t command_id, const v1::CommandDone& done);
  absl::Status Submit(Run run, std::vector<PromptNode> nodes);

  void Absorb(Run& run, TreeEvent event);
  void Finish(Run& run, const TreeFinished& last);
  absl::Status Apply(Run& run, std::vector<int>* computed);
  std::vector<int32_t> TokensOf(const Run& run, int run_branch) const;
  // Tells the engine which paths to keep: adds these, drops those, and for how long.
  void Pin(const std::vector<int>& pin, std::vector<int> unpin);

  void Report(int branch, v1::CommandDone* done) const;
  void Done(uint64_t command_id, v1::CommandDone done);
  void Fail(uint64_t command_id, const absl::Status& status);

  Engine* const engine_;
  const std::string id_;
  const std::shared_ptr<OutputSink> sink_;
  const Limits limits_;
  SessionTree tree_;
  bool opened_ = false;
  int priority_ = 0;
  std::string cache_salt_;
  uint64_t seed_ = 0;
  absl::Duration idle_timeout_;

  std::deque<Command> waiting_;
  std::list<Run> running_;
  std::deque<v1::SessionEvent> ready_;
  bool no_more_ = false;
  std::optional<absl::Status> end_;
};

}  // namespace espalier
