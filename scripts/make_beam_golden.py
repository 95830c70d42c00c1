#!/usr/bin/env python3
"""Writes tests/golden/beam_search.json: what Hugging Face transformers' beam search returns.

Runs `generate` in fp32 on a tiny checkpoint of tests/golden/tiny, for prompts made up from a seed,
over widths, length penalties and early stopping. Run again only when the cases change:
    pip install torch transformers
    scripts/make_beam_golden.py
"""

import json
import pathlib
import random

import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHECKPOINT = "llama-gqa8-linear"
NUM_PROMPTS = 10
MAX_TOKENS = 12
# Random weights seldom choose the model's own end token; so many of the vocabulary end a sequence
# that hypotheses of all lengths compete.
STOP_TOKENS = [3, 17, 60, 101, 150, 201, 220, 254]
CASES = [
    (width, penalty, early)
    for width in (1, 4, 8)
    for penalty, early in (
        (1.0, False), (1.0, True), (1.0, "never"), (0.6, False), (0.6, "never"), (2.0, False),
        (2.0, "never"),
    )
]


def search(model, prompt, width, penalty, early):
    """Hypotheses best first; without the stop token, which counts in the score."""
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=MAX_TOKENS,
        length_penalty=penalty,
        early_stopping=early,
        eos_token_id=STOP_TOKENS,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    scores = out.sequences_scores.tolist() if width > 1 else [None]
    hypotheses = []
    for sequence, score in zip(out.sequences.tolist(), scores):
        tokens = sequence[len(prompt):]
        ends = [i for i, token in enumerate(tokens) if token in STOP_TOKENS]
        hypotheses.append({"tokens": tokens[:ends[0]] if ends else tokens, "score": score})
    return hypotheses


def main():
    torch.manual_seed(0)
    rng = random.Random(20)
    path = ROOT / "tests/golden/tiny" / CHECKPOINT
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    prompts = [[rng.randrange(250) for _ in range(rng.randint(1, 20))] for _ in range(NUM_PROMPTS)]
    cases = []
    for width, penalty, early in CASES:
        for index, prompt in enumerate(prompts):
            cases.append({
                "prompt": index,
                "width": width,
                "length_penalty": penalty,
                "early_stopping": str(early).lower(),
                "hypotheses": search(model, prompt, width, penalty, early),
            })
    golden = {
        "checkpoint": CHECKPOINT,
        "transformers": transformers.__version__,
        "max_tokens": MAX_TOKENS,
        "stop_token_ids": STOP_TOKENS,
        "prompts": prompts,
        "cases": cases,
    }
    text = json.dumps(golden).replace('{"prompt"', '\n{"prompt"')
    (ROOT / "tests/golden/beam_search.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
