"""Observe-only: everybody has what it asks for, and the books say what would have been done."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arbiter_sidecar import errors
from arbiter_sidecar.arbiter import explain
from arbiter_sidecar.arbiter.books import OveruseConfig
from arbiter_sidecar.types import EventKind, Priority
from tests.arbiter.desk import LINEAR, Desk, DeskMaker, gib, taking, wish


@pytest.fixture
def watcher(make_desk: DeskMaker) -> Desk:
    """A desk that only observes."""
    return make_desk(replace(LINEAR, observe_only=True, overuse=OveruseConfig()))


def advice(desk: Desk, kind: EventKind, name: str) -> list[str]:
    """One field of all events of a kind."""
    return [event.fields[name] for event in desk.events(kind)]


def test_everybody_is_granted_the_best_and_told_nothing_else(watcher: Desk) -> None:
    watcher.card(24)
    leases = [watcher.take(wish(f"w{pid}", 8, pids=(pid,), ttl=300)) for pid in (1, 2, 3, 4)]
    watcher.apply(*leases)
    assert [lease.limit_bytes for lease in leases] == [gib(8)] * 4
    watcher.live(30.0, *leases, held=dict.fromkeys((1, 2, 3, 4), 8.0))
    assert [watcher.told(lease) for lease in leases] == [0] * 4
    assert [lease.advised for lease in leases] == [pytest.approx(20.4 / 32, abs=0.01)] * 4
    decisions = advice(watcher, EventKind.GRANT_ADVISED, "decision")
    assert decisions == ["grant at this quality", "lower others and wait"]


def test_request_beyond_everybodys_minimum_is_granted_too(watcher: Desk) -> None:
    watcher.box(24)
    watcher.take(wish("a", 20, rigid=True))
    second = watcher.take(wish("b", 20, rigid=True))
    assert second.limit_bytes == gib(20)
    assert advice(watcher, EventKind.GRANT_ADVISED, "decision") == ["wait for somebody to leave"]
    assert int(advice(watcher, EventKind.GRANT_ADVISED, "short_bytes")[0]) == gib(16)


def test_reduced_grant_is_advice_only(watcher: Desk) -> None:
    watcher.box(10)
    lease = watcher.take(wish("a", 10))
    assert lease.quality == 1.0
    assert advice(watcher, EventKind.GRANT_ADVISED, "decision") == ["grant at this quality"]
    assert lease.advised == 0.85
    said = explain.lease(watcher.books, lease.lease_id, watcher.now)
    assert said.summary == "quality 1.00: it would be told 0.85, but this server only observes"


def test_advice_is_given_once_and_taken_back_when_there_is_room(watcher: Desk) -> None:
    watcher.box(10)
    stays, goes = watcher.take(wish("a", 6, ttl=100)), watcher.take(wish("b", 6, ttl=10))
    for second in range(1, 10):
        watcher.at(float(second))
        watcher.beat(stays, goes)
    assert len(watcher.events(EventKind.QUALITY_ADVISED, stays.lease_id)) == 1
    watcher.release(goes)
    watcher.at(60.0)
    watcher.beat(stays)
    watcher.release(watcher.take(wish("c", 1)))
    assert stays.advised == 1.0


def test_who_would_go_is_said_when_the_machine_falls_short(watcher: Desk) -> None:
    watcher.card(24)
    low, high = (
        watcher.take(wish(name, 10, rigid=True, priority=priority, pids=(pid,), ttl=300))
        for pid, (name, priority) in enumerate((("low", Priority.LOW), ("high", Priority.HIGH)), start=1)
    )
    held = {1: 10.0, 2: 10.0}
    watcher.sample(held, foreign=8.0)
    watcher.sample(held, foreign=8.0)
    assert advice(watcher, EventKind.PREEMPTION_ADVISED, "donors") == [low.lease_id]
    watcher.sample(held)
    for _ in range(20):
        watcher.sample(held)
    assert advice(watcher, EventKind.PREEMPTION_ADVISED, "donors") == [low.lease_id, ""]
    assert low.alive
    assert high.alive
    assert low.reclaim is None


def test_nothing_is_taken_on_request_but_the_dry_run_answers(watcher: Desk) -> None:
    watcher.box(100)
    lease = watcher.take(wish("asks", 10, priority=Priority.HIGH))
    watcher.take(wish("has", 50, priority=Priority.BACKGROUND))
    watcher.at(5.0)
    with pytest.raises(errors.ObserveOnly):
        watcher.arbiter.preempt(taking(10, lease), watcher.now)
    assert watcher.arbiter.dry_preempt(taking(10, lease), watcher.now).planned == gib(10)


def test_overuse_is_found_and_nothing_is_done(watcher: Desk) -> None:
    watcher.card(24)
    lease = watcher.take(wish("greedy", 8, pids=(1,), ttl=300))
    watcher.live(30.0, lease, held={1: 12.0})
    assert len(watcher.events(EventKind.OVERUSE_FOUND)) == 1
    assert lease.alive
    assert lease.quality == 1.0
    assert lease.advised == 0.49


def test_request_for_a_lost_device_is_refused_as_ever(watcher: Desk) -> None:
    watcher.card(24)
    watcher.sample({}, lost=True)
    with pytest.raises(errors.DeviceStale):
        watcher.arbiter.allocate(wish("a", 16, wait=30.0), watcher.now)
