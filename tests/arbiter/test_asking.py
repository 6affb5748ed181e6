"""Callers who want memory of others: one preemption at a time, turns by importance, retries that are safe."""

from __future__ import annotations

import pytest

from arbiter_sidecar import errors
from arbiter_sidecar.ledger import plans
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.types import GIB
from tests.arbiter.desk import Desk, gib, taking, wish
from tests.arbiter.preempting import BACKGROUND, CRITICAL, HIGH, LOW, NORMAL, Stage


def stage_of(desk: Desk, *askers: str) -> tuple[Stage, list[Lease]]:
    """Two who can give, and askers of the priorities that their names begin with; everybody may be asked by now."""
    stage = Stage(desk)
    stage.hold("A", BACKGROUND, 60)
    stage.hold("B", LOW, 60)
    priorities = {"n": NORMAL, "h": HIGH, "c": CRITICAL}
    leases = [stage.hold(name, priorities[name[0]], 10, floor=10) for name in askers]
    stage.at(2.0)
    return stage, leases


def test_second_asks_in_its_turn_when_the_first_has_what_it_asked_for(desk: Desk) -> None:
    stage, (first, second) = stage_of(desk, "h1", "h2")
    one, two = desk.preempt(10, first), desk.preempt(20, second)
    assert stage.plan.requester is first
    assert two not in desk.closed
    stage.give("A")
    assert desk.closed[one].error is None
    # Its donor has just given and is spared for a moment; the turn goes to whoever else may give.
    assert stage.plan.requester is second
    assert stage.orders() == "B20"
    stage.give("B")
    assert desk.closed[two].error is None
    assert (first.limit_bytes, second.limit_bytes) == (gib(20), gib(30))


def test_the_more_important_has_its_turn_first(desk: Desk) -> None:
    stage, (first, late, urgent) = stage_of(desk, "h1", "h2", "c1")
    desk.preempt(10, first)
    desk.preempt(10, late)
    desk.preempt(10, urgent)
    stage.give("A")
    assert stage.plan.requester is urgent


def test_turn_fails_when_nobody_may_give_any_more(desk: Desk) -> None:
    stage, (first, second) = stage_of(desk, "h1", "h2")
    desk.preempt(100, first)
    two = desk.preempt(10, second)
    stage.give("A", "B")
    error = desk.closed[two].error
    assert isinstance(error, errors.NoDonor)
    assert desk.closed[two].plan is None
    assert not stage.open


def test_turn_fails_when_the_lease_that_asks_has_ended_meanwhile(desk: Desk) -> None:
    stage, (first, second) = stage_of(desk, "h1", "h2")
    desk.preempt(10, first)
    two = desk.preempt(10, second)
    desk.release(second)
    stage.give("A")
    assert isinstance(desk.closed[two].error, errors.LeaseNotFound)


def test_wait_for_a_turn_ends_when_it_takes_too_long(desk: Desk) -> None:
    stage, (first, second) = stage_of(desk, "h1", "h2")
    desk.preempt(10, first, grace=100.0)
    two = desk.preempt(10, second)
    stage.at(31.9)
    assert two not in desk.closed
    stage.at(32.1)
    error = desk.closed[two].error
    assert isinstance(error, errors.WaitTimeout)
    assert error.metadata() == {"waited_ms": "30000", "device_id": "gpu"}
    assert stage.plan.requester is first
    # Its place on the agenda is no longer anybody's.
    stage.give("A")
    stage.at(140.0)


def test_caller_that_waits_for_its_turn_leaves_no_trace_when_it_goes(desk: Desk) -> None:
    stage, (first, second) = stage_of(desk, "h1", "h2")
    one, two = desk.preempt(10, first), desk.preempt(10, second, request_id="again")
    also = desk.preempt(10, second, request_id="again")
    three = desk.preempt(10, second)
    desk.withdraw(two)
    desk.withdraw(three)
    assert len(desk.books.asks.waiting) == 1
    desk.withdraw(also)
    assert not desk.books.asks.waiting
    desk.withdraw(one)
    assert not stage.open
    desk.withdraw(one)
    stage.at(40.0)


def test_those_that_wait_for_their_turn_are_refused_when_the_server_drains(desk: Desk) -> None:
    _, (first, second) = stage_of(desk, "h1", "h2")
    assert not desk.device("gpu").expecting
    desk.preempt(10, first)
    assert desk.device("gpu").expecting
    two = desk.preempt(10, second)
    desk.arbiter.drain(desk.now)
    desk.collect()
    assert isinstance(desk.closed[two].error, errors.ShuttingDown)


