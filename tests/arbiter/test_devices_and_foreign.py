"""Devices: what is measured is believed as long as it is fresh, and strangers' memory comes first."""

from __future__ import annotations

import pytest

from arbiter_sidecar import errors
from arbiter_sidecar.types import (
    Attribution,
    DeviceHealth,
    DeviceId,
    EndReason,
    EventKind,
    PressureLevel,
    Verdict,
)
from tests.arbiter.desk import Desk, gib, qualities, wish


def test_ceiling_falls_at_once_and_recovers_by_quarters(desk: Desk) -> None:
    device = desk.card(36)
    ceilings = []
    for foreign in (6.0, 12.0, 0.0, 0.0):
        desk.sample({}, foreign=foreign)
        ceilings.append(device.ceiling_bytes / gib(1))
    assert ceilings == [30.0, 24.0, 27.0, 29.25]


def test_ceiling_is_never_negative(desk: Desk) -> None:
    device = desk.card(10)
    desk.sample({}, foreign=12.0)
    assert device.ceiling_bytes == 0
    assert device.available_bytes == 0


def test_foreign_use_is_what_no_holder_accounts_for(desk: Desk) -> None:
    device = desk.card(24)
    desk.take(wish("a", 10, pids=(1,)))
    desk.sample({1: 4.0}, foreign=None, used=6.0)
    assert device.foreign_bytes == gib(2)
    assert device.foreign_estimated
    assert device.pressure == pytest.approx(12 / 24)


def test_foreign_use_is_estimated_when_only_the_device_is_measured(desk: Desk) -> None:
    device = desk.add("gpu", 24, Attribution.DEVICE_ONLY)
    assert device.foreign_estimated
    desk.sample({}, foreign=None, used=3.0)
    assert device.foreign_bytes == gib(3)
    lease = desk.take(wish("a", 10, rigid=True, pids=(1,)))
    # Up to its grant the use is taken to be the holder's.
    desk.sample({1: 1.0}, foreign=None, used=9.0)
    assert (device.foreign_bytes, lease.measured_bytes) == (0, None)
    desk.sample({1: 1.0}, foreign=None, used=13.0)
    assert device.foreign_bytes == gib(3)


def test_foreign_growth_lowers_targets_at_once_and_its_fall_raises_them_slowly(desk: Desk) -> None:
    desk.card(24)
    llm = desk.take(wish("llm", 12, pids=(1,), ttl=300))
    image = desk.take(wish("image", 8, pids=(2,), ttl=300))
    assert qualities([llm, image]) == [1.0, 1.0]
    desk.sample({1: 12.0, 2: 8.0}, foreign=4.0)
    assert qualities([llm, image]) == [0.82, 0.82]
    desk.live(4.9, held={1: 9.84, 2: 6.56})
    assert qualities([llm, image]) == [0.82, 0.82]
    desk.live(20.0, held={1: 9.84, 2: 6.56})
    assert qualities([llm, image]) == [1.0, 1.0]


def test_nothing_is_granted_when_strangers_hold_the_memory(desk: Desk) -> None:
    desk.card(24)
    desk.sample({}, foreign=20.0)
    assert isinstance(desk.error(desk.ask(wish("a", 10, rigid=True))), errors.InsufficientMemory)
    assert desk.take(wish("b", 4, rigid=True)).alive
    # Now they grow over what was granted; the lease lives on, nothing more is granted.
    desk.sample({}, foreign=23.0)
    assert desk.device("gpu").available_bytes == -gib(3)
    assert isinstance(desk.error(desk.ask(wish("c", 0.1, rigid=True))), errors.InsufficientMemory)


def test_grant_needs_the_memory_on_the_machine_too(desk: Desk) -> None:
    desk.card(24)
    holder = desk.take(wish("a", 6, rigid=True, pids=(1,)))
    # The first may still take 4 GiB of the 9 that the machine has.
    desk.sample({1: 2.0}, available=9.0)
    assert isinstance(desk.error(desk.ask(wish("b", 6, rigid=True))), errors.InsufficientMemory)
    assert desk.take(wish("c", 5, rigid=True)).alive
    assert holder.alive
    desk.sample({1: 2.0}, available=None)
    assert desk.take(wish("d", 6, rigid=True)).alive


# Fresh, stale, frozen, lost -----------------------------------------------------------------------------------------


