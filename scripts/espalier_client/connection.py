"""Channels to a server, and its errors in a person's words."""

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


class InputError(Exception):
    """What the user gave cannot be used; the message says what and why."""


def open_channel(address: str) -> grpc.Channel:
    """A plaintext channel; it connects with the first call."""
    return grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)


def open_async_channel(address: str) -> grpc.aio.Channel:
    """As open_channel, for asyncio."""
    return grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)


def is_unreachable(error: grpc.RpcError) -> bool:
    """Whether no server answered, as opposed to a server that said UNAVAILABLE itself."""
    return error.code() == grpc.StatusCode.UNAVAILABLE and "connect" in (error.details() or "")


def explain(error: grpc.RpcError, address: str) -> str:
    """One line for a person."""
    if is_unreachable(error):
        return f"no server answers at {address} ({error.details()})"
    retry = dict(error.trailing_metadata() or ()).get("retry-after-ms")
    hint = f" (try again in {retry} ms)" if retry else ""
    return f"{error.code().name}: {error.details()}{hint}"


def exit_status(error: grpc.RpcError) -> int:
    """The exit status of a command that ended with this error."""
    return EXIT_UNREACHABLE if is_unreachable(error) else EXIT_REQUEST_FAILED
