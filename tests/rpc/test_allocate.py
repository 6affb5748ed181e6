"""Allocate as its callers live it: granted, made room for, timed out, cancelled, repeated."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import grpc
import pytest

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import arbiter_service_pb2_grpc, lease_pb2, state_service_pb2
from arbiter_sidecar.rpc import calls
from arbiter_sidecar.runtime import driver
from arbiter_sidecar.types import GIB, DeviceId
from tests.rpc.served import IMAGE, Serve, Served, Setting, applied, refusal, report, wish
from tests.runtime.driving import CORE, EPOCH
from tests.runtime.fakes import GUARD_S, FakeClock, until

#: More than is left beside a lease of 20 GiB, so that room must be made.
LATE = {"holder": "late", "memory_bytes": 10 * GIB}
RIGID = {"min_quality": 1.0}
#: As full as a device of 24 GiB can be, for somebody who cannot shrink.
FULL = {"holder": "first", "memory_bytes": 24 * GIB, **RIGID}


def asking(served: Served, **changes: Any) -> asyncio.Task[pb.AllocateResponse]:
    """A call of Allocate in the background."""

    async def call() -> pb.AllocateResponse:
        return await served.lease(**changes)

    return asyncio.create_task(call())


async def waiting(served: Served, callers: int = 1) -> None:
    """Returns when so many callers wait."""
    await until(lambda: served.arbiter.books.queue.callers == callers)


async def test_lease_is_whole_when_it_is_granted(served: Served) -> None:
    answer = await served.lease(labels={"team": "a"}, ttl={"seconds": 30})
    lease = answer.lease
    assert lease.lease_id
    assert lease.handle
    assert lease.fence
    assert answer.directive == lease.directive
    assert (lease.directive.lease_id, lease.directive.quality) == (lease.lease_id, 1.0)
    assert lease.directive.memory_limit_bytes == lease.memory_bytes == 4 * GIB
    assert lease.directive.reason == lease_pb2.DIRECTIVE_REASON_GRANT
    assert lease.directive.safe_quality == lease.min_quality
    assert lease.directive.valid_for.ToSeconds() > 0
    assert (lease.ttl.seconds, lease.heartbeat_interval.seconds) == (30, 10)
    assert lease.state == lease_pb2.LEASE_STATE_GRANTED
    assert (answer.waited.ToNanoseconds(), answer.already_granted, answer.server_epoch) == (0, False, EPOCH)


@pytest.mark.parametrize(("asked", "granted"), [(1, 3), (3, 3), (300, 300), (301, 300), (86_400, 300)])
async def test_ttl_is_clamped_when_it_is_out_of_bounds(served: Served, asked: int, granted: int) -> None:
    assert (await served.lease(ttl={"seconds": asked})).lease.ttl.seconds == granted


async def test_newcomer_waits_when_others_must_shrink_first(served: Served) -> None:
    first = (await served.lease(holder="first", memory_bytes=20 * GIB)).lease
    late = asking(served, **LATE, workload_type=IMAGE)
    await waiting(served)
    [shown] = (await served.state()).waiting
    assert (shown.holder, shown.position, shown.reclaiming, shown.device_id) == ("late", 0, True, "gpu0")
    assert (shown.memory_bytes, shown.min_memory_bytes) == (10 * GIB, 3 * GIB)
    assert "must be confirmed" in shown.reason
    [told] = (await served.beat(handles=[first.handle])).results
    assert told.verdict == pb.VERDICT_RENEWED
    assert told.directive.quality < 1.0
    assert told.directive.reason == lease_pb2.DIRECTIVE_REASON_PRESSURE
    assert not late.done()
    await served.beat(reports=[applied(first, told.directive.revision)])
    answer = await late
    assert answer.waited.ToNanoseconds() > 0
    state = await served.state()
    assert not state.waiting
    [device] = state.devices
    assert device.granted_bytes == told.directive.memory_limit_bytes + answer.lease.memory_bytes
    # Each of the two is rounded up to a whole byte.
    assert device.granted_bytes <= device.target_bytes + 2
    assert state.stats.quality_reductions == 1


async def test_room_is_not_made_when_the_caller_does_not_wait(served: Served) -> None:
    first = (await served.lease(holder="first", memory_bytes=20 * GIB)).lease
    refused = await refusal(served.lease(**LATE, wait_timeout={}))
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "INSUFFICIENT_MEMORY")
    state = await served.state()
    assert not state.waiting
    assert state.stats.refused_allocations == 1
    assert state.stats.quality_reductions == 0
    [told] = (await served.beat(reports=[report(first)])).results
    assert told.directive.revision == first.directive.revision


async def test_minimum_quality_is_named_when_it_cannot_be_had(served: Served) -> None:
    await served.lease(holder="first", memory_bytes=16 * GIB, **RIGID)
    refused = await refusal(served.lease(holder="late", memory_bytes=16 * GIB, min_quality=0.8, wait_timeout={}))
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "INSUFFICIENT_QUALITY")
    assert refused.retry_s is not None
    assert float(refused.metadata["achievable"]) == 0.5


async def test_caller_is_told_how_long_when_it_waits_in_vain(served: Served) -> None:
    await served.lease(**FULL)
    refused = await refusal(served.lease(**LATE, **RIGID, wait_timeout={"nanos": 60_000_000}))
    assert (refused.code, refused.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "WAIT_TIMEOUT")
    assert int(refused.metadata["waited_ms"]) >= 60
    assert refused.metadata["requested_bytes"] == str(10 * GIB)
    state = await served.state()
    assert not state.waiting
    assert state.stats.timed_out_allocations == 1


async def test_server_answers_first_when_the_deadline_is_shorter_than_the_wait(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Most of the deadline is kept for the answer, so that a slow machine cannot make the client the first.
    monkeypatch.setattr(calls, "ANSWER_SHARE", 0.99)
    monkeypatch.setattr(calls, "MAX_ANSWER_S", GUARD_S)
    await served.lease(**FULL)
    refused = await refusal(served.calls.Allocate(wish(**LATE, **RIGID), timeout=GUARD_S))
    assert (refused.code, refused.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "WAIT_TIMEOUT")
    assert 0 < int(refused.metadata["waited_ms"]) < GUARD_S * 1000


async def test_own_wait_counts_when_it_is_shorter_than_the_deadline(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With a pulse beyond the guard only the deadline of the request itself can wake the server.
    monkeypatch.setattr(driver, "PULSE_S", 10 * GUARD_S)
    served = await serve(Setting())
    await served.lease(**FULL)
    late = wish(**LATE, **RIGID, wait_timeout={"nanos": 1_000_000})
    refused = await refusal(served.calls.Allocate(late, timeout=GUARD_S))
    assert refused.reason == "WAIT_TIMEOUT"


async def test_nothing_is_left_when_the_client_cancels_while_it_waits(served: Served) -> None:
    first = (await served.lease(holder="first", memory_bytes=20 * GIB)).lease
    late = served.calls.Allocate(wish(**LATE, request_id="r1"), timeout=GUARD_S)
    background = asyncio.create_task(late.wait_for_connection())
    await waiting(served)
    late.cancel()
    await waiting(served, 0)
    await asyncio.gather(background, return_exceptions=True)
    state = await served.state()
    assert not state.waiting
    assert state.stats.cancelled_allocations == 1
    assert [lease.lease_id for lease in state.leases] == [first.lease_id]
    assert served.arbiter.books.devices[DeviceId(first.device_id)].candidate is None
    # The id is free again, and for other arguments too.
    assert (await served.lease(request_id="r1", memory_bytes=GIB)).lease.holder == "worker"


async def test_waiting_ends_when_the_client_dies(served: Served) -> None:
    await served.lease(**FULL)
    other = served.connect()
    stub: arbiter_service_pb2_grpc.ArbiterServiceAsyncStub = arbiter_service_pb2_grpc.ArbiterServiceStub(other)
    task = asyncio.ensure_future(stub.Allocate(wish(**LATE, **RIGID)))
    await waiting(served)
    await other.close()
    await waiting(served, 0)
    await asyncio.gather(task, return_exceptions=True)


async def test_no_lease_lives_for_ever_when_calls_are_cancelled_at_any_moment(serve: Serve) -> None:
    clock = FakeClock()
    served = await serve(Setting(clock=clock))
    got = []
    for yields in range(100):
        call = served.calls.Allocate(wish(memory_bytes=GIB, request_id=f"r{yields}", wait_timeout={}))
        task = asyncio.ensure_future(call)
        for _ in range(yields):
            await asyncio.sleep(0)
        call.cancel()
        [outcome] = await asyncio.gather(task, return_exceptions=True)
        if isinstance(outcome, pb.AllocateResponse):
            got.append(outcome.lease)
            await served.release(outcome.lease)
    clock.advance(16.0)
    await until(lambda: len(served.arbiter.books.leases) == 0)
    stats = (await served.state()).stats
    assert stats.released_leases == len(got)
    assert stats.total_allocations == (
        stats.successful_allocations + stats.cancelled_allocations + stats.refused_allocations
    )


async def test_one_is_granted_when_two_ask_for_the_last_bytes(served: Served) -> None:
    calls_made = [asking(served, holder=name, memory_bytes=13 * GIB, **RIGID, wait_timeout={}) for name in "ab"]
    outcomes = await asyncio.gather(*calls_made, return_exceptions=True)
    assert sum(isinstance(each, pb.AllocateResponse) for each in outcomes) == 1
    assert len((await served.state()).leases) == 1


async def test_same_lease_is_told_when_a_request_is_repeated(served: Served) -> None:
    first = await served.lease(request_id="r1", wait_timeout={"seconds": 1})
    again = await served.lease(request_id="r1", wait_timeout={"seconds": 2})
    assert again.already_granted
    assert not first.already_granted
    names = ("lease_id", "handle", "fence")
    assert [getattr(again.lease, name) for name in names] == [getattr(first.lease, name) for name in names]
    assert len((await served.state()).leases) == 1


async def test_both_hear_when_two_callers_wait_with_one_request_id(served: Served) -> None:
    first = (await served.lease(**FULL)).lease
    both = [asking(served, **LATE, request_id="r1") for _ in range(2)]
    await waiting(served, 2)
    assert len((await served.state()).waiting) == 1
    await served.release(first)
    answers = await asyncio.gather(*both)
    assert sorted(answer.already_granted for answer in answers) == [False, True]
    assert answers[0].lease.lease_id == answers[1].lease.lease_id
    assert len((await served.state()).leases) == 1


async def test_other_caller_keeps_its_place_when_one_of_two_leaves(served: Served) -> None:
    first = (await served.lease(**FULL)).lease
    leaving = served.calls.Allocate(wish(**LATE, request_id="r1"), timeout=GUARD_S)
    gone = asyncio.ensure_future(leaving)
    await waiting(served)
    staying = asking(served, **LATE, request_id="r1")
    await waiting(served, 2)
    leaving.cancel()
    await waiting(served, 1)
    await served.release(first)
    assert (await staying).lease.holder == "late"
    await asyncio.gather(gone, return_exceptions=True)


@pytest.mark.parametrize(
    "changes", [{"memory_bytes": 5 * GIB}, {"holder": "other"}, {"priority": 1}, {"labels": {"a": "b"}}, {"pids": [9]}]
)
async def test_request_id_is_refused_when_it_was_used_otherwise(serve: Serve, changes: dict[str, Any]) -> None:
    served = await serve(Setting(clock=FakeClock()))
    await served.lease(request_id="r1")
    before = await served.state()
    refused = await refusal(served.lease(request_id="r1", **changes))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "IDEMPOTENCY_MISMATCH")
    assert refused.metadata == {"request_id": "r1"}
    assert await served.state() == before


async def test_request_id_is_another_when_the_namespace_is(served: Served) -> None:
    first, other = await served.lease(request_id="r1"), await served.lease(request_id="r1", namespace="b")
    assert first.lease.lease_id != other.lease.lease_id
    assert not other.already_granted


async def test_nothing_changes_when_it_is_only_a_dry_run(serve: Serve) -> None:
    served = await serve(Setting(clock=FakeClock()))
    await served.lease(holder="first", memory_bytes=20 * GIB)
    before = await served.state(include_ended=True)
    dry = await served.lease(**LATE, dry_run=True, request_id="r1")
    assert await served.state(include_ended=True) == before
    assert (dry.lease.lease_id, dry.lease.handle, dry.lease.fence) == ("", 0, 0)
    assert (dry.lease.device_id, dry.server_epoch) == ("gpu0", EPOCH)
    assert 0.4 <= dry.directive.quality < 1.0
    refused = await refusal(served.lease(memory_bytes=20 * GIB, **RIGID, dry_run=True))
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "INSUFFICIENT_MEMORY")
    refused = await refusal(served.lease(memory_bytes=25 * GIB, **RIGID, dry_run=True))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "EXCEEDS_CAPACITY")
    assert await served.state(include_ended=True) == before


async def test_dry_run_tells_the_truth_when_it_is_followed_by_the_real_one(served: Served) -> None:
    await served.lease(memory_bytes=8 * GIB)
    dry = await served.lease(memory_bytes=6 * GIB, max_quality=0.9, dry_run=True)
    real = await served.lease(memory_bytes=6 * GIB, max_quality=0.9)
    assert dry.directive.quality == real.directive.quality == 0.9
    assert dry.lease.memory_bytes == real.lease.memory_bytes
    assert dry.lease.min_quality == real.lease.min_quality
    assert dry.lease.max_quality == real.lease.max_quality
    assert dry.lease.min_memory_bytes == real.lease.min_memory_bytes


def claim(lease_id: str, fence: int) -> pb.AllocateRequest:
    return pb.AllocateRequest(reattach=pb.Reattach(lease_id=lease_id, fence=fence))


async def test_lease_is_told_again_when_its_holder_reattaches(served: Served) -> None:
    lease = (await served.lease()).lease
    answer = await served.calls.Allocate(claim(lease.lease_id, lease.fence), timeout=GUARD_S)
    assert answer.already_granted
    assert (answer.lease.handle, answer.lease.fence) == (lease.handle, lease.fence)
    assert len((await served.state()).leases) == 1


async def test_reattachment_is_refused_when_the_lease_is_not_theirs(served: Served) -> None:
    lease = (await served.lease()).lease
    refused = await refusal(served.calls.Allocate(claim(lease.lease_id, lease.fence + 1), timeout=GUARD_S))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "FENCED")
    refused = await refusal(served.calls.Allocate(claim("no-such-lease", 1), timeout=GUARD_S))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "LEASE_NOT_FOUND")
    for lease_id in ("", "a\0b", "x" * 10_000):
        refused = await refusal(served.calls.Allocate(claim(lease_id, 1), timeout=GUARD_S))
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
        assert refused.fields == {"reattach.lease_id"}


async def test_reattachment_is_refused_when_the_lease_has_ended(serve: Serve) -> None:
    clock = FakeClock()
    served = await serve(Setting(clock=clock))
    released, expired = (await served.lease()).lease, (await served.lease()).lease
    await served.release(released)
    clock.advance(15.0)
    # Neither the sweep of expired leases nor that of drained ones need have come by.
    for lease in (released, expired):
        refused = await refusal(served.calls.Allocate(claim(lease.lease_id, lease.fence), timeout=GUARD_S))
        assert refused.reason in {"FENCED", "LEASE_NOT_FOUND"}


async def test_queue_is_full_when_too_many_wait(serve: Serve) -> None:
    served = await serve(Setting(core=replace(CORE, max_waiting=1)))
    await served.lease(**FULL)
    first = asking(served, **LATE)
    await waiting(served)
    refused = await refusal(served.lease(**LATE))
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert refused.retry_s is not None
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)


async def test_everybody_is_refused_when_the_server_drains(served: Served) -> None:
    lease = (await served.lease(**FULL)).lease
    late = asking(served, **LATE)
    await waiting(served)
    await served.server.drain()
    for call in (late, asking(served)):
        refused = await refusal(call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        assert refused.retry_s is not None
    assert (await served.beat(handles=[lease.handle])).draining
    assert not (await served.release(lease)).already_released


async def test_release_counts_once_when_it_is_repeated(served: Served) -> None:
    lease = (await served.lease()).lease
    assert not (await served.release(lease)).already_released
    assert (await served.release(lease)).already_released
    state: state_service_pb2.GetStateResponse = await served.state()
    assert state.stats.released_leases == 1
    assert state.devices[0].granted_bytes == 0


async def test_release_is_refused_when_it_is_not_the_holder(serve: Serve) -> None:
    served = await serve(Setting(clock=FakeClock()))
    lease = (await served.lease()).lease
    before = await served.state()
    wrong = pb.ReleaseRequest(lease_id=lease.lease_id, fence=lease.fence + 1)
    refused = await refusal(served.calls.Release(wrong, timeout=GUARD_S))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "FENCED")
    refused = await refusal(served.calls.Release(pb.ReleaseRequest(lease_id="none", fence=1), timeout=GUARD_S))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "LEASE_NOT_FOUND")
    for lease_id, fence in (("", 0), ("a\nb", -1), ("x" * 10_000, -(1 << 63))):
        bad = pb.ReleaseRequest(lease_id=lease_id, fence=fence)
        assert (await refusal(served.calls.Release(bad, timeout=GUARD_S))).fields == {"lease_id", "fence"}
    assert await served.state() == before


async def test_lease_ends_when_its_process_exits(serve: Serve) -> None:
    served = await serve(Setting(pids=(42,)))
    lease = (await served.lease(pids=[42])).lease
    assert lease.pids_visible
    served.watch.kill(42)
    [ended] = (await served.beat(handles=[lease.handle])).results
    assert (ended.verdict, ended.end_reason) == (pb.VERDICT_FENCED, lease_pb2.END_REASON_ORPHANED)
    assert not served.watch.watched


async def test_lease_ends_when_its_process_had_exited_before_it_could_be_watched(serve: Serve) -> None:
    served = await serve(Setting(pids=(42,)))
    served.watch.doomed.add(42)
    lease = (await served.lease(pids=[42])).lease
    [ended] = (await served.beat(handles=[lease.handle])).results
    assert ended.end_reason == lease_pb2.END_REASON_ORPHANED


async def test_lease_lives_when_its_processes_cannot_be_seen(serve: Serve) -> None:
    served = await serve(Setting(pids=(42,)))
    lease = (await served.lease(pids=[42, 43])).lease
    assert not lease.pids_visible
    served.watch.kill(42)
    [result] = (await served.beat(reports=[report(lease)])).results
    assert result.verdict == pb.VERDICT_RENEWED
