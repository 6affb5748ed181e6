"""Requests that wait for their answer, over as many connections as it takes."""

from __future__ import annotations

import random
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc

from arbiter_client import keepalive
from arbiter_client.errors import ArbiterClientError, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from arbiter.v1 import arbiter_service_pb2
    from arbiter_client.holding import Holding

#: Interval that bounds the spacing of repeated requests.
RETRY_INTERVAL_S = 5.0


@dataclass(slots=True, eq=False)
class Allocation:
    """A lease that was asked for.

    Attributes:
        request: The request; sent again unchanged, so that its id makes the repetition safe.
        asked_at: When the worker asked.
        future: The lease; cancelled when the worker no longer wants it.
        sent_at: Before the last sending; ``None`` before the first.
        retry_at: When to send again after the arbiter said that it cannot answer now; ``None`` when nothing is due.
        troubled_since: When it first said so; ``None`` while it did not.
        failures: How often it said so.
    """

    request: arbiter_service_pb2.AllocateRequest
    asked_at: float
    future: Future[Holding] = field(default_factory=Future)
    sent_at: float | None = None
    retry_at: float | None = None
    troubled_since: float | None = None
    failures: int = 0

    def fail(self, error: ArbiterClientError) -> None:
        """Gives the worker the error, unless it has gone."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def deliver(self, holding: Holding) -> bool:
        """Gives the worker the lease; False when it has gone."""
        if not self.future.set_running_or_notify_cancel():
            return False
        self.future.set_result(holding)
        return True


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
        """Gives the worker the error, unless it has gone."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def deliver(self, already_released: bool) -> None:
        """Gives the worker the answer, unless it has gone."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(already_released)


class Waiting:
    """The requests that have no answer yet. No IO; the keeper sends."""

    __slots__ = ("_allocations", "_patience", "_returns")

    def __init__(self, patience: float) -> None:
        """Begins empty.

        Args:
            patience: Seconds for which an allocation outlives an arbiter that cannot be reached or cannot answer.
        """
        self._patience = patience
        self._allocations: dict[str, Allocation] = {}
        self._returns: list[Return] = []

    def __len__(self) -> int:
        return len(self._allocations) + len(self._returns)

    @property
    def returns(self) -> int:
        """How many leases are being given back."""
        return len(self._returns)

    def __iter__(self) -> Iterator[Allocation | Return]:
        """Everything, allocations first, each in the order of asking."""
        return iter([*self._allocations.values(), *self._returns])

    def begin(self, asked: Allocation | Return) -> bool:
        """Takes a request in; False when it was answered at once with an error."""
        if isinstance(asked, Return):
            self._returns.append(asked)
            return True
        if asked.request.request_id in self._allocations:
            asked.fail(InvalidRequest("request_id: this client is already waiting for the same one"))
            return False
        self._allocations[asked.request.request_id] = asked
        return True

    def done(self, asked: Allocation | Return) -> None:
        """Forgets a request; unknown ones are fine."""
        if isinstance(asked, Return):
            self._returns = [giving for giving in self._returns if giving is not asked]
        elif self._allocations.get(asked.request.request_id) is asked:
            del self._allocations[asked.request.request_id]

    def refused(self, asked: Allocation | Return, error: ArbiterClientError, now: float) -> None:
        """The arbiter answered with an error: kept for another try when it only cannot answer now, else failed."""
        if isinstance(asked, Allocation) and not asked.future.cancelled():
            if asked.troubled_since is None:
                asked.troubled_since = now
            if error.code is grpc.StatusCode.UNAVAILABLE and now - asked.troubled_since < self._patience:
                asked.failures += 1
                asked.retry_at = now + keepalive.retry_delay(asked.failures, RETRY_INTERVAL_S, random.random())
                return
        self.done(asked)
        asked.fail(error)

    def disconnected(self) -> None:
        """The session is over, and with it every allocation that nobody waits for any more."""
        for asked in list(self._allocations.values()):
            if asked.future.cancelled():
                self.done(asked)

    def fail_allocations(self, error: ArbiterClientError) -> None:
        """Fails what waits for a lease; what is being given back keeps trying."""
        for asked in list(self._allocations.values()):
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
        for asked in self._allocations.values():
            if connected:
                times.append(asked.retry_at)
            if troubled_since is not None:
                times.append(self._end_of_patience(asked, troubled_since))
        return keepalive.earliest(times)

    def retries(self, now: float) -> list[Allocation]:
        """Allocations to send again now."""
        return [asked for asked in self._allocations.values() if asked.retry_at is not None and now >= asked.retry_at]

    def _end_of_patience(self, asked: Allocation, troubled_since: float) -> float:
        return max(troubled_since, asked.asked_at) + self._patience
