#!/usr/bin/env python3
"""Says how far the numbers of two servers of one model are apart, such as with two KV types.

Scores the same texts on both: perplexity, and by how much a token's log-probability moves. Then
continues prompts greedily on both and counts where the continuations part.
"""

import argparse
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from espalier_client import environment

TEXTS = {
    "prose": (
        "A pear tree that is trained against a wall gives up nothing but its freedom. The gardener "
        "chooses a few branches in the first winter, ties them to wires and cuts the others off; "
        "in summer the shoots that point away from the wall are shortened to three leaves. What "
        "the tree would have spent on wood it now spends on fruit, and the bricks, which keep the "
        "warmth of the day through the night, let it blossom a week before its neighbours in the "
        "field. In the north this week decides whether there will be pears at all.\n\n"
        "The old monasteries knew this well. Their accounts list wire and nails beside salt and "
        "candles, and more than one abbot wrote to another about the best angle of a branch. When "
        "the monasteries were closed, the trees stayed where they were, and some of them still "
        "stand against walls whose houses have long been torn down. Visitors take the flat shape "
        "for an accident or a disease. They do not see the hand that went over it every year for "
        "half a century, and they wonder why so thin a tree should carry so much."
    ),
    "code": (Path(__file__).resolve().parent / "check_includes.py").read_text(),
}
PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a lighthouse keeper who",
    "To make bread, you need",
    "The three laws of thermodynamics say that",
    "def quicksort(values):\n",
    "Dear Sir or Madam,\n\nI am writing to",
    "The difference between a virus and a bacterium is",
    "In the year 1492,",
    "Water boils at a lower temperature on a mountain because",
    "Three reasons to learn a second language:\n1.",
)
GENERATED_TOKENS = 64


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--address", default="127.0.0.1:50051", help="the server to compare with")
    parser.add_argument("--other", required=True, metavar="ADDRESS", help="the other server")
    args = parser.parse_args()
    environment.enter()
    from espalier_client.connection import run_command

    return run_command(lambda: compare(args.address, args.other), args.address)


def compare(address: str, other: str) -> int:
    """Prints a line a text, and one of the continuations."""
    from espalier.v1 import introspection_pb2, tree_decoder_pb2_grpc
    from espalier_client.connection import open_channel

    with open_channel(address) as channel, open_channel(other) as other_channel:
        stubs = [tree_decoder_pb2_grpc.TreeDecoderStub(c) for c in (channel, other_channel)]
        infos = [stub.GetModelInfo(introspection_pb2.GetModelInfoRequest()) for stub in stubs]
        print(f"KV of {infos[0].kv_type} and of {infos[1].kv_type}")
        print("| text | tokens | perplexity | of the other | mean, largest change of a logprob |")
        print("|---|---|---|---|---|")
        for name, text in TEXTS.items():
            logprobs, others = (score(stub, text) for stub in stubs)
            changes = [abs(a - b) for a, b in zip(logprobs, others, strict=True)]
            print(
                f"| {name} | {len(logprobs)} | {perplexity(logprobs):.3f} | "
                f"{perplexity(others):.3f} | {mean(changes):.4f}, {max(changes):.3f} |"
            )
        common = [common_prefix(*(continuation(stub, p) for stub in stubs)) for p in PROMPTS]
        equal = common.count(GENERATED_TOKENS)
        print(
            f"\n{equal} of {len(PROMPTS)} greedy continuations of {GENERATED_TOKENS} tokens are "
            f"equal; tokens until they part: {', '.join(map(str, sorted(common)))}"
        )
    return 0


def score(stub, text: str) -> list[float]:
    """Log-probabilities of all tokens but the first, which is the prompt."""
    from espalier.v1 import score_pb2, tokenize_pb2

    ids = stub.Tokenize(tokenize_pb2.TokenizeRequest(text=text, at_root=True)).token_ids
    request = score_pb2.ScoreRequest(return_token_logprobs=True)
    request.token_ids.ids.append(ids[0])
    request.continuations.add().token_ids.ids.extend(ids[1:])
    return [token.logprob for token in stub.Score(request).scores[0].logprobs]


def continuation(stub, prompt: str) -> list[int]:
    """Its tokens, greedily."""
    from espalier.v1 import generate_pb2, prompt_pb2

    greedy = prompt_pb2.Generation(temperature=0, max_tokens=GENERATED_TOKENS, ignore_eos=True)
    root = prompt_pb2.PromptNode(text=prompt, generation=greedy)
    return [
        token
        for event in stub.Generate(generate_pb2.GenerateRequest(root=root))
        for branch in event.tokens.branches
        for token in branch.token_ids
    ]


def common_prefix(a: list[int], b: list[int]) -> int:
    """Tokens before the first in which they differ."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def perplexity(logprobs: list[float]) -> float:
    return math.exp(-mean(logprobs))


if __name__ == "__main__":
    sys.exit(main())
