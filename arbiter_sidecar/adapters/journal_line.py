"""What waits for the writer of the journal, and whether more may: shared by the event loop and the writer's thread.

Whoever stands in line is written in order. When the disk takes nothing, or not fast enough, nobody joins the line any
more: promises are refused and facts are owed, which is after the line, until all of them are written.
"""

from __future__ import annotations

import errno
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog

from arbiter_sidecar.adapters.journal_owed import Owed
from arbiter_sidecar.adapters.journal_rows import lease_of
from arbiter_sidecar.ports import JournalError, JournalFull, JournalOperation, LeaseDrained, LeaseOpened, Recovered
from arbiter_sidecar.types import DeviceId, LeaseId

if TYPE_CHECKING:
    import asyncio

_log = structlog.get_logger("arbiter")


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalStatistics:
    """What the journal has done since it was opened.

    Attributes:
        transactions: Commits that succeeded.
        operations: Operations in them.
        failures: Transactions that failed.
        queued: Operations that wait for the writer now.
        owed: Facts that wait for the disk to work again.
        last_s: How long the last transaction took, seconds.
        longest_s: The longest.
    """

    transactions: int = 0
    operations: int = 0
    failures: int = 0
    queued: int = 0
    owed: int = 0
    last_s: float = 0.0
    longest_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Entry:
    """What was said in one breath, and who waits for it; ``None``: what is owed, said at different times."""

    operations: tuple[JournalOperation, ...]
    waiter: asyncio.Future[None] | None = None


