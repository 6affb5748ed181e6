"""Requests that wait for their answer, over as many connections as it takes."""

from __future__ import annotations

import random
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

import grpc

from arbiter.v1 import arbiter_service_pb2
from arbiter_client import keepalive
from arbiter_client.errors import ArbiterClientError, ArbiterUnreachable, InvalidRequest
from arbiter_client.holding import Holding
from arbiter_client.preemption import Preemption

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Interval that bounds the spacing of repeated requests.
RETRY_INTERVAL_S = 5.0

Request = TypeVar("Request")
Answer = TypeVar("Answer")


@dataclass(slots=True, eq=False)
class Asked(Generic[Request, Answer]):
    """Something that the arbiter may take its time to answer.

    Attributes:
        request: The request.
        asked_at: When the worker asked.
        future: The answer; cancelled when the worker no longer wants it.
        first_sent_at: Before the first sending; ``None`` before it.
        sent_at: Before the last sending; ``None`` before the first.
        retry_at: When to send again after the arbiter said that it cannot answer now; ``None`` when nothing is due.
        troubled_since: When it first said so; ``None`` while it did not.
        failures: How often it said so.
    """

    request: Request
    asked_at: float
    future: Future[Answer] = field(default_factory=Future)
    first_sent_at: float | None = None
    sent_at: float | None = None
    retry_at: float | None = None
    troubled_since: float | None = None
    failures: int = 0

    @property
    def in_flight(self) -> bool:
        """Whether it was sent and has no answer yet."""
        return self.sent_at is not None and self.retry_at is None

    def fail(self, error: ArbiterClientError) -> None:
        """Gives the worker the error, unless it has gone or knows already."""
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def deliver(self, answer: Answer) -> bool:
        """Gives the worker the answer; False when it has gone or was told something else."""
        if self.future.done() or not self.future.set_running_or_notify_cancel():
            return False
        self.future.set_result(answer)
        return True


class Allocation(Asked[arbiter_service_pb2.AllocateRequest, Holding]):
    """A lease that was asked for; its id makes sending it again safe."""

    __slots__ = ()

    def message(self, now: float) -> arbiter_service_pb2.AllocateRequest:
        """The request with what is left of the time to wait: a new connection does not restart it."""
        if not self.request.HasField("wait_timeout"):
            return self.request
        left = self.request.wait_timeout.ToNanoseconds() / 1e9 - (now - self.asked_at)
        message = arbiter_service_pb2.AllocateRequest()
        message.CopyFrom(self.request)
        message.wait_timeout.FromNanoseconds(round(max(0.0, left) * 1e9))
        return message


class Demand(Asked[arbiter_service_pb2.RequestPreemptionRequest, Preemption]):
    """Memory of others that was asked for.

    Sent only where the arbiter is known to listen, and not again once the connection has ended with it in flight: an
    arbiter that had just carried it out would take the same amount a second time.
    """

    __slots__ = ()


@dataclass(slots=True, eq=False)
class Return:
    """A lease that is being given back.

    Attributes:
        lease_id: The lease.
        fence: Its fence.
        until: When to give up; the arbiter then takes the lease back by its time to live.
        future: Whether the lease had ended before.
    """

    lease_id: str
    fence: int
    until: float
    future: Future[bool] = field(default_factory=Future)

    def fail(self, error: ArbiterClientError) -> None:
        """Gives the worker the error, unless it has gone or knows already."""
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def deliver(self, already_released: bool) -> None:
        """Gives the worker the answer, unless it has gone or was told something else."""
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_result(already_released)


#: What the arbiter may take its time for, and what can be taken back until then.
Patient: TypeAlias = Allocation | Demand


