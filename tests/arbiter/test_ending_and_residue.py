"""The end of a lease ends its authority only: its bytes are free when they are measured gone, and not before."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arbiter_sidecar.types import Attribution, EndReason, EventKind, LeaseState
from tests.arbiter.desk import Desk, gib, wish


def test_bytes_are_free_when_nothing_was_measured_three_times_over_a_third_of_a_second(desk: Desk) -> None:
    device = desk.card(20)
    lease = desk.take(wish("a", 16, rigid=True, pids=(1,)))
    desk.sample({1: 16.0})
    waiting = desk.ask(wish("b", 6, rigid=True, wait=60))
    desk.release(lease)
    assert device.residue_bytes == gib(16)
    for moment in (0.1, 0.2, 0.3):
        desk.now = moment
        desk.sample({1: 0.0})
        # Three are not enough: all of them lie within two tenths.
        assert device.residue_bytes == gib(16)
        assert desk.waits(waiting)
    desk.now = 0.5
    desk.sample({1: 0.0})
    assert device.residue_bytes == 0
    assert desk.drained(lease)
    assert desk.lease(waiting).alive
    (event,) = desk.events(EventKind.LEASE_DRAINED)
    assert event.fields == {"drained_s": "0.5"}


def test_two_samples_are_not_enough_however_far_they_lie_apart(desk: Desk) -> None:
    device = desk.card(20)
    lease = desk.take(wish("a", 16, pids=(1,)))
    desk.release(lease)
    for moment in (1.0, 5.0):
        desk.now = moment
        desk.sample({1: 0.0})
        assert device.residue_bytes == gib(16)
    desk.now = 5.1
    desk.sample({1: 0.0})
    assert desk.drained(lease)


def test_count_begins_again_when_bytes_are_seen(desk: Desk) -> None:
    device = desk.card(20)
    lease = desk.take(wish("a", 16, pids=(1,)))
    desk.release(lease)
    for moment, held in ((0.2, 0.0), (0.4, 0.0), (0.6, 3.0), (0.8, 0.0), (1.0, 0.0)):
        desk.now = moment
        desk.sample({1: held})
        assert not desk.drained(lease)
    # The missed readings freed nothing; the real one did.
    assert device.residue_bytes == gib(3)
    desk.now = 1.2
    desk.sample({1: 0.0})
    assert desk.drained(lease)


def test_sample_from_before_the_end_teaches_nothing(desk: Desk) -> None:
    device = desk.card(20)
    lease = desk.take(wish("a", 16, pids=(1,)))
    desk.now = 5.0
    desk.release(lease)
    for taken_at in (4.0, 4.5, 4.9):
        desk.sample({1: 0.0}, taken_at=taken_at)
    assert (device.residue_bytes, lease.zero_samples) == (gib(16), 0)


@pytest.mark.parametrize("held", [None, "missing"])
def test_unknown_is_never_zero(desk: Desk, held: str | None) -> None:
    device = desk.card(20)
    ended, living = desk.take(wish("a", 6, pids=(1,))), desk.take(wish("b", 6, pids=(2,)))
    desk.sample({1: 6.0, 2: 9.0})
    desk.release(ended)
    for tenth in range(1, 20):
        desk.now = tenth / 10
        desk.sample({} if held else {1: None, 2: None})
    assert device.residue_bytes == gib(6)
    # What the living one was seen to hold beyond its grant stays charged as well.
    assert living.measured_bytes == gib(9)
    assert device.accounted_bytes == gib(9)


@pytest.mark.parametrize("end", ["release", "expire", "exit", "cancel"])
def test_bytes_stay_charged_however_the_lease_ends(desk: Desk, end: str) -> None:
    device = desk.card(20)
    ticket = desk.ask(wish("a", 16, rigid=True, pids=(1,), ttl=1))
    lease = desk.lease(ticket)
    desk.sample({1: 16.0})
    if end == "release":
        desk.release(lease)
    elif end == "expire":
        desk.at(1.0)
    elif end == "exit":
        desk.exit(1)
    else:
        desk.cancel(ticket)
    assert (lease.state, lease.charged_bytes) == (LeaseState.ENDED, gib(16))
    assert (device.granted_bytes, device.residue_bytes, device.available_bytes) == (0, gib(16), gib(4))
    (event,) = desk.events(EventKind.LEASE_ENDED)
    assert event.fields["residue_bytes"] == str(gib(16))


def test_partial_fall_is_free_as_measured(desk: Desk) -> None:
    device = desk.card(20)
    lease = desk.take(wish("a", 16, pids=(1,)))
    desk.release(lease)
    desk.sample({1: 10.0})
    assert device.residue_bytes == gib(10)
    desk.sample({1: 12.0})
    assert device.residue_bytes == gib(12)


def test_residue_is_what_was_measured_when_that_was_more(desk: Desk) -> None:
    device = desk.card(20)
    lease = desk.take(wish("a", 6, pids=(1,)))
    desk.sample({1: 8.0})
    desk.release(lease)
    assert device.residue_bytes == gib(8)


# What keeps its memory too long -------------------------------------------------------------------------------------


def test_alarm_is_raised_once_when_bytes_stay_beyond_the_grace(desk: Desk) -> None:
    desk.card(20)
    lease = desk.take(wish("a", 6, pids=(1,)))
    desk.release(lease)
    desk.live(9.9, held={1: 6.0})
    assert not desk.events(EventKind.RESIDUE_ALARM)
    desk.live(60.0, held={1: 6.0})
    (event,) = desk.events(EventKind.RESIDUE_ALARM)
    assert event.fields == {"residue_bytes": str(gib(6))}
    assert lease.residue_alarmed
    assert desk.device("gpu").residue_bytes == gib(6)


def test_no_alarm_is_raised_when_the_bytes_went_in_time(desk: Desk) -> None:
    desk.card(20)
    lease = desk.take(wish("a", 6, pids=(1,)))
    desk.release(lease)
    desk.live(20.0, held={1: 0.0})
    assert desk.drained(lease)
    assert not desk.events(EventKind.RESIDUE_ALARM)


def test_others_shrink_for_a_ghost_only_when_the_grace_is_over(desk: Desk) -> None:
    desk.card(24)
    stays, ghost = desk.take(wish("a", 12, pids=(1,), ttl=300)), desk.take(wish("b", 12, pids=(2,), ttl=300))
    desk.apply(stays, ghost)
    desk.release(ghost)
    desk.live(9.9, held={1: 10.2, 2: 12.0})
    # It had been told to use 10.2 GiB: so much is planned with.
    assert stays.quality == 0.85
    desk.live(10.0, held={1: 10.2, 2: 12.0})
    assert stays.quality == 0.7


# What cannot be traced ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ttl", "delay"), [(3.0, 30.0), (15.0, 30.0), (40.0, 80.0)])
def test_bytes_are_held_for_the_lock_delay_when_nothing_is_measured(desk: Desk, ttl: float, delay: float) -> None:
    device = desk.box(20)
    lease = desk.take(wish("a", 16, rigid=True, ttl=ttl, pids=(1,)))
    waiting = desk.ask(wish("b", 6, rigid=True, wait=200))
    desk.release(lease)
    desk.at(delay - 0.1)
    assert device.residue_bytes == gib(16)
    desk.at(delay)
    assert desk.drained(lease)
    assert desk.lease(waiting).alive
    assert not desk.events(EventKind.RESIDUE_ALARM)


def test_bytes_are_held_for_the_lock_delay_when_the_holder_cannot_be_seen(desk: Desk) -> None:
    device = desk.card(20)
    lease = desk.take(wish("a", 16, pids=(1,), hidden=True))
    desk.release(lease)
    desk.live(29.9, held={1: 0.0})
    assert device.residue_bytes == gib(16)
    desk.live(30.0, held={1: 0.0})
    assert desk.drained(lease)


def test_bytes_that_are_still_there_after_the_lock_delay_become_foreign(desk: Desk) -> None:
    device = desk.add("gpu", 24, Attribution.DEVICE_ONLY)
    desk.sample({}, foreign=None, used=0.0)
    lease = desk.take(wish("a", 20, rigid=True, pids=(1,)))
    waiting = desk.ask(wish("b", 20, rigid=True, wait=200))
    desk.release(lease)
    for moment in range(1, 31):
        desk.now = float(moment)
        desk.sample({}, foreign=None, used=20.0)
        desk.at(desk.now)
    assert desk.drained(lease)
    # The delay is over, but the card shows them: nobody may have them a second time.
    assert desk.waits(waiting)
    assert (device.residue_bytes, device.foreign_bytes, device.available_bytes) == (0, gib(20), gib(4))
    for moment in range(31, 60):
        desk.now = float(moment)
        desk.sample({}, foreign=None, used=0.0)
    assert desk.lease(waiting).alive


def test_bytes_that_are_gone_after_the_lock_delay_are_free(desk: Desk) -> None:
    device = desk.add("gpu", 24, Attribution.DEVICE_ONLY)
    desk.sample({}, foreign=None, used=0.0)
    lease = desk.take(wish("a", 20, rigid=True, pids=(1,)))
    desk.release(lease)
    desk.sample({}, foreign=None, used=0.0)
    desk.at(30.0)
    assert (device.residue_bytes, device.foreign_bytes, device.available_bytes) == (0, 0, gib(24))


def test_ceiling_does_not_jump_when_the_lock_delay_is_over(desk: Desk) -> None:
    device = desk.add("gpu", 24, Attribution.DEVICE_ONLY)
    desk.sample({}, foreign=None, used=0.0)
    desk.release(desk.take(wish("a", 4, rigid=True, pids=(1,))))
    desk.now = 30.0
    desk.sample({}, foreign=None, used=16.0)
    desk.sample({}, foreign=None, used=4.0)
    assert device.ceiling_bytes == gib(15)
    desk.at(30.0)
    # The 4 GiB that are left are foreign now, and strangers' memory comes back by quarters as ever.
    assert (device.residue_bytes, device.foreign_bytes, device.ceiling_bytes) == (0, gib(4), gib(15))


# Processes ----------------------------------------------------------------------------------------------------------


def test_lease_ends_when_its_last_process_exits(desk: Desk) -> None:
    desk.card(20)
    lease = desk.take(wish("a", 6, pids=(1, 2)))
    desk.exit(1)
    assert lease.alive
    desk.exit(2)
    assert lease.end_reason is EndReason.ORPHANED
    assert desk.books.stats.orphaned == 1


def test_lease_lives_on_when_the_same_exit_is_told_twice(desk: Desk) -> None:
    desk.card(20)
    lease, other = desk.take(wish("a", 6, pids=(1, 2))), desk.take(wish("b", 6, pids=(1,)))
    # Two leases name the process, so it may be watched twice.
    desk.exit(1)
    desk.exit(1)
    assert not other.alive
    assert lease.alive
    assert desk.books.stats.orphaned == 1


def test_lease_lives_on_when_some_processes_cannot_be_seen(desk: Desk) -> None:
    desk.card(20)
    lease = desk.take(replace(wish("a", 6, pids=(1,)), pids=(1, 2)))
    desk.exit(1)
    assert lease.alive


def test_exit_of_an_unknown_process_changes_nothing(desk: Desk) -> None:
    desk.card(20)
    desk.take(wish("a", 6, pids=(1,)))
    before = desk.picture()
    desk.exit(9)
    assert desk.picture() == before


def test_exit_after_the_end_changes_nothing(desk: Desk) -> None:
    desk.card(20)
    lease = desk.take(wish("a", 6, pids=(1,)))
    desk.release(lease)
    desk.exit(1)
    assert lease.end_reason is EndReason.RELEASED
    assert len(desk.events(EventKind.LEASE_ENDED)) == 1


# Two leases of one process ------------------------------------------------------------------------------------------


def test_living_lease_is_filled_first_when_another_of_the_process_has_ended(desk: Desk) -> None:
    device = desk.card(24)
    ended, living = desk.take(wish("a", 10, pids=(1,), ttl=300)), desk.take(wish("b", 5, pids=(1,), ttl=300))
    desk.sample({1: 15.0})
    assert (ended.measured_bytes, living.measured_bytes) == (gib(10), gib(5))
    desk.release(ended)
    desk.sample({1: 12.0})
    assert (living.measured_bytes, ended.residue_bytes) == (gib(5), gib(7))
    for tenth in range(1, 5):
        desk.now = tenth / 10
        desk.sample({1: 4.0})
    assert desk.drained(ended)
    assert (device.residue_bytes, device.accounted_bytes, living.measured_bytes) == (0, gib(5), gib(4))


def test_both_leases_end_when_their_process_exits(desk: Desk) -> None:
    device = desk.card(24)
    leases = [desk.take(wish(name, 5, pids=(1,))) for name in "ab"]
    desk.exit(1)
    assert [lease.end_reason for lease in leases] == [EndReason.ORPHANED] * 2
    assert device.residue_bytes == gib(10)
    for tenth in range(1, 5):
        desk.now = tenth / 10
        desk.sample({1: 0.0})
    assert all(desk.drained(lease) for lease in leases)
