"""KV tokens over real sockets: budgets in directives, reservations, loans, and everything a caller may get wrong."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import grpc
import pytest

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import lease_pb2, state_service_pb2
from arbiter_sidecar.arbiter import ArbiterConfig, KvConfig
from arbiter_sidecar.policy import preemption
from arbiter_sidecar.rpc.subscriber import HOLD_S
from arbiter_sidecar.types import GIB
from tests.rpc.served import Refusal, Serve, Served, Setting, applied, refusal, report
from tests.rpc.talk import Talk
from tests.runtime.driving import CORE
from tests.runtime.fakes import GUARD_S, until

TOTAL = 4096
LOW, HIGH = lease_pb2.PRIORITY_LOW, lease_pb2.PRIORITY_HIGH
UNKNOWN_ID = "no-such-reservation"


def tokens(total: int = TOTAL, **changes: Any) -> ArbiterConfig:
    """A core that shares so many tokens."""
    return replace(CORE, kv=KvConfig(tokens=total, **changes))


@pytest.fixture
async def served(serve: Serve) -> Served:
    """A server with 4096 KV tokens."""
    return await serve(Setting(core=tokens()))


async def engine(served: Served, **share: Any) -> lease_pb2.Lease:
    """A small lease that is a KV engine."""
    changes = {name: share.pop(name) for name in ("holder", "priority") if name in share}
    answer = await served.lease(memory_bytes=GIB, kv=pb.KvShare(**share), **changes)
    return answer.lease


async def beat(served: Served, lease: lease_pb2.Lease, **usage: Any) -> lease_pb2.Directive:
    """A report of an engine's state; the directive that the answer brings, empty when there is nothing new."""
    answer = await served.beat(reports=[report(lease, kv=pb.KvUsage(**usage))])
    return answer.results[0].directive


async def obey(served: Served, lease: lease_pb2.Lease, **usage: Any) -> int:
    """An engine says that it has applied the newest directive; returns its budget."""
    told = await beat(served, lease, **usage)
    if told.revision:
        said = applied(lease, told.revision)
        said.kv.CopyFrom(pb.KvUsage(**usage))
        await served.beat(reports=[said])
    return (await shown(served, lease)).budget_tokens


async def shown(served: Served, lease: lease_pb2.Lease) -> state_service_pb2.KvEngine:
    """The engine as the picture has it."""
    return next(each for each in (await served.state()).kv_engines if each.lease_id == lease.lease_id)


def asking(lease: lease_pb2.Lease, amount: int, wait_s: float = 0.0, **changes: Any) -> pb.ReserveKvRequest:
    """A request for tokens."""
    request = pb.ReserveKvRequest(
        **{"lease_id": lease.lease_id, "fence": lease.fence, "tokens": amount, **changes},
    )
    request.wait_timeout.FromMilliseconds(round(wait_s * 1000))
    return request


async def reserve(served: Served, lease: lease_pb2.Lease, amount: int, wait_s: float = 0.0) -> pb.ReserveKvResponse:
    """Reserves tokens."""
    return await served.calls.ReserveKv(asking(lease, amount, wait_s), timeout=GUARD_S)


async def complete(served: Served, reservation_id: str, actual: int = 0) -> pb.CompleteKvResponse:
    """Returns a reservation."""
    request = pb.CompleteKvRequest(reservation_id=reservation_id, actual_tokens=actual)
    return await served.calls.CompleteKv(request, timeout=GUARD_S)


async def reserve_refused(served: Served, request: pb.ReserveKvRequest) -> Refusal:
    """How a request for tokens fails."""
    return await refusal(served.calls.ReserveKv(request, timeout=GUARD_S))


async def waiting(served: Served, lease: lease_pb2.Lease, amount: int) -> None:
    """Returns when so many tokens of an engine's reservations wait."""
    found = served.arbiter.books.leases.get(lease.lease_id)
    assert found is not None
    state = found.kv
    assert state is not None
    await until(lambda: state.wanted == amount)


# Budgets in directives.


async def test_first_directive_has_the_whole_budget_when_the_engine_is_alone(served: Served) -> None:
    answer = await served.lease(kv=pb.KvShare())
    assert answer.directive.HasField("kv_token_budget")
    assert answer.directive.kv_token_budget == TOTAL
    assert answer.lease.directive == answer.directive


async def test_first_directive_has_a_budget_of_0_when_others_have_all_the_work(served: Served) -> None:
    busy = await engine(served)
    await beat(served, busy, active=True)
    answer = await served.lease(kv=pb.KvShare())
    assert answer.directive.HasField("kv_token_budget")
    assert answer.directive.kv_token_budget == 0


