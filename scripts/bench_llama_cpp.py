#!/usr/bin/env python3
"""Runs the cases of `espalier-bench engine` on llama.cpp, as the baseline of the same machine.

Needs the Python package llama-cpp-python (built from source by pip) and numpy. Greedy, no end token,
one batch for all branches: the shared prompt is computed once and its KV is copied by reference to
each branch (llama_memory_seq_cp), which is llama.cpp's own way to decode a few-shot batch.
"""

import argparse
import json
import statistics
import time

import llama_cpp as lc
import numpy as np


def tokens(count, salt):
    return [1000 + (i * 7919 + salt * 104729) % 30000 for i in range(count)]


class Runner:
    def __init__(self, model, threads, context, branches):
        lc.llama_backend_init()
        params = lc.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = lc.llama_model_load_from_file(model.encode(), params)
        options = lc.llama_context_default_params()
        options.n_ctx = context
        options.n_batch = options.n_ubatch = 512
        options.n_seq_max = branches
        options.n_threads = options.n_threads_batch = threads
        options.kv_unified = True
        self.context = lc.llama_init_from_model(self.model, options)
        self.vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(self.model))
        self.memory = lc.llama_get_memory(self.context)
        self.batch = lc.llama_batch_init(1024, 0, branches)

    def clear(self):
        lc.llama_memory_clear(self.memory, True)

    def decode(self, rows):
        """rows: (token, position, sequence, wants logits)."""
        for i, (token, position, sequence, logits) in enumerate(rows):
            self.batch.token[i] = token
            self.batch.pos[i] = position
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = sequence
            self.batch.logits[i] = logits
        self.batch.n_tokens = len(rows)
        if lc.llama_decode(self.context, self.batch) != 0:
            raise RuntimeError("llama_decode failed")

    def argmax(self, row):
        logits = lc.llama_get_logits_ith(self.context, row)
        return int(np.argmax(np.ctypeslib.as_array(logits, shape=(self.vocab,))))

    def prefill(self, ids):
        for begin in range(0, len(ids), 512):
            chunk = ids[begin : begin + 512]
            self.decode(
                [
                    (t, begin + i, 0, begin + i + 1 == len(ids))
                    for i, t in enumerate(chunk)
                ]
            )
        return self.argmax(len(chunk) - 1)


def single(run, prompt, count, salt):
    run.clear()
    token = run.prefill(tokens(prompt, salt))
    start = time.perf_counter()
    for i in range(count - 1):
        run.decode([(token, prompt + i, 0, True)])
        token = run.argmax(0)
    return time.perf_counter() - start


def prefill(run, prompt, salt):
    run.clear()
    start = time.perf_counter()
    run.prefill(tokens(prompt, salt))
    return time.perf_counter() - start


def few_shot(run, prompt, branches, count, salt):
    run.clear()
    start = time.perf_counter()
    run.prefill(tokens(prompt, salt))
    for b in range(1, branches):
        lc.llama_memory_seq_cp(run.memory, 0, b, -1, -1)
    current = [2000 + b for b in range(branches)]
    for i in range(count):
        run.decode([(t, prompt + i, b, True) for b, t in enumerate(current)])
        current = [run.argmax(b) for b in range(branches)]
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="GGUF file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--branches", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    context = args.prompt + args.branches * args.tokens + 256
    run = Runner(args.model, args.threads, context, args.branches)
    cases = {
        "decode, 1 branch, 128 tokens after 16": (127, lambda i: single(run, 16, 128, i)),
        f"prefill, {args.prompt} tokens": (
            args.prompt,
            lambda i: prefill(run, args.prompt, i),
        ),
        "few-shot": (
            args.branches * args.tokens,
            lambda i: few_shot(run, args.prompt, args.branches, args.tokens, i),
        ),
    }
    lines = []
    for name, (count, case) in cases.items():
        case(0)  # warms up
        seconds = statistics.median(case(i) for i in range(1, args.repeats + 1))
        lines.append({"name": name, "seconds": seconds, "tokens_per_s": count / seconds})
    print(json.dumps({"llama_cpp_python": lc.__version__, "lines": lines}, indent=2))


if __name__ == "__main__":
    main()
