"""What a worker holds already does not stand in its own way, and is nobody else's for that."""

from __future__ import annotations

import pytest

from arbiter_sidecar import errors
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.ledger.own_memory import NOTHING
from arbiter_sidecar.types import Attribution, EventKind, Guest, Priority
from tests.arbiter.desk import Desk, gib, process, qualities, wish


def _refused(desk: Desk, size: float, *pids: int) -> bool:
    """Whether somebody who does not wait is told that so much is not free."""
    return isinstance(desk.error(desk.ask(wish("other", size, rigid=True, pids=pids))), errors.InsufficientMemory)


# Loaded before it asks ------------------------------------------------------------------------------------------------


def test_memory_that_was_loaded_first_is_not_needed_again(desk: Desk) -> None:
    device = desk.card(9)
    desk.sample({}, foreign=6.0, guests={1: 6.0})
    assert (device.available_bytes, device.foreign_bytes) == (gib(3), gib(6))
    lease = desk.take(wish("loaded", 6, rigid=True, pids=(1,)))
    assert (lease.charged_bytes, lease.measured_bytes, lease.quality) == (gib(6), gib(6), 1.0)
    assert (device.foreign_bytes, device.ceiling_bytes, device.available_bytes) == (0, gib(9), gib(3))
    assert device.guests == {}
    desk.sample({1: 6.0})
    assert (device.foreign_bytes, device.ceiling_bytes, device.available_bytes) == (0, gib(9), gib(3))


def test_it_is_as_taken_as_ever_for_everybody_else(desk: Desk) -> None:
    desk.card(9)
    desk.sample({}, foreign=6.0, guests={1: 6.0})
    assert _refused(desk, 6, 2)
    assert _refused(desk, 6)
    assert _refused(desk, 3.1, 2)
    assert desk.take(wish("small", 3, rigid=True, pids=(2,))).alive
    # Nor may they have what the first, which still asks for nothing, would not need again.
    assert _refused(desk, 0.1, 2)


@pytest.mark.parametrize(("size", "granted"), [(4.0, True), (4.1, False), (5.0, False)])
def test_only_the_rest_is_needed_when_it_holds_a_part(desk: Desk, size: float, granted: bool) -> None:
    device = desk.card(9)
    desk.sample({}, foreign=7.0, guests={1: 2.0})
    assert device.available_bytes == gib(2)
    ticket = desk.ask(wish("loaded", size, rigid=True, pids=(1,)))
    if granted:
        assert desk.lease(ticket).alive
        assert (device.foreign_bytes, device.available_bytes) == (gib(5), 0)
    else:
        assert isinstance(desk.error(ticket), errors.InsufficientMemory)
        assert (device.foreign_bytes, device.available_bytes) == (gib(7), gib(2))


def test_all_that_it_holds_is_charged_when_that_is_more_than_it_asks_for(desk: Desk) -> None:
    device = desk.card(9)
    desk.sample({}, foreign=8.0, guests={1: 8.0})
    lease = desk.take(wish("loaded", 6, rigid=True, pids=(1,)))
    assert (lease.charged_bytes, lease.measured_bytes, lease.overrun_bytes) == (gib(6), gib(8), gib(2))
    assert (device.foreign_bytes, device.ceiling_bytes, device.available_bytes) == (0, gib(9), gib(1))
    assert _refused(desk, 1.1, 2)


def test_it_waits_when_more_is_resident_than_may_be_leased(desk: Desk) -> None:
    device = desk.card(9)
    desk.sample({}, foreign=9.5, guests={1: 9.5})
    ticket = desk.ask(wish("loaded", 6, rigid=True, pids=(1,), wait=30))
    assert desk.waits(ticket)
    desk.sample({}, foreign=9.0, guests={1: 9.0})
    assert desk.lease(ticket).measured_bytes == gib(9)
    assert (device.foreign_bytes, device.ceiling_bytes, device.available_bytes) == (0, gib(9), 0)


def test_nobody_is_lowered_for_what_is_there_already(desk: Desk) -> None:
    desk.card(10)
    desk.sample({}, foreign=6.0, guests={1: 6.0})
    beside = desk.take(wish("beside", 2, pids=(2,)))
    desk.sample({2: 2.0}, foreign=6.0, guests={1: 6.0})
    loaded = desk.take(wish("loaded", 6, pids=(1,)))
    for _ in range(3):
        desk.sample({1: 6.0, 2: 2.0})
        assert qualities([beside, loaded]) == [1.0, 1.0]
    assert not desk.events(EventKind.QUALITY_CHANGED)