async def test_directive_says_nothing_of_tokens_when_the_lease_is_no_engine(served: Served) -> None:
    answer = await served.lease()
    assert not answer.directive.HasField("kv_token_budget")
    assert not (await served.state()).kv_engines


async def test_lower_budget_is_told_at_once_and_the_higher_one_when_tokens_are_free(served: Served) -> None:
    first, second = await engine(served), await engine(served, share_weight=3)
    assert await obey(served, first, active=True) == TOTAL
    stream = served.calls.StreamQuality(pb.StreamQualityRequest(lease_ids=[first.lease_id]))
    told = await next_directive(stream)
    # The second wakes: the first is told less in the same breath, and the second has its part once that is free.
    await beat(served, second, active=True)
    assert (await shown(served, second)).budget_tokens == 0
    lowered = await next_directive(stream)
    assert (lowered.kv_token_budget, lowered.reason) == (TOTAL // 4, lease_pb2.DIRECTIVE_REASON_KV_BUDGET)
    assert lowered.revision > told.revision
    assert (await shown(served, first)).charged_tokens == TOTAL
    await served.beat(reports=[applied(first, lowered.revision)])
    assert (await shown(served, first)).charged_tokens == TOTAL // 4
    assert (await shown(served, second)).budget_tokens == TOTAL // 4 * 3


async def test_lower_budget_is_told_at_once_when_earlier_directives_were_never_confirmed(served: Served) -> None:
    silent, other = await engine(served), await engine(served)
    assert await obey(served, silent, active=True) == TOTAL
    stream = served.calls.StreamQuality(pb.StreamQualityRequest(lease_ids=[silent.lease_id]))
    await next_directive(stream)
    before = time.monotonic()
    told = []
    # From here on it confirms nothing.
    for demand in (2048, 1024, 512, 256):
        await beat(served, silent, active=True, demand_tokens=demand)
        told.append((await next_directive(stream)).kv_token_budget)
    assert told == [2048, 1024, 512, 256]
    assert time.monotonic() - before < HOLD_S, "only a rise may be kept back so long"
    assert (await shown(served, other)).budget_tokens == 0, "nothing was confirmed to be free"


async def next_directive(
    stream: grpc.aio.UnaryStreamCall[pb.StreamQualityRequest, pb.StreamQualityResponse],
) -> lease_pb2.Directive:
    """The next directive of the one lease of a stream."""
    async with asyncio.timeout(GUARD_S):
        message = await stream.read()
    assert isinstance(message, pb.StreamQualityResponse)
    assert message.directives, message
    return message.directives[0]


@pytest.mark.parametrize(
    ("share", "field"),
    [
        pytest.param({"share_weight": -1}, "kv.share_weight", id="weight-negative"),
        pytest.param({"share_weight": 1_000_001}, "kv.share_weight", id="weight-too-large"),
        pytest.param({"min_tokens": -1}, "kv.min_tokens", id="floor-negative"),
        pytest.param({"max_tokens": -1}, "kv.max_tokens", id="cap-negative"),
        pytest.param({"min_tokens": 32, "max_tokens": 16}, "kv.max_tokens", id="cap-below-floor"),
        pytest.param({"block_tokens": -1}, "kv.block_tokens", id="block-negative"),
        pytest.param({"block_tokens": (1 << 20) + 1}, "kv.block_tokens", id="block-too-large"),
    ],
)
async def test_engine_is_refused_when_its_share_makes_no_sense(
    served: Served, share: dict[str, int], field: str
) -> None:
    refused = await refusal(served.lease(kv=pb.KvShare(**share)))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert field in refused.fields
    assert not (await served.state()).leases


async def test_engine_is_refused_when_its_floor_was_promised_to_others(served: Served) -> None:
    await engine(served, min_tokens=TOTAL)
    refused = await refusal(served.lease(kv=pb.KvShare(min_tokens=16)))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "EXCEEDS_CAPACITY")
    assert refused.metadata["capacity_tokens"] == str(TOTAL)


@pytest.mark.parametrize(
    ("usage", "field"),
    [
        pytest.param({"resident_tokens": -1}, "resident_tokens", id="resident"),
        pytest.param({"demand_tokens": -1}, "demand_tokens", id="demand"),
        pytest.param({"freeable_tokens": -1}, "freeable_tokens", id="freeable"),
        pytest.param({"lowest_running_priority": 99}, "lowest_running_priority", id="priority"),
    ],
)
async def test_report_is_refused_when_a_number_of_it_makes_no_sense(
    served: Served, usage: dict[str, Any], field: str
) -> None:
    lease = await engine(served)
    refused = await refusal(served.beat(reports=[report(lease, kv=pb.KvUsage(**usage))]))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.fields == {f"reports[0].kv.{field}"}
    assert not (await shown(served, lease)).resident_tokens


