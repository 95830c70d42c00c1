"""A Session stream as an object: a tree of branches that grows command by command."""

import dataclasses
import queue
from collections.abc import Iterator, Sequence

import grpc

from espalier.v1 import generate_pb2, prompt_pb2, session_pb2, tree_decoder_pb2_grpc


class CommandError(Exception):
    """The server refused a command; the session goes on."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code  # of gRPC


@dataclasses.dataclass
class Grown:
    """A branch that `generate` made or made longer."""

    id: int  # of the session
    leaf: int  # the branch that was generated from
    text: str  # that was generated now
    cumulative_logprob: float


class Session:
    """Each method sends a command and waits for its end; raises CommandError or grpc.RpcError.

    `usage` sums what all commands cost. A context manager: leaving it closes the session.
    """

    def __init__(
        self, channel: grpc.Channel, timeout: float | None = None, **options: object
    ) -> None:
        """`options`: the fields of OpenSession."""
        self.usage = generate_pb2.Usage()
        self._commands: queue.SimpleQueue[session_pb2.SessionCommand | None] = queue.SimpleQueue()
        self._last_id = 0
        stub = tree_decoder_pb2_grpc.TreeDecoderStub(channel)
        self._events = stub.Session(iter(self._commands.get, None), timeout=timeout)
        self._run(open=session_pb2.OpenSession(**options))

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, text: str, branch: int | None = None, prefill: bool = False) -> int:
        """A new branch with this text, below `branch` or at the start of a sequence.

        With `prefill` the server begins to compute it at once.
        """
        command = session_pb2.AppendTokens(branch_id=branch, text=text, prefill=prefill)
        done = self._run(append=command)
        return done.branches[0].branch_id

    def fork(self, branch: int, n: int) -> list[int]:
        """New branches that continue `branch`."""
        done = self._run(fork=session_pb2.ForkBranch(branch_id=branch, n=n))
        return [made.branch_id for made in done.branches]

    def generate(
        self, branches: Sequence[int], generation: prompt_pb2.Generation
    ) -> list[Grown]:
        """Lets leaves grow, or, with n above 1 or a search, grows new branches below them."""
        command = session_pb2.GenerateBranches(branch_ids=branches, generation=generation)
        leaves: dict[int, int] = {}
        texts: dict[int, str] = {}
        logprobs: dict[int, float] = {}
        for event in self._send(generate=command):
            match event.WhichOneof("event"):
                case "branch_started":
                    leaves[event.branch_started.branch_id] = int(event.branch_started.node_id)
                case "tokens":
                    for gained in event.tokens.branches:
                        texts[gained.branch_id] = texts.get(gained.branch_id, "") + gained.text
                case "branch_finished":
                    ended = event.branch_finished
                    logprobs[ended.branch_id] = ended.cumulative_logprob
        return [
            Grown(
                id=made.branch_id,
                leaf=leaves[made.run_branch_id],
                text=texts.get(made.run_branch_id, ""),
                cumulative_logprob=logprobs[made.run_branch_id],
            )
            for made in self._done.branches
        ]

    def score(self, branch: int, texts: Sequence[str]) -> list[float]:
        """log p of each text after `branch`."""
        command = session_pb2.ScoreBranch(branch_id=branch)
        for text in texts:
            command.continuations.add(text=text)
        return [its.sum_logprob for its in self._run(score=command).scores]

    def prune(self, branches: Sequence[int]) -> None:
        """Removes branches and all below them."""
        self._run(prune=session_pb2.PruneBranches(branch_ids=branches))

    def rollback(self, branch: int, tokens: int) -> None:
        """Takes the last tokens of a leaf back."""
        self._run(rollback=session_pb2.RollbackBranch(branch_id=branch, tokens=tokens))

    def join(self, branch: int, under: int) -> int:
        """A new branch below `under` with the tokens of `branch`."""
        command = session_pb2.JoinBranch(branch_id=branch, under_branch_id=under)
        return self._run(join=command).branches[0].branch_id

    def snapshot(self) -> list[session_pb2.SessionBranch]:
        """All branches."""
        return list(self._run(snapshot=session_pb2.Snapshot()).branches)

    def close(self) -> None:
        """Ends the session; the server lets go of its KV."""
        self._commands.put(None)
        for _ in self._events:
            pass

    def _run(self, **command: object) -> session_pb2.CommandDone:
        for _ in self._send(**command):
            pass
        return self._done

    def _send(self, **command: object) -> Iterator[generate_pb2.GenerateEvent]:
        """What the command streams; then `_done` is how it ended."""
        self._last_id += 1
        self._commands.put(session_pb2.SessionCommand(command_id=self._last_id, **command))
        for event in self._events:
            match event.WhichOneof("event"):
                case "progress":
                    yield event.progress
                case "failed":
                    raise CommandError(event.failed.code, event.failed.message)
                case "done":
                    self._done = event.done
                    self._add_usage(event.done.usage)
                    return

    def _add_usage(self, usage: generate_pb2.Usage) -> None:
        for field, value in usage.ListFields():
            setattr(self.usage, field.name, getattr(self.usage, field.name) + value)
