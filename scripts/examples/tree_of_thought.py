#!/usr/bin/env python3
"""A tree of thoughts that sorts numbers, searched by the client through a Session.

A thought is the next number of the sorted list. Each level asks for several thoughts after every
list that is still in the race, drops those that name no remaining number, and keeps the lists whose
thoughts were the most likely. All lists share the KV of the prompt, and each that of its beginning.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from espalier_client import environment

PROMPT = """Sort the numbers from the smallest to the largest.

Numbers: 7 2 5
Sorted: 2 5 7

Numbers: 9 1 4 3
Sorted: 1 3 4 9

Numbers: 6 8 2 7 1
Sorted: 1 2 6 7 8

Numbers: 5 3 9 4
Sorted: 3 4 5 9

Numbers: {numbers}
Sorted:"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--address", default="127.0.0.1:50051", help="of the server")
    parser.add_argument("--numbers", type=int, nargs="+", default=[8, 3, 6, 1], metavar="DIGIT")
    parser.add_argument("--thoughts", type=int, default=6, help="after each list, at each level")
    parser.add_argument("--keep", type=int, default=3, help="lists that go on from a level")
    args = parser.parse_args()
    if any(not 0 <= number <= 9 for number in args.numbers):
        parser.error("--numbers are digits")
    environment.enter()
    from espalier_client.connection import run_command

    return run_command(lambda: search(args), args.address)


def search(args: argparse.Namespace) -> int:
    """Prints each level's lists, then the winner and what the search cost."""
    from espalier.v1 import prompt_pb2
    from espalier_client import tree_render
    from espalier_client.connection import open_channel
    from espalier_client.session import Session

    thought = prompt_pb2.Generation(n=args.thoughts, temperature=1.2, regex=r" \d", logprobs=0)
    with open_channel(args.address) as channel, Session(channel, timeout=120, seed=5) as session:
        prompt = PROMPT.format(numbers=" ".join(map(str, args.numbers)))
        lists = {session.append(prompt): ([], 0.0)}  # branch -> its numbers, log p of them
        for level in range(len(args.numbers)):
            print(f"level {level + 1}")
            found = {}
            dropped = []
            for grown in session.generate(list(lists), thought):
                numbers, logprob = lists[grown.leaf]
                candidate = (*numbers, int(grown.text))
                fits = all(candidate.count(n) <= args.numbers.count(n) for n in candidate)
                if fits and candidate not in found:
                    found[candidate] = (grown.id, logprob + grown.cumulative_logprob)
                else:
                    dropped.append(grown.id)
            ranked = sorted(found, key=lambda candidate: -found[candidate][1])
            for place, candidate in enumerate(ranked):
                branch, logprob = found[candidate]
                kept = place < args.keep
                print(f"  {'kept  ' if kept else 'pruned'} {logprob:7.2f}  {show(candidate)}")
                if not kept:
                    dropped.append(branch)
            print(f"  {len(dropped)} of {len(dropped) + len(ranked[: args.keep])} thoughts pruned")
            if not ranked:
                print("no thought names a remaining number")
                return 1
            if dropped:
                session.prune(dropped)
            lists = {found[c][0]: (list(c), found[c][1]) for c in ranked[: args.keep]}
        best = max(lists.values(), key=lambda entry: entry[1])[0]
        verdict = "sorted" if best == sorted(args.numbers) else "not sorted"
        print(f"{show(args.numbers)} -> {show(best)} ({verdict})")
        print(tree_render.usage_lines(session.usage))
    return 0


def show(numbers) -> str:
    return " ".join(map(str, numbers))


if __name__ == "__main__":
    sys.exit(main())
