"""The commands that ask one question and print one answer."""

import argparse

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.table import Table

from espalier.v1 import (
    introspection_pb2,
    score_pb2,
    tokenize_pb2,
    tree_decoder_pb2,
    tree_decoder_pb2_grpc,
)
from espalier_client import connection, tree_render


def score(args: argparse.Namespace, channel: grpc.Channel) -> int:
    """Ranks continuations of a prompt by their probability."""
    request = score_pb2.ScoreRequest(text=args.prompt)
    for text in args.continuation:
        request.continuations.add(text=text)
    answer = tree_decoder_pb2_grpc.TreeDecoderStub(channel).Score(request, timeout=args.timeout)
    if args.json:
        return _print_json(answer)
    table = Table("continuation", "tokens", "logprob", "a token")
    ranked = zip(args.continuation, answer.scores, strict=True)
    for text, its in sorted(ranked, key=lambda pair: -pair[1].sum_logprob):
        table.add_row(
            repr(text), str(its.num_tokens), f"{its.sum_logprob:.3f}", f"{its.mean_logprob:.3f}"
        )
    console = tree_render.make_console()
    console.print(table)
    console.print(tree_render.usage_lines(answer.usage), highlight=False, soft_wrap=True)
    return 0


def tokenize(args: argparse.Namespace, channel: grpc.Channel) -> int:
    """Prints a text's token ids."""
    request = tokenize_pb2.TokenizeRequest(at_root=not args.continued)
    if args.chat:
        request.messages.messages.add(role="user", content=args.text)
    else:
        request.text = args.text
    stub = tree_decoder_pb2_grpc.TreeDecoderStub(channel)
    print(*stub.Tokenize(request, timeout=args.timeout).token_ids)
    return 0


def detokenize(args: argparse.Namespace, channel: grpc.Channel) -> int:
    """Prints the text of token ids."""
    request = tokenize_pb2.DetokenizeRequest(token_ids=args.ids, skip_special_tokens=False)
    stub = tree_decoder_pb2_grpc.TreeDecoderStub(channel)
    print(stub.Detokenize(request, timeout=args.timeout).text)
    return 0


def info(args: argparse.Namespace, channel: grpc.Channel) -> int:
    """Prints what model the server runs."""
    stub = tree_decoder_pb2_grpc.TreeDecoderStub(channel)
    answer = stub.GetModelInfo(introspection_pb2.GetModelInfoRequest(), timeout=args.timeout)
    return _print_fields(args, answer)


def stats(args: argparse.Namespace, channel: grpc.Channel) -> int:
    """Prints the server's counters."""
    stub = tree_decoder_pb2_grpc.TreeDecoderStub(channel)
    answer = stub.GetServerStats(introspection_pb2.GetServerStatsRequest(), timeout=args.timeout)
    return _print_fields(args, answer)


def describe(args: argparse.Namespace, channel: grpc.Channel) -> int:
    """Prints the radix tree of cached KV."""
    request = introspection_pb2.DescribeTreeRequest(
        cache_salt=args.cache_salt, max_nodes=args.max_nodes
    )
    stub = tree_decoder_pb2_grpc.TreeDecoderStub(channel)
    answer = stub.DescribeTree(request, timeout=args.timeout)
    if args.json:
        return _print_json(answer)
    tree_render.make_console().print(tree_render.render_radix_tree(answer))
    return 0


def abort(args: argparse.Namespace, channel: grpc.Channel) -> int:
    """Ends a running tree."""
    stub = tree_decoder_pb2_grpc.TreeDecoderStub(channel)
    stub.Abort(tree_decoder_pb2.AbortRequest(tree_id=args.tree_id), timeout=args.timeout)
    return 0


def health(args: argparse.Namespace, channel: grpc.Channel) -> int:
    """Prints whether the server serves."""
    stub = health_pb2_grpc.HealthStub(channel)
    answer = stub.Check(
        health_pb2.HealthCheckRequest(), timeout=args.timeout, wait_for_ready=args.wait
    )
    print(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
    serving = answer.status == health_pb2.HealthCheckResponse.SERVING
    return 0 if serving else connection.EXIT_REQUEST_FAILED


def _print_json(message: Message) -> int:
    print(
        json_format.MessageToJson(message, preserving_proto_field_name=True, ensure_ascii=False)
    )
    return 0


def _print_fields(args: argparse.Namespace, message: Message) -> int:
    if args.json:
        return _print_json(message)
    fields = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    width = max(map(len, fields))
    for name, value in fields.items():
        text = f"{value:.6g}" if isinstance(value, float) else value
        print(f"{name:<{width}}  {text}")
    return 0
