"""Ask a server for translations, many at a time, and none twice that was answered.

Covered: one client and a pool of workers; as many requests under way as the server turns into answers, or a fixed
number; repetition by kind of fault, each counted; time-outs that follow the server's queue; a sentence that fails
stays failed and the others go on; a server that is gone is given up on.
Not covered: what becomes of the answers (evaluate.py).
"""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.benchmark.client import Answer, Client, Failure, Fault, Kind, Message, connected
from orchestrator.benchmark.concurrency import Limit, Ticket
from orchestrator.serving.endpoint import Endpoint

# Of one sentence, by what it met. Waits of about 0.5, 2, 8, 8, ... s between them, or as long as the server says.
ATTEMPTS: Mapping[Kind, int] = {"busy": 8, "broken": 4, "nobody": 4, "late": 2, "refused": 1}
SILENT_IN_A_ROW = 3  # sentences in a row that found no server, or one that says nothing: it is given up on
FAILED_IN_A_ROW = 20  # sentences in a row that failed in any way: the same
QUEUE_SLACK = 3.0  # times as long as the others under way should take, at the server's pace so far


@dataclass
class Load:
    """How a server was driven."""

    wall_s: float
    """From the first request to the last result."""
    cpu_s: float
    """Of our own process meanwhile."""
    in_flight_s: float
    """Requests under way, summed over time: its share of wall_s is their mean number."""
    idle_s: float
    """With no request under way: a server that waited for us."""
    most_in_flight: int
    limit: Limit


async def translate(
    endpoint: Endpoint,
    prompts: Iterable[tuple[int, list[Message]]],
    fields: Mapping[str, Any],
    *,
    concurrency: int | None,
    timeout_s: float,
    on_result: Callable[[Answer | Failure], None],
) -> Load:
    """Ask for every prompt's answer. Cancelled, it drops the requests under way and closes the client.

    Args:
        endpoint: the server.
        prompts: (index, messages), read as they are needed; the index comes back with the result.
        fields: sent with each request.
        concurrency: requests under way at once. None: adapted to the server.
        timeout_s: for one attempt; longer while others are being answered whose turn may come before it.
        on_result: called once for each prompt, as results come, in the event loop's thread; what it raises ends all.

    Raises:
        PrerequisiteError: the server refuses every request alike: a wrong key, URL or model.
    """
    import stamina

    # Each answer carries its number of attempts; a line per retry only where the program asked for logs.
    stamina.instrumentation.set_on_retry_hooks([stamina.instrumentation.LoggingOnRetryHook])
    if not (logger := logging.getLogger("stamina")).handlers:
        logger.addHandler(logging.NullHandler())
    limit = Limit(concurrency)
    gate = _Gate(limit)
    try:
        async with connected(endpoint, fields) as client:
            began, cpu_began = time.monotonic(), time.process_time()
            gate.start(began)
            pool = _Pool(client, iter(prompts), gate, timeout_s, on_result)
            async with asyncio.TaskGroup() as workers:
                for _ in range(limit.most):
                    workers.create_task(pool.work())
            gate.count(0)
            return Load(
                wall_s=time.monotonic() - began,
                cpu_s=time.process_time() - cpu_began,
                in_flight_s=gate.in_flight_s,
                idle_s=gate.idle_s,
                most_in_flight=gate.most,
                limit=limit,
            )
    except ExceptionGroup as group:
        raise group.exceptions[0] from group.exceptions[0].__cause__


@dataclass
class _Gate:
    """Lets as many requests through as the limit says, first come, first served, and keeps count of them."""

    limit: Limit
    under_way: int = 0
    most: int = 0
    in_flight_s: float = 0.0
    idle_s: float = 0.0
    _since: float = 0.0
    _waiting: "deque[asyncio.Future[Ticket]]" = field(default_factory=deque)

    def start(self, now: float) -> None:
        self._since = now

    def count(self, change: int) -> None:
        """One more or one less is under way."""
        now = time.monotonic()
        passed_s = now - self._since
        self._since = now
        self.in_flight_s += self.under_way * passed_s
        if not self.under_way:
            self.idle_s += passed_s
        self.under_way += change
        self.most = max(self.most, self.under_way)

    async def enter(self) -> Ticket:
        if self.under_way < self.limit.now and not self._waiting:
            return self._admit()
        turn: asyncio.Future[Ticket] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()  # it had been admitted
            raise

    def leave(self) -> None:
        self.count(-1)
        while self._waiting and self.under_way < self.limit.now:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(self._admit())

    def _admit(self) -> Ticket:
        self.count(+1)
        return Ticket(self.limit.generation, self.under_way)


