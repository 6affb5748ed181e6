"""The log of events is numbered and bounded, and never waits for its readers."""

from __future__ import annotations

import asyncio

import pytest

from arbiter_sidecar.arbiter.effects import Happened
from arbiter_sidecar.runtime import events
from arbiter_sidecar.runtime.events import EventLog, Watcher
from arbiter_sidecar.types import EventKind
from tests.runtime.fakes import GUARD_S


def fill(log: EventLog, count: int) -> None:
    for _ in range(count):
        log.add(Happened(kind=EventKind.LEASE_GRANTED), 1.0)


async def read(watcher: Watcher) -> tuple[int, list[int]]:
    missed, found = await asyncio.wait_for(watcher.next(), GUARD_S)
    return missed, [event.sequence for event in found]


def test_events_are_numbered_from_one() -> None:
    log = EventLog()
    event = log.add(Happened(kind=EventKind.DRAINING), 12.5)
    assert (event.sequence, event.wall_time, event.happened.kind) == (1, 12.5, EventKind.DRAINING)
    assert log.add(Happened(kind=EventKind.DRAINING), 12.5).sequence == log.sequence == 2


async def test_only_new_events_come_when_nothing_older_is_asked_for() -> None:
    log = EventLog()
    fill(log, 3)
    watcher = log.watch(0)
    fill(log, 2)
    assert await read(watcher) == (0, [4, 5])
    fill(log, 1)
    assert await read(watcher) == (0, [6])


@pytest.mark.parametrize(("after", "expected"), [(1, [2, 3, 4]), (3, [4]), (4, [5]), (99, [5]), (-1, [5])])
async def test_older_events_come_when_they_are_asked_for(after: int, expected: list[int]) -> None:
    log = EventLog()
    fill(log, 4)
    watcher = log.watch(after)
    if expected == [5]:
        fill(log, 1)
    assert await read(watcher) == (0, expected)


async def test_oldest_events_are_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "REMEMBERED", 5)
    log = EventLog()
    fill(log, 12)
    assert await read(log.watch(9)) == (0, [10, 11, 12])
    assert await read(log.watch(7)) == (0, [8, 9, 10, 11, 12])
    assert await read(log.watch(3)) == (4, [8, 9, 10, 11, 12])


async def test_backlog_is_bounded_when_a_watcher_asks_for_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "BACKLOG", 2)
    log = EventLog()
    fill(log, 10)
    assert await read(log.watch(1)) == (7, [9, 10])


async def test_oldest_events_are_lost_and_counted_when_a_watcher_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "BACKLOG", 3)
    log = EventLog()
    slow, quick = log.watch(0), log.watch(0)
    for number in range(1, 6):
        fill(log, 1)
        assert await read(quick) == (0, [number])
    assert await read(slow) == (2, [3, 4, 5])
    fill(log, 1)
    assert await read(slow) == (0, [6])


async def test_watcher_hears_nothing_when_it_has_gone() -> None:
    log = EventLog()
    watcher = log.watch(0)
    assert log.watchers == 1
    log.unwatch(watcher)
    log.unwatch(watcher)
    assert log.watchers == 0
    fill(log, 1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(watcher.next(), 0.01)


async def test_watcher_reads_the_rest_when_the_log_is_closed() -> None:
    log = EventLog()
    watcher = log.watch(0)
    fill(log, 2)
    log.close()
    assert watcher.closed
    assert await read(watcher) == (0, [1, 2])
