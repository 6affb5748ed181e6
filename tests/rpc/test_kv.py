"""KV tokens over real sockets: budgets in directives, orders to free, loans, and all that a caller may get wrong."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import grpc
import pytest

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import lease_pb2, state_service_pb2
from arbiter_sidecar.policy import preemption
from arbiter_sidecar.rpc.subscriber import HOLD_S
from tests.rpc.kv_engine import (
    TOTAL,
    beat,
    complete,
    engine,
    next_directive,
    obey,
    reserve,
    shown,
    tokens,
)
from tests.rpc.served import Serve, Served, Setting, applied, refusal, report
from tests.runtime.fakes import GUARD_S

LOW, HIGH = lease_pb2.PRIORITY_LOW, lease_pb2.PRIORITY_HIGH


@pytest.fixture
async def served(serve: Serve) -> Served:
    """A server with 4096 KV tokens."""
    return await serve(Setting(core=tokens()))


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