class Line:
    """All methods may be called from both threads; only ``next`` waits.

    Args:
        path: The file, for messages.
        max_queued: Operations that may stand in line.
        slow_after_s: A transaction that takes longer is trouble, seconds.
        retry_s: How often a disk in trouble is tried, seconds.
    """

    def __init__(self, path: str, *, max_queued: int, slow_after_s: float, retry_s: float) -> None:
        self._path = path
        self._max_queued = max_queued
        self._slow_after_s = slow_after_s
        self._retry_s = retry_s
        self._news = threading.Condition()
        self._queue: deque[Entry] = deque()
        self._queued = 0
        self._owed = Owed()
        #: Why nobody joins the line; ``None`` while they may.
        self._behind: JournalError | None = None
        self._retry_at = 0.0
        self._begun_at: float | None = None
        self._closing = False
        self._tried_last = False
        self._known: set[LeaseId] = set()
        self._fences: dict[DeviceId, int] = {}
        self._numbers = JournalStatistics()

    @property
    def healthy(self) -> bool:
        """Whether the disk takes what it is given, and soon."""
        with self._news:
            slow = self._begun_at is not None and time.monotonic() - self._begun_at > self._slow_after_s
            return self._behind is None and not slow and not self._closing

    @property
    def statistics(self) -> JournalStatistics:
        """What was done until now."""
        with self._news:
            return replace(self._numbers, queued=self._queued, owed=len(self._owed))

    def begin(self, recovered: Recovered) -> None:
        """Learns which leases are in the file, and which fences were used."""
        with self._news:
            self._known = {lease.lease_id for lease in recovered.leases}
            self._fences = dict(recovered.fences)

    def end(self) -> None:
        """Lets nobody in any more; the writer ends when it has written, or tried to, what is left."""
        with self._news:
            self._closing = True
            self._news.notify()

    # Joining ----------------------------------------------------------------------------------------------------------

    def join(self, operations: Sequence[JournalOperation], waiter: asyncio.Future[None]) -> JournalError | None:
        """Takes operations in; returns why they do not stand in line, where they do not.

        Raises:
            ValueError: A lease is opened twice, or its fence was used. Nothing was taken in.
        """
        with self._news:
            if self._closing:
                return JournalError(errno.EBADF, "the journal is closed", self._path)
            self._check(operations)
            if self._behind is None and self._queue and self._queued + len(operations) > self._max_queued:
                message = f"{self._queued} operations wait for the disk already"
                self._fall_behind(JournalFull(errno.EAGAIN, message, self._path), retry_at=0.0)
            if self._behind is None:
                self._known |= opened(operations)
            kept = self._of_known(operations)
            if self._behind is not None:
                self._owed.add(kept)
                return again(self._behind)
            self._queue.append(Entry(kept, waiter))
            self._queued += len(kept)
            self._news.notify()
            return None

    def _check(self, operations: Iterable[JournalOperation]) -> None:
        fences, new = dict[DeviceId, int](), set[LeaseId]()
        for operation in operations:
            if isinstance(operation, LeaseOpened):
                lease = operation.lease
                if lease.lease_id in self._known or lease.lease_id in new:
                    raise ValueError(f"lease {lease.lease_id} is opened twice")
                if lease.fence <= fences.get(lease.device_id, self._fences.get(lease.device_id, 0)):
                    raise ValueError(f"fence {lease.fence} of lease {lease.lease_id} is not above all before it")
                fences[lease.device_id] = lease.fence
                new.add(lease.lease_id)
        self._fences.update(fences)

    def _of_known(self, operations: Iterable[JournalOperation]) -> tuple[JournalOperation, ...]:
        """Without facts about leases that are not in the journal; those that drain are not in it from here on."""
        kept = []
        for operation in operations:
            lease_id = lease_of(operation)
            if lease_id is None or lease_id in self._known:
                kept.append(operation)
            if isinstance(operation, LeaseDrained):
                self._known.discard(operation.lease_id)
        return tuple(kept)

    # Writing ----------------------------------------------------------------------------------------------------------

    def next(self) -> Entry | None:
        """Waits for something to write: the first in line, or what is owed when it is time; ``None`` at the end."""
        with self._news:
            while not self._queue:
                if self._behind is None:
                    if self._closing:
                        return None
                    self._news.wait()
                elif self._closing and self._tried_last:
                    return None
                elif self._closing or self._retry_at <= time.monotonic():
                    self._tried_last = self._closing
                    owed, self._owed = self._owed, Owed()
                    return Entry(owed.all())
                else:
                    self._news.wait(self._retry_at - time.monotonic())
            return self._first()

    def more(self, most: int) -> Entry | None:
        """The first in line, when it has no more than so many operations."""
        with self._news:
            return self._first() if self._queue and len(self._queue[0].operations) <= most else None

    def _first(self) -> Entry:
        entry = self._queue.popleft()
        self._queued -= len(entry.operations)
        return entry

    def started(self) -> None:
        """A transaction has begun."""
        with self._news:
            self._begun_at = time.monotonic()

    def written(self, count: int) -> None:
        """It has ended, with so many operations in it."""
        with self._news:
            seconds = self._transaction_ended()
            self._numbers = replace(
                self._numbers,
                transactions=self._numbers.transactions + 1,
                operations=self._numbers.operations + count,
                last_s=seconds,
                longest_s=max(self._numbers.longest_s, seconds),
            )
            self._retry_at = 0.0
            recovered = self._behind is not None and not self._owed and not self._queue
            if recovered:
                self._behind = None
        if recovered:
            _log.info("journal_recovered")

    def failed(self, entries: Sequence[Entry], error: JournalError) -> list[asyncio.Future[None]]:
        """It has failed: the promises in it and behind it are off, the facts are owed. Returns who waits for them."""
        with self._news:
            self._transaction_ended()
            self._numbers = replace(self._numbers, failures=self._numbers.failures + 1)
            gone = [*entries, *self._queue]
            self._queue.clear()
            self._queued = 0
            lost = {lease_id for entry in gone for lease_id in opened(entry.operations)}
            self._known -= lost
            said = [each for entry in gone for each in entry.operations]
            later, self._owed = self._owed.all(), Owed()
            self._owed.add(each for each in (*said, *later) if lease_of(each) not in lost)
            self._fall_behind(error, retry_at=time.monotonic() + self._retry_s)
        return [entry.waiter for entry in gone if entry.waiter is not None]

    def rejected(self, operations: Iterable[JournalOperation]) -> None:
        """They can never be written: what was to be opened is not in the journal."""
        with self._news:
            self._known -= opened(operations)

    def lost(self) -> JournalError | None:
        """What is wrong when the writer ends now: facts that it could not write."""
        with self._news:
            if self._behind is None or not self._owed:
                return None
            number, count = self._behind.errno or errno.EIO, len(self._owed)
            return JournalError(number, f"{count} operations are lost: {self._behind.strerror}", self._path)

    def _transaction_ended(self) -> float:
        begun_at, self._begun_at = self._begun_at, None
        return 0.0 if begun_at is None else time.monotonic() - begun_at

    def _fall_behind(self, error: JournalError, *, retry_at: float) -> None:
        if self._behind is None or self._behind.errno != error.errno:
            _log.warning("journal_behind", error=str(error))
        self._behind, self._retry_at = error, retry_at


def opened(operations: Iterable[JournalOperation]) -> set[LeaseId]:
    """The leases that are opened there."""
    return {each.lease.lease_id for each in operations if isinstance(each, LeaseOpened)}


def again(error: JournalError) -> JournalError:
    """The same for somebody else: an exception that is raised twice gathers the tracebacks of both."""
    return type(error)(error.errno, error.strerror, error.filename)
