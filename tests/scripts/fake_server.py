"""A TreeDecoder with canned answers on a free loopback port.

As a program it prints its address and serves until its standard input ends.
"""

import concurrent.futures
import sys
import threading
from collections.abc import Iterator

import grpc

from espalier.v1 import (
    generate_pb2,
    introspection_pb2,
    prompt_pb2,
    score_pb2,
    session_pb2,
    tokenize_pb2,
    tree_decoder_pb2_grpc,
)
from espalier_client.tree_request import nodes_with_ids


class FakeServer(tree_decoder_pb2_grpc.TreeDecoderServicer):
    """Each branch of a Generate answers "<node id>/<sample>" and stops; `requests` keeps all calls,
    `commands` those of sessions.

    A request whose root's text is "bad" is refused with INVALID_ARGUMENT. One whose root's text is
    "endless" streams tokens until its client is gone, and then sets `abandoned`.
    """

    def __init__(self) -> None:
        self.abandoned = threading.Event()
        self.requests: list[generate_pb2.GenerateRequest] = []
        self.commands: list[session_pb2.SessionCommand] = []
        self._server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=8))
        tree_decoder_pb2_grpc.add_TreeDecoderServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> "FakeServer":
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(grace=None).wait()

    def Generate(self, request, context) -> Iterator[generate_pb2.GenerateEvent]:
        self.requests.append(request)
        if request.root.text == "bad":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "root.text: bad is not allowed")
        if request.root.text == "endless":
            context.add_callback(self.abandoned.set)
            *started, token, _, _, _ = canned_events(request)
            yield from started
            while not self.abandoned.wait(0.001):
                yield token
            return
        yield from canned_events(request)

    def Session(self, commands, context) -> Iterator[session_pb2.SessionEvent]:
        """Branches come and go; n samples a leaf answer " 1", " 2", ... in turn."""
        num_branches = 0
        for command in commands:
            self.commands.append(command)
            event = session_pb2.SessionEvent(command_id=command.command_id)
            if command.WhichOneof("command") == "append":
                if command.append.text == "bad":
                    event.failed.code = grpc.StatusCode.INVALID_ARGUMENT.value[0]
                    event.failed.message = "append.text: bad is not allowed"
                    yield event
                    continue
                event.done.branches.add(branch_id=num_branches)
                num_branches += 1
            elif command.WhichOneof("command") == "generate":
                run_branch = 0
                for leaf in command.generate.branch_ids:
                    for sample in range(_n(command.generate.generation)):
                        text = f" {sample + 1}"
                        for progress in _branch_events(run_branch, None, str(leaf), sample, text):
                            yield session_pb2.SessionEvent(
                                command_id=command.command_id, progress=progress
                            )
                        event.done.branches.add(branch_id=num_branches, run_branch_id=run_branch)
                        num_branches += 1
                        run_branch += 1
                event.done.usage.completion_tokens = 2 * run_branch
            else:
                event.done.SetInParent()
            yield event

    def Score(self, request, context) -> score_pb2.ScoreResponse:
        answer = score_pb2.ScoreResponse()
        for index, _ in enumerate(request.continuations):
            answer.scores.add(sum_logprob=-5.0 + index, mean_logprob=-2.5 + index / 2, num_tokens=2)
        return answer

    def Tokenize(self, request, context) -> tokenize_pb2.TokenizeResponse:
        return tokenize_pb2.TokenizeResponse(token_ids=request.text.encode())

    def GetModelInfo(self, request, context) -> introspection_pb2.GetModelInfoResponse:
        return introspection_pb2.GetModelInfoResponse(name="fake", vocab_size=100)


def canned_events(
    request: generate_pb2.GenerateRequest,
) -> list[generate_pb2.GenerateEvent]:
    """What FakeServer streams; children continue every branch above them, as in the real server."""
    event = generate_pb2.GenerateEvent
    events = [event(tree_started=generate_pb2.TreeStarted(tree_id="feed", seed=request.seed))]
    ends: dict[str, list[int | None]] = {}  # node id -> branches that its children continue
    num_branches = 0
    for node_id, parent, node in nodes_with_ids(request.root):
        above = [None] if parent is None else ends[parent]
        ends[node_id] = above
        if node.score:
            for branch in above:
                scored = generate_pb2.NodeScored(node_id=node_id, parent_branch_id=branch)
                scored.logprobs.add(token_id=1, logprob=-1.5)
                scored.logprobs.add(token_id=2, logprob=-0.25)
                events.append(event(node_scored=scored))
        if not node.HasField("generation"):
            continue
        ends[node_id] = []
        choices = node.generation.choices.texts
        for branch in above:
            for sample in range(len(choices) or _n(node.generation)):
                text = choices[sample] if choices else f" {node_id}/{sample}"
                grown = _branch_events(num_branches, branch, node_id, sample, text)
                events.extend(grown)
                if choices:  # the second is the best
                    grown[-1].branch_finished.score = -abs(1.0 - sample) - 0.5
                if not choices or sample == min(1, len(choices) - 1):
                    ends[node_id].append(num_branches)
                    if choices:
                        grown[-1].branch_finished.rank = 0
                num_branches += 1
    usage = generate_pb2.Usage(
        prompt_tokens=100,
        cached_tokens=40,
        completion_tokens=2 * num_branches,
        kv_tokens_read_unique=1000,
        kv_tokens_read_logical=4000,
        total_ms=500,
    )
    events.append(event(tree_finished=generate_pb2.TreeFinished(usage=usage)))
    return events


def _branch_events(
    branch_id: int, parent: int | None, node_id: str, sample: int, text: str
) -> list[generate_pb2.GenerateEvent]:
    event = generate_pb2.GenerateEvent
    step = generate_pb2.StepTokens
    tokens = generate_pb2.BranchTokens
    return [
        event(
            branch_started=generate_pb2.BranchStarted(
                branch_id=branch_id,
                parent_branch_id=parent,
                node_id=node_id,
                sample_index=sample,
            )
        ),
        event(tokens=step(branches=[tokens(branch_id=branch_id, text=text[:2], token_ids=[1])])),
        event(tokens=step(branches=[tokens(branch_id=branch_id, text=text[2:], token_ids=[2])])),
        event(
            branch_finished=generate_pb2.BranchFinished(
                branch_id=branch_id,
                finish_reason=generate_pb2.FINISH_REASON_STOP,
                cumulative_logprob=-0.5,
                completion_tokens=2,
            )
        ),
    ]


def _n(generation: prompt_pb2.Generation) -> int:
    return generation.n if generation.HasField("n") else 1


if __name__ == "__main__":
    with FakeServer() as server:
        print(server.address, flush=True)
        sys.stdin.read()
