"""Channels to a server, and its errors in a person's words."""

import os
import sys
from collections.abc import Callable

import grpc

DEFAULT_ADDRESS = "127.0.0.1:50051"

_CHANNEL_OPTIONS = [
    # What the server takes. Answers are not limited: DescribeTree may be larger.
    ("grpc.max_send_message_length", 16 << 20),
    ("grpc.max_receive_message_length", -1),
    # A local server is never behind the proxy that the environment names.
    ("grpc.enable_http_proxy", 0),
]

# Exit statuses of the command-line clients; argparse takes 2.
EXIT_REQUEST_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_UNREACHABLE = 3
EXIT_INTERRUPTED = 130
EXIT_CLOSED_PIPE = 141  # what a shell reports of a program that SIGPIPE ended

# How gRPC words what went wrong between here and the server; a server's own words differ.
_TRANSPORT_FAILURES = ("connect", "socket closed", "broken pipe", "transport closed", "goaway")


class InputError(Exception):
    """What the user gave cannot be used; the message says what and why."""


def open_channel(address: str) -> grpc.Channel:
    """A plaintext channel; it connects with the first call."""
    return grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)


def open_async_channel(address: str) -> grpc.aio.Channel:
    """As open_channel, for asyncio."""
    return grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)


def run_command(command: Callable[[], int], address: str) -> int:
    """Runs a client's command; what ends it early becomes one line and an exit status.

    A closed standard output becomes the status alone: whoever closed it has read enough.
    """
    try:
        status = command()
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except grpc.RpcError as error:
        print(f"error: {explain(error, address)}", file=sys.stderr)
        return exit_status(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # What is still buffered goes nowhere, instead of failing again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_CLOSED_PIPE
    return status


def is_unreachable(error: grpc.RpcError) -> bool:
    """Whether no server answered or the connection broke; a server may say UNAVAILABLE itself."""
    details = (error.details() or "").lower()
    return error.code() == grpc.StatusCode.UNAVAILABLE and any(
        words in details for words in _TRANSPORT_FAILURES
    )


def explain(error: grpc.RpcError, address: str) -> str:
    """One line for a person."""
    if is_unreachable(error):
        if "failed to connect" in error.details():
            return f"no server answers at {address} ({error.details()})"
        return f"the connection to {address} broke ({error.details()})"
    retry = dict(error.trailing_metadata() or ()).get("retry-after-ms")
    hint = f" (try again in {retry} ms)" if retry else ""
    return f"{error.code().name}: {error.details()}{hint}"


def exit_status(error: grpc.RpcError) -> int:
    """The exit status of a command that ended with this error."""
    return EXIT_UNREACHABLE if is_unreachable(error) else EXIT_REQUEST_FAILED
