"""Callers that go away: a place in the queue is given up, a grant that nobody saw is undone, in the same breath."""

from __future__ import annotations

from arbiter_sidecar.types import EndReason, EventKind, Ticket
from tests.arbiter.desk import Desk, wish


def test_place_is_given_up_when_the_caller_goes(desk: Desk) -> None:
    desk.box(20)
    desk.take(wish("a", 18, rigid=True))
    first = desk.ask(wish("b", 4, rigid=True, wait=60, request_id="b"))
    second = desk.ask(wish("c", 2, rigid=True, wait=60))
    assert desk.waits(second)
    desk.cancel(first)
    assert first not in desk.outcomes
    assert desk.lease(second).alive
    (event,) = desk.events(EventKind.REQUEST_FAILED)
    assert event.fields["reason"] == "CANCELLED"
    assert desk.books.stats.cancelled == 1
    # The id is free again.
    assert desk.ask(wish("d", 1, rigid=True, wait=60, request_id="b"))


def test_request_goes_on_when_another_caller_waits_for_it(desk: Desk) -> None:
    desk.box(20)
    holder = desk.take(wish("a", 20, rigid=True))
    request = wish("b", 4, rigid=True, wait=60, request_id="r")
    first, second = desk.ask(request), desk.ask(request)
    desk.cancel(first)
    assert desk.waits(second)
    desk.release(holder)
    desk.at(30.0)
    assert desk.lease(second).alive
    assert first not in desk.outcomes
    assert desk.granted(second).already_granted is False


def test_grant_is_undone_when_its_caller_was_gone(desk: Desk) -> None:
    device = desk.box(20)
    ticket = desk.ask(wish("a", 4, request_id="r"))
    lease = desk.lease(ticket)
    desk.cancel(ticket)
    assert lease.end_reason is EndReason.UNDELIVERED
    assert device.granted_bytes == 0
    assert (desk.books.stats.granted, desk.books.stats.cancelled) == (0, 1)
    assert desk.take(wish("a", 4, request_id="r")) is not lease


def test_grant_is_undone_when_the_caller_goes_before_effects_are_taken(desk: Desk) -> None:
    desk.box(20)
    ticket = desk.arbiter.allocate(wish("a", 4), desk.now)
    desk.arbiter.cancel(ticket, desk.now)
    desk.collect()
    assert desk.lease(ticket).end_reason is EndReason.UNDELIVERED


def test_grant_stays_when_it_was_delivered(desk: Desk) -> None:
    desk.box(20)
    ticket = desk.ask(wish("a", 4))
    desk.arbiter.delivered(ticket)
    desk.cancel(ticket)
    assert desk.lease(ticket).alive
    assert desk.books.stats.cancelled == 0


def test_grant_stays_when_another_caller_has_it_or_will(desk: Desk) -> None:
    desk.box(20)
    request = wish("a", 4, request_id="r")
    first, second, third = desk.ask(request), desk.ask(request), desk.ask(request)
    desk.cancel(first)
    assert desk.lease(second).alive
    desk.arbiter.delivered(second)
    desk.cancel(third)
    assert desk.lease(second).alive
    assert (desk.books.stats.granted, desk.books.stats.cancelled) == (1, 2)


def test_grant_is_undone_when_every_caller_was_gone(desk: Desk) -> None:
    desk.box(20)
    request = wish("a", 4, request_id="r")
    tickets = [desk.ask(request) for _ in range(3)]
    for ticket in tickets:
        desk.cancel(ticket)
    assert desk.lease(tickets[0]).end_reason is EndReason.UNDELIVERED


def test_waiters_are_served_when_a_grant_is_undone(desk: Desk) -> None:
    desk.card(20)
    ticket = desk.ask(wish("a", 20, rigid=True, pids=(1,)))
    waiting = desk.ask(wish("b", 20, rigid=True, wait=60))
    desk.cancel(ticket)
    for tenth in range(1, 10):
        desk.now = tenth / 10
        desk.sample({1: 0.0})
    assert desk.lease(waiting).alive


def test_cancelling_changes_nothing_when_the_lease_has_ended_already(desk: Desk) -> None:
    desk.box(20)
    ticket = desk.ask(wish("a", 4, ttl=5))
    desk.at(5.0)
    lease = desk.lease(ticket)
    assert lease.end_reason is EndReason.EXPIRED
    desk.cancel(ticket)
    assert lease.end_reason is EndReason.EXPIRED
    assert desk.books.stats.cancelled == 1


def test_cancelling_changes_nothing_when_the_ticket_is_unknown_or_answered(desk: Desk) -> None:
    desk.box(20)
    desk.take(wish("a", 20, rigid=True))
    refused = desk.ask(wish("b", 1, rigid=True))
    before = desk.picture()
    desk.cancel(refused)
    desk.cancel(Ticket(99))
    desk.arbiter.delivered(Ticket(99))
    desk.arbiter.delivered(refused)
    assert desk.picture() == before
