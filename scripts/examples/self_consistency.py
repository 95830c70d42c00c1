#!/usr/bin/env python3
"""Self-consistency: many samples of one reasoning vote for its answer, as one tree.

The prompt's KV is computed once for all samples. A sample that cannot change the outcome any more is
cut off and gives its KV back.
"""

import collections
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from espalier_client import example  # importable only now

PROMPT = """Question: Tom has 3 apples and buys 4 more. How many apples does he have?
Reasoning: He starts with 3 and gets 4. 3 + 4 = 7. The answer is 7.

Question: There are 5 birds on a tree and 2 fly away. How many birds are left?
Reasoning: There were 5 and 2 left. 5 - 2 = 3. The answer is 3.

Question: Anna reads 2 pages every day. How many pages does she read in 4 days?
Reasoning: Each day she reads 2 pages. 2 * 4 = 8. The answer is 8.

Question: A box holds 6 eggs. How many eggs are in 2 boxes?
Reasoning:"""
SAMPLES = 12


def build_request():
    """One prompt, whose samples are voters."""
    from espalier.v1 import generate_pb2, prompt_pb2

    generation = prompt_pb2.Generation(
        n=SAMPLES,
        max_tokens=48,
        temperature=0.7,
        stop=["\n"],
        majority_vote=prompt_pb2.MajorityVote(answer_pattern=r"answer is (\d+)"),
    )
    root = prompt_pb2.PromptNode(id="question", text=PROMPT, generation=generation)
    return generate_pb2.GenerateRequest(request_id="self-consistency", seed=7, root=root)


def report(state) -> None:
    """How the samples voted, and a reasoning that leads to the winner."""
    votes = collections.Counter(
        branch.answer for branch in state.branches if branch.answer is not None
    )
    for answer, count in votes.most_common():
        print(f"{count:3} votes for {answer}")
    for branch in state.kept:
        print(f"kept: {branch.text.strip()}")


if __name__ == "__main__":
    sys.exit(example.run(__doc__, build_request, report))
