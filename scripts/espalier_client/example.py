"""What the programs of scripts/examples have in common: a tree sent, drawn, and its usage told."""

import argparse
from collections.abc import Callable

from espalier_client import environment


def run(doc: str, build_request: Callable, report: Callable) -> int:
    """Sends `build_request()` and prints the tree, then what `report(state)` prints, then the usage.

    `doc` is the program's docstring, whose first paragraph --help shows. Returns the exit status.
    """
    parser = argparse.ArgumentParser(description=doc.split("\n\n")[0])
    parser.add_argument("--address", default="127.0.0.1:50051", help="of the server")
    parser.add_argument("--timeout", type=float, default=120, metavar="SECONDS")
    args = parser.parse_args()
    environment.enter()
    from espalier_client.connection import run_command

    def show() -> int:
        from espalier_client import tree_render

        state = send(build_request(), args.address, args.timeout)
        console = tree_render.make_console()
        console.print(tree_render.render(state))
        report(state)
        print(tree_render.usage_lines(state.usage))
        return 0

    return run_command(show, args.address)


def send(request, address: str, timeout: float):
    """The TreeState of a request that was sent and answered."""
    from espalier.v1 import tree_decoder_pb2_grpc
    from espalier_client.connection import open_channel
    from espalier_client.tree_state import TreeState

    state = TreeState(request)
    with open_channel(address) as channel:
        stub = tree_decoder_pb2_grpc.TreeDecoderStub(channel)
        for event in stub.Generate(request, timeout=timeout):
            state.apply(event)
    return state
