"""The admission queue: who waits for memory, in the order of arrival, and for how long."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from arbiter_sidecar.requests import AllocationRequest
from arbiter_sidecar.types import DeviceId, Ticket

#: How many deadlines of requests that have gone may be kept beyond one for each that waits.
SPARE_DEADLINES = 64


class Waiter:
    """One request that waits; several callers may wait for the same request.

    Attributes:
        arrival: Running number of its arrival.
        request: What is wanted.
        since: When it arrived, monotonic seconds.
        deadline: When it gives up.
        tickets: The callers, first come first.
        device_id: The device it waits for at present.
        passed: How often others were let past it while it was the blocked head.
        reclaiming: Lower targets are published for it.
        closing: Nobody who comes later in the line is granted anything on its device.
        reason: Why it waits, for people; empty: earlier requests come first.
    """

    __slots__ = (
        "arrival",
        "closing",
        "deadline",
        "device_id",
        "passed",
        "reason",
        "reclaiming",
        "request",
        "since",
        "tickets",
    )

    def __init__(self, request: AllocationRequest, ticket: Ticket, now: float) -> None:
        self.arrival = 0
        self.request = request
        self.since = now
        self.deadline = now + request.wait_s
        self.tickets = [ticket]
        self.device_id: DeviceId | None = None
        self.passed = 0
        self.reclaiming = False
        self.closing = False
        self.reason = ""

    @property
    def name(self) -> str:
        """What the request is called: the caller's id, or its number where the caller gave none."""
        return self.request.request_id or f"#{self.arrival}"


class AdmissionQueue:
    """Waiting requests in order of arrival. Bounded by the core, which refuses beyond its limit."""

    def __init__(self) -> None:
        self._waiters: dict[int, Waiter] = {}
        self._by_ticket: dict[Ticket, Waiter] = {}
        self._deadlines: list[tuple[float, int, Waiter]] = []
        self._arrivals = 0
        #: When waiting next lifts somebody; set by whoever ranks the line.
        self.next_rise: float | None = None

    def __len__(self) -> int:
        return len(self._waiters)

    @property
    def callers(self) -> int:
        """How many callers wait."""
        return len(self._by_ticket)

    def __contains__(self, waiter: Waiter) -> bool:
        return self._waiters.get(waiter.arrival) is waiter

    def __iter__(self) -> Iterator[Waiter]:
        return iter(list(self._waiters.values()))

    def add(self, waiter: Waiter) -> None:
        """Puts a request at the end."""
        self._arrivals += 1
        waiter.arrival = self._arrivals
        self._waiters[waiter.arrival] = waiter
        heapq.heappush(self._deadlines, (waiter.deadline, waiter.arrival, waiter))
        if len(self._deadlines) > 2 * len(self._waiters) + SPARE_DEADLINES:
            # Requests that come and go quickly would otherwise fill it for as long as they might have waited.
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self._waiters]
            heapq.heapify(self._deadlines)
        for ticket in waiter.tickets:
            self._by_ticket[ticket] = waiter

    def join(self, waiter: Waiter, ticket: Ticket, deadline: float) -> None:
        """Lets another caller wait for the same request, as long as the more patient of them wants to."""
        waiter.tickets.append(ticket)
        waiter.deadline = max(waiter.deadline, deadline)
        self._by_ticket[ticket] = waiter

    def of(self, ticket: Ticket) -> Waiter | None:
        """The request a caller waits for."""
        return self._by_ticket.get(ticket)

    def leave(self, ticket: Ticket) -> Waiter | None:
        """Takes one caller out; returns the request when nobody waits for it any more and it is gone."""
        waiter = self._by_ticket.pop(ticket)
        waiter.tickets.remove(ticket)
        if waiter.tickets:
            return None
        del self._waiters[waiter.arrival]
        return waiter

    def remove(self, waiter: Waiter) -> None:
        """Takes a request out with all its callers, who are answered by whoever removes it."""
        del self._waiters[waiter.arrival]
        for ticket in waiter.tickets:
            del self._by_ticket[ticket]

    def next_deadline(self) -> float | None:
        """When the first of them gives up. Entries are corrected only when they surface."""
        while self._deadlines:
            at, arrival, waiter = self._deadlines[0]
            if arrival not in self._waiters:
                heapq.heappop(self._deadlines)
            elif waiter.deadline > at:
                heapq.heapreplace(self._deadlines, (waiter.deadline, arrival, waiter))
            else:
                return at
        return None

    def due(self, now: float) -> Waiter | None:
        """A request that has waited long enough."""
        at = self.next_deadline()
        return self._deadlines[0][2] if at is not None and at <= now else None

    def check(self) -> None:
        """Raises ``AssertionError`` where the queue contradicts itself."""
        assert all(waiter.tickets for waiter in self._waiters.values())
        held = [ticket for waiter in self._waiters.values() for ticket in waiter.tickets]
        assert len(set(held)) == len(held) == len(self._by_ticket)
        assert all(self.of(ticket) is waiter for waiter in self._waiters.values() for ticket in waiter.tickets)
