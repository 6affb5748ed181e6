"""A core that is driven by a runtime whose outside belongs to the test."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from arbiter_sidecar.arbiter import Arbiter, ArbiterConfig, Names
from arbiter_sidecar.arbiter.effects import Happened
from arbiter_sidecar.ledger.devices import DeviceRules
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.ports import Clock
from arbiter_sidecar.requests import AllocationRequest, Beat
from arbiter_sidecar.runtime import Runtime, SamplingRates
from arbiter_sidecar.runtime.sampling import Measure
from arbiter_sidecar.types import GIB, DeviceHealth, EventKind, Process, WorkloadType
from tests.runtime.fakes import GUARD_S, FakeClock, FakeProbe, FakeWatch, at_once, facts

EPOCH = 7

#: Bytes are proportional to quality; ended leases whose bytes cannot be traced give them back at the next look; no
#: pause is absorbed, so that a clock of the test may jump.
CORE = ArbiterConfig(
    pause_guard_s=0.0,
    elasticity=dict.fromkeys(WorkloadType, 1.0),
    rules=DeviceRules(lock_delay_s=0.0, lock_delay_ttls=0.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """What a test may choose about the outside.

    Attributes:
        devices: Name and bytes of each device on which nothing is measured.
        measured: Name and bytes of each device on which processes are measured.
        core: Rules of the core.
        clock: The clock.
        pids: Processes that can be seen.
        measure: How devices are measured.
    """

    devices: Mapping[str, int] = field(default_factory=lambda: {"gpu0": 24 * GIB})
    measured: Mapping[str, int] = field(default_factory=dict)
    core: ArbiterConfig = CORE
    clock: Clock = field(default_factory=FakeClock)
    pids: tuple[int, ...] = ()
    measure: Measure = at_once


class FakeFeed:
    """Implements the feed: remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def directive_changed(self, lease: Lease) -> None:
        """The lease has a new directive."""
        self.told.append(("changed", lease.lease_id))

    def lease_ended(self, lease: Lease) -> None:
        """The lease is over."""
        self.told.append(("ended", lease.lease_id))

    def reclaim_cancelled(self, lease: Lease, reclaim_id: str) -> None:
        """The lease need not give memory back any more."""
        self.told.append(("let off", lease.lease_id))

    def draining(self) -> None:
        """The server goes away."""
        self.told.append(("draining", ""))


class Driven:
    """A runtime, and everything around it that a test moves or looks at."""

    def __init__(self, outside: Outside) -> None:
        lease_numbers, handles = itertools.count(1), itertools.count(1001)
        names = Names(lease_id=lambda: f"lease-{next(lease_numbers)}", handle=lambda: next(handles))
        self.arbiter = Arbiter(outside.core, epoch=EPOCH, names=names, now=outside.clock.now())
        self.watch = FakeWatch(*outside.pids)
        self.probes = {
            name: FakeProbe(facts(name, size, measured=name in outside.measured))
            for name, size in (*outside.measured.items(), *outside.devices.items())
        }
        self.runtime = Runtime(
            self.arbiter,
            clock=outside.clock,
            watch=self.watch,
            probes=list(self.probes.values()),
            measure=outside.measure,
            rates=SamplingRates(idle_s=0.005, eager_s=0.001),
        )

        self.feed = FakeFeed()
        self.runtime.feed(self.feed)
        self._watcher = self.runtime.events.watch(0)
        self._unread: list[Happened] = []

    @property
    def leases(self) -> int:
        """How many leases live."""
        return len(self.arbiter.books.leases)

    async def heard(self, kind: EventKind) -> Happened:
        """The next event of this kind; those before it are passed over."""
        async with asyncio.timeout(GUARD_S):
            while True:
                while self._unread:
                    if (event := self._unread.pop(0)).kind is kind:
                        return event
                _, events = await self._watcher.next()
                self._unread = [event.happened for event in events]

    async def health_becomes(self, health: DeviceHealth) -> Happened:
        """The next change of a device to this health."""
        while (event := await self.heard(EventKind.DEVICE_CHANGED)).fields["health"] != health.name:
            pass
        return event

    async def take(self, request: AllocationRequest) -> Lease:
        """A lease that fits."""
        return (await self.runtime.allocate(request)).lease

    def renew(self, *leases: Lease) -> None:
        """A heartbeat for these leases."""
        self.runtime.heartbeat(Beat(handles=tuple(lease.handle for lease in leases)))


def wish(size: float = 4.0, *processes: Process, **changes: Any) -> AllocationRequest:
    """A request of a language model for so many GiB, with these processes."""
    given = {
        "holder": "worker",
        "workload": WorkloadType.LLM_INFERENCE,
        "memory_bytes": int(size * GIB),
        "pids": tuple(process.pid for process in processes),
        "processes": processes,
        "ttl_s": 10.0,
    }
    return AllocationRequest(**{**given, **changes})
