"""The ports of the runtime, played by the test: time that moves when told, devices and processes that obey."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from arbiter_sidecar.ports import DeviceProbe
from arbiter_sidecar.types import (
    GIB,
    Attribution,
    DeviceFacts,
    DeviceId,
    DeviceKind,
    DeviceSample,
    Guest,
    Process,
)

#: A guard against hanging, in seconds; far above what anything here takes.
GUARD_S = 20.0


class FakeClock:
    """Implements the clock port; stands still until told otherwise."""

    def __init__(self, now: float = 1000.0) -> None:
        self.time = now
        self.asleep = 0.0

    def now(self) -> float:
        """Monotonic seconds."""
        return self.time

    def slept(self) -> float:
        """Seconds that the machine has been suspended."""
        return self.asleep

    def wall(self) -> float:
        """Seconds since 1970, as far from the monotonic ones as they really are."""
        return 1_700_000_000.0 + self.time

    def advance(self, seconds: float) -> None:
        """Lets time pass."""
        self.time += seconds


def facts(name: str = "gpu0", size_bytes: int = 24 * GIB, *, measured: bool = True) -> DeviceFacts:
    """A device that measures each process, or nothing at all."""
    return DeviceFacts(
        device_id=DeviceId(name),
        name=name,
        index=0,
        kind=DeviceKind.NVIDIA if measured else DeviceKind.STATIC,
        total_bytes=size_bytes,
        capacity_bytes=size_bytes,
        attribution=Attribution.PER_PROCESS if measured else Attribution.SELF_REPORTED,
    )


class FakeProbe:
    """Implements the device port: holders hold what the test says, or the driver fails."""

    def __init__(self, facts: DeviceFacts) -> None:
        self._facts = facts
        self.held: dict[Process, int | None] = {}
        self.foreign_bytes = 0
        self.failure: str | None = None
        self.lost = False
        self.asked: list[tuple[Process, ...]] = []
        self.asked_guests: list[tuple[Process, ...]] = []

    @property
    def facts(self) -> DeviceFacts:
        """Those it was made with."""
        return self._facts

    def sample(self, holders: Sequence[Process], guests: Sequence[Process] = ()) -> DeviceSample:
        """What the test says; raises OSError while there is a failure.

        What guests hold is foreign use, beside the foreign use that the test says.
        """
        self.asked.append(tuple(holders))
        self.asked_guests.append(tuple(guests))
        if self.failure is not None:
            raise OSError(self.failure)
        held = {holder: self.held.get(holder, 0) for holder in holders}
        foreign = self.foreign_bytes + sum(each or 0 for process, each in self.held.items() if process not in held)
        found = {guest: self.held.get(guest, 0) for guest in guests}
        return DeviceSample(
            self._facts.device_id,
            used_bytes=foreign + sum(each or 0 for each in held.values()),
            held_bytes=held,
            foreign_bytes=foreign,
            lost=self.lost,
            guests={guest: Guest(each, each) for guest, each in found.items() if each is not None},
        )

    def close(self) -> None:
        """Nothing to let go of."""


async def at_once(probe: DeviceProbe, holders: Sequence[Process], guests: Sequence[Process]) -> DeviceSample:
    """Measures on the spot: a fake does not block."""
    return probe.sample(holders, guests)


class FakeWatch:
    """Implements the process port: who is there and who dies is up to the test."""

    def __init__(self, *pids: int) -> None:
        self.living: dict[int, Process] = {pid: Process(pid, 10 * pid) for pid in pids}
        self.watched: dict[Process, list[Callable[[Process], None]]] = {}
        #: Those who exit after they were identified and before they are watched.
        self.doomed: set[int] = set()
        #: What was sent to whom.
        self.signals: list[tuple[int, int]] = []
        self.closed = False

    def identify(self, pid: int) -> Process | None:
        """The living process of this id."""
        return self.living.get(pid)

    def watch(self, process: Process, on_exit: Callable[[Process], None]) -> bool:
        """Remembers who wants to know; False for the dead."""
        if process.pid in self.doomed or self.living.get(process.pid) != process:
            return False
        self.watched.setdefault(process, []).append(on_exit)
        return True

    def signal(self, process: Process, number: int) -> bool:
        """Remembers what was sent; False for the dead."""
        if self.living.get(process.pid) != process:
            return False
        self.signals.append((process.pid, number))
        return True

    def unwatch(self, process: Process) -> None:
        """Forgets."""
        self.watched.pop(process, None)

    def close(self) -> None:
        """Forgets everything."""
        self.watched.clear()
        self.closed = True

    def kill(self, pid: int) -> None:
        """The process dies and its watchers hear of it."""
        process = self.living.pop(pid)
        for on_exit in self.watched.pop(process, []):
            on_exit(process)


async def until(condition: Callable[[], bool]) -> None:
    """Lets the loop run until the condition holds; fails after the guard."""
    async with asyncio.timeout(GUARD_S):
        while not condition():
            await asyncio.sleep(0.001)
