"""Processes of those who ask for a lease are measured before they are judged, where that may decide."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from arbiter_sidecar import errors
from arbiter_sidecar.ports import DeviceProbe
from arbiter_sidecar.runtime import guests
from arbiter_sidecar.types import GIB, DeviceId, DeviceSample, Process
from tests.runtime.conftest import Drive
from tests.runtime.driving import Driven, Outside, wish
from tests.runtime.fakes import GUARD_S, until

GPU = DeviceId("gpu0")
P42, P43 = Process(42, 420), Process(43, 430)
MEASURED = Outside(devices={}, measured={"gpu0": 24 * GIB}, pids=(42, 43))


class Gated:
    """Measures at once, or when the gate is open."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun = 0

    async def __call__(self, probe: DeviceProbe, holders: Sequence[Process], guests: Sequence[Process]) -> DeviceSample:
        self.begun += 1
        await self.gate.wait()
        return probe.sample(holders, guests)


def guests_of(driven: Driven) -> list[Process]:
    """Who was measured as a guest at any time, in the order in which they came."""
    return list(dict.fromkeys(process for asked in driven.probes["gpu0"].asked_guests for process in asked))


async def closed(drive: Drive) -> tuple[Driven, Gated]:
    """A runtime whose driver has measured once or more and now hangs."""
    gated = Gated()
    driven = await drive(replace(MEASURED, measure=gated))
    gated.gate.clear()
    begun = gated.begun
    await until(lambda: gated.begun > begun)
    return driven, gated


async def test_worker_that_loaded_first_is_granted_at_once_even_if_it_would_not_wait(drive: Drive) -> None:
    driven = await drive(MEASURED)
    driven.probes["gpu0"].held[P42] = 20 * GIB
    book = driven.arbiter.books.devices[GPU]
    await until(lambda: book.foreign_bytes == 20 * GIB)
    with pytest.raises(errors.InsufficientMemory):
        await driven.runtime.allocate(wish(20.0, P43, min_quality=1.0))
    lease = await driven.take(wish(20.0, P42, min_quality=1.0))
    assert (lease.measured_bytes, book.foreign_bytes, book.available_bytes) == (20 * GIB, 0, 4 * GIB)
    assert guests_of(driven) == [P43, P42]


async def test_nobody_is_measured_for_a_request_that_has_room_at_its_best(drive: Drive) -> None:
    driven, gated = await closed(drive)
    begun = gated.begun
    assert (await asyncio.wait_for(driven.take(wish(4.0, P42)), GUARD_S)).quality == 1.0
    assert gated.begun == begun
    assert guests_of(driven) == []


async def test_request_that_can_never_fit_is_refused_without_being_measured(drive: Drive) -> None:
    driven, _ = await closed(drive)
    with pytest.raises(errors.ExceedsCapacity):
        await asyncio.wait_for(driven.runtime.allocate(wish(25.0, P42, min_quality=1.0)), GUARD_S)


async def test_processes_of_those_who_wait_are_measured_until_they_are_answered(drive: Drive) -> None:
    driven = await drive(MEASURED)
    probe = driven.probes["gpu0"]
    holder = await driven.take(wish(20.0, min_quality=1.0, ttl_s=300.0))
    late = asyncio.create_task(driven.runtime.allocate(wish(20.0, P42, min_quality=1.0, wait_s=60.0)))
    await until(lambda: len(driven.arbiter.books.queue) == 1)
    asked = len(probe.asked)
    await until(lambda: len(probe.asked) > asked + 3)
    assert probe.asked_guests[-1] == (P42,)
    # It loads while it waits, and what it has loaded is its own.
    probe.held[P42] = 3 * GIB
    book = driven.arbiter.books.devices[GPU]
    await until(lambda: book.foreign_bytes == 3 * GIB)
    assert driven.runtime.release(holder.lease_id, holder.fence) is False
    assert (await asyncio.wait_for(late, GUARD_S)).lease.measured_bytes == 3 * GIB
    await until(lambda: probe.asked_guests[-1] == () and P42 in probe.asked[-1])


async def test_request_is_judged_by_what_is_known_when_the_driver_does_not_answer(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guests, "PATIENCE_S", 0.05)
    driven = await drive(MEASURED)
    driven.probes["gpu0"].foreign_bytes = 20 * GIB
    await until(lambda: driven.arbiter.books.devices[GPU].foreign_bytes == 20 * GIB)
    driven.probes["gpu0"].failure = "no answer"
    with pytest.raises(errors.InsufficientMemory):
        await asyncio.wait_for(driven.runtime.allocate(wish(20.0, P42, min_quality=1.0)), GUARD_S)


async def test_request_stands_in_line_after_half_its_patience(drive: Drive) -> None:
    driven, _ = await closed(drive)
    await driven.take(wish(20.0, min_quality=1.0, ttl_s=300.0))
    late = asyncio.create_task(driven.runtime.allocate(wish(20.0, P42, min_quality=1.0, wait_s=0.2)))
    await until(lambda: len(driven.arbiter.books.queue) == 1)
    late.cancel()
    await asyncio.wait([late], timeout=GUARD_S)
    assert len(driven.arbiter.books.queue) == 0


async def test_caller_that_goes_while_it_is_measured_leaves_nothing(drive: Drive) -> None:
    driven, gated = await closed(drive)
    await driven.take(wish(20.0, min_quality=1.0, ttl_s=300.0))
    asked = driven.arbiter.books.stats.requests
    late = asyncio.create_task(driven.runtime.allocate(wish(20.0, P42, min_quality=1.0)))
    for _ in range(20):
        await asyncio.sleep(0)
    late.cancel()
    await asyncio.wait([late], timeout=GUARD_S)
    assert late.cancelled()
    assert driven.arbiter.books.stats.requests == asked
    gated.gate.set()
    begun = gated.begun
    await until(lambda: gated.begun > begun + 2)
    assert guests_of(driven) == []


async def test_no_more_are_measured_at_a_time_than_is_sensible(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "MAX_GUESTS", 1)
    driven, gated = await closed(drive)
    await driven.take(wish(20.0, min_quality=1.0, ttl_s=300.0))
    first = asyncio.create_task(driven.runtime.allocate(wish(20.0, P42, min_quality=1.0, wait_s=60.0)))
    for _ in range(20):
        await asyncio.sleep(0)
    # The second is judged at once.
    with pytest.raises(errors.InsufficientMemory):
        await asyncio.wait_for(driven.runtime.allocate(wish(20.0, P43, min_quality=1.0)), GUARD_S)
    gated.gate.set()
    await until(lambda: len(driven.arbiter.books.queue) == 1)
    assert guests_of(driven) == [P42]
    first.cancel()
    await asyncio.wait([first], timeout=GUARD_S)