def test_nothing_is_granted_before_the_first_sample(desk: Desk) -> None:
    device = desk.add("gpu", 24, Attribution.PER_PROCESS)
    assert device.health(desk.now) is DeviceHealth.UNKNOWN
    ticket = desk.ask(wish("a", 4, wait=30))
    (waiter,) = desk.books.queue
    assert waiter.reason == "the device cannot be measured at present"
    assert device.candidate is None
    desk.sample({})
    assert desk.lease(ticket).alive
    (event,) = desk.events(EventKind.DEVICE_CHANGED)
    assert (event.fields["before"], event.fields["health"]) == ("UNKNOWN", "OK")


@pytest.mark.parametrize("attribution", [Attribution.PER_PROCESS, Attribution.DEVICE_ONLY])
def test_nothing_is_granted_when_the_sample_knows_nothing(desk: Desk, attribution: Attribution) -> None:
    device = desk.add("gpu", 24, attribution)
    desk.sample({}, foreign=None, used=None)
    assert device.health(desk.now) is DeviceHealth.UNKNOWN
    assert isinstance(desk.error(desk.ask(wish("a", 4))), errors.DeviceStale)
    desk.sample({}, foreign=None, used=1.0)
    assert desk.take(wish("a", 4)).alive
    # From then on it only grows old.
    for moment in range(1, 6):
        desk.now = float(moment)
        desk.sample({}, foreign=None, used=None)
        desk.at(desk.now)
    assert device.health(desk.now) is DeviceHealth.STALE
    assert device.foreign_bytes == gib(1)


def test_device_is_stale_when_its_sample_is_two_seconds_old(desk: Desk) -> None:
    device = desk.card(24)
    assert desk.arbiter.next_deadline() == 2.0
    desk.at(1.9)
    assert device.health(desk.now) is DeviceHealth.OK
    desk.arbiter.sample_failed(DeviceId("gpu"), "the driver hangs", desk.now)
    desk.at(2.1)
    event = desk.events(EventKind.DEVICE_CHANGED)[-1]
    assert event.fields == {"health": "STALE", "before": "OK", "detail": "the driver hangs"}
    assert desk.arbiter.next_deadline() is None
    # The figures stay, and so does granting for a while.
    assert desk.take(wish("a", 4)).alive
    desk.sample({})
    assert desk.events(EventKind.DEVICE_CHANGED)[-1].fields["health"] == "OK"


def test_renewals_go_on_but_no_grants_when_the_sample_is_five_seconds_old(desk: Desk) -> None:
    device = desk.card(24)
    lease = desk.take(wish("a", 4, pids=(1,)))
    desk.at(5.0)
    assert not device.frozen(desk.now)
    desk.at(5.1)
    assert device.frozen(desk.now)
    assert desk.report(lease).verdict is Verdict.RENEWED
    assert lease.deadline == 20.1
    assert isinstance(desk.error(desk.ask(wish("b", 4))), errors.DeviceStale)
    ticket = desk.ask(wish("c", 4, wait=30))
    assert desk.waits(ticket)
    desk.sample({1: 4.0})
    assert desk.lease(ticket).alive


def test_age_counts_from_when_measuring_began(desk: Desk) -> None:
    device = desk.card(24)
    desk.now = 10.0
    desk.sample({}, taken_at=6.0)
    assert device.health(10.0) is DeviceHealth.STALE
    assert device.frozen(11.1)


def test_nobody_rises_on_a_frozen_device(desk: Desk) -> None:
    desk.card(24)
    stays, leaves = desk.take(wish("a", 12, pids=(1,), ttl=300)), desk.take(wish("b", 12, pids=(2,), ttl=300))
    desk.apply(stays, leaves)
    desk.release(leaves)
    desk.live(0.5, held={1: 10.2, 2: 0.0})
    assert desk.drained(leaves)
    desk.at(60.0)
    assert stays.quality == 0.85
    desk.sample({1: 10.2})
    assert stays.quality == 0.9


def test_waiting_request_takes_the_device_that_can_be_measured(desk: Desk) -> None:
    desk.card(24, "bad")
    desk.card(24, "good")
    holder = desk.take(wish("a", 20, device="good", pids=(1,), ttl=300))
    desk.now = 10.0
    desk.sample({1: 20.0}, name="good")
    ticket = desk.ask(wish("b", 20, wait=60))
    (waiter,) = desk.books.queue
    # The other one is empty, but who knows for how long it will not answer.
    assert (waiter.device_id, waiter.reclaiming) == ("good", True)
    desk.apply(holder)
    desk.sample({1: 10.0}, name="good")
    assert desk.lease(ticket).device_id == "good"


