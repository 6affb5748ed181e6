"""Reservations of KV tokens: granted within the budget, waited for, returned whole, and never twice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arbiter_sidecar import errors
from arbiter_sidecar.requests import ReservationRequest
from arbiter_sidecar.types import EventKind
from tests.arbiter.desk import wish
from tests.arbiter.kv_stage import KvDesk, sharing, usage


@pytest.fixture
def kv() -> KvDesk:
    """A device of 1000 tokens."""
    return KvDesk(sharing())


def test_reservation_is_granted_at_once_when_the_budget_allows(kv: KvDesk) -> None:
    (lease,) = kv.working(1)
    reservation = kv.reserved(kv.reserve(lease, 1000))
    assert (reservation.lease, reservation.tokens) == (lease, 1000)
    assert isinstance(kv.reservation_error(kv.reserve(lease, 1)), errors.InsufficientTokens)


def test_what_is_kept_without_a_reservation_counts_as_well(kv: KvDesk) -> None:
    (lease,) = kv.working(1, resident=900)
    error = kv.reservation_error(kv.reserve(lease, 101))
    assert isinstance(error, errors.InsufficientTokens)
    assert error.metadata() == {"requested_tokens": "101", "available_tokens": "100"}
    kv.reserved(kv.reserve(lease, 100))


def test_idle_engine_is_woken_when_it_reserves_and_waits(kv: KvDesk) -> None:
    busy, idle = kv.engine(), kv.engine()
    kv.say(busy, usage())
    kv.say(idle, usage(active=False))
    kv.settle(busy, idle)
    assert kv.budgets(busy, idle) == [1000, 0]
    ticket = kv.reserve(idle, 300, wait=10.0)
    assert kv.budgets(busy) == [500]
    assert ticket not in kv.answers
    kv.say(busy, usage(500))
    kv.reserved(ticket)
    assert kv.budgets(busy, idle) == [500, 500]


def test_idle_engine_is_woken_when_it_tries_again_without_waiting(kv: KvDesk) -> None:
    busy, idle = kv.engine(), kv.engine()
    kv.say(busy, usage())
    kv.say(idle, usage(active=False))
    kv.settle(busy, idle)
    assert isinstance(kv.reservation_error(kv.reserve(idle, 300)), errors.InsufficientTokens)
    kv.say(busy, usage(500))
    kv.reserved(kv.reserve(idle, 300))
    assert kv.budgets(busy, idle) == [500, 500]


def test_engine_that_does_not_try_again_is_idle_after_a_while(kv: KvDesk) -> None:
    busy, idle = kv.engine(), kv.engine()
    kv.say(busy, usage(800))
    kv.settle(busy)
    kv.reserve(idle, 300)
    assert kv.budgets(busy) == [500]
    kv.at(4.9)
    assert kv.budgets(busy) == [500]
    kv.at(5.0)
    assert kv.budgets(busy, idle) == [1000, 0]


def test_what_was_refused_counts_as_demand_when_it_is_more_than_what_was_said(kv: KvDesk) -> None:
    first, second = kv.engine(), kv.engine()
    kv.say(first, usage(demand=100))
    kv.say(second, usage())
    kv.settle(first, second)
    assert kv.budgets(first, second) == [100, 900]
    kv.reserve(first, 200)
    kv.reserve(first, 150)
    assert kv.budgets(first, second) == [100, 800]
    kv.say(second, usage(800))
    kv.reserved(kv.reserve(first, 200))


def test_oldest_reservation_of_an_engine_is_served_first(kv: KvDesk) -> None:
    first, second = kv.working(1, 1)
    held = kv.reserved(kv.reserve(first, 400))
    large = kv.reserve(first, 450, wait=30.0)
    small = kv.reserve(first, 10, wait=30.0)
    other = kv.reserve(second, 10, wait=30.0)
    assert other in kv.answers
    assert not {large, small} & set(kv.answers)
    kv.complete(held.reservation_id)
    assert {large, small} <= set(kv.answers)


def test_wait_ends_when_it_takes_too_long(kv: KvDesk) -> None:
    (lease,) = kv.working(1, resident=1000)
    ticket = kv.reserve(lease, 100, wait=3.0)
    kv.at(2.9)
    assert ticket not in kv.answers
    kv.at(3.0)
    assert isinstance(kv.reservation_error(ticket), errors.InsufficientTokens)
    assert kv.state(lease).wanted == 0


def test_granted_reservation_is_not_refused_when_its_wait_would_have_ended(kv: KvDesk) -> None:
    (lease,) = kv.working(1)
    ticket = kv.reserve(lease, 100, wait=3.0)
    kv.at(10.0)
    kv.reserved(ticket)
    assert kv.state(lease).reserved == 100


def test_reservation_that_can_never_fit_is_refused_at_once() -> None:
    kv = KvDesk(sharing(1000, 600))
    lease, small = kv.engine(), kv.engine(cap=50)
    for engine, most in ((lease, 600), (small, 50)):
        kv.say(engine, usage())
        with pytest.raises(errors.ExceedsCapacity, match=f"which is {most}"):
            kv.reserve(engine, most + 1, wait=30.0)
    kv.settle(lease, small)
    kv.reserved(kv.reserve(small, 50))


def test_return_counts_once_when_it_comes_twice(kv: KvDesk) -> None:
    (lease,) = kv.working(1)
    reservation = kv.reserved(kv.reserve(lease, 100))
    kv.reserve(lease, 50)
    kv.complete(reservation.reservation_id)
    kv.complete(reservation.reservation_id)
    assert kv.state(lease).reserved == 50
    with pytest.raises(errors.ReservationNotFound):
        kv.complete("no such")


def test_returned_reservations_are_forgotten_when_there_are_many() -> None:
    config = sharing()
    kv = KvDesk(replace(config, kv=replace(config.kv, max_reservations=2)))
    (lease,) = kv.working(1)
    names = [kv.reserved(kv.reserve(lease, 1)).reservation_id for _ in range(2)]
    with pytest.raises(errors.QueueFull):
        kv.reserve(lease, 1)
    kv.complete(names[0])
    names.append(kv.reserved(kv.reserve(lease, 1)).reservation_id)
    for name in names[1:]:
        kv.complete(name)
    kv.complete(names[1])
    with pytest.raises(errors.ReservationNotFound):
        kv.complete(names[0])


def test_abandoned_reservation_returns_by_itself_in_the_end(kv: KvDesk) -> None:
    (lease,) = kv.working(1)
    kv.reserve(lease, 100)
    kv.at(1.0)
    kv.beat(lease)
    late = kv.reserved(kv.reserve(lease, 200))
    kv.at(899.0)
    kv.beat(lease)
    assert kv.state(lease).reserved == 300
    kv.at(900.0)
    assert kv.state(lease).reserved == 200
    assert kv.events(EventKind.KV_RESERVATION_EXPIRED, lease.lease_id)[-1].fields == {"tokens": "100"}
    kv.complete(late.reservation_id)
    kv.at(950.0)
    assert len(kv.events(EventKind.KV_RESERVATION_EXPIRED)) == 1


def test_agenda_does_not_grow_with_reservations_that_were_returned(kv: KvDesk) -> None:
    (lease,) = kv.working(1)
    for _ in range(100):
        kv.complete(kv.reserved(kv.reserve(lease, 100)).reservation_id)
    assert len(kv.books._agenda) < 20


def test_reservation_is_answered_alike_when_it_is_asked_for_again(kv: KvDesk) -> None:
    (lease,) = kv.working(1)
    first, second = kv.reserve(lease, 100, request_id="r"), kv.reserve(lease, 100, request_id="r")
    assert kv.reserved(first) is kv.reserved(second)
    assert kv.state(lease).reserved == 100
    with pytest.raises(errors.IdempotencyMismatch):
        kv.reserve(lease, 101, request_id="r")
    kv.complete(kv.reserved(first).reservation_id)
    third = kv.reserved(kv.reserve(lease, 101, request_id="r"))
    assert third is not kv.reserved(first)


def test_name_is_that_of_one_engine_only(kv: KvDesk) -> None:
    first, second = kv.working(1, 1)
    one, two = kv.reserve(first, 100, request_id="r"), kv.reserve(second, 200, request_id="r")
    assert kv.reserved(one) is not kv.reserved(two)


def test_waiting_reservation_counts_once_when_it_is_asked_for_again(kv: KvDesk) -> None:
    (lease,) = kv.working(1, resident=1000)
    tickets = [kv.reserve(lease, 100, wait=30.0, request_id="r") for _ in range(3)]
    assert kv.state(lease).wanted == 100
    with pytest.raises(errors.IdempotencyMismatch):
        kv.reserve(lease, 101, wait=30.0, request_id="r")
    kv.say(lease, usage(0))
    assert len({kv.reserved(ticket).reservation_id for ticket in tickets}) == 1
    assert kv.state(lease).reserved == 100


def test_repeated_reservation_waits_on_when_the_first_caller_goes(kv: KvDesk) -> None:
    (lease,) = kv.working(1, resident=1000)
    first, other, second = (
        kv.reserve(lease, 100, wait=30.0, request_id=request_id) for request_id in ("r", "other", "r")
    )
    kv.abandon(first)
    assert kv.state(lease).wanted == 200
    kv.say(lease, usage(0))
    assert kv.reserved(second).request_id == "r"
    assert kv.reserved(other).request_id == "other"
    assert first not in kv.answers
    assert kv.state(lease).reserved == 200


def test_caller_that_goes_while_it_waits_leaves_nothing(kv: KvDesk) -> None:
    (lease,) = kv.working(1, resident=1000)
    ticket = kv.reserve(lease, 100, wait=30.0)
    kv.abandon(ticket)
    kv.abandon(ticket)
    assert (kv.state(lease).wanted, kv.book.waiting) == (0, [])
    kv.say(lease, usage(0))
    kv.at(60.0)
    assert ticket not in kv.answers


def test_reservation_that_nobody_heard_of_returns_when_its_caller_has_gone(kv: KvDesk) -> None:
    (lease,) = kv.working(1)
    ticket = kv.reserve(lease, 100)
    other = kv.reserve(lease, 50)
    kv.abandon(ticket)
    assert kv.state(lease).reserved == 50
    kv.abandon(other)
    assert not kv.book.reservations


def test_reservation_stays_when_one_of_two_callers_has_gone(kv: KvDesk) -> None:
    (lease,) = kv.working(1)
    first = kv.reserve(lease, 100, request_id="r")
    second = kv.reserve(lease, 100, request_id="r")
    kv.abandon(first)
    kv.abandon(second)
    assert kv.state(lease).reserved == 100


def test_order_ends_when_what_was_reserved_returns(kv: KvDesk) -> None:
    first, second = kv.engine(), kv.engine()
    kv.say(first, usage())
    large, small = (kv.reserved(kv.reserve(first, tokens)) for tokens in (700, 100))
    kv.say(second, usage())
    kv.at(5.0)
    assert kv.events(EventKind.RECLAIM_REQUESTED, first.lease_id)[-1].fields["kv_tokens"] == "300"
    kv.complete(small.reservation_id)
    assert not kv.order(first).acknowledged
    kv.complete(large.reservation_id)
    assert kv.state(first).order is None
    kv.at(60.0)
    assert not kv.events(EventKind.RECLAIM_ESCALATED)


def test_engine_that_ends_takes_its_reservations_with_it(kv: KvDesk) -> None:
    first, second = kv.working(1, 1)
    kv.reserve(first, 400)
    waits = kv.reserve(first, 400, wait=30.0, request_id="r")
    kv.reserve(second, 100)
    kv.release(first)
    assert isinstance(kv.reservation_error(waits), errors.Fenced)
    assert len(kv.book.reservations) == 1
    assert kv.budgets(second) == [1000]


@pytest.mark.parametrize("wrong", ["fence", "ended", "unknown", "no-engine"])
def test_reservation_is_refused_when_the_lease_is_not_the_engines(kv: KvDesk, wrong: str) -> None:
    lease = kv.take(wish(size=1)) if wrong == "no-engine" else kv.engine()
    if wrong == "ended":
        kv.release(lease)
    asked = ReservationRequest(
        lease_id="unknown" if wrong == "unknown" else lease.lease_id, fence=lease.fence + (wrong == "fence"), tokens=1
    )
    expected = {"unknown": errors.LeaseNotFound, "no-engine": errors.InvalidRequest}.get(wrong, errors.Fenced)
    before = kv.picture()
    with pytest.raises(expected):
        kv.arbiter.reserve(asked, kv.now)
    assert kv.picture() == before


def test_nothing_is_reserved_when_the_server_drains(kv: KvDesk) -> None:
    (lease,) = kv.working(1)
    reservation = kv.reserved(kv.reserve(lease, 100))
    kv.arbiter.drain(kv.now)
    with pytest.raises(errors.ShuttingDown):
        kv.reserve(lease, 1)
    kv.complete(reservation.reservation_id)
    assert kv.state(lease).reserved == 0


def test_reservation_that_waits_is_refused_when_the_server_drains(kv: KvDesk) -> None:
    (lease,) = kv.working(1, resident=1000)
    waits = kv.reserve(lease, 100, wait=30.0)
    kv.arbiter.drain(kv.now)
    kv.collect()
    assert isinstance(kv.reservation_error(waits), errors.ShuttingDown)
    assert kv.state(lease).wanted == 0
