"""The `generate` command: grows a tree and prints it while it grows."""

import argparse
import sys
import time
from pathlib import Path

import grpc
from google.protobuf import json_format
from rich.console import Console
from rich.live import Live

from espalier.v1 import generate_pb2, prompt_pb2, tree_decoder_pb2_grpc
from espalier_client import tree_render, tree_request
from espalier_client.connection import InputError
from espalier_client.tree_state import TreeState

_REFRESH_S = 0.08  # of the live tree

_GENERATION_OPTIONS = [  # (field of Generation, type, help)
    ("n", int, "branches of each node that generates"),
    ("max_tokens", int, "most tokens of a branch"),
    ("min_tokens", int, "tokens before a stop condition counts"),
    ("temperature", float, "0: always the most likely token"),
    ("top_p", float, "keep the most likely tokens of this total probability"),
    ("top_k", int, "keep this many most likely tokens"),
    ("min_p", float, "drop tokens below this share of the most likely one"),
    ("repetition_penalty", float, "of tokens on the path"),
    ("frequency_penalty", float, "of tokens generated, each time"),
    ("presence_penalty", float, "of tokens generated, once"),
    ("logprobs", int, "report so many most likely tokens (seen with --json)"),
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--file", type=Path, help="a GenerateRequest as JSON")
    source.add_argument("--prompt", metavar="TEXT", help="the root's text; -: standard input")
    parser.add_argument(
        "--question",
        action="append",
        default=[],
        metavar="TEXT",
        help="a child of the prompt, which then generates instead of it; may repeat",
    )
    parser.add_argument("--chat", action="store_true", help="send the texts as chat messages")
    parser.add_argument("--system", default="", metavar="TEXT", help="system message of --chat")
    for field, kind, summary in _GENERATION_OPTIONS:
        parser.add_argument("--" + field.replace("_", "-"), type=kind, help=summary)
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="may repeat")
    parser.add_argument("--seed", type=int, help="of all choices (default: the server draws one)")
    parser.add_argument("--json", action="store_true", help="print the events, one JSON a line")
    parser.add_argument("--no-live", action="store_true", help="print the tree only when it ends")


def run(args: argparse.Namespace, channel: grpc.Channel) -> int:
    """Prints what was streamed even when the stream ends in an error."""
    request = request_of(args)
    call = tree_decoder_pb2_grpc.TreeDecoderStub(channel).Generate(request, timeout=args.timeout)
    try:
        if args.json:
            _print_events(call)
        else:
            _print_tree(call, TreeState(request), live=not args.no_live)
    except KeyboardInterrupt:
        call.cancel()
        raise
    return 0


def request_of(args: argparse.Namespace) -> generate_pb2.GenerateRequest:
    """The request that the command line describes. Raises InputError."""
    generation = prompt_pb2.Generation(stop=args.stop)
    for field, _, _ in _GENERATION_OPTIONS:
        _set(generation, field, getattr(args, field))
    if args.file:
        if args.question or args.system or args.chat or generation.ByteSize():
            raise InputError("--file holds the whole tree: of these options only --seed fits it")
        request = tree_request.read(args.file)
    else:
        prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
        options = tree_request.PromptOptions(prompt, args.question, args.chat, args.system)
        request = tree_request.build(options, generation)
    _set(request, "seed", args.seed)
    return request


def _set(
    message: prompt_pb2.Generation | generate_pb2.GenerateRequest, field: str, value: object
) -> None:
    if value is None:
        return
    try:
        setattr(message, field, value)
    except ValueError as error:
        raise InputError(f"--{field.replace('_', '-')} {value}: {error}") from error


def _print_events(call: grpc.Call) -> None:
    for event in call:
        line = json_format.MessageToJson(
            event, indent=None, preserving_proto_field_name=True, ensure_ascii=False
        )
        print(line, flush=True)


def _print_tree(call: grpc.Call, state: TreeState, live: bool) -> None:
    console = tree_render.make_console()
    try:
        if live and console.is_terminal:
            _follow(call, state, console)
        else:
            for event in call:
                state.apply(event)
    finally:
        if state.tree_id:
            console.print(tree_render.render(state))
            console.print(f"tree {state.tree_id}, seed {state.seed}", highlight=False)
        if state.usage:
            console.print(tree_render.usage_lines(state.usage), highlight=False, soft_wrap=True)


def _follow(call: grpc.Call, state: TreeState, console: Console) -> None:
    with Live(console=console, auto_refresh=False, transient=True) as picture:
        drawn = 0.0
        for event in call:
            state.apply(event)
            if time.monotonic() - drawn >= _REFRESH_S:
                picture.update(tree_render.render(state), refresh=True)
                drawn = time.monotonic()
