"""Memory is taken from the less important: told on streams and in heartbeats, confirmed, credited, or called off."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import grpc
import pytest

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import lease_pb2
from arbiter_sidecar.arbiter import ArbiterConfig, PreemptionConfig
from arbiter_sidecar.policy import preemption
from arbiter_sidecar.types import GIB
from tests.rpc.served import IMAGE, Serve, Served, Setting, refusal, report
from tests.rpc.talk import Talk
from tests.runtime.driving import CORE
from tests.runtime.fakes import GUARD_S, until

BACKGROUND, HIGH = lease_pb2.PRIORITY_BACKGROUND, lease_pb2.PRIORITY_HIGH


def quick(grace_s: float = GUARD_S, settle_s: float = GUARD_S) -> ArbiterConfig:
    """Leases may be asked from the first moment."""
    rules = preemption.Rules(shrink_hold_s=0.0, revoke_hold_s=0.0)
    return replace(CORE, preemption=PreemptionConfig(rules=rules, grace_s=grace_s, settle_s=settle_s))


@pytest.fixture
async def served(serve: Serve) -> Served:
    """A server whose leases may be asked at once."""
    return await serve(Setting(core=quick()))


async def donor(served: Served, **changes: Any) -> pb.AllocateResponse:
    """A lease of 16 GiB in the background that can go down to 4."""
    shape = {"memory_bytes": 16 * GIB, "min_memory_bytes": 4 * GIB, "workload_type": IMAGE}
    return await served.lease(**{"holder": "donor", "priority": BACKGROUND, **shape, **changes})


async def asking(served: Served, **changes: Any) -> pb.AllocateResponse:
    """A HIGH lease of 4 GiB."""
    return await served.lease(holder="asking", priority=HIGH, min_quality=1.0, **changes)


def request(lease: lease_pb2.Lease, gib: int, **changes: Any) -> pb.RequestPreemptionRequest:
    """It asks for so much more."""
    return pb.RequestPreemptionRequest(**{"lease_id": lease.lease_id, "memory_bytes": gib * GIB, **changes})


async def hear(stream: grpc.aio.UnaryStreamCall[Any, pb.StreamQualityResponse]) -> pb.StreamQualityResponse:
    """The next message of a stream; there must be one."""
    message = await stream.read()
    assert isinstance(message, pb.StreamQualityResponse), message
    return message


async def told_to_give(served: Served, lease: lease_pb2.Lease) -> lease_pb2.Directive:
    """The donor's directive as its heartbeat brings it, once it has an order to give memory back."""
    while True:
        result = (await served.beat(reports=[report(lease)])).results[0]
        if result.directive.HasField("reclaim"):
            return result.directive
        await asyncio.sleep(0)


async def test_donor_shrinks_and_the_requester_may_use_so_much_more(served: Served) -> None:
    giving, taking = (await donor(served)).lease, (await asking(served)).lease
    stream = served.calls.StreamQuality(pb.StreamQualityRequest(lease_ids=[giving.lease_id]))
    await hear(stream)
    asked = served.calls.RequestPreemption(request(taking, 6), timeout=GUARD_S)
    pushed = (await hear(stream)).directives[0]
    told = await told_to_give(served, giving)
    assert told.reclaim == pushed.reclaim or told.reclaim.reclaim_id == pushed.reclaim.reclaim_id
    assert told.memory_limit_bytes == giving.memory_bytes - 6 * GIB
    assert told.reclaim.memory_bytes == 6 * GIB
    assert told.reclaim.level == lease_pb2.RECLAIM_LEVEL_SOFT
    assert told.reason == lease_pb2.DIRECTIVE_REASON_PREEMPTION
    assert not asked.done(), "nothing is confirmed yet"
    applied = report(giving, applied_revision=told.revision, outcome=pb.REPORT_OUTCOME_APPLIED)
    await served.beat(reports=[applied])
    answer = await asked
    assert answer.confirmed == 6 * GIB
    assert [(each.lease_id, each.holder, each.planned, each.confirmed) for each in answer.donations] == [
        (giving.lease_id, "donor", 6 * GIB, 6 * GIB)
    ]
    assert answer.donations[0].outcome == pb.DONATION_OUTCOME_CONFIRMED
    grown = (await served.beat(reports=[report(taking)])).results[0].directive
    assert grown.memory_limit_bytes == 10 * GIB
    assert (await served.state()).stats.preemptions == 1
    account = next(each for each in (await served.state()).accounts if each.holder == "donor")
    assert (account.reclaims, account.floor_breaches) == (1, 0)


async def test_silent_donor_is_told_that_it_is_pressing_and_then_loses_its_lease(serve: Serve) -> None:
    served = await serve(Setting(core=quick(grace_s=0.2)))
    giving, taking = (await donor(served)).lease, (await asking(served)).lease
    stream = served.calls.StreamQuality(pb.StreamQualityRequest(lease_ids=[giving.lease_id]))
    await hear(stream)
    asked = served.calls.RequestPreemption(request(taking, 6), timeout=GUARD_S)
    levels = []
    while not (message := await hear(stream)).ended:
        levels += [directive.reclaim.level for directive in message.directives]
    assert levels[-1] == lease_pb2.RECLAIM_LEVEL_HARD
    assert message.ended[0].end_reason == lease_pb2.END_REASON_PREEMPTED
    answer = await asked
    assert answer.donations[0].outcome == pb.DONATION_OUTCOME_REVOKED
    assert answer.confirmed == 6 * GIB


