// Every limit on what a client may ask for. The validator refuses what exceeds one before anything
// is allocated for it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/time/time.h"
#include "engine/session/session_tree.h"

namespace espalier {

struct Limits {
  int max_nodes = 4096;         // prompt nodes a tree
  int max_depth = 64;           // prompt nodes on a path
  int max_width = 1024;         // branches a tree can have alive at once
  int max_n = 256;              // Generation.n
  int max_pattern_bytes = 512;  // MajorityVote.answer_pattern
  int max_regex_bytes = 4096;   // Generation.regex
  int max_choices = 256;        // Choices.texts
  int max_judge_answers = 16;   // Judge.answers
  int max_beam_width = 16;      // BeamSearch.width
  // Candidates that a beam's hypothesis offers: width plus tokens that end it.
  int max_beam_candidates = 32;
  int64_t max_tree_tokens = 1 << 20;  // prompt tokens plus max_tokens over all branches
  int max_logprobs = 20;
  int max_stop_strings = 16;
  int max_stop_bytes = 256;  // each
  int max_stop_token_ids = 64;
  int max_logit_bias = 1024;
  size_t max_text_bytes = 8u << 20;  // a text field
  int max_label_bytes = 256;         // request_id, cache_salt, node id
  int max_messages = 1024;           // chat messages a node
  int max_waiting_trees = 1024;      // inbox and queue; more: RESOURCE_EXHAUSTED
  int max_sessions = 256;            // open at once
  SessionLimits session = {};
  // How long an idle session keeps its KV from eviction, at most.
  absl::Duration session_idle_timeout = absl::Minutes(5);
};

}  // namespace espalier