class Waiting:
    """The requests that have no answer yet. No IO; the keeper sends."""

    __slots__ = ("_asked", "_patience", "_returns")

    def __init__(self, patience: float) -> None:
        """Begins empty.

        Args:
            patience: Seconds for which a request outlives an arbiter that cannot be reached or cannot answer.
        """
        self._patience = patience
        self._asked: dict[str, Patient] = {}
        self._returns: list[Return] = []

    def __len__(self) -> int:
        return len(self._asked) + len(self._returns)

    @property
    def returns(self) -> int:
        """How many leases are being given back."""
        return len(self._returns)

    def __iter__(self) -> Iterator[Patient | Return]:
        """Everything, what is being given back last, each in the order of asking."""
        return iter([*self._asked.values(), *self._returns])

    def find(self, future: Future[Holding] | Future[Preemption]) -> Patient | None:
        """The request that ``future`` is the answer to; ``None`` when it waits no more."""
        return next((asked for asked in self._asked.values() if asked.future is future), None)

    def begin(self, asked: Patient | Return) -> bool:
        """Takes a request in; False when it was answered at once with an error."""
        if isinstance(asked, Return):
            self._returns.append(asked)
            return True
        if asked.request.request_id in self._asked:
            asked.fail(InvalidRequest("request_id: this client is already waiting for the same one"))
            return False
        self._asked[asked.request.request_id] = asked
        return True

    def done(self, asked: Patient | Return) -> None:
        """Forgets a request; unknown ones are fine."""
        if isinstance(asked, Return):
            self._returns = [giving for giving in self._returns if giving is not asked]
        elif self._asked.get(asked.request.request_id) is asked:
            del self._asked[asked.request.request_id]

    def refused(self, asked: Patient | Return, error: ArbiterClientError, now: float) -> None:
        """The arbiter answered with an error: kept for another try when it only cannot answer now, else failed."""
        if not isinstance(asked, Return) and not asked.future.cancelled():
            if asked.troubled_since is None:
                asked.troubled_since = now
            if error.code is grpc.StatusCode.UNAVAILABLE and now - asked.troubled_since < self._patience:
                asked.failures += 1
                asked.retry_at = now + keepalive.retry_delay(asked.failures, RETRY_INTERVAL_S, random.random())
                return
        self.done(asked)
        asked.fail(error)

    def disconnected(self) -> None:
        """The session is over, and with it what nobody waits for any more and what cannot be said twice."""
        for asked in list(self._asked.values()):
            if asked.future.cancelled():
                self.done(asked)
            elif isinstance(asked, Demand) and asked.in_flight:
                # A dry run too: whoever asked decides whether what it would say is still of interest.
                self.done(asked)
                asked.fail(
                    ArbiterUnreachable(
                        "the connection to the arbiter ended before it said what was taken from others; "
                        "look at the lease's memory limit before asking again"
                    )
                )

    def fail_asked(self, error: ArbiterClientError) -> None:
        """Fails what waits for an answer; what is being given back keeps trying."""
        for asked in list(self._asked.values()):
            self.done(asked)
            asked.fail(error)

    def give_up(self, now: float, troubled_since: float | None, why: Callable[[], ArbiterClientError]) -> None:
        """Fails what has waited long enough for an arbiter that does not answer.

        Args:
            now: Now.
            troubled_since: Since when nothing was heard in spite of a failed attempt; ``None`` while all is well.
            why: Makes what they are told.
        """
        for asked in list(self):
            if isinstance(asked, Return):
                over = now >= asked.until
            elif asked.future.cancelled() and asked.sent_at is None:
                # Never sent, so nothing can come of it. One that was sent stays until its grant can be given back.
                over = True
            else:
                over = troubled_since is not None and now >= self._end_of_patience(asked, troubled_since)
            if over:
                self.done(asked)
                asked.fail(why())

    def due(self, *, connected: bool, troubled_since: float | None) -> float | None:
        """When something here next needs attention."""
        times: list[float | None] = [giving.until for giving in self._returns]
        for asked in self._asked.values():
            if connected:
                times.append(asked.retry_at)
            if troubled_since is not None:
                times.append(self._end_of_patience(asked, troubled_since))
        return keepalive.earliest(times)

    def ready(self, now: float, *, heard: bool) -> list[Patient]:
        """Requests to send now over an open connection.

        Args:
            now: Now.
            heard: Whether anything was heard over this connection yet.
        """
        again = [asked for asked in self._asked.values() if asked.retry_at is not None and now >= asked.retry_at]
        if not heard:
            return again
        return again + [asked for asked in self._asked.values() if isinstance(asked, Demand) and asked.sent_at is None]

    def _end_of_patience(self, asked: Patient, troubled_since: float) -> float:
        return max(troubled_since, asked.asked_at) + self._patience