@dataclass
class _Health:
    """How the server has been doing since its last answer; shared by the workers."""

    answered: int = 0
    failed: int = 0
    silent: int = 0
    given_up: str = ""
    """Why; '' while it is being asked."""

    def well(self) -> None:
        self.answered += 1
        self.failed = self.silent = 0

    def failure(self, error: str, silent: bool) -> None:
        self.failed += 1
        self.silent = self.silent + 1 if silent else 0
        if not self.given_up and (self.silent >= SILENT_IN_A_ROW or self.failed >= FAILED_IN_A_ROW):
            self.given_up = f"not asked: {self.failed} sentences in a row had failed, the last by: {error}"


class _GivenUpError(Exception):
    """The server was given up on while a sentence waited for its turn."""


class _FailedError(Exception):
    """A sentence met faults as often as it may."""

    def __init__(self, last: Fault, attempts: int) -> None:
        super().__init__(last.reason)
        self.last, self.attempts = last, attempts


@dataclass
class _Pool:
    """What the workers share."""

    client: Client
    prompts: Iterator[tuple[int, list[Message]]]
    gate: _Gate
    timeout_s: float
    on_result: Callable[[Answer | Failure], None]
    health: _Health = field(default_factory=_Health)
    began: float = field(default_factory=time.monotonic)

    async def work(self) -> None:
        for index, messages in self.prompts:
            self.on_result(await self._ask(index, messages))

    async def _ask(self, index: int, messages: list[Message]) -> Answer | Failure:
        try:
            try:
                answer = await self._attempt(index, messages, first=True)
            except Fault as fault:  # nearly none: so stamina, which costs a quarter of a request, comes in here
                answer = await self._again(index, messages, fault)
        except _GivenUpError:
            return Failure(index, self.health.given_up, attempts=0)
        except _FailedError as failed:
            self.health.failure(failed.last.reason, failed.last.kind in ("late", "nobody"))
            return Failure(index, failed.last.reason, failed.attempts)
        self.health.well()
        return answer

    async def _again(self, index: int, messages: list[Message], first: Fault) -> Answer:
        """The attempts after the first one."""
        import stamina

        met: Counter[Kind] = Counter()

        def worth_it(error: Exception) -> bool | float:
            """Whether another attempt is; seconds, where the server said how long to wait."""
            if not isinstance(error, Fault):
                return False
            met[error.kind] += 1
            if met[error.kind] >= ATTEMPTS[error.kind]:
                return False
            return True if error.retry_after_s is None else error.retry_after_s

        try:
            async for attempt in stamina.retry_context(
                on=worth_it,
                attempts=sum(ATTEMPTS.values()),
                timeout=None,
                wait_initial=0.5,
                wait_exp_base=4,
                wait_jitter=0.5,
                wait_max=8,
            ):
                with attempt:
                    if attempt.num == 1:
                        raise first
                    answer = await self._attempt(index, messages, first=False)
            return replace(answer, attempts=attempt.num)
        except Fault as fault:
            raise _FailedError(fault, met.total()) from fault

    async def _attempt(self, index: int, messages: list[Message], *, first: bool) -> Answer:
        ticket = await self.gate.enter()
        try:
            if first and self.health.given_up:
                raise _GivenUpError
            answer = await self._in_time(index, messages, ticket)
            self.gate.limit.answered(ticket, answer.latency_s)
            return answer
        except Fault as fault:
            if fault.kind in ("busy", "late"):
                self.gate.limit.push_back(ticket)
            raise
        finally:
            self.gate.leave()

    async def _in_time(self, index: int, messages: list[Message], ticket: Ticket) -> Answer:
        """An attempt, for as long as it may take. The client's own time-outs count from byte to byte: they are off."""
        loop = asyncio.get_running_loop()
        began, answered = loop.time(), self.health.answered
        timer: asyncio.TimerHandle

        def look() -> None:
            nonlocal timer
            until = began + self._allowed_s(answered, ticket)
            if until <= loop.time():
                scope.reschedule(loop.time())
            else:
                timer = loop.call_at(until, look)

        try:
            async with asyncio.timeout(None) as scope:
                timer = loop.call_at(began + self.timeout_s, look)
                try:
                    return await self.client.ask(index, messages)
                finally:
                    timer.cancel()
        except TimeoutError as error:
            raise Fault("late", f"no answer within {loop.time() - began:.1f} s") from error

    def _allowed_s(self, answered_before: int, ticket: Ticket) -> float:
        """How long a request may take that began when so many had been answered.

        A server that answers one at a time is not slow: while others get their answers, a request may wait for all that
        are under way, at the pace so far; which of them a server takes first is its own affair, and requests that are
        sent together arrive in any order. Where nobody got an answer in all that time, the server is silent.
        """
        if self.health.answered == answered_before:
            return self.timeout_s
        pace_s = (time.monotonic() - self.began) / self.health.answered
        others = max(ticket.place, self.gate.under_way) - 1
        return max(self.timeout_s, QUEUE_SLACK * others * pace_s)
