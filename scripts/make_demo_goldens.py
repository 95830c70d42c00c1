#!/usr/bin/env python3
"""Writes tests/golden/demo/goldens.safetensors: what Hugging Face transformers says about the demo
model, dequantised from its GGUF to fp32.

For each prompt: its tokens, 64 greedily generated tokens, and for each position of the whole
sequence the logits of 64 fixed vocabulary entries and the log-sum-exp over all of them.

usage: make_demo_goldens.py SmolLM2-135M-Instruct.Q4_1.gguf
needs: torch, transformers, accelerate, gguf, safetensors
"""

import argparse
import pathlib

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

NEW_TOKENS = 64
SAMPLED_VOCAB = 64

QUESTIONS = [
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "List three prime numbers and say why each is prime.",
    "Translate to German: The weather is nice today.",
]
# No chat format: a text to continue.
TEXTS = ["def fibonacci(n):\n    if n < 2:\n        return n\n"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf", type=pathlib.Path)
    args = parser.parse_args()

    source = {"pretrained_model_name_or_path": str(args.gguf.parent), "gguf_file": args.gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.float32, attn_implementation="eager"
    ).eval()

    prompts = TEXTS + [
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n" for question in QUESTIONS
    ]
    vocab = np.random.default_rng(1).choice(model.config.vocab_size, SAMPLED_VOCAB, replace=False)
    vocab.sort()
    token_ids, lengths, prompt_lengths, logits, logsumexps = [], [], [], [], []
    for prompt in prompts:
        prompt_ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
        with torch.inference_mode():
            # Every token, the end of text too, may be generated: the test does not stop either.
            sequence = prompt_ids
            past = None
            for _ in range(NEW_TOKENS):
                out = model(sequence if past is None else sequence[:, -1:], past_key_values=past)
                past = out.past_key_values
                sequence = torch.cat([sequence, out.logits[:, -1:].argmax(-1)], dim=1)
            teacher_forced = model(sequence).logits[0].double()
        best_two = teacher_forced[prompt_ids.shape[1] - 1 : -1].topk(2).values
        margin = (best_two[:, 0] - best_two[:, 1]).min().item()
        print(f"{prompt!r}: {tokenizer.decode(sequence[0, prompt_ids.shape[1]:])!r}")
        print(f"  smallest lead of the best token: {margin:.4f}")
        token_ids += sequence[0].tolist()
        lengths.append(sequence.shape[1])
        prompt_lengths.append(prompt_ids.shape[1])
        logits.append(teacher_forced[:, vocab].float().numpy())
        logsumexps.append(teacher_forced.logsumexp(-1).float().numpy())

    out = pathlib.Path(__file__).resolve().parent.parent / "tests/golden/demo/goldens.safetensors"
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            "token_ids": np.array(token_ids, np.int32),
            "lengths": np.array(lengths, np.int32),
            "prompt_lengths": np.array(prompt_lengths, np.int32),
            "vocab": vocab.astype(np.int32),
            "logits": np.concatenate(logits),
            "logsumexp": np.concatenate(logsumexps),
        },
        out,
    )
    print(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