def test_retry_hears_the_same_when_it_names_the_same_request(desk: Desk) -> None:
    stage, (lease, _) = stage_of(desk, "h1", "h2")
    one = desk.preempt(10, lease, request_id="r")
    two = desk.preempt(10, lease, request_id="r")
    assert stage.orders() == "A10"
    stage.give("A")
    three = desk.preempt(10, lease, request_id="r")
    assert desk.plan_of(one) is desk.plan_of(two) is desk.plan_of(three)
    assert lease.limit_bytes == gib(20)
    assert not stage.open


def test_retry_with_other_arguments_is_refused(desk: Desk) -> None:
    _, (lease, other) = stage_of(desk, "h1", "h2")
    desk.preempt(10, lease, request_id="r")
    with pytest.raises(errors.IdempotencyMismatch):
        desk.arbiter.preempt(taking(11, lease, request_id="r"), desk.now)
    # A name belongs to whoever asks.
    desk.preempt(11, other, request_id="r")


def test_request_of_another_name_waits_for_its_turn_though_its_lease_asks_already(desk: Desk) -> None:
    stage, (lease, _) = stage_of(desk, "h1", "h2")
    desk.preempt(10, lease, request_id="r")
    two = desk.preempt(10, lease, request_id="s")
    stage.give("A")
    stage.give("B")
    assert desk.closed[two].error is None
    assert lease.limit_bytes == gib(30)


def test_name_is_free_again_when_its_answer_is_too_old(desk: Desk) -> None:
    stage, (lease, _) = stage_of(desk, "h1", "h2")
    one = desk.preempt(10, lease, request_id="r")
    stage.give("A")
    for _ in range(62):
        stage.at(desk.now + 10.0)
        desk.beat(*stage.leases.values())
    two = desk.preempt(10, lease, request_id="r")
    stage.give("A", "B")
    assert desk.plan_of(one) is not desk.plan_of(two)


def test_names_and_those_that_wait_are_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "MAX_ASKED", 2)
    monkeypatch.setattr("arbiter_sidecar.arbiter.asking.MAX_ASKED", 2)
    _, (lease, other) = stage_of(desk, "h1", "h2")
    for name in ("a", "b", "c"):
        desk.preempt(10, lease, request_id=name)
    with pytest.raises(errors.QueueFull, match="wait for their turn"):
        desk.arbiter.preempt(taking(10, other), desk.now)
    # The oldest name has been forgotten: the same words are a new request.
    assert desk.books.asks.named(taking(11, lease, request_id="a"), desk.now) is None


def test_nobody_is_asked_to_give_while_somebody_starts_up(desk: Desk) -> None:
    stage, (lease,) = stage_of(desk, "h1")
    starter = desk.take(wish("starts", 5, pids=(9,), window=30.0, ttl=300))
    ticket = desk.preempt(10, lease)
    assert not stage.open
    desk.apply(starter)
    assert stage.orders() == "A10"
    assert ticket not in desk.closed


def test_nobody_starts_up_while_memory_changes_hands(desk: Desk) -> None:
    stage, (lease,) = stage_of(desk, "h1")
    desk.preempt(10, lease)
    ticket = desk.ask(wish("starts", 5, pids=(9,), window=30.0, ttl=300, wait=60.0))
    assert desk.waits(ticket)
    (waiter,) = desk.books.queue
    assert waiter.reason == "memory changes hands, nobody may grow or shrink while a worker starts up"
    with_no_patience = desk.ask(wish("hasty", 5, pids=(8,), window=30.0))
    assert isinstance(desk.error(with_no_patience), errors.InsufficientMemory)
    stage.give("A")
    assert desk.lease(ticket).limit_bytes == 5 * GIB


def test_turn_waits_for_a_newcomer_that_is_more_important(desk: Desk) -> None:
    stage = Stage(desk, size=100)
    stage.hold("A", BACKGROUND, 40, floor=20)
    stage.hold("B", BACKGROUND, 40, floor=20)
    asks = stage.hold("h1", HIGH, 10, floor=10)
    stage.at(32.0)
    first = desk.preempt(5, asks, request_id="first")
    newcomer = desk.ask(wish("new", 60, rigid=True, priority=CRITICAL, wait=60.0, may_preempt=True))
    second = desk.preempt(5, asks, request_id="second")
    desk.withdraw(first)
    assert stage.plan.waiter is not None
    assert second not in desk.closed
    assert desk.waits(newcomer)
