"""GenerateRequests from a JSON file or from what a command line says."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from google.protobuf import json_format

from espalier.v1 import generate_pb2, prompt_pb2
from espalier_client.connection import InputError


@dataclasses.dataclass
class PromptOptions:
    """A tree of at most two levels in words.

    Without questions, the prompt generates. With questions, each one is a child of the prompt and
    generates. With chat, the texts are user messages, save a prompt that has questions, which is
    the system message.
    """

    prompt: str
    questions: list[str] = dataclasses.field(default_factory=list)
    chat: bool = False
    system: str = ""


def read(path: Path) -> generate_pb2.GenerateRequest:
    """Reads the JSON form of a GenerateRequest."""
    try:
        return json_format.Parse(path.read_text("utf-8"), generate_pb2.GenerateRequest())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no GenerateRequest: {error}") from error


def build(
    options: PromptOptions, generation: prompt_pb2.Generation
) -> generate_pb2.GenerateRequest:
    """The tree of the options, with the same generation at every node that generates."""
    if options.system and not options.chat:
        raise InputError("--system needs --chat")
    root = prompt_pb2.PromptNode(id="prompt")
    request = generate_pb2.GenerateRequest(root=root)
    _write_root(request.root, options)
    for index, question in enumerate(options.questions, start=1):
        child = request.root.children.add(id=f"q{index}")
        child.generation.CopyFrom(generation)
        if options.chat:
            child.messages.messages.add(role="user", content=question)
        else:
            child.text = question
    if not options.questions:
        request.root.generation.CopyFrom(generation)
    return request


def _write_root(root: prompt_pb2.PromptNode, options: PromptOptions) -> None:
    if not options.chat:
        root.text = options.prompt
        return
    if options.questions and options.system:
        raise InputError("with --question the prompt is the system message: drop --system")
    if options.system:
        root.messages.messages.add(role="system", content=options.system)
    role = "system" if options.questions else "user"
    root.messages.messages.add(role=role, content=options.prompt)


def nodes_with_ids(
    root: prompt_pb2.PromptNode,
) -> Iterator[tuple[str, str | None, prompt_pb2.PromptNode]]:
    """(id, parent's id, node) in depth-first order, with the server's default for an empty id."""
    stack: list[tuple[str | None, prompt_pb2.PromptNode]] = [(None, root)]
    index = 0
    while stack:
        parent, node = stack.pop()
        node_id = node.id or str(index)
        index += 1
        yield node_id, parent, node
        stack.extend((node_id, child) for child in reversed(node.children))


def content_summary(node: prompt_pb2.PromptNode) -> str:
    """What the node adds to the path, as text for a person."""
    match node.WhichOneof("content"):
        case "text":
            return node.text
        case "token_ids":
            return f"<{len(node.token_ids.ids)} token ids>"
        case "messages":
            return "\n".join(f"{m.role}: {m.content}" for m in node.messages.messages)
        case None:
            return ""