async def test_dry_run_tells_who_would_lose_what_and_changes_nothing(served: Served) -> None:
    giving, taking = (await donor(served)).lease, (await asking(served)).lease
    before = (await served.state()).leases
    answer = await served.calls.RequestPreemption(request(taking, 6, dry_run=True), timeout=GUARD_S)
    assert [(each.lease_id, each.planned) for each in answer.donations] == [(giving.lease_id, 6 * GIB)]
    assert [(each.lease_id, each.reason) for each in answer.rejected] == [(taking.lease_id, "own_lease")]
    assert not answer.plan_id
    after = (await served.state()).leases
    assert [lease.directive for lease in after] == [lease.directive for lease in before]


async def test_request_is_refused_with_reasons_when_nobody_may_be_asked(served: Served) -> None:
    giving = (await donor(served, priority=lease_pb2.PRIORITY_NORMAL)).lease
    taking = (await asking(served)).lease
    refused = await refusal(served.calls.RequestPreemption(request(taking, 6), timeout=GUARD_S))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NO_DONOR")
    assert f"{giving.lease_id}: priority_gap" in refused.message


@pytest.mark.parametrize(
    ("changes", "code", "reason"),
    [
        ({"lease_id": "nobody"}, grpc.StatusCode.NOT_FOUND, "LEASE_NOT_FOUND"),
        ({"lease_id": ""}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ({"lease_id": "", "device_id": "none"}, grpc.StatusCode.NOT_FOUND, "DEVICE_NOT_FOUND"),
        ({"priority": lease_pb2.PRIORITY_CRITICAL}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ({"memory_bytes": 0}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ({"timeout": {"seconds": -1}}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ({"kv_tokens": 16}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
    ],
)
async def test_bad_request_is_refused(
    served: Served, changes: dict[str, Any], code: grpc.StatusCode, reason: str
) -> None:
    taking = (await asking(served)).lease
    refused = await refusal(served.calls.RequestPreemption(request(taking, 1, **changes), timeout=GUARD_S))
    assert (refused.code, refused.reason) == (code, reason)


async def test_donor_is_let_off_when_the_caller_goes(served: Served) -> None:
    giving, taking = (await donor(served)).lease, (await asking(served)).lease
    stream = served.calls.StreamQuality(pb.StreamQualityRequest(lease_ids=[giving.lease_id]))
    await hear(stream)
    asked = served.calls.RequestPreemption(request(taking, 6), timeout=GUARD_S)
    reclaim = (await hear(stream)).directives[0].reclaim
    asked.cancel()
    while not (message := await hear(stream)).reclaim_cancelled:
        pass
    assert list(message.reclaim_cancelled) == [reclaim.reclaim_id]
    assert not message.directives[-1].HasField("reclaim")
    device = (await served.state()).devices[0]
    assert device.earmarked_bytes == 0


async def test_preemption_goes_over_a_session_and_can_be_taken_back(served: Served) -> None:
    giving, taking = (await donor(served)).lease, (await asking(served)).lease
    talk = Talk(served)
    number = await talk.send(request_preemption=request(taking, 6))
    await told_to_give(served, giving)
    await talk.send(0, cancel=pb.CancelRequest(correlation_id=number))
    answer = await talk.until(lambda message: message.correlation_id == number)
    assert answer.error.reason == "CANCELLED"
    assert not (await served.beat(reports=[report(giving)])).results[0].directive.HasField("reclaim")


async def test_waiting_allocation_is_taken_back_over_a_session(served: Served) -> None:
    await served.lease(memory_bytes=24 * GIB, min_quality=1.0)
    talk = Talk(served)
    number = await talk.send(allocate=pb.AllocateRequest(holder="late", workload_type=IMAGE, memory_bytes=GIB))
    await until(lambda: served.arbiter.books.queue.callers == 1)
    await talk.send(0, cancel=pb.CancelRequest(correlation_id=number))
    assert (await talk.until(lambda message: message.correlation_id == number)).error.reason == "CANCELLED"
    assert served.arbiter.books.queue.callers == 0


async def test_newcomer_that_may_preempt_is_granted_when_the_bytes_are_gone(serve: Serve) -> None:
    served = await serve(Setting(core=quick(grace_s=0.2)))
    giving = (await served.lease(holder="donor", priority=BACKGROUND, memory_bytes=20 * GIB, min_quality=1.0)).lease
    late = await served.calls.Allocate(
        pb.AllocateRequest(
            holder="important",
            workload_type=IMAGE,
            priority=HIGH,
            memory_bytes=12 * GIB,
            min_quality=1.0,
            may_preempt=True,
        ),
        timeout=GUARD_S,
    )
    assert late.lease.memory_bytes == 12 * GIB
    ended = (await served.beat(handles=[giving.handle])).results[0]
    assert ended.end_reason == lease_pb2.END_REASON_PREEMPTED
