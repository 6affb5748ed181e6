"""Granting: what is free is given at once, what can never fit is refused at once, and a refusal changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arbiter_sidecar import errors
from arbiter_sidecar.arbiter import Names, effects
from arbiter_sidecar.types import GIB, EventKind, LeaseState, WorkloadType
from tests.arbiter.desk import IMAGE, LINEAR, VIDEO, Desk, DeskMaker, gib, wish


def test_lease_is_granted_at_its_best_when_it_is_alone(desk: Desk) -> None:
    desk.box(24)
    lease = desk.take(wish("llm", 10, pids=(7,)))
    assert (lease.quality, lease.charged_bytes, lease.limit_bytes) == (1.0, gib(10), gib(10))
    assert lease.state is LeaseState.GRANTED
    assert desk.device().available_bytes == gib(14)
    (opened,) = [each for each in desk.effects if isinstance(each, effects.Opened)]
    assert opened.lease is lease
    (event,) = desk.events(EventKind.LEASE_GRANTED)
    assert (event.holder, event.lease_id, event.device_id) == ("llm", lease.lease_id, "box")
    assert event.fields["memory_bytes"] == str(10 * GIB)


def test_best_quality_is_the_one_the_request_names(desk: Desk) -> None:
    desk.box(24)
    lease = desk.take(wish("llm", 10, max_quality=0.5))
    assert (lease.quality, lease.charged_bytes) == (0.5, gib(5))


def test_one_is_granted_when_two_ask_for_more_than_half(desk: Desk) -> None:
    desk.box(20)
    first, second = desk.ask(wish("a", 12, rigid=True)), desk.ask(wish("b", 12, rigid=True))
    assert desk.lease(first).charged_bytes == gib(12)
    error = desk.error(second)
    assert isinstance(error, errors.InsufficientMemory)
    assert error.metadata()["available_bytes"] == str(8 * GIB)


def test_request_is_refused_at_once_when_it_can_never_fit(desk: Desk) -> None:
    desk.box(20)
    before = desk.picture()
    with pytest.raises(errors.ExceedsCapacity) as raised:
        desk.arbiter.allocate(wish("a", 30, rigid=True, wait=60), desk.now)
    assert raised.value.metadata() == {"requested_bytes": str(30 * GIB), "capacity_bytes": str(20 * GIB)}
    assert desk.picture() == before


def test_request_is_refused_when_no_single_device_holds_it(desk: Desk) -> None:
    desk.box(21.6, "gpu0")
    desk.box(21.6, "gpu1")
    with pytest.raises(errors.ExceedsCapacity):
        desk.arbiter.allocate(wish("a", 30, rigid=True), desk.now)


def test_request_is_granted_below_its_best_when_only_its_minimum_fits(desk: Desk) -> None:
    desk.box(20)
    lease = desk.take(wish("a", 30, min_quality=0.4))
    # The target is 17 of 20 GiB: 17/30 on the grid.
    assert lease.quality == 0.56


def test_unknown_device_is_named_when_it_is_asked_for(desk: Desk) -> None:
    with pytest.raises(errors.DeviceNotFound, match="there is none"):
        desk.arbiter.allocate(wish("a", 1), desk.now)
    desk.box(20)
    before = desk.picture()
    with pytest.raises(errors.DeviceNotFound, match="no device 'gpu9'; there is box"):
        desk.arbiter.allocate(wish("a", 1, device="gpu9"), desk.now)
    assert desk.picture() == before


def test_roomiest_device_is_taken_when_none_is_named(desk: Desk) -> None:
    desk.box(10, "small")
    desk.box(20, "large")
    assert desk.take(wish("a", 4)).device_id == "large"
    assert desk.take(wish("b", 5)).device_id == "large"
    # 11 GiB are left on the larger one now, but only 8 under its target: better quality goes before more room.
    assert desk.take(wish("c", 8.5)).device_id == "small"
    assert desk.take(wish("d", 1, device="small")).device_id == "small"


def test_fences_grow_on_each_device_and_with_each_epoch() -> None:
    old, new = Desk(epoch=3), Desk(epoch=4)
    old.box(20, "a")
    old.box(20, "b")
    new.box(20, "a")
    fences = [old.take(wish(device="a")).fence for _ in range(3)]
    assert fences == sorted(set(fences))
    assert old.take(wish(device="b")).fence == fences[0]
    assert new.take(wish(device="a")).fence > fences[-1]
    assert (old.arbiter.epoch, new.arbiter.epoch) == (3, 4)


def test_handle_is_drawn_again_when_it_is_taken_or_was_ever_used() -> None:
    drawn = iter([5, 5, 6, 5, 6, 7])
    ids = iter("abc")
    desk = Desk()
    desk.box(20)
    desk.books.names = Names(lease_id=lambda: next(ids), handle=lambda: next(drawn))
    first, second = desk.take(wish()), desk.take(wish())
    assert (first.handle, second.handle) == (5, 6)
    desk.release(first)
    desk.at(31.0)
    assert desk.drained(first)
    assert desk.take(wish()).handle == 7


def test_leases_are_bounded_by_the_configured_number(make_desk: DeskMaker) -> None:
    desk = make_desk(replace(LINEAR, max_leases=2, max_waiting=1))
    desk.box(20)
    desk.take(wish("a", 19, rigid=True, request_id="a"))
    waiting = desk.ask(wish("b", 2, rigid=True, wait=60))
    before = desk.picture()
    with pytest.raises(errors.QueueFull, match="callers wait"):
        desk.arbiter.allocate(wish("c", 0.5, wait=60), desk.now)
    assert desk.picture() == before
    # Who has a lease already takes no further place.
    assert desk.granted(desk.ask(wish("a", 19, rigid=True, request_id="a"))).already_granted
    desk.cancel(waiting)
    desk.take(wish("c", 0.5))
    with pytest.raises(errors.QueueFull, match="leases live or drain"):
        desk.arbiter.allocate(wish("d", 0.5), desk.now)


def test_ended_leases_count_for_the_limit_until_their_bytes_are_gone(make_desk: DeskMaker) -> None:
    desk = make_desk(replace(LINEAR, max_leases=1))
    desk.box(20)
    desk.release(desk.take(wish()))
    with pytest.raises(errors.QueueFull):
        desk.arbiter.allocate(wish(), desk.now)
    desk.at(30.0)
    desk.take(wish())


def test_quality_means_follow_the_kinds_of_work(desk: Desk) -> None:
    desk.box(24)
    assert (desk.books.stats.llm.present, desk.books.stats.diffusion.present) == (1.0, 1.0)
    desk.take(wish("a", 4, max_quality=0.8))
    desk.take(wish("b", 4, workload=IMAGE, max_quality=0.6))
    desk.take(wish("c", 4, workload=VIDEO, max_quality=0.4))
    assert desk.books.stats.llm.present == pytest.approx(0.8)
    assert desk.books.stats.diffusion.present == pytest.approx(0.5)
    assert desk.books.stats.diffusion.mean(10.0) == pytest.approx(0.5)


def test_other_work_counts_in_no_mean(desk: Desk) -> None:
    desk.box(24)
    lease = desk.take(wish("a", 14, workload=WorkloadType.OTHER, max_quality=0.9))
    desk.take(wish("b", 10, workload=WorkloadType.OTHER))
    assert lease.quality < 0.9
    desk.release(lease)
    assert (desk.books.stats.llm.count, desk.books.stats.diffusion.count) == (0, 0)
    assert (desk.books.stats.llm.present, desk.books.stats.diffusion.present) == (1.0, 1.0)
