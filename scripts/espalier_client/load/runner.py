"""Sends requests at a rate (open loop) or a fixed number at a time (closed loop)."""

import asyncio
import dataclasses
import random
import time
from typing import Protocol

import grpc

from espalier.v1 import generate_pb2, tree_decoder_pb2_grpc
from espalier_client import connection
from espalier_client.load.shapes import ShapeSource

Stub = tree_decoder_pb2_grpc.TreeDecoderStub


@dataclasses.dataclass
class Outcome:
    """What came of one request. Times are seconds since the run started."""

    due_s: float  # when the plan said to send it; latencies count from here
    code: str = "OK"  # name of the gRPC status
    details: str = ""  # its message
    first_token_s: float | None = None
    end_s: float = 0.0
    token_gaps_s: list[float] = dataclasses.field(default_factory=list)
    token_times_s: list[float] = dataclasses.field(default_factory=list)  # one a token
    usage: generate_pb2.Usage | None = None


class Observer(Protocol):
    """Hears of a run while it goes on."""

    def started(self) -> None: ...
    def generated(self, tokens: int) -> None: ...
    def finished(self, outcome: Outcome) -> None: ...


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much to send and how fast. Exactly one of rate and concurrency is set."""

    requests: int
    duration_s: float | None  # nothing is started after it
    timeout_s: float  # deadline of each request
    rate: float | None = None  # requests a second, Poisson arrivals
    concurrency: int | None = None


class Run:
    """One run; `outcomes` is complete up to now at any time, also after an interruption."""

    def __init__(self, source: ShapeSource, plan: Plan, observer: Observer) -> None:
        self.outcomes: list[Outcome] = []
        self._source = source
        self._plan = plan
        self._observer = observer
        self._start = time.monotonic()

    def now_s(self) -> float:
        """Seconds since the run started."""
        return time.monotonic() - self._start

    async def execute(self, address: str, seed: int) -> None:
        """Returns when every request that was started has ended."""
        async with connection.open_async_channel(address) as channel:
            stub = tree_decoder_pb2_grpc.TreeDecoderStub(channel)
            self._start = time.monotonic()
            if self._plan.rate is not None:
                await self._open_loop(stub, random.Random(f"{seed}/arrivals"), self._plan.rate)
            else:
                await self._closed_loop(stub)

    async def _open_loop(self, stub: Stub, rng: random.Random, rate: float) -> None:
        due_s = 0.0
        async with asyncio.TaskGroup() as tasks:
            for index in range(self._plan.requests):
                if self._is_over(due_s):
                    return
                await asyncio.sleep(max(0.0, due_s - self.now_s()))
                tasks.create_task(self._send(stub, index, due_s))
                due_s += rng.expovariate(rate)

    async def _closed_loop(self, stub: Stub) -> None:
        indices = iter(range(self._plan.requests))

        async def work() -> None:
            for index in indices:
                if self._is_over(self.now_s()):
                    return
                await self._send(stub, index, self.now_s())

        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._plan.concurrency or 1):
                tasks.create_task(work())

    def _is_over(self, at_s: float) -> bool:
        return self._plan.duration_s is not None and at_s >= self._plan.duration_s

    async def _send(self, stub: Stub, index: int, due_s: float) -> None:
        outcome = Outcome(due_s)
        last_token_s: dict[int, float] = {}  # by branch
        self._observer.started()
        try:
            request = self._source.request(index)
            async for event in stub.Generate(request, timeout=self._plan.timeout_s):
                if event.HasField("tokens"):
                    self._take_tokens(event.tokens, outcome, last_token_s)
                elif event.HasField("tree_finished"):
                    outcome.usage = event.tree_finished.usage
        except grpc.aio.AioRpcError as error:
            outcome.code = error.code().name
            outcome.details = error.details() or ""
        outcome.end_s = self.now_s()
        self.outcomes.append(outcome)
        self._observer.finished(outcome)

    def _take_tokens(
        self, step: generate_pb2.StepTokens, outcome: Outcome, last_token_s: dict[int, float]
    ) -> None:
        now_s = self.now_s()
        total = 0
        for branch in step.branches:
            count = len(branch.token_ids)
            if count == 0:
                continue
            total += count
            before_s = last_token_s.get(branch.branch_id)
            if before_s is not None:
                # Tokens that arrive together waited equally long, on average.
                outcome.token_gaps_s.extend([(now_s - before_s) / count] * count)
            last_token_s[branch.branch_id] = now_s
        if total and outcome.first_token_s is None:
            outcome.first_token_s = now_s
        outcome.token_times_s.extend([now_s] * total)
        self._observer.generated(total)