def test_nobody_is_lowered_while_it_waits_for_the_rest(desk: Desk) -> None:
    # Without its own 4 GiB the newcomer would be planned for 12 of 10 and everybody be lowered to the minimum.
    device = desk.card(10)
    desk.sample({}, foreign=4.0, guests={1: 4.0})
    beside = desk.take(wish("beside", 3, pids=(2,)))
    desk.sample({2: 3.0}, foreign=4.0, guests={1: 4.0})
    ticket = desk.ask(wish("loaded", 5, pids=(1,), wait=30))
    assert (desk.lease(ticket).quality, device.foreign_bytes) == (1.0, 0)
    assert beside.quality == 1.0


def test_two_processes_count_together_and_only_when_both_could_be_read(desk: Desk) -> None:
    desk.card(9)
    desk.sample({}, foreign=6.0, guests={1: 2.0})
    assert desk.device("gpu").own(wish("loaded", 6, pids=(1, 2))) is NOTHING
    assert _refused(desk, 6, 1, 2)
    desk.sample({}, foreign=6.0, guests={1: 2.0, 2: 4.0})
    assert desk.take(wish("loaded", 6, rigid=True, pids=(1, 2))).measured_bytes == gib(6)


def test_process_that_holds_nothing_is_like_one_nobody_asked_about(desk: Desk) -> None:
    device = desk.card(9)
    desk.sample({}, guests={1: 0.0})
    assert device.knows(wish("fresh", 6, pids=(1,)))
    assert device.own(wish("fresh", 6, pids=(1,))) is NOTHING
    assert desk.take(wish("fresh", 6, rigid=True, pids=(1,))).measured_bytes is None


def test_sample_that_was_under_way_at_the_grant_does_not_count_it_twice(desk: Desk) -> None:
    device = desk.card(9)
    desk.sample({}, foreign=6.0, guests={1: 6.0})
    beside = desk.take(wish("beside", 1, pids=(2,)))
    desk.take(wish("loaded", 6, rigid=True, pids=(1,)))
    desk.sample({2: 1.0}, foreign=6.0, guests={1: 6.0})
    assert (device.foreign_bytes, device.ceiling_bytes, device.available_bytes) == (0, gib(9), gib(2))
    assert beside.quality == 1.0
    assert device.guests == {}


def test_ceiling_rises_at_once_by_what_turns_out_to_be_a_new_leases(desk: Desk) -> None:
    # Granted on the spot, because there was room for both; nobody had asked what the process holds.
    device = desk.card(20)
    desk.sample({}, foreign=6.0)
    desk.take(wish("loaded", 6, rigid=True, pids=(1,)))
    desk.sample({1: 6.0}, foreign=0.0)
    assert (device.ceiling_bytes, device.available_bytes) == (gib(20), gib(14))
    # What a stranger lets go is believed slowly, as ever.
    desk.sample({1: 6.0}, foreign=4.0)
    desk.sample({1: 6.0}, foreign=0.0)
    assert device.ceiling_bytes == gib(17)


def test_nothing_is_ones_own_of_a_foreign_use_that_is_not_known(desk: Desk) -> None:
    device = desk.card(9)
    desk.sample({}, foreign=6.0, guests={1: 6.0})
    desk.sample({}, foreign=None, guests={1: 6.0})
    assert device.guests == {}
    assert _refused(desk, 6, 1)


def test_guests_of_a_lost_device_are_forgotten(desk: Desk) -> None:
    device = desk.card(9)
    desk.sample({}, foreign=6.0, guests={1: 6.0})
    assert device.guests == {process(1): Guest(gib(6), gib(6))}
    desk.sample({}, lost=True)
    assert device.guests == {}
    assert not device.knows(wish("loaded", 6, pids=(1,)))


@pytest.mark.parametrize("attribution", [Attribution.DEVICE_ONLY, Attribution.SELF_REPORTED])
def test_nothing_is_anybodys_own_where_processes_are_not_measured(desk: Desk, attribution: Attribution) -> None:
    device = desk.add("gpu", 9, attribution)
    desk.sample({}, foreign=None, used=6.0, guests={1: 6.0})
    request = wish("loaded", 6, rigid=True, pids=(1,))
    assert device.knows(request), "no sample would tell more"
    assert device.own(request) is NOTHING


