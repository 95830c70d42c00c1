"""The command line of loadtest.py."""

import argparse
import asyncio
import json
import sys
from pathlib import Path

from espalier.v1 import introspection_pb2, tree_decoder_pb2_grpc
from espalier_client import connection
from espalier_client.connection import InputError
from espalier_client.load import plot, report, shapes
from espalier_client.load.progress import ProgressLine
from espalier_client.load.runner import Plan, Run
from espalier_client.tree_render import make_console

_DESCRIPTION = """\
Sends random trees to an Espalier server and reports latencies, throughput, errors and sharing.

A run is bounded by --requests, and by --duration when it is given. With --rate requests are sent
at random times whatever the server does (open loop); with --concurrency a new one is sent when one
ends (closed loop). Latencies count from the time at which a request was due.

exit status: 0 every request ended OK; 1 some did not; 2 bad input; 3 no server answers;
130 interrupted (what had ended by then is reported); 141 the output was closed
"""


def main() -> int:
    """Runs what sys.argv says; returns the exit status."""
    args = parser().parse_args()
    return connection.run_command(lambda: _run(args), args.address)


def _run(args: argparse.Namespace) -> int:
    source = _make_source(args)
    plan = Plan(
        requests=args.requests,
        duration_s=args.duration,
        timeout_s=args.timeout,
        rate=args.rate,
        concurrency=None if args.rate else args.concurrency,
    )
    interrupted = False
    with ProgressLine(args.requests) as progress:
        run = Run(source, plan, progress)
        try:
            asyncio.run(run.execute(args.address, args.seed))
        except KeyboardInterrupt:
            interrupted = True
    if not run.outcomes:
        print("no request ended", file=sys.stderr)
        return connection.EXIT_INTERRUPTED if interrupted else connection.EXIT_REQUEST_FAILED
    duration_s = max(outcome.end_s for outcome in run.outcomes)
    summary = report.summarize(run.outcomes, duration_s)
    _write(args, run, summary)
    if interrupted:
        return connection.EXIT_INTERRUPTED
    failed = any(outcome.code != "OK" for outcome in run.outcomes)
    return connection.EXIT_REQUEST_FAILED if failed else 0


def _make_source(args: argparse.Namespace) -> shapes.ShapeSource:
    if (args.shape == "trace") != (args.trace is not None):
        raise InputError("--shape trace and --trace go together")
    traces = []
    if args.trace:
        traces = shapes.read_traces(args.trace, args.trace_id, args.length_scale)
    with connection.open_channel(args.address) as channel:
        stub = tree_decoder_pb2_grpc.TreeDecoderStub(channel)
        model = stub.GetModelInfo(introspection_pb2.GetModelInfoRequest(), timeout=args.timeout)
    options = shapes.ShapeOptions(
        shape=args.shape,
        vocab_size=model.vocab_size,
        prompt_tokens=args.prompt_tokens,
        output_tokens=args.output_tokens,
        width=args.width,
        depth=args.depth,
        num_prompts=args.prompts,
    )
    return shapes.ShapeSource(options, args.seed, traces)


def _write(args: argparse.Namespace, run: Run, summary: dict) -> None:
    console = make_console(stderr=args.json == "-")
    console.print(report.table(summary), highlight=False)
    if args.json:
        options = {name: value for name, value in vars(args).items() if value is not None}
        text = json.dumps({"options": options, **summary}, indent=2, default=str)
        if args.json == "-":
            print(text)
        else:
            Path(args.json).write_text(text + "\n", "utf-8")
    if args.plot:
        pace = f"{args.rate}/s" if args.rate else f"{args.concurrency} at a time"
        title = f"{args.shape}, {summary['requests']} requests, {pace}"
        plot.write(args.plot, run.outcomes, summary["duration_s"], title)


def parser() -> argparse.ArgumentParser:
    """All options; every length is in tokens, of chat in words."""
    top = argparse.ArgumentParser(
        description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = top.add_argument
    add(
        "--address",
        default=connection.DEFAULT_ADDRESS,
        metavar="HOST:PORT",
        help="of the server (default: %(default)s)",
    )
    add("--shape", choices=shapes.NAMES, default="few-shot", help="(default: %(default)s)")
    pace = top.add_mutually_exclusive_group()
    pace.add_argument("--rate", type=_positive(float), metavar="R", help="requests a second")
    pace.add_argument(
        "--concurrency",
        type=_positive(int),
        default=4,
        metavar="N",
        help="requests at a time (default: %(default)s)",
    )
    add("--requests", type=_positive(int), default=32, metavar="N", help="(default: %(default)s)")
    add("--duration", type=_positive(float), metavar="S", help="start none after so many seconds")
    add(
        "--timeout",
        type=_positive(float),
        default=300.0,
        metavar="S",
        help="deadline of a request (default: %(default)s)",
    )
    add("--seed", type=int, default=0, help="of everything random here (default: %(default)s)")
    _add_shape_arguments(top)
    add("--json", metavar="FILE", help="write the report as JSON; -: to standard output")
    add("--plot", type=Path, metavar="FILE", help="write a PNG")
    return top


def _add_shape_arguments(top: argparse.ArgumentParser) -> None:
    for option, default, summary in (
        ("--prompt-tokens", 256, "length of the shared prompt"),
        ("--output-tokens", 32, "length of a branch"),
        ("--width", 8, "branches of few-shot and best-of-n; thoughts of a level"),
        ("--depth", 3, "levels of thoughts"),
    ):
        top.add_argument(
            option, type=_positive(int), default=default, help=f"{summary} (default: %(default)s)"
        )
    top.add_argument(
        "--prompts",
        type=_positive(int),
        metavar="N",
        help="different prompts, one of them for each request (default: each has its own)",
    )
    top.add_argument("--trace", type=Path, metavar="FILE", help="node-table traces, for that shape")
    top.add_argument("--trace-id", metavar="ID", help="one trace of the file (default: any)")
    top.add_argument(
        "--length-scale",
        type=_positive(float),
        default=1.0,
        metavar="X",
        help="multiplies every length of a trace (default: %(default)s)",
    )


def _positive(kind: type):
    def parse(text: str):
        value = kind(text)
        if value <= 0:
            raise argparse.ArgumentTypeError(f"{text} is not greater than 0")
        return value

    parse.__name__ = kind.__name__  # argparse names the type in its message
    return parse
