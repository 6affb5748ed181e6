"""Request ids: a retry finds what the first call has led to, as long as that lives."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arbiter_sidecar import errors
from arbiter_sidecar.types import DeviceId, EndReason
from tests.arbiter.desk import LINEAR, Desk, DeskMaker, wish


def test_retry_gets_the_same_lease_when_the_answer_was_lost(desk: Desk) -> None:
    device = desk.box()
    lease = desk.take(wish("a", 4, request_id="r"))
    again = desk.granted(desk.ask(wish("a", 4, request_id="r", wait=60)))
    assert again.lease is lease
    assert (again.already_granted, again.waited_s) == (True, 0.0)
    assert len(device.live) == 1
    assert desk.books.stats.granted == desk.books.stats.requests == 2


def test_retry_is_refused_when_the_arguments_differ(desk: Desk) -> None:
    desk.box()
    desk.take(wish("a", 4, request_id="r"))
    before = desk.picture()
    for other in (wish("a", 5, request_id="r"), wish("b", 4, request_id="r"), wish("a", 4, request_id="r", ttl=16)):
        with pytest.raises(errors.IdempotencyMismatch) as raised:
            desk.arbiter.allocate(other, desk.now)
        assert raised.value.metadata() == {"request_id": "r"}
    assert desk.picture() == before


def test_same_id_is_another_request_in_another_namespace(desk: Desk) -> None:
    desk.box()
    assert desk.take(wish("a", 4, request_id="r")) is not desk.take(wish("a", 4, request_id="r", namespace="other"))


def test_requests_without_an_id_are_never_the_same(desk: Desk) -> None:
    desk.box()
    assert desk.take(wish("a", 4)) is not desk.take(wish("a", 4))


def test_retry_joins_when_the_first_waits_still(desk: Desk) -> None:
    desk.box(20)
    holder = desk.take(wish("a", 20, rigid=True))
    first = desk.ask(wish("b", 4, rigid=True, request_id="r", wait=40))
    desk.at(14.0)
    second = desk.ask(wish("b", 4, rigid=True, request_id="r", wait=40))
    assert len(desk.books.queue) == 1
    assert desk.books.queue.callers == 2
    desk.release(holder)
    desk.at(44.0)
    assert desk.lease(first) is desk.lease(second)
    assert [desk.granted(ticket).already_granted for ticket in (first, second)] == [False, True]
    assert desk.granted(second).waited_s == 44.0


def test_more_patient_caller_decides_how_long_all_wait(desk: Desk) -> None:
    desk.box(20)
    desk.take(wish("a", 20, rigid=True, ttl=300))
    request = wish("b", 4, rigid=True, request_id="r")
    first = desk.ask(replace(request, wait_s=10))
    second = desk.ask(replace(request, wait_s=30))
    third = desk.ask(replace(request, wait_s=5))
    desk.at(10.0)
    assert desk.waits(first)
    desk.at(30.0)
    for ticket in (first, second, third):
        assert isinstance(desk.error(ticket), errors.WaitTimeout)
    assert desk.books.stats.timed_out == 3


def test_joining_callers_are_bounded(make_desk: DeskMaker) -> None:
    desk = make_desk(replace(LINEAR, max_waiting=2))
    desk.box(20)
    desk.take(wish("a", 20, rigid=True))
    request = wish("b", 4, rigid=True, request_id="r", wait=30)
    desk.ask(request)
    desk.ask(request)
    with pytest.raises(errors.QueueFull):
        desk.arbiter.allocate(request, desk.now)


def test_retry_finds_its_lease_when_the_device_has_no_place_for_a_new_one(make_desk: DeskMaker) -> None:
    desk = make_desk(replace(LINEAR, max_leases=1, max_waiting=1))
    desk.card(20)
    lease = desk.take(wish("a", 20, rigid=True, request_id="r"))
    desk.arbiter.sample_failed(DeviceId("gpu"), "no answer", desk.now)
    desk.at(10.0)
    assert desk.granted(desk.ask(wish("a", 20, rigid=True, request_id="r"))).lease is lease


@pytest.mark.parametrize("end", ["release", "expire", "exit"])
def test_id_is_free_again_when_its_lease_has_ended(desk: Desk, end: str) -> None:
    desk.card()
    lease = desk.take(wish("a", 4, request_id="r", pids=(1,)))
    if end == "release":
        desk.release(lease)
    elif end == "expire":
        desk.at(15.0)
    else:
        desk.exit(1)
    desk.sample({1: 0.0})
    again = desk.granted(desk.ask(wish("b", 5, request_id="r")))
    assert again.lease is not lease
    assert not again.already_granted


@pytest.mark.parametrize("times", [2, 100])
def test_release_counts_once_when_it_is_repeated(desk: Desk, times: int) -> None:
    device = desk.box()
    lease = desk.take(wish("a", 4))
    answers = [desk.release(lease) for _ in range(times)]
    assert answers == [False] + [True] * (times - 1)
    assert desk.books.stats.released == 1
    assert device.granted_bytes == 0
    assert lease.end_reason is EndReason.RELEASED
    desk.at(31.0)
    assert desk.drained(lease)
    assert desk.release(lease)


def test_release_changes_nothing_when_it_is_not_the_holders(desk: Desk) -> None:
    desk.box()
    lease, gone = desk.take(wish("a", 4, ttl=300)), desk.take(wish("b", 4))
    desk.release(gone)
    desk.at(31.0)
    before = desk.picture()
    for other, error in ((lease, errors.Fenced), (gone, errors.Fenced)):
        with pytest.raises(error) as raised:
            desk.arbiter.release(other.lease_id, other.fence + 1, desk.now)
        assert raised.value.metadata() == {"lease_id": other.lease_id}
    with pytest.raises(errors.LeaseNotFound) as missing:
        desk.arbiter.release("lease-9", 1, desk.now)
    assert missing.value.metadata() == {"lease_id": "lease-9"}
    assert desk.picture() == before


def test_time_to_live_begins_anew_when_the_holder_asks_again_for_what_it_has_not_got(desk: Desk) -> None:
    desk.box()
    lease = desk.take(wish(request_id="r", ttl=10))
    desk.at(8.0)
    desk.ask(wish(request_id="r", ttl=10))
    desk.at(17.9)
    assert lease.alive
    desk.at(18.0)
    assert lease.end_reason is EndReason.EXPIRED