def test_time_it_took_to_be_measured_counts_as_waiting(desk: Desk) -> None:
    desk.card(9)
    desk.now = 4.0
    desk.sample({}, foreign=6.0)
    ticket = desk.arbiter.allocate(wish("late", 6, rigid=True, pids=(1,), wait=3), desk.now, since=3.5)
    desk.collect()
    desk.at(6.4)
    assert desk.waits(ticket)
    desk.at(6.5)
    error = desk.error(ticket)
    assert isinstance(error, errors.WaitTimeout)
    assert error.metadata()["waited_ms"] == "3000"


# Memory of the machine that does not count as foreign -----------------------------------------------------------------


def test_machine_need_not_have_again_what_a_process_holds_uncounted(desk: Desk) -> None:
    device = desk.card(9)
    desk.sample({}, guests={1: 6.0}, guests_count=False, available=1.0)
    assert (device.foreign_bytes, device.available_bytes) == (0, gib(9))
    assert _refused(desk, 6, 2)
    lease = desk.take(wish("loaded", 7, rigid=True, pids=(1,)))
    assert (lease.measured_bytes, device.available_bytes) == (gib(6), gib(2))
    # The last GiB of the machine is the one it has not taken yet.
    assert _refused(desk, 0.1, 2)


def test_machine_must_have_what_is_missing_of_it(desk: Desk) -> None:
    desk.card(9)
    desk.sample({}, guests={1: 6.0}, guests_count=False, available=1.0)
    assert _refused(desk, 7.1, 1)


# Leased before --------------------------------------------------------------------------------------------------------


def _former(desk: Desk, *pids: int, size: float = 6.0) -> Lease:
    """A lease that was released, of which everything was measured to be there still."""
    lease = desk.take(wish("worker", size, rigid=True, pids=pids))
    held = dict.fromkeys(pids, size / len(pids))
    desk.sample(held)
    desk.release(lease)
    desk.sample(held)
    return lease


def test_released_memory_is_its_own_when_a_worker_leases_again(desk: Desk) -> None:
    device = desk.card(9)
    former = _former(desk, 1)
    assert (device.residue_bytes, device.available_bytes) == (gib(6), gib(3))
    assert _refused(desk, 6, 2)
    lease = desk.take(wish("worker", 6, rigid=True, pids=(1,)))
    assert desk.drained(former)
    assert desk.books.leases.get(former.lease_id) is None
    assert (lease.charged_bytes, lease.measured_bytes) == (gib(6), gib(6))
    assert (device.residue_bytes, device.accounted_bytes, device.available_bytes) == (0, gib(6), gib(3))
    desk.sample({1: 6.0})
    assert (device.foreign_bytes, device.available_bytes) == (0, gib(3))


def test_memory_of_an_expired_lease_is_its_own_when_the_frozen_worker_wakes_up(desk: Desk) -> None:
    device = desk.card(9)
    former = desk.take(wish("worker", 6, rigid=True, pids=(1,), ttl=3))
    desk.live(30.0, held={1: 6.0})
    assert former.residue_alarmed
    lease = desk.take(wish("worker", 8, rigid=True, pids=(1,)))
    assert (lease.measured_bytes, device.residue_bytes, device.available_bytes) == (gib(6), 0, gib(1))


def test_no_byte_comes_free_when_it_leases_less_than_it_kept(desk: Desk) -> None:
    device = desk.card(9)
    _former(desk, 1)
    lease = desk.take(wish("worker", 2, rigid=True, pids=(1,)))
    assert (lease.charged_bytes, lease.measured_bytes, device.available_bytes) == (gib(2), gib(6), gib(3))
    assert _refused(desk, 3.1, 2)
    desk.sample({1: 2.0})
    assert device.available_bytes == gib(7)


def test_no_byte_comes_free_that_was_held_and_not_yet_measured_since(desk: Desk) -> None:
    device = desk.card(9)
    former = desk.take(wish("worker", 6, rigid=True, pids=(1,)))
    desk.sample({1: 1.0})
    desk.release(former)
    assert device.residue_bytes == gib(6)
    lease = desk.take(wish("worker", 2, rigid=True, pids=(1,)))
    assert (lease.charged_bytes, device.accounted_bytes, device.available_bytes) == (gib(2), gib(6), gib(3))
    desk.sample({1: 1.0})
    assert (device.accounted_bytes, device.available_bytes) == (gib(2), gib(7))


