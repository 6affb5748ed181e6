"""Heartbeats: every lease gets its own verdict, and what comes late or from another epoch counts for nothing."""

from __future__ import annotations

import math
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import lease_pb2
from arbiter_sidecar.arbiter import ArbiterConfig
from arbiter_sidecar.rpc.convert import LeaseTimes
from arbiter_sidecar.types import GIB, WorkloadType
from tests.rpc.served import Serve, Served, Setting, applied, refusal, report
from tests.runtime.driving import EPOCH
from tests.runtime.fakes import FakeClock, until

#: Ended leases keep their bytes for long, so that they do not become memories while a test looks at them.
LASTING = ArbiterConfig(pause_guard_s=0.0, elasticity=dict.fromkeys(WorkloadType, 1.0))
MOST = (1 << 63) - 1


async def test_nothing_is_said_of_a_handle_when_it_was_renewed_and_has_applied_everything(served: Served) -> None:
    lease = (await served.lease()).lease
    [first] = (await served.beat(handles=[lease.handle])).results
    assert (first.verdict, first.handle, first.lease_id) == (pb.VERDICT_RENEWED, lease.handle, lease.lease_id)
    assert first.directive == lease.directive
    [told] = (await served.beat(reports=[applied(lease, lease.directive.revision)])).results
    assert told.verdict == pb.VERDICT_RENEWED
    assert not told.HasField("directive")
    assert not (await served.beat(handles=[lease.handle])).results


async def test_every_report_is_answered_when_there_is_nothing_new(served: Served) -> None:
    leases = [(await served.lease(memory_bytes=GIB)).lease for _ in range(3)]
    beat = await served.beat(sequence=0, reports=[applied(lease, lease.directive.revision) for lease in leases])
    assert [result.lease_id for result in beat.results] == [lease.lease_id for lease in leases]
    assert not any(result.HasField("directive") for result in beat.results)
    assert all(result.expire_time.seconds for result in beat.results)


async def test_each_lease_has_its_own_verdict_when_some_are_bad(serve: Serve) -> None:
    served = await serve(Setting(core=LASTING))
    good, ended, stale = [(await served.lease(memory_bytes=GIB)).lease for _ in range(3)]
    await served.release(ended)
    beat = await served.beat(
        handles=[good.handle, ended.handle, 0, (1 << 64) - 1],
        reports=[
            report(ended),
            report(stale, used_memory_bytes=5),
            pb.HeartbeatRequest.Report(lease_id=stale.lease_id, fence=stale.fence + 1, used_memory_bytes=9),
            pb.HeartbeatRequest.Report(lease_id="no-such-lease", fence=1),
        ],
    )
    verdicts = [(result.handle, result.lease_id, result.verdict, result.end_reason) for result in beat.results]
    assert verdicts == [
        (good.handle, good.lease_id, pb.VERDICT_RENEWED, 0),
        (ended.handle, ended.lease_id, pb.VERDICT_FENCED, lease_pb2.END_REASON_RELEASED),
        (0, "", pb.VERDICT_NOT_FOUND, 0),
        ((1 << 64) - 1, "", pb.VERDICT_NOT_FOUND, 0),
        (0, ended.lease_id, pb.VERDICT_FENCED, lease_pb2.END_REASON_RELEASED),
        (0, stale.lease_id, pb.VERDICT_RENEWED, 0),
        (0, stale.lease_id, pb.VERDICT_FENCED, 0),
        (0, "no-such-lease", pb.VERDICT_NOT_FOUND, 0),
    ]
    assert all(bool(result.reason) == (result.verdict != pb.VERDICT_RENEWED) for result in beat.results)
    shown = {lease.lease_id: lease for lease in (await served.state()).leases}
    assert shown[stale.lease_id].reported_memory_bytes == 5
    assert not shown[good.lease_id].HasField("reported_memory_bytes")


async def test_end_is_remembered_when_the_bytes_of_a_lease_are_gone(served: Served) -> None:
    lease = (await served.lease()).lease
    await served.release(lease)
    await until(lambda: served.arbiter.books.leases.total == 0)
    beat = await served.beat(handles=[lease.handle], reports=[report(lease)])
    assert [result.verdict for result in beat.results] == [pb.VERDICT_FENCED] * 2
    assert {result.end_reason for result in beat.results} == {lease_pb2.END_REASON_RELEASED}
    assert (await served.release(lease)).already_released