async def test_picture_has_every_number_of_an_engine(served: Served) -> None:
    first = await engine(served, holder="chat", share_weight=3, min_tokens=160, max_tokens=2048)
    second = await engine(served, holder="batch", block_tokens=32)
    await obey(served, first, active=True, resident_tokens=320, demand_tokens=1600, lowest_running_priority=HIGH)
    held = await reserve(served, first, 640)
    assert (await shown(served, first)) == state_service_pb2.KvEngine(
        lease_id=first.lease_id,
        holder="chat",
        namespace="default",
        device_id="gpu0",
        share_weight=3,
        min_tokens=160,
        max_tokens=2048,
        active=True,
        demand_tokens=1600,
        resident_tokens=640,
        reserved_tokens=640,
        budget_tokens=1600,
        charged_tokens=1600,
    )
    idle = await shown(served, second)
    assert (idle.share_weight, idle.active, idle.HasField("demand_tokens"), idle.HasField("max_tokens")) == (
        1,
        False,
        False,
        False,
    )
    device = (await served.state()).devices[0]
    assert device.kv_total_tokens == TOTAL
    assert device.kv_charged_tokens == 1600 + idle.charged_tokens <= TOTAL
    await complete(served, held.reservation_id)
    assert (await shown(served, first)).reserved_tokens == 0


async def test_picture_forgets_an_engine_when_it_ends_and_the_other_has_its_tokens(served: Served) -> None:
    first, second = await engine(served), await engine(served)
    await beat(served, first, active=True)
    await obey(served, second, active=True)
    await obey(served, first, active=True)
    assert (await shown(served, second)).budget_tokens == TOTAL // 2
    await served.release(first)
    assert [(each.lease_id, each.budget_tokens) for each in (await served.state()).kv_engines] == [
        (second.lease_id, TOTAL)
    ]


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


# Draining and orders.


