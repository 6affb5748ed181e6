"""While a lease is starting up and measures what is free, nobody else on its device grows or shrinks."""

from __future__ import annotations

from arbiter_sidecar.requests import AllocationRequest
from arbiter_sidecar.types import EndReason, Priority
from tests.arbiter.desk import Desk, wish


def starting(holder: str, size: float, pid: int = 7, wait: float = 0.0) -> AllocationRequest:
    """A request of a worker that will be silent for five minutes while it loads."""
    return wish(holder, size, ttl=300, pids=(pid,), window=300.0, wait=wait)


def test_second_starter_waits_until_the_first_runs(desk: Desk) -> None:
    desk.box(20)
    first = desk.take(starting("first", 4))
    second = desk.ask(starting("second", 4, pid=8, wait=60))
    assert desk.waits(second)
    assert "first is starting up" in next(iter(desk.books.queue)).reason
    desk.report(first)
    assert desk.lease(second).request.holder == "second"


def test_plain_request_waits_too_and_is_refused_when_it_will_not_wait(desk: Desk) -> None:
    desk.box(20)
    desk.take(starting("first", 4))
    assert desk.waits(desk.ask(wish("second", 4, wait=60)))
    refused = desk.ask(wish("third", 4))
    assert desk.error(refused).message == "earlier requests wait for the same memory"


def test_refusal_names_who_is_starting(desk: Desk) -> None:
    desk.box(20)
    desk.take(starting("first", 4))
    assert "first is starting up" in desk.error(desk.ask(wish("second", 4))).message


def test_fence_falls_after_a_minute_at_the_latest(desk: Desk) -> None:
    desk.box(20)
    desk.take(starting("first", 4))
    second = desk.ask(wish("second", 4, wait=100))
    desk.at(59.9)
    assert desk.waits(second)
    desk.at(60.0)
    assert not desk.waits(second)


def test_fence_falls_when_the_starter_ends(desk: Desk) -> None:
    desk.box(20)
    first = desk.take(starting("first", 4))
    second = desk.ask(wish("second", 4, wait=100))
    desk.release(first)
    assert first.end_reason is EndReason.RELEASED
    assert not desk.waits(second)


def test_nobody_rises_while_somebody_starts(desk: Desk) -> None:
    desk.box(20)
    big = desk.take(wish("big", 12, ttl=300))
    other = desk.take(wish("other", 12, priority=Priority.LOW))
    desk.report(big)
    desk.report(other)
    low = big.quality
    assert low < 1.0
    desk.take(starting("starter", 0.1))
    desk.release(other)
    desk.at(desk.now + 40.0)
    assert big.quality == low
    desk.at(70.0)
    assert big.quality > low