async def test_lease_is_fenced_when_its_time_was_up_before_the_heartbeat(serve: Serve) -> None:
    clock = FakeClock()
    served = await serve(Setting(clock=clock, core=LASTING))
    lease = (await served.lease(ttl={"seconds": 10})).lease
    clock.advance(9.9)
    assert (await served.beat(handles=[lease.handle])).results[0].verdict == pb.VERDICT_RENEWED
    clock.advance(9.9)
    assert (await served.beat(reports=[report(lease)])).results[0].verdict == pb.VERDICT_RENEWED
    clock.advance(10.0)
    [late] = (await served.beat(handles=[lease.handle])).results
    assert (late.verdict, late.end_reason) == (pb.VERDICT_FENCED, lease_pb2.END_REASON_EXPIRED)


async def test_message_is_ignored_when_it_comes_late(serve: Serve) -> None:
    clock = FakeClock()
    served = await serve(Setting(clock=clock))
    lease = (await served.lease(ttl={"seconds": 10})).lease
    same: dict[str, Any] = {"worker": "w", "handles": [lease.handle]}
    assert not (await served.beat(**same, incarnation=2, sequence=5)).stale
    before = await served.state()
    clock.advance(1.0)
    for incarnation, sequence in ((2, 5), (2, 4), (1, 9)):
        late = await served.beat(**same, incarnation=incarnation, sequence=sequence)
        assert late.stale
        assert not late.results
        assert late.sequence == sequence
    assert (await served.state()).leases[0].expire_time == before.leases[0].expire_time
    assert not (await served.beat(**same, incarnation=2, sequence=6)).stale
    assert not (await served.beat(**same, incarnation=3, sequence=1)).stale
    assert (await served.state()).leases[0].expire_time.seconds == before.leases[0].expire_time.seconds + 1


async def test_revisions_are_dropped_when_they_belong_to_another_epoch(served: Served) -> None:
    lease = (await served.lease()).lease
    for epoch in (0, EPOCH - 1, EPOCH + 1):
        beat = await served.beat(server_epoch=epoch, reports=[applied(lease, lease.directive.revision)])
        assert beat.server_epoch == EPOCH
        assert beat.results[0].verdict == pb.VERDICT_RENEWED
        assert beat.results[0].directive == lease.directive
    assert (await served.state()).leases[0].applied_revision == 0
    await served.beat(reports=[applied(lease, lease.directive.revision)])
    assert (await served.state()).leases[0].applied_revision == lease.directive.revision


async def test_revision_is_not_believed_when_it_was_never_given(served: Served) -> None:
    lease = (await served.lease()).lease
    await served.beat(reports=[applied(lease, MOST)])
    assert (await served.state()).leases[0].applied_revision == 0


async def test_directive_is_repeated_when_it_is_deferred_and_withdrawn_when_it_is_refused(served: Served) -> None:
    lease = (await served.lease(memory_bytes=20 * GIB)).lease
    other = (await served.lease(holder="other", memory_bytes=2 * GIB)).lease
    [told] = (await served.beat(reports=[report(lease)])).results
    lower = told.directive
    assert lower.quality < 1.0
    deferred = report(lease, applied_revision=lower.revision, outcome=pb.REPORT_OUTCOME_DEFERRED)
    assert (await served.beat(reports=[deferred])).results[0].directive == lower
    refused = report(lease, applied_revision=lower.revision, outcome=pb.REPORT_OUTCOME_REFUSED, achievable_quality=0.99)
    [answer] = (await served.beat(reports=[refused])).results
    assert answer.directive.quality == 0.99
    assert answer.directive.revision > lower.revision
    [pressed] = (await served.beat(handles=[other.handle])).results
    assert pressed.directive.quality < 1.0


async def test_two_thousand_handles_are_taken_and_not_one_more(served: Served) -> None:
    lease = (await served.lease()).lease
    most = [lease.handle, *range(10_000, 11_999)]
    beat = await served.beat(handles=most)
    assert len(beat.results) == 2000
    assert beat.results[0].verdict == pb.VERDICT_RENEWED
    refused = await refusal(served.beat(handles=[*most, 1]))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert refused.fields == {"handles"}


async def test_lease_is_renewed_once_when_it_is_named_twice(served: Served) -> None:
    lease = (await served.lease()).lease
    beat = await served.beat(handles=[lease.handle] * 2, reports=[report(lease)] * 2)
    assert [result.verdict for result in beat.results] == [pb.VERDICT_RENEWED] * 4


