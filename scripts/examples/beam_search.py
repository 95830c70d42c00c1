#!/usr/bin/env python3
"""Beam search: the most likely continuations of a sentence, as a tree that forks and is cut.

Hypotheses with a common beginning share its KV; none is copied when a beam is reordered.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from espalier_client import example  # importable only now

WIDTH = 4


def build_request():
    """One prompt, and all hypotheses as its results."""
    from espalier.v1 import generate_pb2, prompt_pb2

    generation = prompt_pb2.Generation(
        max_tokens=24, beam_search=prompt_pb2.BeamSearch(width=WIDTH, num_return=WIDTH)
    )
    root = prompt_pb2.PromptNode(
        id="sentence", text="The three largest cities of Italy are", generation=generation
    )
    return generate_pb2.GenerateRequest(request_id="beam search", root=root)


def report(state) -> None:
    """The results, best first."""
    for branch in state.kept:
        score = f"{branch.score:7.3f}" if branch.score is not None else ""
        print(f"{branch.rank + 1}. {score}  {branch.hypothesis.strip()!r}")


if __name__ == "__main__":
    sys.exit(example.run(__doc__, build_request, report))
