"""StreamQuality: everything at once, then the newest value only, and an end in good order."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import arbiter_service_pb2_grpc, lease_pb2
from arbiter_sidecar.arbiter import ArbiterConfig
from arbiter_sidecar.rpc import arbiter_servicer, subscriber
from arbiter_sidecar.rpc.server import Limits
from arbiter_sidecar.types import GIB, WorkloadType
from tests.rpc.served import Serve, Served, Setting, refusal
from tests.runtime.driving import CORE, EPOCH
from tests.runtime.fakes import GUARD_S, FakeClock, until

Stream = grpc.aio.UnaryStreamCall[pb.StreamQualityRequest, pb.StreamQualityResponse]
#: Ended leases keep their bytes for long, so that they do not become memories while a test looks at them.
LASTING = ArbiterConfig(pause_guard_s=0.0, elasticity=dict.fromkeys(WorkloadType, 1.0))


def opened(served: Served, *lease_ids: str, **fields: Any) -> Stream:
    """A quality stream for these leases."""
    return served.calls.StreamQuality(pb.StreamQualityRequest(lease_ids=lease_ids, **fields), timeout=3 * GUARD_S)


async def read(stream: Stream) -> pb.StreamQualityResponse:
    """The next message; there must be one."""
    async with asyncio.timeout(GUARD_S):
        message = await stream.read()
    assert isinstance(message, pb.StreamQualityResponse), message
    return message


async def ended(stream: Stream) -> grpc.StatusCode:
    """How a stream without further messages ends."""
    async with asyncio.timeout(GUARD_S):
        assert await stream.read() is grpc.aio.EOF
        return await stream.code()


async def test_first_message_is_complete_and_comes_at_once(served: Served) -> None:
    leases = [(await served.lease(memory_bytes=GIB)).lease for _ in range(3)]
    stream = opened(served, leases[2].lease_id, leases[0].lease_id, leases[2].lease_id)
    first = await read(stream)
    assert [each.lease_id for each in first.directives] == [leases[2].lease_id, leases[0].lease_id]
    assert [each.revision for each in first.directives] == [
        leases[2].directive.revision,
        leases[0].directive.revision,
    ]
    assert (first.server_epoch, first.revision, first.draining) == (EPOCH, leases[2].directive.revision, False)
    assert not first.ended
    stream.cancel()


async def test_change_is_pushed_when_a_newcomer_makes_the_holder_smaller(served: Served) -> None:
    lease = (await served.lease(memory_bytes=20 * GIB)).lease
    stream = opened(served, lease.lease_id)
    before = await read(stream)
    await served.lease(holder="other", memory_bytes=2 * GIB)
    after = await read(stream)
    [directive] = after.directives
    assert directive.quality < before.directives[0].quality
    assert directive.revision == after.revision > before.revision
    assert directive.reason == lease_pb2.DIRECTIVE_REASON_PRESSURE
    [told] = (await served.beat(handles=[lease.handle])).results
    assert told.directive == directive
    stream.cancel()


async def test_first_message_is_empty_when_the_resume_point_is_current(served: Served) -> None:
    lease = (await served.lease(memory_bytes=20 * GIB)).lease
    seen = await read(opened(served, lease.lease_id))
    again = opened(served, lease.lease_id, resume_epoch=seen.server_epoch, resume_revision=seen.revision)
    first = await read(again)
    assert (first.server_epoch, first.revision) == (EPOCH, seen.revision)
    assert not first.directives
    await served.lease(holder="other", memory_bytes=2 * GIB)
    assert (await read(again)).directives


async def test_only_own_leases_count_when_a_stream_is_resumed(served: Served) -> None:
    lease = (await served.lease(memory_bytes=GIB)).lease
    seen = await read(opened(served, lease.lease_id))
    await served.lease(holder="other", memory_bytes=GIB)
    again = await read(opened(served, lease.lease_id, resume_epoch=seen.server_epoch, resume_revision=seen.revision))
    assert again.revision > seen.revision
    assert not again.directives


@pytest.mark.parametrize(
    ("epoch", "later"),
    [(EPOCH, -1), (EPOCH, 1), (EPOCH, 1 << 40), (EPOCH - 1, 0), (EPOCH + 1, 0), (0, 0), (-1, -(1 << 62))],
    ids=["older", "future", "far_future", "epoch_before", "epoch_after", "none", "nonsense"],
)
async def test_first_message_is_complete_when_the_resume_point_is_not_current(
    served: Served, epoch: int, later: int
) -> None:
    lease = (await served.lease()).lease
    stream = opened(served, lease.lease_id, resume_epoch=epoch, resume_revision=lease.directive.revision + later)
    assert [each.lease_id for each in (await read(stream)).directives] == [lease.lease_id]


async def test_slow_reader_gets_few_messages_and_the_last_value(served: Served) -> None:
    lease = (await served.lease(memory_bytes=GIB)).lease
    channel = served.connect(("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 16384))
    stub: arbiter_service_pb2_grpc.ArbiterServiceAsyncStub = arbiter_service_pb2_grpc.ArbiterServiceStub(channel)
    stream = stub.StreamQuality(pb.StreamQualityRequest(lease_ids=[lease.lease_id]))
    revisions = [(await read(stream)).revision]
    loop = asyncio.get_running_loop()
    begun = loop.time()
    for _ in range(1000):
        served.announce(lease.lease_id)
        await asyncio.sleep(0)
    newest = served.arbiter.books.revision
    while revisions[-1] < newest:
        message = await read(stream)
        assert [each.revision for each in message.directives] == [message.revision]
        revisions.append(message.revision)
    assert revisions == sorted(set(revisions))
    assert len(revisions) <= 3 + (loop.time() - begun) / subscriber.MIN_INTERVAL_S
    stream.cancel()


async def test_end_is_told_and_the_stream_ends_when_the_last_lease_ends(served: Served) -> None:
    leases = [(await served.lease(memory_bytes=GIB)).lease for _ in range(2)]
    stream = opened(served, *(lease.lease_id for lease in leases))
    await read(stream)
    await served.release(leases[0])
    first = await read(stream)
    assert [(each.lease_id, each.end_reason) for each in first.ended] == [
        (leases[0].lease_id, lease_pb2.END_REASON_RELEASED)
    ]
    assert not first.directives
    await served.release(leases[1])
    assert [each.lease_id for each in (await read(stream)).ended] == [leases[1].lease_id]
    assert await ended(stream) is grpc.StatusCode.OK


async def test_directive_is_not_sent_when_the_lease_has_ended_meanwhile(served: Served) -> None:
    lease = (await served.lease()).lease
    stream = opened(served, lease.lease_id)
    await read(stream)
    served.announce(lease.lease_id)
    await served.release(lease)
    messages = [await read(stream)]
    while not messages[-1].ended:
        messages.append(await read(stream))
    assert await ended(stream) is grpc.StatusCode.OK
    assert [each.lease_id for message in messages for each in message.ended] == [lease.lease_id]
    assert not messages[-1].directives


@pytest.mark.parametrize("core", [LASTING, CORE], ids=["drains", "gone"])
async def test_end_is_told_at_once_when_the_lease_had_ended_before(serve: Serve, core: ArbiterConfig) -> None:
    served = await serve(Setting(core=core))
    lease = (await served.lease()).lease
    await served.release(lease)
    await until(lambda: core is LASTING or served.arbiter.books.leases.total == 0)
    stream = opened(served, lease.lease_id)
    [told] = (await read(stream)).ended
    assert (told.lease_id, told.end_reason) == (lease.lease_id, lease_pb2.END_REASON_RELEASED)
    assert await ended(stream) is grpc.StatusCode.OK


async def test_stream_is_refused_when_one_lease_is_unknown(served: Served) -> None:
    lease = (await served.lease()).lease
    refused = await refusal(opened(served, lease.lease_id, "no-such-lease").read())
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "LEASE_NOT_FOUND")
    assert refused.metadata == {"lease_id": "no-such-lease"}
    assert (await served.state()).leases[0].state == lease_pb2.LEASE_STATE_GRANTED
    assert served.server.subscribers == 0


@pytest.mark.parametrize("lease_ids", [[], [""], ["a\0b"], ["x" * 129], ["a"] * 2001], ids=len)
async def test_stream_is_refused_when_its_leases_are_malformed(served: Served, lease_ids: list[str]) -> None:
    refused = await refusal(opened(served, *lease_ids).read())
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, {"lease_ids"})


async def test_opening_confirms_but_does_not_renew(serve: Serve) -> None:
    clock = FakeClock()
    served = await serve(Setting(clock=clock, core=LASTING))
    lease = (await served.lease(ttl={"seconds": 10})).lease
    before = (await served.state()).leases[0]
    assert before.state == lease_pb2.LEASE_STATE_GRANTED
    clock.advance(4.0)
    stream = opened(served, lease.lease_id)
    await read(stream)
    after = (await served.state()).leases[0]
    assert after.state == lease_pb2.LEASE_STATE_ACTIVE
    assert after.expire_time == before.expire_time
    clock.advance(6.0)
    [told] = (await read(stream)).ended
    assert told.end_reason == lease_pb2.END_REASON_EXPIRED
    assert await ended(stream) is grpc.StatusCode.OK


async def test_message_comes_when_nothing_has_happened_for_long(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arbiter_servicer, "BOOKMARK_S", 0.01)
    lease = (await served.lease()).lease
    stream = opened(served, lease.lease_id)
    first = await read(stream)
    bookmark = await read(stream)
    assert (bookmark.server_epoch, bookmark.revision) == (first.server_epoch, first.revision)
    assert not any((bookmark.directives, bookmark.ended, bookmark.draining))
    stream.cancel()


async def test_draining_is_told_and_stays_true(served: Served) -> None:
    lease = (await served.lease()).lease
    stream = opened(served, lease.lease_id)
    await read(stream)
    await served.server.drain()
    assert (await read(stream)).draining
    served.announce(lease.lease_id)
    assert (await read(stream)).draining
    assert (await read(opened(served, lease.lease_id))).draining
    stream.cancel()


async def test_stream_ends_with_ok_when_the_server_stops(served: Served) -> None:
    lease = (await served.lease()).lease
    stream = opened(served, lease.lease_id)
    await read(stream)
    await served.server.stop(GUARD_S)
    assert await ended(stream) is grpc.StatusCode.OK


async def test_no_subscriber_is_left_when_streams_are_cancelled(served: Served) -> None:
    lease = (await served.lease()).lease
    for cycle in range(500):
        stream = opened(served, lease.lease_id)
        if cycle % 2:
            await read(stream)
        stream.cancel()
    await until(lambda: served.server.subscribers == 0)
    assert (await served.beat(handles=[lease.handle])).results[0].verdict == pb.VERDICT_RENEWED


async def test_stream_is_refused_when_too_many_are_open(serve: Serve) -> None:
    served = await serve(Setting(limits=Limits(streams=1)))
    lease = (await served.lease()).lease
    stream = opened(served, lease.lease_id)
    await read(stream)
    refused = await refusal(opened(served, lease.lease_id).read())
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    stream.cancel()
    await until(lambda: served.server.subscribers == 0)
    await read(opened(served, lease.lease_id))


async def test_two_streams_hear_the_same_when_they_share_a_lease(served: Served) -> None:
    lease = (await served.lease()).lease
    streams = [opened(served, lease.lease_id) for _ in range(2)]
    for stream in streams:
        await read(stream)
    served.announce(lease.lease_id)
    heard = [await read(stream) for stream in streams]
    assert heard[0].directives == heard[1].directives
    streams[0].cancel()
    await until(lambda: served.server.subscribers == 1)
    served.announce(lease.lease_id)
    assert (await read(streams[1])).directives[0].revision > heard[1].directives[0].revision