BAD_REPORTS: list[tuple[str, dict[str, Any]]] = [
    ("lease_id", {"lease_id": ""}),
    ("lease_id", {"lease_id": "a\0b"}),
    ("lease_id", {"lease_id": "x" * 129}),
    ("fence", {"fence": -1}),
    ("applied_revision", {"applied_revision": -1}),
    ("outcome", {"outcome": 4}),
    *(("achievable_quality", {"achievable_quality": value}) for value in (math.nan, math.inf, -0.1, 1.1)),
    *(("used_memory_bytes", {"used_memory_bytes": value}) for value in (-1, (1 << 53) + 1, MOST)),
    ("kv.resident_tokens", {"kv": pb.KvUsage(resident_tokens=-1)}),
    ("kv.demand_tokens", {"kv": pb.KvUsage(demand_tokens=-1)}),
    ("kv.freeable_tokens", {"kv": pb.KvUsage(freeable_tokens=MOST)}),
    ("kv.lowest_running_priority", {"kv": pb.KvUsage(lowest_running_priority=lease_pb2.Priority.ValueType(9))}),
    ("busy_for", {"busy_for": duration_pb2.Duration(seconds=901)}),
    ("busy_for", {"busy_for": duration_pb2.Duration(seconds=-1)}),
    ("shard_latencies", {"shard_latencies": [duration_pb2.Duration()] * 257}),
    ("reclaim_acks", {"reclaim_acks": [pb.ReclaimAck()] * 257}),
]


@pytest.mark.parametrize(("field", "changes"), BAD_REPORTS)
async def test_nobody_is_renewed_when_one_report_is_malformed(
    serve: Serve, field: str, changes: dict[str, Any]
) -> None:
    clock = FakeClock()
    served = await serve(Setting(clock=clock))
    lease = (await served.lease()).lease
    clock.advance(1.0)
    before = await served.state()
    bad = pb.HeartbeatRequest.Report(**{"lease_id": lease.lease_id, "fence": lease.fence, **changes})
    refused = await refusal(served.beat(worker="w", sequence=1, handles=[lease.handle], reports=[report(lease), bad]))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, {f"reports[1].{field}"})
    assert await served.state() == before
    # Not even its place in the order was taken.
    assert not (await served.beat(worker="w", sequence=1)).stale


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("worker", {"worker": "a\nb"}),
        ("worker", {"worker": "x" * 257}),
        ("incarnation", {"incarnation": -1}),
        ("sequence", {"sequence": -MOST - 1}),
    ],
)
async def test_message_is_refused_when_its_head_is_malformed(
    served: Served, field: str, changes: dict[str, Any]
) -> None:
    refused = await refusal(served.beat(**changes))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, {field})


async def test_interval_is_a_third_of_the_shortest_time_to_live(serve: Serve) -> None:
    served = await serve(Setting(times=LeaseTimes(ttl_default_s=30.0)))
    short, long = [(await served.lease(memory_bytes=GIB, ttl={"seconds": ttl})).lease for ttl in (6, 60)]

    async def seconds(**fields: Any) -> float:
        interval = (await served.beat(**fields)).next_heartbeat_interval
        return interval.seconds + interval.nanos / 1e9

    assert await seconds() == 10.0
    assert await seconds(handles=[12345]) == 10.0
    assert await seconds(handles=[long.handle]) == 20.0
    assert await seconds(handles=[long.handle, short.handle]) == 2.0
    assert await seconds(handles=[long.handle], reports=[report(short)]) == 2.0


async def test_interval_ignores_leases_that_have_ended(serve: Serve) -> None:
    served = await serve(Setting(core=LASTING))
    short, long = [(await served.lease(memory_bytes=GIB, ttl={"seconds": ttl})).lease for ttl in (6, 60)]
    await served.release(short)
    beat = await served.beat(handles=[short.handle, long.handle])
    assert beat.next_heartbeat_interval.seconds == 20


async def test_answer_tells_that_the_server_drains(served: Served) -> None:
    lease = (await served.lease()).lease
    assert not (await served.beat(handles=[lease.handle])).draining
    await served.server.drain()
    beat = await served.beat(handles=[lease.handle])
    assert beat.draining
    assert beat.results[0].verdict == pb.VERDICT_RENEWED
