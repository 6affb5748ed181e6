"""Expiry: never before the time to live, dead at the deadline, and suspected before."""

from __future__ import annotations

import pytest

from arbiter_sidecar.types import EndReason, EventKind, LeaseState, Verdict
from tests.arbiter.desk import Desk, gib, state_of, wish


def test_silent_lease_is_suspect_and_then_expires(desk: Desk) -> None:
    desk.box()
    lease = desk.take(wish(ttl=30))
    desk.beat(lease)
    assert desk.arbiter.next_deadline() == 15.0
    desk.at(14.9)
    assert state_of(lease) is LeaseState.ACTIVE
    desk.at(15.0)
    assert state_of(lease) is LeaseState.SUSPECT
    (event,) = desk.events(EventKind.LEASE_SUSPECT)
    assert event.fields["silent_s"] == "15.0"
    assert desk.arbiter.next_deadline() == 30.0
    desk.at(29.9)
    assert lease.alive
    desk.at(30.0)
    assert (lease.end_reason, lease.ended_at) == (EndReason.EXPIRED, 30.0)
    assert desk.books.stats.expired == 1
    assert desk.device().residue_bytes == gib(1)


def test_suspicion_ends_with_the_next_beat(desk: Desk) -> None:
    desk.box()
    lease = desk.take(wish(ttl=10))
    desk.at(6.0)
    desk.beat(lease)
    assert state_of(lease) is LeaseState.ACTIVE
    desk.at(10.9)
    assert state_of(lease) is LeaseState.ACTIVE
    desk.at(11.0)
    assert state_of(lease) is LeaseState.SUSPECT
    desk.at(16.0)
    assert not lease.alive
    assert len(desk.events(EventKind.LEASE_SUSPECT)) == 2


def test_lease_lives_for_ever_when_it_beats(desk: Desk) -> None:
    desk.box()
    lease = desk.take(wish(ttl=3))
    desk.live(100.0, lease)
    assert state_of(lease) is LeaseState.ACTIVE
    assert not desk.events(EventKind.LEASE_SUSPECT)


@pytest.mark.parametrize("call", ["beat", "report", "release", "allocate", "confirm"])
def test_lease_is_dead_at_its_deadline_when_nobody_has_called_advance(desk: Desk, call: str) -> None:
    desk.box()
    lease = desk.take(wish(ttl=10, request_id="r"))
    desk.now = 10.0
    if call == "beat":
        (result,) = desk.beat(lease)
        assert (result.verdict, result.end_reason) == (Verdict.FENCED, EndReason.EXPIRED)
    elif call == "report":
        result = desk.report(lease)
        assert (result.verdict, result.end_reason) == (Verdict.FENCED, EndReason.EXPIRED)
    elif call == "release":
        assert desk.release(lease)
        assert desk.books.stats.released == 0
    elif call == "allocate":
        again = desk.granted(desk.ask(wish(ttl=10, request_id="r")))
        assert again.lease is not lease
        assert not again.already_granted
    else:
        desk.arbiter.confirm([lease.lease_id], desk.now)
        assert not lease.confirmed
    desk.at(10.0)
    assert lease.end_reason is EndReason.EXPIRED


def test_request_id_stays_with_the_new_lease_when_the_old_one_ends_later(desk: Desk) -> None:
    desk.box()
    desk.take(wish(ttl=10, request_id="r"))
    desk.now = 10.0
    new = desk.take(wish(ttl=10, request_id="r"))
    desk.at(10.0)
    assert desk.granted(desk.ask(wish(ttl=10, request_id="r"))).lease is new


def test_startup_window_allows_silence(desk: Desk) -> None:
    desk.box()
    lease = desk.take(wish(ttl=10, window=60, pids=(1,)))
    assert lease.deadline == 60.0
    desk.at(59.9)
    assert lease.alive
    assert not desk.events(EventKind.LEASE_SUSPECT)
    desk.at(60.0)
    assert lease.end_reason is EndReason.EXPIRED


def test_lease_is_suspected_late_when_it_beats_before_its_window_ends(desk: Desk) -> None:
    desk.box()
    lease = desk.take(wish(ttl=10, window=60))
    desk.at(55.0)
    desk.beat(lease)
    desk.at(59.9)
    assert state_of(lease) is LeaseState.ACTIVE
    desk.at(60.0)
    assert state_of(lease) is LeaseState.SUSPECT
    desk.at(65.0)
    assert lease.end_reason is EndReason.EXPIRED


def test_announced_silence_is_no_excuse_where_no_process_can_be_seen(desk: Desk) -> None:
    desk.box()
    lease = desk.take(wish(ttl=10))
    desk.now = 5.0
    desk.report(lease, busy=100.0)
    desk.at(15.0)
    assert lease.end_reason is EndReason.EXPIRED


def test_announced_silence_is_allowed(desk: Desk) -> None:
    desk.box()
    lease = desk.take(wish(ttl=10, pids=(7,)))
    desk.now = 5.0
    desk.report(lease, busy=100.0)
    desk.at(104.9)
    assert state_of(lease) is LeaseState.ACTIVE
    desk.at(105.0)
    assert lease.end_reason is EndReason.EXPIRED


def test_announced_silence_never_shortens_the_window_or_the_look_out(desk: Desk) -> None:
    desk.box()
    lease = desk.take(wish(ttl=10, window=200))
    desk.now = 5.0
    desk.report(lease, busy=1.0)
    desk.now = 20.0
    desk.beat(lease)
    # Where the window ended early, this beat would move the deadline before the moment of the next look.
    assert lease.deadline == 200.0
    desk.at(195.0)
    desk.beat(lease)
    assert desk.arbiter.next_deadline() == 200.0
    desk.at(200.0)
    assert state_of(lease) is LeaseState.SUSPECT
    desk.at(205.0)
    assert lease.end_reason is EndReason.EXPIRED


def test_many_leases_expire_in_bounded_steps(desk: Desk) -> None:
    desk.box(1000)
    leases = [desk.take(wish("w", 0.001, ttl=5)) for _ in range(50)]
    desk.at(4.0)
    steps = 1
    while desk.arbiter.advance(5.0, limit=8):
        steps += 1
        ended = sum(not lease.alive for lease in leases)
        assert ended <= 8 * steps
    assert steps == 7
    assert not any(lease.alive for lease in leases)
    assert [lease.ended_at for lease in leases] == [5.0] * 50


def test_deadline_is_never_late_when_leases_come_and_go(desk: Desk) -> None:
    desk.box(1000)
    lasting = desk.take(wish("w", 1, ttl=50))
    for moment in range(1, 150):
        desk.now = moment / 100
        desk.release(desk.take(wish("w", 0.001, ttl=300)))
    assert desk.arbiter.next_deadline() == 25.0
    desk.at(25.0)
    assert lasting.suspect


def test_time_that_goes_back_is_read_as_standing_still(desk: Desk) -> None:
    desk.box()
    lease = desk.take(wish(ttl=10))
    desk.at(9.0)
    desk.now = 2.0
    desk.beat(lease)
    assert lease.deadline == 19.0


def test_nothing_is_due_when_there_is_nothing(desk: Desk) -> None:
    assert desk.arbiter.next_deadline() is None
    assert not desk.arbiter.advance(1000.0)
    desk.collect()
    assert desk.effects == []
