"""Waiting: first come first served on each device, and every caller gets exactly one answer."""

from __future__ import annotations

import pytest

from arbiter_sidecar import errors
from arbiter_sidecar.types import EventKind
from tests.arbiter.desk import Desk, gib, qualities, wish


def test_first_comer_is_served_first_when_a_later_one_would_fit(desk: Desk) -> None:
    device = desk.box(20)
    holder, small = desk.take(wish("a", 14, rigid=True)), desk.take(wish("b", 2, rigid=True))
    x = desk.ask(wish("x", 6, rigid=True, wait=120))
    y = desk.ask(wish("y", 3, rigid=True, wait=120))
    assert desk.waits(x)
    assert desk.waits(y)
    desk.release(small)
    desk.at(25.0)
    desk.beat(holder)
    desk.at(30.0)
    assert desk.granted(x).waited_s == 30.0
    assert desk.waits(y)
    assert device.available_bytes == 0


def test_waiting_is_said_with_its_reason(desk: Desk) -> None:
    desk.box(20)
    desk.take(wish("a", 20, rigid=True))
    desk.ask(wish("b", 4, rigid=True, wait=60))
    (event,) = desk.events(EventKind.REQUEST_WAITING)
    assert event.request_id == "#2"
    assert event.device_id == "box"
    assert "bytes are missing even with every lease at its minimum quality" in event.fields["reason"]


def test_request_is_granted_when_reductions_are_applied(desk: Desk) -> None:
    desk.box(24)
    holder = desk.take(wish("a", 20))
    ticket = desk.ask(wish("b", 20, wait=30))
    assert desk.waits(ticket)
    assert qualities([holder]) == [0.51]
    (event,) = desk.events(EventKind.REQUEST_WAITING)
    assert "lower targets are published and must be confirmed" in event.fields["reason"]
    desk.apply(holder)
    assert qualities([holder, desk.lease(ticket)]) == [0.51, 0.51]
    assert desk.device().candidate is None


def test_nobody_rises_while_a_request_waits_for_reductions(desk: Desk) -> None:
    device = desk.card(24)
    greedy, modest = desk.take(wish("a", 12, pids=(1,), ttl=300)), desk.take(wish("b", 4, pids=(2,), ttl=300))
    desk.sample({1: 12.0, 2: 4.0}, foreign=10.0)
    desk.apply(greedy, modest)
    assert qualities([greedy, modest]) == [0.65, 0.65]
    for _ in range(30):
        desk.sample({1: 16.0, 2: 2.6})
    ticket = desk.ask(wish("c", 8, wait=200))
    desk.live(20.0, held={1: 16.0, 2: 2.6})
    # With all three, everybody could have 0.85, and for the modest one there are bytes: they are for the one who waits.
    assert desk.waits(ticket)
    assert device.available_bytes > gib(5)
    assert qualities([greedy, modest]) == [0.65, 0.65]
    desk.sample({1: 7.8, 2: 2.6})
    assert qualities([greedy, modest, desk.lease(ticket)]) == [0.7, 0.7, 0.85]


@pytest.mark.parametrize("leaver", ["cancel", "timeout"])
def test_targets_rise_again_when_the_request_they_were_lowered_for_goes(desk: Desk, leaver: str) -> None:
    # Not the first device: whoever waited there is forgotten there.
    desk.box(24, "first")
    second = desk.box(24, "second")
    holder = desk.take(wish("a", 20, device="second", ttl=300))
    ticket = desk.ask(wish("b", 20, device="second", wait=30))
    assert qualities([holder]) == [0.51]
    if leaver == "cancel":
        desk.cancel(ticket)
    else:
        desk.at(30.0)
    assert second.candidate is None
    assert not second.awaited
    for moment in range(31, 60):
        desk.at(float(moment))
    assert qualities([holder]) == [1.0]


def test_waiting_ends_with_the_time_waited(desk: Desk) -> None:
    desk.box(20)
    desk.take(wish("a", 20, rigid=True, ttl=300))
    ticket = desk.ask(wish("b", 4, rigid=True, wait=30))
    desk.at(29.9)
    assert desk.waits(ticket)
    desk.at(30.0)
    error = desk.error(ticket)
    assert isinstance(error, errors.WaitTimeout)
    assert error.metadata()["waited_ms"] == "30000"
    assert error.message.startswith("waited 30000 ms in vain: ")
    assert desk.books.stats.timed_out == 1


def test_waiting_ends_without_a_reason_when_earlier_requests_were_never_served(desk: Desk) -> None:
    desk.box(20)
    desk.take(wish("a", 20, rigid=True, ttl=300))
    desk.ask(wish("b", 4, rigid=True, wait=60))
    behind = desk.ask(wish("c", 4, rigid=True, wait=10))
    desk.at(10.0)
    assert desk.error(behind).message == "waited 10000 ms in vain"


def test_second_device_is_used_when_the_first_is_waited_for(desk: Desk) -> None:
    desk.box(20, "first")
    desk.box(20, "second")
    desk.take(wish("a", 18, rigid=True, device="first", ttl=300))
    desk.take(wish("b", 15, rigid=True, device="second", ttl=300))
    waiting = desk.ask(wish("c", 8, rigid=True, device="first", wait=60))
    assert desk.lease(desk.ask(wish("d", 5, rigid=True, wait=60))).device_id == "second"
    # It would fit, and the other device has nobody waiting; but on its own somebody came first.
    behind = desk.ask(wish("e", 1, rigid=True, device="first", wait=60))
    assert desk.waits(waiting)
    assert desk.waits(behind)


def test_requests_are_granted_in_order_when_much_comes_free(desk: Desk) -> None:
    desk.box(20)
    holder = desk.take(wish("a", 20, rigid=True))
    tickets = [desk.ask(wish(f"w{number}", 5, rigid=True, wait=60)) for number in range(5)]
    desk.release(holder)
    desk.at(30.0)
    fences = [desk.lease(ticket).fence for ticket in tickets[:4]]
    assert fences == sorted(fences)
    assert desk.waits(tickets[4])


def test_request_waits_on_when_its_device_is_lost(desk: Desk) -> None:
    desk.card(20)
    desk.card(20, "other")
    desk.take(wish("a", 20, rigid=True, pids=(1,), device="gpu", ttl=300))
    ticket = desk.ask(wish("b", 4, rigid=True, device="gpu", wait=60))
    desk.sample({}, lost=True)
    (waiter,) = desk.books.queue
    assert (waiter.device_id, waiter.reason, waiter.reclaiming) == (
        None,
        "its device is lost, or has no KV tokens left to promise",
        False,
    )
    desk.sample({1: 0.0})
    assert desk.lease(ticket).device_id == "gpu"
