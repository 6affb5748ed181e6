"""Times the forward passes of a shard and tells the arbiter, no more often than heartbeats come."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Self

from arbiter_client import reports

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from arbiter_client.lease import HeldLease

#: Share of the time to live between two reports, which is that between two heartbeats.
INTERVAL_SHARE = 1 / 3


class ShardTimer:
    """A ``with`` block around each forward pass of a shard; its time goes to the arbiter with the heartbeats.

    Time the work on the shard's own layers: neither waiting for the stage before nor sending to the one after. A timer
    belongs to one thread. A pass that raises is not counted.
    """

    __slots__ = ("_begun", "_clock", "_gathered", "_lease", "_told_at")

    def __init__(self, lease: HeldLease, *, clock: Callable[[], float] = time.perf_counter) -> None:
        """Begins with nothing measured.

        Args:
            lease: The shard's lease.
            clock: Seconds that never go back.
        """
        self._lease = lease
        self._clock = clock
        self._gathered: deque[float] = deque(maxlen=reports.MAX_LATENCIES)
        self._begun = 0.0
        self._told_at = clock()

    def __enter__(self) -> Self:
        self._begun = self._clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        now = self._clock()
        if kind is None:
            self.add(now - self._begun, now)

    def add(self, seconds: float, now: float | None = None) -> None:
        """Counts a pass that was timed otherwise, say by the device itself; one of no time at all is not counted.

        Args:
            seconds: How long it took.
            now: The timer's clock, where the caller has just read it.
        """
        if seconds < reports.SHORTEST_PASS_S:
            return
        self._gathered.append(seconds)
        now = self._clock() if now is None else now
        if now - self._told_at >= self._lease.ttl * INTERVAL_SHARE:
            self.tell(now)

    def tell(self, now: float | None = None) -> None:
        """Tells at once what was gathered; nothing happens when that is nothing."""
        self._told_at = self._clock() if now is None else now
        if self._gathered:
            self._lease.report(shard_latencies=list(self._gathered))
            self._gathered.clear()

    def restart(self) -> None:
        """Forgets what was not told yet. To be called when the shard's layers change, before that is confirmed."""
        self._gathered.clear()