def test_leases_end_and_bytes_go_when_the_device_is_lost(desk: Desk) -> None:
    device = desk.card(24)
    draining, living = desk.take(wish("a", 4, pids=(1,))), desk.take(wish("b", 4, pids=(2,)))
    desk.release(draining)
    desk.sample({}, foreign=3.0, used=11.0)
    desk.sample({}, lost=True)
    assert device.health(desk.now) is DeviceHealth.LOST
    assert living.end_reason is EndReason.DEVICE_LOST
    assert desk.drained(living)
    assert desk.drained(draining)
    assert (device.residue_bytes, device.granted_bytes, device.foreign_bytes) == (0, 0, 0)
    assert [result.end_reason for result in desk.beat(living)] == [EndReason.DEVICE_LOST]
    # Told again and again, once is enough; errands of the leases come up and find nobody.
    desk.sample({}, lost=True)
    desk.at(60.0)
    assert len(desk.events(EventKind.LEASE_ENDED)) == 2
    assert not desk.events(EventKind.RESIDUE_ALARM)


def test_nothing_is_granted_on_a_lost_device(desk: Desk) -> None:
    desk.card(24, "gpu")
    desk.card(8, "small")
    desk.sample({}, lost=True)
    before = desk.picture()
    with pytest.raises(errors.DeviceStale, match="device gpu is lost"):
        desk.arbiter.allocate(wish("a", 20, rigid=True, wait=30), desk.now)
    with pytest.raises(errors.DeviceStale):
        desk.arbiter.allocate(wish("a", 1, device="gpu"), desk.now)
    with pytest.raises(errors.ExceedsCapacity):
        desk.arbiter.allocate(wish("a", 30, rigid=True), desk.now)
    assert desk.picture() == before
    assert desk.take(wish("a", 1)).device_id == "small"


def test_device_comes_back_when_it_is_measured_again(desk: Desk) -> None:
    device = desk.card(24)
    desk.sample({}, lost=True)
    desk.sample({}, foreign=None, used=None)
    assert device.health(desk.now) is DeviceHealth.UNKNOWN
    desk.sample({}, foreign=1.0)
    assert device.health(desk.now) is DeviceHealth.OK
    assert device.available_bytes == gib(23)
    assert [event.fields["health"] for event in desk.events(EventKind.DEVICE_CHANGED)] == [
        "OK",
        "LOST",
        "UNKNOWN",
        "OK",
    ]


def test_waiting_request_is_granted_when_a_device_is_added(desk: Desk) -> None:
    desk.box(20, "first")
    desk.take(wish("a", 20, rigid=True, ttl=300))
    ticket = desk.ask(wish("b", 10, rigid=True, wait=60))
    assert desk.waits(ticket)
    desk.box(20, "second")
    assert desk.lease(ticket).device_id == "second"


def test_device_cannot_be_added_twice(desk: Desk) -> None:
    device = desk.box(20)
    with pytest.raises(AssertionError):
        desk.arbiter.add_device(device.facts, desk.now)
    assert desk.device() is device


# Pressure -----------------------------------------------------------------------------------------------------------


def test_level_follows_pressure_with_a_margin_on_the_way_down(desk: Desk) -> None:
    device = desk.card(100)
    levels = []
    for foreign in (0.0, 49.0, 50.0, 75.0, 90.0, 88.0, 86.0, 73.0, 71.0, 46.0):
        desk.sample({}, foreign=foreign)
        levels.append(device.level)
    low, moderate, high, critical = PressureLevel
    assert levels == [low, low, moderate, high, critical, critical, high, high, moderate, low]
    assert len(desk.events(EventKind.PRESSURE_CHANGED)) == 6
    first = desk.events(EventKind.PRESSURE_CHANGED)[0]
    assert first.fields == {"pressure_level": "MODERATE", "before": "LOW", "pressure": "0.5"}


def test_pressure_mean_is_over_time(desk: Desk) -> None:
    desk.card(100)
    desk.sample({}, foreign=50.0)
    desk.now = 10.0
    desk.sample({}, foreign=100.0)
    assert desk.books.stats.pressure.mean(20.0) == pytest.approx(0.75)


def test_processes_of_all_leases_are_measured_once_each(desk: Desk) -> None:
    device = desk.card(24)
    first = desk.take(wish("a", 1, pids=(3, 1)))
    desk.take(wish("b", 1, pids=(1, 2)))
    desk.release(first)
    assert [process.pid for process in device.processes()] == [1, 2, 3]
