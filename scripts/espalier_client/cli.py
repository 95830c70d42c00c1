"""The command line of client.py."""

import argparse
from collections.abc import Callable

import grpc

from espalier_client import connection, generate, queries

_DESCRIPTION = """\
A client of an Espalier server: prints trees while they grow, and asks the server about itself.

exit status: 0 done; 1 the server refused or failed; 2 bad input; 3 no server answers, or not any
more; 130 interrupted, 141 the output was closed (in both cases the tree is cancelled)
"""


def main() -> int:
    """Runs the command that sys.argv names; returns the exit status."""
    args = parser().parse_args()

    def command() -> int:
        with connection.open_channel(args.address) as channel:
            return args.run(args, channel)

    return connection.run_command(command, args.address)


def parser() -> argparse.ArgumentParser:
    """A subparser a command; each sets `run`, a function of (args, channel)."""
    top = argparse.ArgumentParser(
        description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    grow = _add(commands, "generate", generate.run, "grow a tree and print it")
    generate.add_arguments(grow)

    score = _add(commands, "score", queries.score, "rank continuations of a prompt")
    score.add_argument("--prompt", required=True)
    score.add_argument("--continuation", action="append", required=True, metavar="TEXT")

    tokenize = _add(commands, "tokenize", queries.tokenize, "print a text's token ids")
    tokenize.add_argument("text")
    tokenize.add_argument("--chat", action="store_true", help="as a user's message")
    tokenize.add_argument("--continued", action="store_true", help="not the start of a sequence")

    detokenize = _add(commands, "detokenize", queries.detokenize, "print the text of token ids")
    detokenize.add_argument("ids", type=int, nargs="+", metavar="ID")

    info = _add(commands, "info", queries.info, "print what model the server runs")
    stats = _add(commands, "stats", queries.stats, "print the server's counters")

    describe = _add(commands, "describe", queries.describe, "print the radix tree of cached KV")
    describe.add_argument("--cache-salt", default="", help="whose tree (default: the unsalted)")
    describe.add_argument("--max-nodes", type=int, help="most nodes to print")

    for command in (score, info, stats, describe):
        command.add_argument("--json", action="store_true", help="print the answer as JSON")

    abort = _add(commands, "abort", queries.abort, "end a running tree")
    abort.add_argument("tree_id", help="what `generate` prints, or the event TreeStarted")

    health = _add(commands, "health", queries.health, "print whether the server serves")
    health.add_argument("--wait", action="store_true", help="for it to come up, until --timeout")
    return top


def _add(
    commands: argparse._SubParsersAction,
    name: str,
    run: Callable[[argparse.Namespace, grpc.Channel], int],
    summary: str,
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=summary, description=summary)
    command.set_defaults(run=run)
    command.add_argument(
        "--address",
        default=connection.DEFAULT_ADDRESS,
        metavar="HOST:PORT",
        help="of the server (default: %(default)s)",
    )
    command.add_argument("--timeout", type=float, metavar="S", help="deadline of the call, seconds")
    return command
