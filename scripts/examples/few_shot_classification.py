#!/usr/bin/env python3
"""Few-shot classification: which label continues the prompt best, scored exactly, as one tree.

The examples are the tree's root, each text to classify is a child, and the labels are its choices:
every label is a branch, whose log-probability is exact, and the best one is kept. The examples' KV
is computed once and read once a step for all texts and labels.
"""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from espalier_client import example  # importable only now

INSTRUCTION = "Say what kind of text each line is from.\n\n"
EXAMPLES = [
    ("Bring the water to a boil and add the rice.", "recipe"),
    ("The team scored twice in the last ten minutes of the match.", "sports"),
    ("Tomorrow will be cloudy with rain in the north.", "weather"),
    ("Chop two onions and fry them in butter.", "recipe"),
    ("Strong winds are expected along the coast tonight.", "weather"),
    ("She won the race and broke her own record.", "sports"),
    ("Let the dough rest for an hour before you bake it.", "recipe"),
    ("Temperatures will fall below zero on Friday.", "weather"),
    ("The goalkeeper was injured and left the field.", "sports"),
]
TEXTS = [
    ("Mix the flour with the eggs and a pinch of salt.", "recipe"),
    ("Snow is likely in the mountains this weekend.", "weather"),
    ("The captain missed a penalty in the final game.", "sports"),
    ("Simmer the sauce until it thickens.", "recipe"),
    ("A warm and sunny afternoon, with light winds.", "weather"),
    ("The coach praised his players after the victory.", "sports"),
]

LABELS = sorted({label for _, label in EXAMPLES})


def ask(text: str) -> str:
    return f"Line: {text}\nKind:"


def build_request():
    """A node a text, whose branches are the labels."""
    from espalier.v1 import generate_pb2, prompt_pb2

    examples = "".join(f"{ask(text)} {label}\n\n" for text, label in EXAMPLES)
    root = prompt_pb2.PromptNode(id="examples", text=INSTRUCTION + examples)
    for i, (text, _) in enumerate(TEXTS):
        child = root.children.add(id=f"text {i}", text=ask(text))
        child.generation.choices.texts.extend(f" {label}" for label in LABELS)
    return generate_pb2.GenerateRequest(request_id="few-shot classification", root=root)


def report(state) -> None:
    """The best label of each text, and its share among the labels."""
    right = 0
    for i, (text, expected) in enumerate(TEXTS):
        branches = state.branches_at(f"text {i}", None)
        [kept] = [branch for branch in branches if branch.rank == 0]
        best = LABELS[kept.sample_index]
        share = math.exp(kept.score) / sum(math.exp(branch.score) for branch in branches)
        right += best == expected
        mark = "" if best == expected else f"  (expected {expected})"
        print(f"{best} {share:6.1%}  {text}{mark}")
    print(f"{right} of {len(TEXTS)} as expected")


if __name__ == "__main__":
    sys.exit(example.run(__doc__, build_request, report))
