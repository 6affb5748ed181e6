"""The book of one device, as far as its numbers are worth looking at one by one."""

from __future__ import annotations

import pytest

from arbiter_sidecar.ledger.devices import DeviceBook, DeviceRules
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.policy.publication import Published
from arbiter_sidecar.policy.quality import Elastic
from arbiter_sidecar.requests import AllocationRequest
from arbiter_sidecar.types import (
    Attribution,
    DeviceFacts,
    DeviceHealth,
    DeviceId,
    DeviceKind,
    DeviceSample,
    EndReason,
    LeaseId,
    Process,
    WorkloadType,
)

GPU = DeviceId("gpu")
A, B = Process(1, 10), Process(2, 20)
SHAPE = Elastic(full_bytes=100, floor_bytes=20, min_quality=0.2, max_quality=1.0, weight=1.0)


def device(attribution: Attribution = Attribution.PER_PROCESS) -> DeviceBook:
    """A device of a thousand bytes."""
    facts = DeviceFacts(GPU, "gpu", 0, DeviceKind.NVIDIA, 1000, 1000, attribution)
    return DeviceBook(facts, DeviceRules())


def lease(fence: int, *processes: Process, quality: float = 1.0, ttl: float = 15.0) -> Lease:
    """A lease of a hundred bytes at quality 1."""
    request = AllocationRequest(
        holder="w", workload=WorkloadType.OTHER, memory_bytes=100, processes=processes, ttl_s=ttl
    )
    made = Lease(lease_id=LeaseId(f"lease-{fence}"), handle=fence, fence=fence, device_id=GPU, request=request, now=0.0)
    made.elastic = SHAPE
    made.published = Published(quality)
    made.limit_bytes = made.charged_bytes = SHAPE.bytes_at(quality)
    return made


def test_sums_follow_the_leases() -> None:
    book, first, second = device(), lease(1, A), lease(2, B, quality=0.5)
    book.open(first)
    book.open(second)
    assert (book.granted_bytes, book.accounted_bytes, book.demand_bytes, book.below_best) == (150, 150, 200, 1)
    book.publish(first, Published(0.6))
    assert (first.limit_bytes, book.granted_bytes, book.below_best) == (60, 150, 2)
    book.charge(first, 60)
    assert book.granted_bytes == 110
    book.publish(second, Published(1.0))
    assert (book.granted_bytes, book.below_best) == (160, 1)
    book.reshape(second, Elastic(full_bytes=100, floor_bytes=50, min_quality=0.5, max_quality=0.75, weight=2.0))
    assert (book.demand_bytes, book.below_best) == (175, 1)
    book.reshape(second, SHAPE)
    first.end_reason = EndReason.RELEASED
    book.close(first)
    assert (book.granted_bytes, book.residue_bytes, book.demand_bytes, book.below_best) == (100, 60, 100, 0)
    book.check()
    book.drained(first)
    assert (book.residue_bytes, book.available_bytes) == (0, 900)
    book.check()


@pytest.mark.parametrize(
    ("attribution", "measured", "attributes"),
    [
        (Attribution.PER_PROCESS, True, True),
        (Attribution.TRANSLATED, True, True),
        (Attribution.DEVICE_ONLY, True, False),
        (Attribution.SELF_REPORTED, False, False),
    ],
)
def test_attribution_says_what_can_be_seen(attribution: Attribution, measured: bool, attributes: bool) -> None:
    book = device(attribution)
    assert (book.measured, book.attributes) == (measured, attributes)
    seen, unread = lease(1, A), lease(2, A)
    seen.measured_bytes = 0
    assert book.watched(seen) is book.traceable(seen) is book.watched(unread) is attributes
    assert not book.traceable(unread)
    assert not book.watched(lease(3))
    assert book.frozen(0.0) is measured
    assert book.health(0.0) is (DeviceHealth.UNKNOWN if measured else DeviceHealth.OK)


def test_health_changes_at_the_very_moment_that_is_announced() -> None:
    book = device()
    # Sums such as 0.1 + 2.0 are where a comparison of differences goes wrong.
    for tenth in range(1, 100):
        taken_at = tenth / 10
        book.observe(DeviceSample(GPU, 0, foreign_bytes=0), taken_at)
        assert book.health(taken_at + book.rules.stale_after_s) is DeviceHealth.STALE


def test_measured_use_counts_when_it_is_more_than_was_granted() -> None:
    book, one = device(), lease(1, A)
    book.open(one)
    book.observe(DeviceSample(GPU, 130, {A: 130}), 1.0)
    assert (one.measured_bytes, book.accounted_bytes, book.granted_bytes) == (130, 130, 100)
    assert (book.foreign_bytes, book.available_bytes) == (0, 870)
    one.end_reason = EndReason.RELEASED
    book.close(one)
    assert (one.residue_bytes, one.planned_at_end) == (130, 100)
    assert book.elsewhere_bytes(9.9) == 100
    assert book.elsewhere_bytes(10.0) == 130


def test_nobody_is_measured_when_the_device_only_knows_its_total() -> None:
    book, one = device(Attribution.DEVICE_ONLY), lease(1, A)
    book.open(one)
    assert book.observe(DeviceSample(GPU, 130, {A: 130}), 1.0) == []
    assert (one.measured_bytes, book.foreign_bytes) == (None, 30)


def test_lock_delay_is_two_lives_and_half_a_minute_at_least() -> None:
    book = device()
    assert book.lock_delay_ends(lease(1, ttl=3.0)) == 30.0
    assert book.lock_delay_ends(lease(1, ttl=100.0)) == 200.0


def test_lock_delay_can_be_turned_off() -> None:
    one = lease(1, ttl=100.0)
    one.ended_at = 7.0
    assert DeviceBook(device().facts, DeviceRules(lock_delay_s=0.0)).lock_delay_ends(one) == 7.0


def test_pressure_is_full_when_there_is_no_capacity() -> None:
    facts = DeviceFacts(GPU, "gpu", 0, DeviceKind.NVIDIA, 0, 0, Attribution.PER_PROCESS)
    assert DeviceBook(facts, DeviceRules()).pressure == 1.0


def test_check_finds_a_book_that_contradicts_itself() -> None:
    book, one = device(), lease(1, A)
    book.open(one)
    book.check()
    book.granted_bytes += 1
    with pytest.raises(AssertionError):
        book.check()
    book.granted_bytes -= 1
    one.limit_bytes += 1
    with pytest.raises(AssertionError, match="nobody is told more than was reserved"):
        book.check()
