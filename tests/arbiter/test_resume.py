"""The machine slept: nobody loses a lease for it, and nothing is granted before the devices were measured anew."""

from __future__ import annotations

import pytest

from arbiter_sidecar import errors
from arbiter_sidecar.types import DeviceHealth, EventKind
from tests.arbiter.desk import Desk, wish


def resume(desk: Desk, slept_s: float = 3600.0) -> None:
    """The machine has just woken up."""
    desk.arbiter.resumed(slept_s, desk.now)
    desk.collect()


def measured(desk: Desk, held: dict[int, float | None] | None = None) -> None:
    """One more sample of the card, taken now."""
    desk.sample(held or {})


def test_lease_gets_one_interval_more_when_the_machine_has_slept(desk: Desk) -> None:
    desk.box()
    short, long = desk.take(wish(ttl=9.0)), desk.take(wish(ttl=30.0))
    desk.at(8.0)
    resume(desk, 3600.1234)
    assert (short.deadline, long.deadline) == (12.0, 40.0)
    (event,) = desk.events(EventKind.RESUMED)
    assert event.fields == {"slept_s": "3600.123", "leases": "2"}
    desk.at(11.9)
    assert short.alive
    desk.at(12.0)
    assert not short.alive


def test_renewal_counts_from_its_own_time_when_it_comes_after_the_sleep(desk: Desk) -> None:
    desk.box()
    lease = desk.take(wish(ttl=9.0))
    resume(desk)
    desk.now = 10.0
    desk.beat(lease)
    assert lease.deadline == 19.0


def test_lease_stays_dead_when_its_time_was_up_before_the_sleep(desk: Desk) -> None:
    desk.box()
    late, ended = desk.take(wish(ttl=9.0)), desk.take(wish(ttl=9.0))
    desk.release(ended)
    desk.now = 9.0
    resume(desk)
    desk.at(9.0)
    assert not late.alive
    assert ended.deadline == 9.0


def test_nothing_is_granted_before_the_next_sample_when_the_machine_has_slept(desk: Desk) -> None:
    device = desk.card(24)
    measured(desk)
    desk.now = 1.0
    resume(desk)
    assert device.health(desk.now) is DeviceHealth.UNKNOWN
    assert isinstance(desk.error(desk.ask(wish())), errors.DeviceStale)
    waits = desk.ask(wish(wait=60.0))
    assert desk.waits(waits)
    desk.now = 1.5
    desk.sample({}, taken_at=0.9)
    assert desk.waits(waits), "measured before the machine woke up"
    measured(desk)
    assert desk.lease(waits).alive
    assert [event.fields["health"] for event in desk.events(EventKind.DEVICE_CHANGED)] == ["OK", "UNKNOWN", "OK"]


def test_bytes_stay_charged_when_only_an_old_sample_shows_them_gone(desk: Desk) -> None:
    device = desk.card(24)
    lease = desk.take(wish(size=8.0, pids=(1,)))
    measured(desk, {1: 8.0})
    desk.release(lease)
    desk.now = 1.0
    resume(desk)
    for tenth in range(1, 10):
        desk.now += 0.5
        desk.sample({1: 0.0}, taken_at=tenth / 10)
    assert device.residue_bytes == lease.residue_bytes > 0
    for _ in range(3):
        desk.now += 0.5
        measured(desk, {1: 0.0})
    assert desk.drained(lease)


def test_device_without_measurements_grants_at_once_when_the_machine_has_slept(desk: Desk) -> None:
    desk.box()
    resume(desk)
    assert desk.take(wish()).alive


@pytest.mark.parametrize("leases", [0, 1])
def test_sleep_is_always_told(desk: Desk, leases: int) -> None:
    desk.box()
    for _ in range(leases):
        desk.take(wish())
    resume(desk)
    assert desk.events(EventKind.RESUMED)[0].fields["leases"] == str(leases)
