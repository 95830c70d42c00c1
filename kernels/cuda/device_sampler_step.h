// What the host and the sampling kernel tell each other: one block of memory each way.
#pragma once

#include <cstdint>

namespace espalier::device_sampler {

// A CPU sampler's row is summed block by block, and so is ours: the same order, the same bits.
inline constexpr int kRowBlock = 1024;
// Keeps the flags of the tokens that the repetition penalty has met in a block's shared memory.
inline constexpr int kMaxVocab = 1 << 19;
// One warp sorts them.
inline constexpr int kMaxTop = 32;

// Part of the step's block, in 4-byte words from its start.
struct List {
  int32_t begin;
  int32_t count;  // entries
};

// Meanings as in DeviceSampleRequest.
struct alignas(16) Request {
  double uniform;
  float inverse_temperature;
  float min_p;
  float top_p;
  float repetition_penalty;
  float frequency_penalty;
  float presence_penalty;
  int32_t logits_row;
  int32_t score_token;
  int32_t top_k;
  int32_t top_logprobs;
  int32_t greedy;     // 1: the most likely token
  int32_t processed;  // 1: bias, bans, masks or penalties change the logits
  List bias;          // (token, bits of a float)
  List banned;        // token
  List allowed;       // 64 bits of tokens that may be chosen; empty: all may
  List prompts;       // List of tokens
  List generated;     // (token, times)
};
static_assert(sizeof(Request) % 16 == 0);

// The block begins with it, then come the requests, then their lists.
struct alignas(16) StepHeader {
  int32_t num_requests;
};

struct alignas(16) Result {
  int32_t token;
  float logprob;
  int32_t finite;
  int32_t num_top;
};

struct TopEntry {
  int32_t token;
  float logprob;
};

}  // namespace espalier::device_sampler
