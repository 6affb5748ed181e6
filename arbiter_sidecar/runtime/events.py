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
    """One reader of the log. Slow readers lose events and are told how many, the arbiter never waits for them.

    Attributes:
        closed: No more events will come.
    """

    def __init__(self, backlog: Iterable[AuditEvent], missed: int = 0) -> None:
        self.closed = False
        self._events: deque[AuditEvent] = deque(backlog)
        self._missed = missed
        self._news = asyncio.Event()
        if self._events or missed:
            self._news.set()

    def put(self, event: AuditEvent) -> None:
        """Adds an event; never waits."""
        if len(self._events) >= BACKLOG:
            self._events.popleft()
            self._missed += 1
        self._events.append(event)
        self._news.set()

    def close(self) -> None:
        """Lets the reader have what there is, and go."""
        self.closed = True
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

    @property
    def watchers(self) -> int:
        """How many watch."""
        return len(self._watchers)

    def add(self, happened: Happened, wall_time: float) -> AuditEvent:
        """Numbers an event, remembers it and hands it to every watcher."""
        self.sequence += 1
        event = AuditEvent(self.sequence, wall_time, happened)
        self._events.append(event)
        for watcher in self._watchers:
            watcher.put(event)
        return event

    def watch(self, after_sequence: int) -> Watcher:
        """A new watcher; starts after this event, or with new ones when that is 0.

        What is not remembered any more, or is more than a watcher may fall behind, counts as missed.
        """
        backlog: list[AuditEvent] = []
        missed = 0
        if after_sequence > 0:
            backlog = [event for event in self._events if event.sequence > after_sequence][-BACKLOG:]
            first = backlog[0].sequence if backlog else self.sequence + 1
            missed = max(0, first - after_sequence - 1)
        watcher = Watcher(backlog, missed)
        self._watchers.add(watcher)
        return watcher

    def unwatch(self, watcher: Watcher) -> None:
        """The watcher has gone."""
        self._watchers.discard(watcher)

    def close(self) -> None:
        """Ends every watcher when it has read what there is."""
        for watcher in self._watchers:
            watcher.close()
