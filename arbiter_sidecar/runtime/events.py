"""The audit events of this epoch: numbered, bounded, and handed to whoever watches."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from arbiter_sidecar.arbiter.effects import Happened

#: Events that are remembered for those who ask later: some megabytes.
REMEMBERED = 10_000
#: Events a watcher may fall behind before it is told of a gap.
BACKLOG = 2_000


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One event.

    Attributes:
        sequence: Running number from 1.
        wall_time: Seconds since 1970.
        happened: What.
    """

    sequence: int
    wall_time: float
    happened: Happened


class Watcher:
    """One reader of the log. Slow readers lose events and are told how many, the arbiter never waits for them."""

    def __init__(self, backlog: Iterable[AuditEvent]) -> None:
        self._events: deque[AuditEvent] = deque(backlog)
        self._missed = 0
        self._news = asyncio.Event()
        if self._events:
            self._news.set()

    def put(self, event: AuditEvent) -> None:
        """Adds an event; never waits."""
        if len(self._events) >= BACKLOG:
            self._events.popleft()
            self._missed += 1
        self._events.append(event)
        self._news.set()

    async def next(self) -> tuple[int, list[AuditEvent]]:
        """Waits for events; returns how many were lost before them, and them."""
        await self._news.wait()
        self._news.clear()
        missed, self._missed = self._missed, 0
        events, self._events = list(self._events), deque()
        return missed, events


class EventLog:
    """Remembers the newest events and feeds the watchers."""

    def __init__(self) -> None:
        self._events: deque[AuditEvent] = deque(maxlen=REMEMBERED)
        self._watchers: set[Watcher] = set()
        self.sequence = 0

    def add(self, happened: Happened, wall_time: float) -> AuditEvent:
        """Numbers an event, remembers it and hands it to every watcher."""
        self.sequence += 1
        event = AuditEvent(self.sequence, wall_time, happened)
        self._events.append(event)
        for watcher in self._watchers:
            watcher.put(event)
        return event

    def watch(self, after_sequence: int) -> Watcher:
        """A new watcher; starts after an event that is still remembered, or with new ones when that is 0."""
        backlog = [event for event in self._events if event.sequence > after_sequence] if after_sequence > 0 else []
        watcher = Watcher(backlog[-BACKLOG:])
        self._watchers.add(watcher)
        return watcher

    def unwatch(self, watcher: Watcher) -> None:
        """The watcher has gone."""
        self._watchers.discard(watcher)
