"""Requests that wait for their answer, over as many connections as it takes."""

from __future__ import annotations

import math
import random
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

import grpc

from arbiter.v1 import arbiter_service_pb2
from arbiter_client import keepalive
from arbiter_client.errors import ArbiterClientError, ArbiterUnreachable, InvalidRequest
from arbiter_client.holding import Holding
from arbiter_client.kv_reservations import Reserved
from arbiter_client.preemption import Preemption

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from google.protobuf import duration_pb2

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
        message = arbiter_service_pb2.AllocateRequest()
        message.CopyFrom(self.request)
        _shorten(message.wait_timeout, now - self.asked_at)
        return message


class Reservation(Asked[arbiter_service_pb2.ReserveKvRequest, Reserved]):
    """KV tokens that were asked for; the id makes sending it again safe.

    One that nobody waits for any more is sent again too when the connection ended with it in flight: only the answer
    tells what has to be returned.
    """

    __slots__ = ()

    def message(self, now: float) -> arbiter_service_pb2.ReserveKvRequest:
        """The request with what is left of the time to wait; none when nobody waits any more."""
        message = arbiter_service_pb2.ReserveKvRequest()
        message.CopyFrom(self.request)
        _shorten(message.wait_timeout, math.inf if self.future.cancelled() else now - self.asked_at)
        return message


def _shorten(span: duration_pb2.Duration, by: float) -> None:
    """Takes so many seconds away, as far as there are as many."""
    span.FromNanoseconds(round(max(0.0, span.ToNanoseconds() / 1e9 - by) * 1e9))


class Demand(Asked[arbiter_service_pb2.RequestPreemptionRequest, Preemption]):
    """Memory of others that was asked for.

    Sent only where the arbiter is known to listen, and not again once the connection has ended with it in flight: an
    arbiter that had just carried it out would take the same amount a second time.
    """

    __slots__ = ()


@dataclass(slots=True, eq=False, kw_only=True)
class Giving(Generic[Answer]):
    """Something that is being given back.

    Attributes:
        until: When to give up; the arbiter then takes it back by itself.
        future: The answer.
    """

    until: float
    future: Future[Answer] = field(default_factory=Future)

    def fail(self, error: ArbiterClientError) -> None:
        """Gives the worker the error, unless it has gone or knows already."""
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def deliver(self, answer: Answer) -> None:
        """Gives the worker the answer, unless it has gone or was told something else."""
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_result(answer)


@dataclass(slots=True, eq=False)
class Return(Giving[bool]):
    """A lease that is being given back; the answer says whether it had ended before.

    Attributes:
        lease_id: The lease.
        fence: Its fence.
    """

    lease_id: str
    fence: int


@dataclass(slots=True, eq=False)
class Completion(Giving[None]):
    """Reserved KV tokens that are being returned.

    Attributes:
        reservation_id: The reservation.
        actual_tokens: What was really used.
    """

    reservation_id: str
    actual_tokens: int


#: What the arbiter may take its time for, and what can be taken back until then.
Patient: TypeAlias = Allocation | Demand | Reservation
#: What is being given back.
Back: TypeAlias = Return | Completion


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
        self._returns: list[Back] = []

    def __len__(self) -> int:
        return len(self._asked) + len(self._returns)

    @property
    def returns(self) -> int:
        """How many leases and reservations are being given back."""
        return len(self._returns)

    def __iter__(self) -> Iterator[Patient | Back]:
        """Everything, each kind in the order of asking: tokens come back before others are asked for, leases last."""
        completions = [giving for giving in self._returns if isinstance(giving, Completion)]
        leases = [giving for giving in self._returns if isinstance(giving, Return)]
        return iter([*completions, *self._asked.values(), *leases])

    def find(self, future: Future[Holding] | Future[Preemption] | Future[Reserved]) -> Patient | None:
        """The request that ``future`` is the answer to; ``None`` when it waits no more."""
        return next((asked for asked in self._asked.values() if asked.future is future), None)

    def begin(self, asked: Patient | Back) -> bool:
        """Takes a request in; False when it was answered at once with an error."""
        if isinstance(asked, Giving):
            self._returns.append(asked)
            return True
        if asked.request.request_id in self._asked:
            asked.fail(InvalidRequest("request_id: this client is already waiting for the same one"))
            return False
        self._asked[asked.request.request_id] = asked
        return True

    def done(self, asked: Patient | Back) -> None:
        """Forgets a request; unknown ones are fine."""
        if isinstance(asked, Giving):
            self._returns = [giving for giving in self._returns if giving is not asked]
        elif self._asked.get(asked.request.request_id) is asked:
            del self._asked[asked.request.request_id]

    def refused(self, asked: Patient | Back, error: ArbiterClientError, now: float) -> None:
        """The arbiter answered with an error: kept for another try when it only cannot answer now, else failed."""
        if not isinstance(asked, Giving) and not asked.future.cancelled():
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
            if asked.future.cancelled() and not (isinstance(asked, Reservation) and asked.in_flight):
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
            if isinstance(asked, Giving):
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
