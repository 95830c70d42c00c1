#!/usr/bin/env python3
"""Times a tree of thoughts as one Session and as independent Generate calls on the same prompts.

At each level, `--thoughts` samples of `--tokens` tokens grow after the best one of the level before,
by mean log-probability. Independent calls send each level's whole path as text, all samples of the
level at once. Start one server with `--sharing cache` and one with `--sharing none`, and give both.
"""

import argparse
import concurrent.futures
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from espalier_client import environment

SENTENCES = (
    "The expedition left the harbour before sunrise and sailed along the coast for nine days. ",
    "Every evening the captain wrote down what they had eaten, whom they had met and what it cost. ",
    "On the tenth day a storm broke the mast, and they had to repair it with what the island gave. ",
    "The cook, who had been a carpenter, knew a tree whose wood is light and does not splinter. ",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--address", default="127.0.0.1:50051", help="server with the cache on")
    parser.add_argument("--unshared", metavar="ADDRESS", help="server with the cache off")
    parser.add_argument("--levels", type=int, default=4)
    parser.add_argument("--thoughts", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=32, help="of a thought")
    parser.add_argument("--sentences", type=int, default=48, help="of the prompt")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    environment.enter()
    from espalier_client.connection import run_command

    return run_command(lambda: compare(args), args.address)


def compare(args: argparse.Namespace) -> int:
    """Prints a line a way: median wall time of the repeats, and its usage."""
    rows = []
    for repeat in range(args.repeats):
        # A prompt of its own each time, so that no run finds another one's KV.
        prompt = f"Log {time.time_ns()}. " + "".join(
            SENTENCES[i % len(SENTENCES)] for i in range(args.sentences)
        )
        wall, usage, paths = run_session(args, prompt, seed=repeat)
        rows.append(("one Session", wall, usage))
        salt = f"calls {time.time_ns()}"
        rows.append(("Generate calls, cache on", *run_calls(args, args.address, paths, salt)))
        if args.unshared:
            rows.append(("Generate calls, cache off", *run_calls(args, args.unshared, paths, salt)))
    print("| way | median s | spread | prompt tokens | cached | computed | KV tokens read |")
    print("|---|---|---|---|---|---|---|")
    for name in dict.fromkeys(row[0] for row in rows):
        walls = [row[1] for row in rows if row[0] == name]
        usage = next(row[2] for row in rows if row[0] == name)
        print(
            f"| {name} | {statistics.median(walls):.2f} | {min(walls):.2f}-{max(walls):.2f} | "
            f"{usage.prompt_tokens:,} | {usage.cached_tokens:,} | {usage.computed_tokens:,} | "
            f"{usage.kv_tokens_read_unique:,} |"
        )
    return 0


def thought(args: argparse.Namespace, n: int):
    """A thought is a fixed number of tokens: all ways do the same work."""
    from espalier.v1 import prompt_pb2

    return prompt_pb2.Generation(n=n, max_tokens=args.tokens, ignore_eos=True)


def run_session(args: argparse.Namespace, prompt: str, seed: int):
    """Wall time, usage, and the text before each level."""
    from espalier_client.connection import open_channel
    from espalier_client.session import Session

    paths = []
    start = time.monotonic()
    with open_channel(args.address) as channel, Session(channel, seed=seed) as session:
        best, path = session.append(prompt), prompt
        for _ in range(args.levels):
            paths.append(path)
            grown = session.generate([best], thought(args, args.thoughts))
            winner = max(grown, key=lambda branch: branch.cumulative_logprob)
            session.prune([branch.id for branch in grown if branch.id != winner.id])
            best, path = winner.id, path + winner.text
        wall = time.monotonic() - start
        return wall, session.usage, paths


def run_calls(args: argparse.Namespace, address: str, paths: list[str], salt: str):
    """Wall time and summed usage of a call a thought; those of a level run at once."""
    from espalier.v1 import generate_pb2, prompt_pb2, tree_decoder_pb2_grpc
    from espalier_client.connection import open_channel

    total = generate_pb2.Usage()
    with (
        open_channel(address) as channel,
        concurrent.futures.ThreadPoolExecutor(args.thoughts) as pool,
    ):
        stub = tree_decoder_pb2_grpc.TreeDecoderStub(channel)

        def call(path: str, seed: int):
            root = prompt_pb2.PromptNode(text=path, generation=thought(args, 1))
            request = generate_pb2.GenerateRequest(cache_salt=salt, seed=seed, root=root)
            return [event for event in stub.Generate(request)][-1].tree_finished.usage

        start = time.monotonic()
        for path in paths:
            for usage in pool.map(call, [path] * args.thoughts, range(args.thoughts)):
                for field, value in usage.ListFields():
                    setattr(total, field.name, getattr(total, field.name) + value)
        return time.monotonic() - start, total


if __name__ == "__main__":
    sys.exit(main())
