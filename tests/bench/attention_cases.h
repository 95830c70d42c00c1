// The trees on which attention is measured: synthetic levels, a step of a recorded workload, a
// draft token tree over a prompt, or any forest from a file.
#pragma once

#include <string>

#include "kernels/attention/tree_shape.h"

namespace espalier::bench {

struct AttentionCaseOptions {
  std::string tree = "1,50 / 4000,200";  // nodes a level / tokens a node
  std::string workload;                  // TRACE@STEP
  std::string workload_folder;           // of "tree-workloads/1" files
  int draft_tokens = 0;                  // a draft tree of that many tokens
  int prompt_tokens = 4000;              // above the draft tree
  std::string tree_file;                 // JSON {"parent": [...], "tokens": [...]}
  int run_tokens = 1;                    // queries at the end of each leaf
  int page_size = 16;
};

struct AttentionCase {
  std::string name;
  TreeShape shape;
  int num_pages = 0;
};

// Pages are in random order, as in a pool that has been in use for a while; the same each time.
// Throws CLI::ValidationError, naming what is wrong with the options.
AttentionCase MakeAttentionCase(const AttentionCaseOptions& options);

}  // namespace espalier::bench
