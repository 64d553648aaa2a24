"""Jobs of a worker, and the events that it sends to the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from collections.abc import Sequence as SequenceOf
from typing import Any, NamedTuple

from miniformer.config import GenerationConfig
from miniformer.generation.api import GenerationInput
from miniformer.generation.logits_processors import Processor
from miniformer.generation.loop import StopFn

_numbers = itertools.count()


class Token(NamedTuple):
    """A new token; `top` has the most likely tokens with their log-probabilities."""

    token: int
    logprob: float
    finished: bool
    top: list[tuple[int, float]]


class Tokens(NamedTuple):
    """Event of the new tokens since the last event of a sequence."""

    tokens: list[Token]


class Result(NamedTuple):
    """Event of the result of a call."""

    value: Any


class Failure(NamedTuple):
    """Last event of a job that failed."""

    error: Exception


class Mailbox:
    """Events of a request: filled by the worker's thread, read by the event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._events: list[tuple[Job, Any]] = []
        self._filled = asyncio.Event()

    def send(self, job: Job, event: Any) -> None:
        """Appends an event, from any thread; nothing if the loop has ended."""
        post([(job, event)])

    def put(self, job: Job, event: Any) -> None:
        """Appends an event, in the thread of the loop."""
        self._events.append((job, event))
        self._filled.set()

    async def take(self, seconds: float) -> list[tuple[Job, Any]]:
        """The events since the last call, with their jobs.

        Raises:
            TimeoutError: there is none within `seconds`.
        """
        if not self._events:
            self._filled.clear()
            async with asyncio.timeout(seconds):
                await self._filled.wait()
        events, self._events = self._events, []
        return events


def post(events: list[tuple[Job, Any]]) -> None:
    """Sends events of several jobs to their mailboxes; wakes each event loop once."""
    loops: dict[asyncio.AbstractEventLoop, list[tuple[Job, Any]]] = {}
    for job, event in events:
        loops.setdefault(job.mailbox.loop, []).append((job, event))
    for loop, own in loops.items():
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(_deliver, own)


def _deliver(events: list[tuple[Job, Any]]) -> None:
    for job, event in events:
        job.mailbox.put(job, event)


@dataclasses.dataclass(eq=False)
class Job:
    """Work for the thread of a model.

    Args:
        request: number of the request; jobs of one share a turn.
        mailbox: receives the events.
        cancelled: set by the event loop when the client has left; the worker drops the job.
        created: time of creation, of `time.monotonic`.
    """

    request: int
    mailbox: Mailbox
    cancelled: bool = dataclasses.field(default=False, kw_only=True)
    created: float = dataclasses.field(default_factory=time.monotonic, kw_only=True)

    def send(self, event: Any) -> None:
        """Sends an event to the event loop."""
        self.mailbox.send(self, event)

    def cancel(self) -> None:
        """Asks the worker to drop the job before its next step."""
        self.cancelled = True


@dataclasses.dataclass(eq=False)
class Sequence(Job):
    """A text to generate; its events are `Tokens`.

    Args:
        inputs, options, index, copy, processors, stop_fn: see `SlotDecoder.add`.
        num_top: number of most likely tokens of each step; None: no log-probabilities either.
        is_streamed: tokens are sent as they come; otherwise all of them at the end.
        tokens: tokens that have not been sent, in the thread of the worker.
    """

    inputs: GenerationInput
    options: GenerationConfig
    index: int = 0
    copy: int = 0
    processors: tuple[Processor, ...] = ()
    stop_fn: StopFn | None = None
    num_top: int | None = None
    is_streamed: bool = True
    tokens: list[Token] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(eq=False)
class Call(Job):
    """A call of a function in the thread of the model; its event is a `Result`."""

    function: Callable[[], Any]


@dataclasses.dataclass(eq=False)
class Prediction(Job):
    """Inputs that may be computed together with those of other requests; its event is a `Result`.

    Args:
        group: jobs of a group have the same function and options.
        inputs: the inputs, at least one.
        function: the answers to inputs, in their order.
    """

    group: Hashable
    inputs: SequenceOf[Any]
    function: Callable[[SequenceOf[Any]], SequenceOf[Any]]


def next_request() -> int:
    """Number of a new request."""
    return next(_numbers)


class FairQueue:
    """Jobs in the order of arrival, one of each request in turn.

    Args:
        limit: most jobs.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._requests: OrderedDict[int, deque[Job]] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(jobs) for jobs in self._requests.values())

    def push(self, jobs: list[Job]) -> bool:
        """Appends jobs of a request; False: there is no room for all of them, and none is."""
        if len(self) + len(jobs) > self.limit:
            return False
        for job in jobs:
            self._requests.setdefault(job.request, deque()).append(job)
        return True

    def pop(self) -> Job | None:
        """The next job that is not cancelled; None: there is none."""
        while self._requests:
            job = self._take(next(iter(self._requests)))
            if not job.cancelled:
                return job
        return None

    def pop_where(self, accepts: Callable[[Job], bool]) -> Job | None:
        """The first next job of a request that is accepted; None: there is none."""
        for request, jobs in self._requests.items():
            if accepts(jobs[0]):
                return self._take(request)
        return None

    def _take(self, request: int) -> Job:
        """Removes the next job of a request, whose turn is then the last."""
        jobs = self._requests[request]
        job = jobs.popleft()
        if jobs:
            self._requests.move_to_end(request)
        else:
            del self._requests[request]
        return job

    def drop_cancelled(self) -> None:
        """Removes cancelled jobs, so that they take no room."""
        for request, jobs in [*self._requests.items()]:
            left = deque(job for job in jobs if not job.cancelled)
            if left:
                self._requests[request] = left
            else:
                del self._requests[request]
