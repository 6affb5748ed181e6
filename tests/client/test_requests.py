"""Requests that wait for their answer; no IO, every time is given."""

from __future__ import annotations

import grpc

from arbiter.v1 import arbiter_service_pb2
from arbiter_client import errors
from arbiter_client.preemption import Preemption
from arbiter_client.requests import Allocation, Demand, Return, Waiting

GONE = errors.ArbiterUnreachable.at("unix:/x")


def allocation(request_id: str = "r", asked_at: float = 100.0) -> Allocation:
    return Allocation(arbiter_service_pb2.AllocateRequest(request_id=request_id), asked_at)


def demand(request_id: str = "d", asked_at: float = 100.0) -> Demand:
    return Demand(arbiter_service_pb2.RequestPreemptionRequest(request_id=request_id), asked_at)


def test_begin_refuses_the_same_request_id_twice() -> None:
    waiting = Waiting(10.0)
    second = allocation()
    assert waiting.begin(allocation())
    assert not waiting.begin(second)
    assert isinstance(second.future.exception(), errors.InvalidRequest)
    assert len(waiting) == 1


def test_refused_fails_at_once_when_the_answer_is_final() -> None:
    waiting = Waiting(10.0)
    asked = allocation()
    waiting.begin(asked)
    waiting.refused(asked, errors.InsufficientMemory(), 101.0)
    assert isinstance(asked.future.exception(), errors.InsufficientMemory)
    assert len(waiting) == 0


def test_refused_tries_again_while_the_arbiter_only_cannot_answer_now() -> None:
    waiting = Waiting(10.0)
    asked = allocation()
    waiting.begin(asked)
    waiting.refused(asked, errors.Learning(), 101.0)
    assert asked.retry_at is not None
    assert 101.05 <= asked.retry_at <= 101.1
    assert waiting.due(connected=True, troubled_since=None) == asked.retry_at
    assert waiting.due(connected=False, troubled_since=None) is None
    assert waiting.ready(101.0, heard=True) == []
    assert waiting.ready(101.1, heard=True) == [asked]
    waiting.refused(asked, errors.Learning(), 111.0)
    assert isinstance(asked.future.exception(), errors.Learning)


def test_refused_does_not_try_again_for_somebody_who_has_gone() -> None:
    waiting = Waiting(10.0)
    asked = allocation()
    waiting.begin(asked)
    asked.future.cancel()
    waiting.refused(asked, errors.Learning(), 101.0)
    assert len(waiting) == 0


def test_give_up_waits_for_the_patience_after_trouble_or_asking() -> None:
    waiting = Waiting(10.0)
    asked = allocation(asked_at=105.0)
    waiting.begin(asked)
    assert waiting.due(connected=False, troubled_since=100.0) == 115.0
    waiting.give_up(114.9, 100.0, lambda: GONE)
    assert not asked.future.done()
    waiting.give_up(115.0, None, lambda: GONE)
    assert not asked.future.done()
    waiting.give_up(115.0, 100.0, lambda: GONE)
    assert asked.future.exception() is GONE


def test_give_up_forgets_a_cancelled_request_that_was_never_sent() -> None:
    waiting = Waiting(10.0)
    never, sent = allocation("never"), allocation("sent")
    sent.sent_at = 100.0
    for asked in (never, sent):
        waiting.begin(asked)
        asked.future.cancel()
    waiting.give_up(101.0, None, lambda: GONE)
    assert list(waiting) == [sent]
    waiting.disconnected()
    assert len(waiting) == 0


def test_returns_are_given_up_at_their_own_time() -> None:
    waiting = Waiting(10.0)
    giving = Return("l", 1, until=105.0)
    waiting.begin(giving)
    assert waiting.returns == 1
    assert waiting.due(connected=True, troubled_since=None) == 105.0
    waiting.fail_asked(GONE)
    assert waiting.returns == 1
    waiting.give_up(105.0, None, lambda: GONE)
    assert giving.future.exception() is GONE
    assert waiting.returns == 0


def test_a_returned_lease_that_is_unknown_fails_its_return() -> None:
    waiting = Waiting(10.0)
    giving = Return("l", 1, until=105.0)
    waiting.begin(giving)
    waiting.refused(giving, errors.LeaseNotFound(code=grpc.StatusCode.NOT_FOUND), 101.0)
    assert isinstance(giving.future.exception(), errors.LeaseNotFound)


def test_nobody_is_told_twice_or_after_leaving() -> None:
    asked = allocation()
    asked.future.cancel()
    asked.fail(GONE)
    giving = Return("l", 1, until=1.0)
    giving.future.cancel()
    giving.deliver(True)
    assert asked.future.cancelled()
    assert giving.future.cancelled()


def test_a_demand_is_ready_only_where_the_arbiter_is_known_to_listen() -> None:
    waiting = Waiting(10.0)
    asked = demand()
    waiting.begin(asked)
    assert waiting.ready(100.0, heard=False) == []
    assert waiting.ready(100.0, heard=True) == [asked]
    asked.sent_at = 100.0
    assert waiting.ready(100.0, heard=True) == []


def test_disconnected_fails_a_demand_that_was_sent_and_keeps_what_can_be_said_again() -> None:
    waiting = Waiting(10.0)
    sent, refused, never, lease = demand("sent"), demand("refused"), demand("never"), allocation()
    for asked in (sent, refused, never, lease):
        waiting.begin(asked)
    sent.sent_at = refused.sent_at = lease.sent_at = 100.0
    waiting.refused(refused, errors.Learning(), 101.0)
    waiting.disconnected()
    assert isinstance(sent.future.exception(), errors.ArbiterUnreachable)
    assert list(waiting) == [refused, never, lease]


def test_find_knows_a_request_by_its_future_until_it_is_done() -> None:
    waiting = Waiting(10.0)
    asked, other = demand(), allocation()
    waiting.begin(asked)
    waiting.begin(other)
    assert waiting.find(asked.future) is asked
    assert waiting.find(other.future) is other
    waiting.done(asked)
    assert waiting.find(asked.future) is None


def test_whoever_was_told_something_is_told_nothing_else() -> None:
    asked, giving = demand(), Return("l", 1, until=1.0)
    asked.fail(GONE)
    assert not asked.deliver(Preemption())
    asked.fail(errors.Learning())
    assert asked.future.exception() is GONE
    giving.deliver(True)
    giving.fail(GONE)
    giving.deliver(True)
    assert giving.future.result() is True


def test_new_connection_does_not_restart_the_wait() -> None:
    wish = arbiter_service_pb2.AllocateRequest(holder="worker")
    wish.wait_timeout.FromSeconds(80)
    asked = Allocation(wish, asked_at=100.0)
    assert asked.message(100.0).wait_timeout.ToMilliseconds() == 80_000
    assert asked.message(130.5).wait_timeout.ToMilliseconds() == 49_500
    assert asked.message(200.0).wait_timeout.ToMilliseconds() == 0
    assert wish.wait_timeout.ToMilliseconds() == 80_000


def test_wait_is_left_to_the_server_when_the_worker_names_none() -> None:
    wish = arbiter_service_pb2.AllocateRequest(holder="worker")
    assert not Allocation(wish, asked_at=100.0).message(150.0).HasField("wait_timeout")
