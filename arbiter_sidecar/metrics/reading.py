"""Reads the books for one scrape, on the loop's thread, and never for long at a time."""

from __future__ import annotations

import asyncio
import platform

from arbiter_sidecar import __version__
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.metrics import catalogue as of
from arbiter_sidecar.metrics.calls import put_calls
from arbiter_sidecar.metrics.devices import LeaseSums, put_device, put_engines, word
from arbiter_sidecar.metrics.holders import FIGURES, Charges, HolderNames, harmless
from arbiter_sidecar.metrics.picture import Picture
from arbiter_sidecar.rpc.server import Server
from arbiter_sidecar.runtime import Runtime
from arbiter_sidecar.types import Priority, WorkloadType

#: Leases that are read in one go, in some two milliseconds; where there are more, what is due on the loop has its turn.
SLICE = 1_000


#: Made once: making them costs as much as everything else that is done for a lease.
_PRIORITIES = {each: word(each) for each in Priority}
_WORKLOADS = {each: word(each) for each in WorkloadType}


class _Group:
    """Living leases that share all labels."""

    __slots__ = ("count", "granted", "measured", "quality", "reported")

    def __init__(self) -> None:
        self.count = 0
        self.quality = 0.0
        self.granted = 0
        self.measured: int | None = None
        self.reported: int | None = None

    def add(self, lease: Lease) -> None:
        """Counts in a living lease."""
        self.count += 1
        self.quality += lease.quality
        self.granted += lease.charged_bytes
        if lease.measured_bytes is not None:
            self.measured = (self.measured or 0) + lease.measured_bytes
        if lease.reported_bytes is not None:
            self.reported = (self.reported or 0) + lease.reported_bytes


class Reader:
    """Reads everything that is served. Changes nothing; one scrape at a time."""

    def __init__(self, runtime: Runtime, server: Server) -> None:
        self._runtime = runtime
        self._server = server
        self._names = HolderNames()
        self._charges = Charges(self._names)

    async def read(self) -> Picture:
        """The numbers of now.

        With more than a slice of leases others have their turn in between, so that the sums over leases and the
        figures of the devices may differ by what has changed meanwhile.
        """
        books, picture = self._runtime.books, Picture()
        self._names.begin()
        sums = {device_id: LeaseSums() for device_id in books.devices}
        groups: dict[tuple[str, ...], _Group] = {}
        leases = list(books.leases)
        for first in range(0, len(leases), SLICE):
            for lease in leases[first : first + SLICE]:
                if lease.alive:
                    self._group(groups, lease).add(lease)
                elif lease.fence not in books.devices[lease.device_id].ended:
                    # It was still there when the list was made.
                    continue
                sums[lease.device_id].add(lease)
            if len(leases) > SLICE:
                await asyncio.sleep(0)
        self._put_groups(picture, groups)
        now = self._runtime.clock.now()
        for book in books.devices.values():
            put_device(picture, book, sums[book.device_id], soft_target=books.config.soft_target, now=now)
            put_engines(picture, book, self._names)
        self._put_server(picture, now)
        self._put_waiting(picture, now)
        self._put_totals(picture)
        put_calls(picture)
        return picture

    def _group(self, groups: dict[tuple[str, ...], _Group], lease: Lease) -> _Group:
        request = lease.request
        namespace, holder = self._names.living((request.namespace, request.holder))
        labels = (
            harmless(lease.device_id),
            namespace,
            holder,
            _PRIORITIES[request.priority],
            _WORKLOADS[request.workload],
        )
        group = groups.get(labels)
        if group is None:
            group = groups[labels] = _Group()
        return group

    @staticmethod
    def _put_groups(picture: Picture, groups: dict[tuple[str, ...], _Group]) -> None:
        for labels, group in groups.items():
            picture.put(of.LEASES, group.count, *labels)
            picture.put(of.LEASE_QUALITY, group.quality / group.count, *labels)
            picture.put(of.LEASE_GRANTED, group.granted, *labels)
            if group.measured is not None:
                picture.put(of.LEASE_MEASURED, group.measured, *labels)
            if group.reported is not None:
                picture.put(of.LEASE_REPORTED, group.reported, *labels)

    def _put_server(self, picture: Picture, now: float) -> None:
        runtime = self._runtime
        picture.put(of.BUILD, 1, __version__, platform.python_version())
        picture.put(of.EPOCH, runtime.epoch)
        picture.put(of.UPTIME, now - runtime.started_at)
        picture.put(of.DRAINING, runtime.books.draining)
        picture.put(of.OBSERVE_ONLY, runtime.books.config.observe_only)
        picture.put(of.SESSIONS, self._server.sessions)
        picture.put(of.SUBSCRIBERS, self._server.subscribers)
        picture.put(of.WATCHERS, runtime.events.watchers)

    def _put_waiting(self, picture: Picture, now: float) -> None:
        counts, oldest = dict.fromkeys(Priority, 0), dict.fromkeys(Priority, 0.0)
        for waiter in self._runtime.books.queue:
            priority = waiter.request.priority
            counts[priority] += 1
            oldest[priority] = max(oldest[priority], now - waiter.since)
        for priority in Priority:
            picture.put(of.WAITING, counts[priority], _PRIORITIES[priority])
            picture.put(of.OLDEST_WAIT, oldest[priority], _PRIORITIES[priority])

    def _put_totals(self, picture: Picture) -> None:
        stats = self._runtime.books.stats
        picture.put(of.REQUESTS, stats.requests)
        for outcome in ("granted", "refused", "timed_out", "cancelled"):
            picture.put(of.OUTCOMES, getattr(stats, outcome), outcome)
        for reason in ("released", "expired", "orphaned"):
            picture.put(of.ENDS, getattr(stats, reason), reason)
        picture.put(of.PREEMPTIONS, stats.preemptions)
        picture.put(of.REDUCTIONS, stats.reductions)
        picture.put(of.RAISES, stats.raises)
        picture.put(of.CRITICAL, stats.critical_entries)
        picture.put(of.HEARTBEATS, stats.heartbeats)
        picture.put(of.EVENTS, stats.events)
        for shown, figures in self._charges.update(self._runtime.accounts()).items():
            for metric, figure in zip(FIGURES, figures, strict=True):
                picture.put(metric, figure, *shown)
