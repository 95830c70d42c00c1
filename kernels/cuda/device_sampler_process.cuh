// What changes a row's logits before a token is chosen, in the order of engine/sampler.
#pragma once

#include "kernels/cuda/device_sampler_row.cuh"

namespace espalier::device_sampler {

// A token may have several biases, which are added in their order: rounding depends on it.
template <int kThreads>
__device__ void AddBias(const Slice<kThreads>& slice, const int32_t* entries, int count) {
  if (Warp() != 0) return;
  for (int begin = 0; begin < count; begin += 32) {
    const int i = begin + Lane();
    const int32_t token = i < count ? entries[2 * i] : -1;
    const int index = slice.IndexOf(token);
    const unsigned same = __match_any_sync(kAllLanes, index >= 0 ? index : -1 - Lane());
    const int turn = __popc(same & ((1u << Lane()) - 1));
    for (int now = 0; __any_sync(kAllLanes, turn >= now); ++now) {
      if (turn == now && index >= 0) {
        slice.values[index] = __fadd_rn(slice.values[index], __int_as_float(entries[2 * i + 1]));
      }
      __syncwarp();
    }
  }
}

// Each token once, however many lists it is in.
template <int kThreads>
__device__ void Repeat(const Slice<kThreads>& slice, int32_t token, float penalty) {
  const int index = slice.IndexOf(token);
  if (index < 0) return;
  const uint32_t bit = 1u << (index % 32);
  if ((atomicOr(&slice.met[index / 32], bit) & bit) != 0) return;
  float& logit = slice.values[index];
  logit = logit > 0 ? __fdiv_rn(logit, penalty) : __fmul_rn(logit, penalty);
}

template <int kThreads>
__device__ void ApplyPenalties(const Slice<kThreads>& slice, const Request& request,
                               const int32_t* words) {
  const int32_t* const generated = words + request.generated.begin;
  if (request.repetition_penalty != 1.0f) {
    const auto* prompts = reinterpret_cast<const List*>(words + request.prompts.begin);
    for (int prompt = 0; prompt < request.prompts.count; ++prompt) {
      const List list = prompts[prompt];
      for (int i = threadIdx.x; i < list.count; i += kThreads) {
        Repeat(slice, words[list.begin + i], request.repetition_penalty);
      }
    }
    for (int i = threadIdx.x; i < request.generated.count; i += kThreads) {
      Repeat(slice, generated[2 * i], request.repetition_penalty);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < slice.num_blocks * (kRowBlock / 32); i += kThreads) {
      slice.met[i] = 0;
    }
  }
  for (int i = threadIdx.x; i < request.generated.count; i += kThreads) {
    const int index = slice.IndexOf(generated[2 * i]);
    if (index < 0) continue;
    const float penalty =
        __fadd_rn(__fmul_rn(request.frequency_penalty, static_cast<float>(generated[2 * i + 1])),
                  request.presence_penalty);
    slice.values[index] = __fsub_rn(slice.values[index], penalty);
  }
}

// `words`: a bit a token of the vocabulary.
template <int kThreads>
__device__ void MaskOthers(const Slice<kThreads>& slice, const int32_t* words) {
  const int32_t* const own = words + slice.first_token() / 32;
  for (int i = threadIdx.x; i < slice.size; i += kThreads) {
    if ((static_cast<uint32_t>(own[i / 32]) >> (i % 32) & 1) == 0) slice.values[i] = -kInfinity;
  }
}

template <int kThreads>
__device__ void Process(const Slice<kThreads>& slice, const Request& request,
                        const int32_t* words) {
  AddBias(slice, words + request.bias.begin, request.bias.count);
  __syncthreads();
  for (int i = threadIdx.x; i < request.banned.count; i += kThreads) {
    const int index = slice.IndexOf(words[request.banned.begin + i]);
    if (index >= 0) slice.values[index] = -kInfinity;
  }
  if (request.allowed.count > 0) MaskOthers(slice, words + request.allowed.begin);
  __syncthreads();
  ApplyPenalties(slice, request, words);
  __syncthreads();
}

}  // namespace espalier::device_sampler