def test_memory_of_a_lease_with_others_is_not_ones_own(desk: Desk) -> None:
    device = desk.card(9)
    former = _former(desk, 1, 2)
    assert _refused(desk, 6, 1)
    assert device.residue_bytes == gib(6)
    assert desk.take(wish("both", 6, rigid=True, pids=(2, 1))).alive
    assert desk.drained(former)


def test_memory_that_was_never_read_is_nobodys_own_before_it_is(desk: Desk) -> None:
    device = desk.card(9)
    former = desk.take(wish("worker", 6, rigid=True, pids=(1,)))
    desk.release(former)
    ticket = desk.ask(wish("worker", 6, rigid=True, pids=(1,), wait=30))
    assert desk.waits(ticket)
    desk.sample({1: 5.0})
    lease = desk.lease(ticket)
    assert (lease.measured_bytes, device.residue_bytes, device.available_bytes) == (gib(5), 0, gib(3))
    assert desk.drained(former)


def test_machine_must_have_what_was_held_and_is_not_there(desk: Desk) -> None:
    desk.card(9)
    former = desk.take(wish("worker", 6, rigid=True, pids=(1,)))
    desk.sample({1: 1.0}, available=4.0)
    desk.release(former)
    assert _refused(desk, 6, 1)
    desk.sample({1: 1.0}, available=5.0)
    assert desk.take(wish("worker", 6, rigid=True, pids=(1,))).alive


def test_former_and_loaded_memory_count_together(desk: Desk) -> None:
    device = desk.card(9)
    _former(desk, 1, size=4.0)
    desk.sample({1: 4.0}, foreign=3.0, guests={2: 3.0})
    lease = desk.take(wish("worker", 8, rigid=True, pids=(1, 2)))
    assert (lease.measured_bytes, device.foreign_bytes, device.available_bytes) == (gib(7), 0, gib(1))


def test_estimated_foreign_use_is_right_after_the_grant(desk: Desk) -> None:
    device = desk.card(9)
    former = _former(desk, 1)
    desk.sample({1: 6.0}, foreign=None, used=7.0)
    assert (device.foreign_estimated, device.foreign_bytes) == (True, gib(1))
    desk.take(wish("worker", 6, rigid=True, pids=(1,)))
    assert desk.drained(former)
    assert (device.foreign_bytes, device.ceiling_bytes, device.available_bytes) == (gib(1), gib(8), gib(2))


# Preemption -----------------------------------------------------------------------------------------------------------


def test_others_are_asked_for_all_that_its_own_does_not_cover(desk: Desk) -> None:
    device = desk.card(10)
    donor = desk.take(wish("donor", 5, rigid=True, pids=(2,), priority=Priority.BACKGROUND, ttl=300))
    desk.now = 40.0
    desk.sample({2: 5.0})
    _former(desk, 1, size=4.0)
    ticket = desk.ask(wish("worker", 8, rigid=True, pids=(1,), priority=Priority.HIGH, may_preempt=True, wait=60))
    plan = device.plan
    assert plan is not None
    # 8 + 5 of 10 are 3 too many; the 4 that it holds itself are among the 8 and do not come back beside them.
    assert plan.need_bytes == gib(3)
    assert donor.leaving
    desk.release(donor)
    desk.live(41.0, held={1: 4.0, 2: 0.0})
    assert desk.lease(ticket).measured_bytes == gib(4)
    assert device.available_bytes == gib(2)


def test_bytes_on_their_way_to_another_are_not_the_donors_own(desk: Desk) -> None:
    device = desk.card(10)
    donor = desk.take(wish("donor", 6, rigid=True, pids=(1,), priority=Priority.BACKGROUND, ttl=300))
    taking = desk.take(wish("taking", 2, rigid=True, pids=(2,), priority=Priority.HIGH, ttl=300))
    desk.now = 40.0
    desk.sample({1: 6.0, 2: 2.0})
    ticket = desk.preempt(6, taking)
    assert donor.leaving
    desk.release(donor)
    desk.sample({1: 6.0, 2: 2.0})
    assert device.own(wish("donor", 6, pids=(1,))) is NOTHING
    assert _refused(desk, 6, 1)
    desk.live(41.0, taking, held={1: 0.0, 2: 2.0})
    assert desk.plan_of(ticket).confirmed_bytes == gib(6)
    assert taking.limit_bytes == gib(8)
