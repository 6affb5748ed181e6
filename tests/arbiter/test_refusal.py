"""Refusals at once: each says what was missing, and leaves the queue as it was."""

from __future__ import annotations

import pytest

from arbiter_sidecar import errors
from arbiter_sidecar.types import GIB, Attribution, EventKind
from tests.arbiter.desk import Desk, qualities, wish


def test_refusal_names_what_is_free_when_it_does_not_wait(desk: Desk) -> None:
    desk.box(20)
    desk.take(wish("a", 16, rigid=True))
    ticket = desk.ask(wish("b", 6, rigid=True, request_id="b"))
    error = desk.error(ticket)
    assert isinstance(error, errors.InsufficientMemory)
    assert error.metadata() == {
        "requested_bytes": str(6 * GIB),
        "available_bytes": str(4 * GIB),
        "device_id": "box",
    }
    (event,) = desk.events(EventKind.REQUEST_FAILED)
    assert (event.request_id, event.fields["reason"]) == ("b", "INSUFFICIENT_MEMORY")
    assert len(desk.books.queue) == 0


def test_refused_request_can_be_asked_again_with_its_id(desk: Desk) -> None:
    desk.box(20)
    first = desk.take(wish("a", 16, rigid=True))
    desk.error(desk.ask(wish("b", 6, rigid=True, request_id="b")))
    desk.release(first)
    desk.at(30.0)
    # Other arguments, too: a refusal is not remembered.
    assert desk.lease(desk.ask(wish("b", 8, rigid=True, request_id="b"))).alive


def test_refusal_names_the_quality_when_only_that_is_missing(desk: Desk) -> None:
    desk.box(20)
    desk.take(wish("a", 12, rigid=True))
    error = desk.error(desk.ask(wish("b", 10, min_quality=0.9)))
    assert isinstance(error, errors.InsufficientQuality)
    assert error.metadata() == {"minimum": "0.9", "achievable": "0.8", "device_id": "box"}
    # Whoever named no minimum cannot be told to lower it.
    desk.take(wish("c", 5, rigid=True))
    assert isinstance(desk.error(desk.ask(wish("d", 9))), errors.InsufficientMemory)


def test_refusal_is_of_memory_when_no_quality_would_help(desk: Desk) -> None:
    desk.box(20)
    desk.take(wish("a", 20, rigid=True))
    assert isinstance(desk.error(desk.ask(wish("b", 4, min_quality=0.5))), errors.InsufficientMemory)
    assert isinstance(desk.error(desk.ask(wish("c", 4, floor=4, min_quality=0.5))), errors.InsufficientMemory)


def test_request_that_does_not_wait_lowers_nobody_when_bytes_are_not_free_yet(desk: Desk) -> None:
    desk.box(24)
    holder = desk.take(wish("a", 20))
    error = desk.error(desk.ask(wish("b", 20)))
    assert isinstance(error, errors.InsufficientMemory)
    assert qualities([holder]) == [1.0]
    assert desk.told(holder) == 0
    assert desk.device().candidate is None


def test_request_that_does_not_wait_is_refused_when_somebody_waits_already(desk: Desk) -> None:
    desk.box(20)
    desk.take(wish("a", 16, rigid=True))
    waiting = desk.ask(wish("b", 6, rigid=True, wait=60))
    error = desk.error(desk.ask(wish("c", 3, rigid=True)))
    assert isinstance(error, errors.InsufficientMemory)
    assert error.message == "earlier requests wait for the same memory"
    assert desk.waits(waiting)


def test_request_that_does_not_wait_is_refused_when_the_device_was_never_measured(desk: Desk) -> None:
    desk.add("gpu", 24, Attribution.PER_PROCESS)
    error = desk.error(desk.ask(wish("a", 1)))
    assert isinstance(error, errors.DeviceStale)
    assert error.metadata() == {"device_id": "gpu"}
    assert error.retry_after_s == 1.0


def test_failures_are_remembered_up_to_a_bound(desk: Desk) -> None:
    desk.box(20)
    desk.take(wish("a", 20, rigid=True))
    for number in range(1001):
        desk.arbiter.allocate(wish("b", 1, rigid=True, request_id=f"r{number}"), desk.now)
    desk.collect()
    assert len(desk.books.failures) == 1000
    assert "r0" not in desk.books.failures
    assert desk.books.stats.refused == 1001


@pytest.mark.parametrize("size", [0.5, 4.0])
def test_counters_say_one_outcome_for_each_request(desk: Desk, size: float) -> None:
    desk.box(3)
    desk.ask(wish("a", size, min_quality=0.1))
    stats = desk.books.stats
    assert stats.requests == 1
    assert stats.granted + stats.refused == 1