async def test_engine_over_its_budget_is_ordered_to_free_and_then_pressed(serve: Serve) -> None:
    core = tokens(drain_s=0.1)
    served = await serve(Setting(core=replace(core, preemption=replace(core.preemption, grace_s=0.4))))
    stubborn, other = await engine(served), await engine(served)
    await obey(served, other)
    usage = {"active": True, "resident_tokens": TOTAL}
    assert await obey(served, stubborn, **usage) == TOTAL
    stream = served.calls.StreamQuality(pb.StreamQualityRequest(lease_ids=[stubborn.lease_id]))
    await next_directive(stream)
    before = time.monotonic()
    await beat(served, other, active=True)
    lowered = await next_directive(stream)
    assert lowered.kv_token_budget == TOTAL // 2
    assert not lowered.HasField("reclaim"), "it may finish what it has begun"
    ordered = await next_directive(stream)
    assert time.monotonic() - before >= 0.1
    assert (ordered.reclaim.kv_tokens, ordered.reclaim.memory_bytes) == (TOTAL // 2, 0)
    assert ordered.reclaim.level == lease_pb2.RECLAIM_LEVEL_SOFT
    assert 0 < ordered.reclaim.grace.ToNanoseconds() <= 400_000_000
    assert ordered.reason == lease_pb2.DIRECTIVE_REASON_PREEMPTION
    assert not ordered.reclaim.whole
    pressed = await next_directive(stream)
    assert pressed.reclaim.level == lease_pb2.RECLAIM_LEVEL_HARD
    assert pressed.reclaim.reclaim_id == ordered.reclaim.reclaim_id
    # A part of it is gone: the order is for what is left.
    told = await beat(served, stubborn, active=True, resident_tokens=TOTAL - 1024)
    assert told.reclaim.kv_tokens == TOTAL // 2 - 1024
    said = applied(stubborn, told.revision)
    said.kv.CopyFrom(pb.KvUsage(active=True, resident_tokens=TOTAL // 2))
    await served.beat(reports=[said])
    calm = await next_directive(stream)
    assert not calm.HasField("reclaim")
    assert (await shown(served, other)).budget_tokens == TOTAL // 2
    assert (await served.state()).leases[0].state != lease_pb2.LEASE_STATE_ENDED


# Loans.


async def lending(served: Served) -> tuple[lease_pb2.Lease, lease_pb2.Lease]:
    """An engine that runs work of LOW priority, and a HIGH one; each has half, and the first may be asked."""
    donor = await engine(served, holder="batch")
    taker = await engine(served, holder="chat", priority=HIGH)
    running = {"active": True, "lowest_running_priority": LOW}
    await obey(served, taker, active=True)
    await obey(served, donor, **running)
    await obey(served, taker, active=True)
    half = TOTAL // 2
    assert await obey(served, donor, **running, resident_tokens=half, freeable_tokens=half) == half
    # Whoever was granted a lease just now is not asked.
    await asyncio.sleep(preemption.SHRINK_HOLD_S)
    return donor, taker


async def test_tokens_are_lent_and_the_answer_comes_when_they_are_free(served: Served) -> None:
    donor, taker = await lending(served)
    request = pb.RequestPreemptionRequest(lease_id=taker.lease_id, kv_tokens=1024)
    asked = served.calls.RequestPreemption(request, timeout=GUARD_S)
    usage = {"active": True, "lowest_running_priority": LOW, "freeable_tokens": TOTAL // 2}
    while not (told := await beat(served, donor, **usage, resident_tokens=TOTAL // 2)).HasField("reclaim"):
        assert not asked.done(), await asked
    assert (told.kv_token_budget, told.reclaim.kv_tokens) == (1024, 1024)
    assert (told.reclaim.memory_bytes, told.reclaim.level) == (0, lease_pb2.RECLAIM_LEVEL_SOFT)
    assert told.reason == lease_pb2.DIRECTIVE_REASON_PREEMPTION
    assert not asked.done(), "nothing is free yet"
    said = applied(donor, told.revision)
    said.kv.CopyFrom(pb.KvUsage(active=True, resident_tokens=1024, lowest_running_priority=LOW))
    await served.beat(reports=[said])
    answer = await asked
    assert answer.confirmed == 1024
    assert [(each.holder, each.planned, each.confirmed, each.outcome) for each in answer.donations] == [
        ("batch", 1024, 1024, pb.DONATION_OUTCOME_CONFIRMED)
    ]
    giving, taking = await shown(served, donor), await shown(served, taker)
    assert (giving.budget_tokens, giving.donated_tokens, giving.borrowed_tokens) == (1024, 1024, 0)
    assert (taking.budget_tokens, taking.donated_tokens, taking.borrowed_tokens) == (3072, 0, 1024)
    # The borrower has no more work: the loan is over.
    await obey(served, taker, active=False)
    assert (await shown(served, donor)).donated_tokens == 0
    assert (await shown(served, donor)).budget_tokens == TOTAL


async def test_dry_run_of_a_loan_says_who_would_lend_and_changes_nothing(served: Served) -> None:
    donor, taker = await lending(served)
    request = pb.RequestPreemptionRequest(lease_id=taker.lease_id, kv_tokens=1024, dry_run=True)
    answer = await served.calls.RequestPreemption(request, timeout=GUARD_S)
    assert [(each.lease_id, each.planned, each.confirmed) for each in answer.donations] == [(donor.lease_id, 1024, 0)]
    assert [(each.lease_id, each.reason) for each in answer.rejected] == [(taker.lease_id, "own_lease")]
    assert not answer.plan_id
    assert (await shown(served, donor)).budget_tokens == TOTAL // 2


async def test_loan_is_refused_when_the_other_runs_work_as_important(served: Served) -> None:
    donor, taker = await lending(served)
    await beat(served, donor, active=True, resident_tokens=2048, lowest_running_priority=HIGH, freeable_tokens=2048)
    request = pb.RequestPreemptionRequest(lease_id=taker.lease_id, kv_tokens=1024)
    refused = await refusal(served.calls.RequestPreemption(request, timeout=GUARD_S))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NO_DONOR")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        pytest.param({"kv_tokens": 0}, "kv_tokens", id="none"),
        pytest.param({"kv_tokens": -1}, "kv_tokens", id="negative"),
        pytest.param({"lease_id": "", "device_id": "gpu0"}, "lease_id", id="for-nobody"),
        pytest.param({"priority": 99}, "priority", id="no-such-priority"),
    ],
)
async def test_loan_is_refused_when_a_field_makes_no_sense(served: Served, changes: dict[str, Any], field: str) -> None:
    lease = await engine(served)
    request = pb.RequestPreemptionRequest(**{"lease_id": lease.lease_id, "kv_tokens": 16, **changes})
    refused = await refusal(served.calls.RequestPreemption(request, timeout=GUARD_S))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, {field})


async def test_loan_is_refused_when_the_lease_is_no_engine(served: Served) -> None:
    plain = (await served.lease()).lease
    request = pb.RequestPreemptionRequest(lease_id=plain.lease_id, kv_tokens=16)
    refused = await refusal(served.calls.RequestPreemption(request, timeout=GUARD_S))
    assert (refused.reason, refused.fields) == ("INVALID_REQUEST", {"kv_tokens"})
