"""KV tokens are reserved over real sockets, by unary calls and in sessions: granted, awaited, returned, lost."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import state_service_pb2
from arbiter_sidecar.types import GIB
from tests.rpc.kv_engine import (
    TOTAL,
    asking,
    beat,
    complete,
    engine,
    obey,
    reserve,
    reserve_refused,
    shown,
    tokens,
    waiting,
)
from tests.rpc.served import Serve, Served, Setting, applied, refusal, report
from tests.rpc.talk import Talk
from tests.runtime.fakes import GUARD_S

UNKNOWN_ID = "no-such-reservation"


@pytest.fixture
async def served(serve: Serve) -> Served:
    """A server with 4096 KV tokens."""
    return await serve(Setting(core=tokens()))


# Reservations.


async def test_tokens_are_reserved_and_returned_exactly_whatever_was_used(served: Served) -> None:
    lease = await engine(served)
    before = time.time()
    first = await reserve(served, lease, 100)
    assert first.granted_tokens == 100
    assert first.reservation_id
    assert first.expire_time.ToMicroseconds() / 1e6 >= before + served.arbiter.books.config.kv.reservation_s - 1
    second = await reserve(served, lease, TOTAL - 100)
    assert (await shown(served, lease)).reserved_tokens == TOTAL
    await complete(served, second.reservation_id, actual=TOTAL * 5)
    await complete(served, first.reservation_id, actual=1)
    assert (await shown(served, lease)).reserved_tokens == 0


async def test_completing_twice_is_fine_and_returns_nothing_twice(served: Served) -> None:
    lease = await engine(served)
    first, _ = await reserve(served, lease, 100), await reserve(served, lease, 200)
    await complete(served, first.reservation_id, 100)
    await complete(served, first.reservation_id, 100)
    assert (await shown(served, lease)).reserved_tokens == 200


async def test_completing_what_was_never_reserved_is_refused(served: Served) -> None:
    refused = await refusal(complete(served, UNKNOWN_ID))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "RESERVATION_NOT_FOUND")
    assert refused.metadata == {"reservation_id": UNKNOWN_ID}


async def test_completing_is_refused_when_the_engine_has_ended(served: Served) -> None:
    lease = await engine(served)
    held = await reserve(served, lease, 100)
    await served.release(lease)
    refused = await refusal(complete(served, held.reservation_id))
    assert refused.reason == "RESERVATION_NOT_FOUND"


async def test_abandoned_reservation_returns_by_itself(serve: Serve) -> None:
    served = await serve(Setting(core=tokens(reservation_s=0.05)))
    lease = await engine(served)
    events = served.states.WatchEvents(state_service_pb2.WatchEventsRequest())
    await events.initial_metadata()
    held = await reserve(served, lease, 100)
    async with asyncio.timeout(GUARD_S):
        async for message in events:
            found = [
                event for event in message.events if event.kind == state_service_pb2.EVENT_KIND_KV_RESERVATION_EXPIRED
            ]
            if found:
                break
    assert (found[0].lease_id, found[0].fields["tokens"]) == (lease.lease_id, "100")
    assert (await shown(served, lease)).reserved_tokens == 0
    # Whoever comes late hears that all is well: nothing is held any more.
    await complete(served, held.reservation_id)


async def test_request_that_is_sent_again_has_the_same_reservation(served: Served) -> None:
    lease = await engine(served)
    request = asking(lease, 100, request_id="mine")
    first = await served.calls.ReserveKv(request, timeout=GUARD_S)
    again = await served.calls.ReserveKv(request, timeout=GUARD_S)
    assert again.reservation_id == first.reservation_id
    assert (await shown(served, lease)).reserved_tokens == 100
    other = await reserve_refused(served, asking(lease, 101, request_id="mine"))
    assert (other.code, other.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "IDEMPOTENCY_MISMATCH")
    await complete(served, first.reservation_id)
    assert (await served.calls.ReserveKv(request, timeout=GUARD_S)).reservation_id != first.reservation_id


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        pytest.param({"lease_id": ""}, "lease_id", id="no-lease"),
        pytest.param({"lease_id": "x" * 1000}, "lease_id", id="long-lease"),
        pytest.param({"fence": 0}, "fence", id="no-fence"),
        pytest.param({"fence": -1}, "fence", id="negative-fence"),
        pytest.param({"tokens": 0}, "tokens", id="no-tokens"),
        pytest.param({"tokens": -5}, "tokens", id="negative-tokens"),
        pytest.param({"request_id": "x" * 1000}, "request_id", id="long-request-id"),
        pytest.param({"wait_s": -1.0}, "wait_timeout", id="negative-wait"),
    ],
)
async def test_reservation_is_refused_when_a_field_makes_no_sense(
    served: Served, changes: dict[str, Any], field: str
) -> None:
    lease = await engine(served)
    refused = await reserve_refused(served, asking(lease, **{"amount": 100, **changes}))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert refused.fields == {field}
    assert (await shown(served, lease)).reserved_tokens == 0


async def test_reservation_names_every_bad_field_at_once(served: Served) -> None:
    refused = await reserve_refused(served, pb.ReserveKvRequest())
    assert refused.fields == {"lease_id", "fence", "tokens"}


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        pytest.param({}, {"reservation_id"}, id="no-reservation"),
        pytest.param({"reservation_id": "x" * 1000}, {"reservation_id"}, id="long-reservation"),
        pytest.param({"reservation_id": "r", "actual_tokens": -1}, {"actual_tokens"}, id="negative-tokens"),
        pytest.param({"actual_tokens": -1}, {"reservation_id", "actual_tokens"}, id="both"),
    ],
)
async def test_completion_is_refused_when_a_field_makes_no_sense(
    served: Served, changes: dict[str, Any], fields: set[str]
) -> None:
    refused = await refusal(served.calls.CompleteKv(pb.CompleteKvRequest(**changes), timeout=GUARD_S))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, fields)


async def test_reservation_is_refused_when_the_lease_is_not_the_callers(served: Served) -> None:
    lease = await engine(served)
    unknown = await reserve_refused(served, asking(lease, 100, lease_id="nobody"))
    assert (unknown.code, unknown.reason) == (grpc.StatusCode.NOT_FOUND, "LEASE_NOT_FOUND")
    stale = await reserve_refused(served, asking(lease, 100, fence=lease.fence + 1))
    assert (stale.code, stale.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "FENCED")
    await served.release(lease)
    ended = await reserve_refused(served, asking(lease, 100))
    assert ended.reason in {"FENCED", "LEASE_NOT_FOUND"}


async def test_reservation_is_refused_when_the_lease_is_no_engine(served: Served) -> None:
    plain = (await served.lease()).lease
    refused = await reserve_refused(served, asking(plain, 100))
    assert (refused.reason, refused.fields) == ("INVALID_REQUEST", {"lease_id"})


async def test_reservation_is_refused_when_it_can_never_fit(served: Served) -> None:
    bounded = await engine(served, max_tokens=160)
    refused = await reserve_refused(served, asking(bounded, 161, wait_s=60.0))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "EXCEEDS_CAPACITY")
    assert refused.metadata == {"requested_tokens": "161", "capacity_tokens": "160"}
    unbounded = await engine(served)
    assert (await reserve_refused(served, asking(unbounded, TOTAL + 1))).metadata["capacity_tokens"] == str(TOTAL)


async def test_reservation_is_refused_at_once_when_nobody_wants_to_wait(served: Served) -> None:
    lease = await engine(served)
    await reserve(served, lease, TOTAL - 16)
    refused = await reserve_refused(served, asking(lease, 17))
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "INSUFFICIENT_TOKENS")
    assert refused.metadata == {"requested_tokens": "17", "available_tokens": "16"}
    assert refused.retry_s is None or refused.retry_s > 0
    assert (await shown(served, lease)).reserved_tokens == TOTAL - 16


async def test_reservation_is_refused_when_too_many_are_open(serve: Serve) -> None:
    served = await serve(Setting(core=tokens(max_reservations=2)))
    lease = await engine(served)
    await reserve(served, lease, 16)
    await reserve(served, lease, 16)
    refused = await reserve_refused(served, asking(lease, 16))
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")


async def test_waiting_reservation_is_granted_when_another_returns(served: Served) -> None:
    lease = await engine(served)
    held = await reserve(served, lease, TOTAL)
    asked = served.calls.ReserveKv(asking(lease, 32, wait_s=GUARD_S), timeout=GUARD_S)
    await waiting(served, lease, 32)
    assert not asked.done()
    await complete(served, held.reservation_id)
    assert (await asked).granted_tokens == 32


async def test_waiting_reservation_is_refused_when_its_time_is_up(served: Served) -> None:
    lease = await engine(served)
    await reserve(served, lease, TOTAL)
    before = time.monotonic()
    refused = await reserve_refused(served, asking(lease, 32, wait_s=0.2))
    assert time.monotonic() - before >= 0.2
    assert refused.reason == "INSUFFICIENT_TOKENS"
    await waiting(served, lease, 0)


async def test_waiting_reservation_hears_no_before_its_callers_own_deadline(served: Served) -> None:
    lease = await engine(served)
    await reserve(served, lease, TOTAL)
    refused = await refusal(served.calls.ReserveKv(asking(lease, 32, wait_s=3600.0), timeout=0.5))
    assert refused.reason == "INSUFFICIENT_TOKENS"


async def test_idle_engine_wakes_when_it_reserves(served: Served) -> None:
    busy, idle = await engine(served), await engine(served)
    await beat(served, busy, active=True)
    await obey(served, idle)
    await obey(served, busy, active=True)
    assert (await shown(served, idle)).budget_tokens == 0
    asked = served.calls.ReserveKv(asking(idle, 64, wait_s=GUARD_S), timeout=GUARD_S)
    await waiting(served, idle, 64)
    assert (await shown(served, idle)).active
    assert await obey(served, busy, active=True) == TOTAL // 2
    assert (await asked).granted_tokens == 64
    assert (await shown(served, idle)).budget_tokens == TOTAL // 2


async def test_waiting_reservation_is_refused_when_its_engine_ends(served: Served) -> None:
    lease = await engine(served)
    await reserve(served, lease, TOTAL)
    asked = served.calls.ReserveKv(asking(lease, 32, wait_s=GUARD_S), timeout=GUARD_S)
    await waiting(served, lease, 32)
    await served.release(lease)
    refused = await refusal(asked)
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "FENCED")


async def test_nothing_waits_any_more_when_the_caller_has_gone(served: Served) -> None:
    lease = await engine(served)
    await reserve(served, lease, TOTAL)
    asked = served.calls.ReserveKv(asking(lease, 32, wait_s=GUARD_S), timeout=GUARD_S)
    await waiting(served, lease, 32)
    asked.cancel()
    await waiting(served, lease, 0)


# The same in a session.


async def test_session_reserves_and_completes(served: Served) -> None:
    talk = Talk(served)
    lease = (await talk.lease(kv=pb.KvShare())).lease
    granted = (await talk.ask(reserve_kv=asking(lease, 100))).reserve_kv
    assert granted.granted_tokens == 100
    request = pb.CompleteKvRequest(reservation_id=granted.reservation_id, actual_tokens=90)
    assert (await talk.ask(complete_kv=request)).HasField("complete_kv")
    assert (await talk.ask(complete_kv=request)).HasField("complete_kv")
    failed = (await talk.ask(complete_kv=pb.CompleteKvRequest(reservation_id=UNKNOWN_ID))).error
    assert failed.reason == "RESERVATION_NOT_FOUND"
    failed = (await talk.ask(reserve_kv=pb.ReserveKvRequest())).error
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT.value[0], "INVALID_REQUEST")
    assert (await shown(served, lease)).reserved_tokens == 0


async def test_session_says_nothing_of_a_completion_that_wants_no_answer(served: Served) -> None:
    talk = Talk(served)
    lease = (await talk.lease(kv=pb.KvShare())).lease
    granted = (await talk.ask(reserve_kv=asking(lease, 100))).reserve_kv
    done = pb.CompleteKvRequest(reservation_id=granted.reservation_id)
    await talk.send(correlation_id=0, complete_kv=done)
    number = await talk.send(reserve_kv=asking(lease, TOTAL))
    assert (await talk.until(lambda message: message.HasField("reserve_kv"))).correlation_id == number


async def test_session_goes_on_while_a_reservation_waits_and_can_take_it_back(served: Served) -> None:
    talk = Talk(served)
    lease = (await talk.lease(kv=pb.KvShare())).lease
    await talk.ask(reserve_kv=asking(lease, TOTAL))
    number = await talk.send(reserve_kv=asking(lease, 32, wait_s=GUARD_S))
    assert (await talk.beat(handles=[lease.handle])).HasField("heartbeat")
    await waiting(served, lease, 32)
    await talk.send(correlation_id=0, cancel=pb.CancelRequest(correlation_id=number))
    answer = await talk.until(lambda message: message.correlation_id == number)
    assert answer.error.reason == "CANCELLED"
    await waiting(served, lease, 0)


async def test_nothing_waits_any_more_when_the_session_is_cut(served: Served) -> None:
    talk = Talk(served, served.connect())
    lease = (await talk.lease(kv=pb.KvShare())).lease
    held = (await talk.ask(reserve_kv=asking(lease, TOTAL))).reserve_kv
    await talk.send(reserve_kv=asking(lease, 32, wait_s=GUARD_S))
    await waiting(served, lease, 32)
    talk.call.cancel()
    await waiting(served, lease, 0)
    # What was granted stays until it is returned: the engine may come back on another session.
    assert (await shown(served, lease)).reserved_tokens == TOTAL
    await complete(served, held.reservation_id)


async def test_session_hears_the_lower_budget_before_the_answer_of_who_takes_it(served: Served) -> None:
    talk = Talk(served)
    busy = (await talk.lease(kv=pb.KvShare(), memory_bytes=GIB)).lease
    usage = pb.KvUsage(active=True)
    await talk.beat(reports=[report(busy, kv=usage)])
    other = await engine(served)
    asked = served.calls.ReserveKv(asking(other, 64, wait_s=GUARD_S), timeout=GUARD_S)
    told = (await talk.hear()).directives[0]
    assert (told.lease_id, told.kv_token_budget) == (busy.lease_id, TOTAL // 2)
    assert not asked.done()
    said = applied(busy, told.revision)
    said.kv.CopyFrom(usage)
    await talk.beat(reports=[said])
    assert (await asked).granted_tokens == 64
