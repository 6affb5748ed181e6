"""The pause guard: when the arbiter itself was away, leases are extended and never ended."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arbiter_sidecar.types import EventKind
from tests.arbiter.desk import LINEAR, Desk, DeskMaker, wish

GUARDED = replace(LINEAR, pause_guard_s=0.75)


@pytest.fixture
def guarded(make_desk: DeskMaker) -> Desk:
    """A desk whose guard is on."""
    desk = make_desk(GUARDED)
    desk.box()
    return desk


@pytest.mark.parametrize("away", [0.8, 60.0, 3600.0])
def test_leases_are_extended_by_the_gap_when_the_arbiter_was_away(guarded: Desk, away: float) -> None:
    lease = guarded.take(wish(ttl=10, window=5))
    guarded.at(0.5)
    guarded.at(0.5 + away)
    assert lease.deadline == pytest.approx(10.0 + away)
    assert lease.quiet_until == pytest.approx(5.0 + away)
    assert lease.alive
    (event,) = guarded.events(EventKind.PAUSE_ABSORBED)
    assert event.fields == {"seconds": str(round(away, 3)), "leases": "1"}


@pytest.mark.parametrize("command", ["beat", "release", "allocate", "observe", "advance"])
def test_gap_counts_before_the_command_that_ends_it(guarded: Desk, command: str) -> None:
    guarded.card(24)
    lease = guarded.take(wish(ttl=10, device="box", request_id="r"))
    guarded.now = 100.0
    if command == "beat":
        guarded.beat(lease)
        assert lease.deadline == 110.0
    elif command == "release":
        assert guarded.release(lease) is False
    elif command == "allocate":
        assert guarded.granted(guarded.ask(wish(ttl=10, device="box", request_id="r"))).lease is lease
    elif command == "observe":
        guarded.sample({})
        assert lease.deadline == 110.0
    else:
        guarded.at(100.0)
        assert lease.deadline == 110.0


def test_ended_leases_are_not_extended(guarded: Desk) -> None:
    guarded.take(wish(ttl=10))
    ended = guarded.take(wish(ttl=10))
    guarded.release(ended)
    guarded.at(20.0)
    assert ended.deadline == 10.0
    guarded.at(30.0)
    assert guarded.drained(ended)


def test_ordinary_steps_extend_nothing(guarded: Desk) -> None:
    lease = guarded.take(wish(ttl=10))
    for step in range(1, 40):
        guarded.at(step / 4)
        assert lease.alive
    guarded.at(10.0)
    assert not lease.alive
    assert not guarded.events(EventKind.PAUSE_ABSORBED)


def test_silence_before_and_after_the_pause_still_counts(guarded: Desk) -> None:
    lease = guarded.take(wish(ttl=10))
    for step in range(1, 25):
        guarded.at(step / 4)
    guarded.at(106.0)
    for step in range(1, 16):
        guarded.at(106.0 + step / 4)
    assert lease.alive
    guarded.at(110.0)
    assert not lease.alive


def test_nothing_is_said_when_there_was_nobody_to_extend(guarded: Desk) -> None:
    lease = guarded.take(wish())
    guarded.release(lease)
    guarded.at(100.0)
    assert not guarded.events(EventKind.PAUSE_ABSORBED)


def test_guard_is_off_when_it_is_zero(desk: Desk) -> None:
    desk.box()
    lease = desk.take(wish(ttl=10))
    desk.at(10.0)
    assert not lease.alive
