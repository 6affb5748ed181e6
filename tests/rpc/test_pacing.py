"""What matters is told at once, what can wait when there is time for it, and nothing to those who do not read."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import arbiter_service_pb2_grpc, lease_pb2
from arbiter_sidecar.policy.publication import Published
from arbiter_sidecar.rpc import outlet, subscriber
from arbiter_sidecar.types import GIB, DirectiveReason
from tests.rpc.served import Serve, Served, Setting, applied, refusal, wish
from tests.rpc.talk import Talk
from tests.rpc.test_preemption import asking, donor, quick, request
from tests.runtime.driving import EPOCH
from tests.runtime.fakes import GUARD_S, FakeClock, until

#: Longer than any test lasts.
NEVER_S = 1e6
#: So many directives do not fit into what a narrow client takes in advance.
MANY = 800
NARROW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 16384))

Stream = grpc.aio.UnaryStreamCall[pb.StreamQualityRequest, pb.StreamQualityResponse]


@pytest.fixture
async def still(serve: Serve) -> Served:
    """A server whose core's time stands still, so that nobody's target changes by itself."""
    return await serve(Setting(clock=FakeClock()))


def tell(served: Served, quality: float, *leases: lease_pb2.Lease) -> None:
    """Gives leases a new target."""
    books = served.arbiter.books
    for each in leases:
        lease = books.leases.get(each.lease_id)
        assert lease is not None
        books.device_of(lease).publish(lease, Published(quality))
        books.announce(lease, DirectiveReason.CONFIG)
    # Any command carries the effects out.
    served.runtime.confirm(())


def opened(served: Served, *leases: lease_pb2.Lease, **fields: Any) -> Stream:
    """A quality stream for these leases."""
    asked = pb.StreamQualityRequest(lease_ids=[lease.lease_id for lease in leases], **fields)
    return served.calls.StreamQuality(asked, timeout=3 * GUARD_S)


async def heard(stream: Stream) -> list[float]:
    """The qualities of the next message."""
    return [each.quality for each in (await read(stream)).directives]


async def read(stream: Stream) -> pb.StreamQualityResponse:
    """The next message; there must be one."""
    async with asyncio.timeout(GUARD_S):
        message = await stream.read()
    assert isinstance(message, pb.StreamQualityResponse), message
    return message


async def acknowledge(served: Served, lease: lease_pb2.Lease) -> None:
    """The holder runs at what it was last told."""
    known = served.arbiter.books.leases.get(lease.lease_id)
    assert known is not None
    await served.beat(reports=[applied(lease, known.revision)])


async def test_rise_waits_and_fall_does_not_when_nobody_acknowledges(
    still: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriber, "MUTE_INTERVAL_S", NEVER_S)
    lease = (await still.lease()).lease
    stream = opened(still, lease)
    assert await heard(stream) == [1.0]
    tell(still, 0.8, lease)
    assert await heard(stream) == [0.8]
    tell(still, 0.9, lease)
    await asyncio.sleep(3 * subscriber.MIN_INTERVAL_S)
    tell(still, 0.7, lease)
    assert await heard(stream) == [0.7]


async def test_rise_comes_after_a_while_when_nobody_acknowledges(still: Served) -> None:
    lease = (await still.lease()).lease
    stream = opened(still, lease)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await read(stream)
    for quality in (0.5, 0.6, 0.7, 0.8):
        tell(still, quality, lease)
        assert await heard(stream) == [quality]
    # One fall, which is soon told, and three rises.
    assert loop.time() - begun >= 3 * subscriber.MUTE_INTERVAL_S


async def test_two_rises_at_most_are_unacknowledged_when_the_holder_acknowledges(
    still: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriber, "MUTE_INTERVAL_S", 0.01)
    lease = (await still.lease()).lease
    await acknowledge(still, lease)
    stream = opened(still, lease)
    await read(stream)
    for quality in (0.5, 0.6):
        tell(still, quality, lease)
        assert await heard(stream) == [quality]
    third = asyncio.create_task(heard(stream))
    tell(still, 0.7, lease)
    await asyncio.sleep(5 * subscriber.MIN_INTERVAL_S)
    assert not third.done()
    tell(still, 0.8, lease)
    await asyncio.sleep(5 * subscriber.MIN_INTERVAL_S)
    assert not third.done()
    await still.beat(reports=[applied(lease, still.arbiter.books.revision - 2)])
    assert await third == [0.8]


async def test_fall_comes_at_once_when_rises_wait_for_acknowledgements(
    still: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriber, "MUTE_INTERVAL_S", NEVER_S)
    lease = (await still.lease()).lease
    await acknowledge(still, lease)
    stream = opened(still, lease)
    await read(stream)
    for quality in (0.5, 0.6):
        tell(still, quality, lease)
        await read(stream)
    tell(still, 0.9, lease)
    await asyncio.sleep(3 * subscriber.MIN_INTERVAL_S)
    tell(still, 0.55, lease)
    assert await heard(stream) == [0.55]


async def test_rise_comes_in_the_end_when_the_holder_has_stopped_to_acknowledge(
    still: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriber, "HOLD_S", 0.5)
    lease = (await still.lease()).lease
    await acknowledge(still, lease)
    stream = opened(still, lease)
    await read(stream)
    for quality in (0.5, 0.6, 0.7):
        tell(still, quality, lease)
        assert await heard(stream) == [quality]


async def test_order_to_give_memory_back_and_its_end_come_at_once(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriber, "MUTE_INTERVAL_S", NEVER_S)
    served = await serve(Setting(core=quick(), clock=FakeClock()))
    giving, taking = (await donor(served)).lease, (await asking(served)).lease
    stream = opened(served, giving)
    await read(stream)
    tell(served, 0.9, giving)
    await read(stream)
    # Without the order these would wait for ever: nothing is acknowledged.
    tell(served, 1.0, giving)
    call = served.calls.RequestPreemption(request(taking, 1), timeout=GUARD_S)
    reclaim = (await read(stream)).directives[0].reclaim
    assert reclaim.reclaim_id
    call.cancel()
    message = await read(stream)
    assert list(message.reclaim_cancelled) == [reclaim.reclaim_id]
    assert not message.directives[0].HasField("reclaim")


async def test_message_goes_no_further_than_what_is_held_back(still: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriber, "MUTE_INTERVAL_S", NEVER_S)
    held, other = [(await still.lease(memory_bytes=GIB)).lease for _ in range(2)]
    stream = opened(still, held, other)
    tell(still, 0.5, held, other)
    last = await read(stream)
    while last.revision < still.arbiter.books.revision:
        last = await read(stream)
    tell(still, 0.6, held)
    tell(still, 0.4, other)
    message = await read(stream)
    assert [each.lease_id for each in message.directives] == [other.lease_id]
    assert message.revision == last.revision < message.directives[0].revision
    # Whoever comes back from there is told what was held back.
    stream.cancel()
    again = await read(opened(still, held, other, resume_epoch=EPOCH, resume_revision=message.revision))
    assert [each.quality for each in again.directives] == [0.6, 0.4]
    assert again.revision == still.arbiter.books.revision


async def test_session_paces_like_a_stream(still: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriber, "MUTE_INTERVAL_S", NEVER_S)
    talk = Talk(still)
    lease = (await talk.lease()).lease
    tell(still, 0.8, lease)
    assert (await talk.hear()).directives[0].quality == 0.8
    tell(still, 0.9, lease)
    # Answers go out meanwhile, and bring what is new with them.
    for _ in range(20):
        [result] = (await talk.beat(handles=[lease.handle])).heartbeat.results
        assert result.directive.quality == 0.9
    tell(still, 0.7, lease)
    assert (await talk.hear()).directives[0].quality == 0.7
    tell(still, 0.75, lease)
    await talk.finish()
    # The end brings what was held back.
    assert (await talk.hear()).directives[0].quality == 0.75
    assert await talk.end() is grpc.StatusCode.OK


async def many_leases(served: Served) -> pb.StreamQualityRequest:
    """A subscription to so many leases that its first message is more than a narrow client takes in advance."""
    ids = [(await served.lease(memory_bytes=1 << 20)).lease.lease_id for _ in range(MANY)]
    return pb.StreamQualityRequest(lease_ids=ids)


async def unread(served: Served) -> Stream:
    """A stream that has more to say than its client takes in advance."""
    asked = await many_leases(served)
    stub: arbiter_service_pb2_grpc.ArbiterServiceAsyncStub = arbiter_service_pb2_grpc.ArbiterServiceStub(
        served.connect(*NARROW)
    )
    stream = stub.StreamQuality(asked, timeout=3 * GUARD_S)
    await until(lambda: served.server.subscribers == 1)
    return stream


async def test_stream_is_given_up_when_it_takes_nothing(still: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlet, "PATIENCE_S", 0.2)
    stream = await unread(still)
    await until(lambda: still.server.subscribers == 0)
    # It is told when it reads again, after what it had not read.
    assert len((await read(stream)).directives) == MANY
    refused = await refusal(stream.read())
    assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, "SLOW_SUBSCRIBER")
    assert still.leases == MANY


async def blocked(served: Served, *, worker: str = "") -> Talk:
    """A session that has asked for more than it reads."""
    asked = await many_leases(served)
    talk = Talk(served, served.connect(*NARROW))
    if worker:
        await talk.beat(worker=worker, incarnation=1, sequence=1)
    await talk.send(subscribe=asked)
    await until(lambda: served.server.subscribers == 1)
    return talk


async def test_session_is_given_up_when_it_takes_nothing(still: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlet, "PATIENCE_S", 0.2)
    await still.lease(holder="first", memory_bytes=20 * GIB, min_quality=1.0)
    asked = await many_leases(still)
    talk = Talk(still, still.connect(*NARROW))
    waits = {"holder": "late", "memory_bytes": 20 * GIB, "min_quality": 1.0, "wait_timeout": {"seconds": 300}}
    await talk.send(allocate=wish(**waits))
    await until(lambda: still.arbiter.books.queue.callers == 1)
    await talk.send(subscribe=asked)
    await until(lambda: still.server.subscribers == 1)
    await until(lambda: still.server.subscribers == 0)
    await until(lambda: still.arbiter.books.queue.callers == 0)
    beats = still.arbiter.books.stats.heartbeats
    await talk.send(heartbeat=pb.HeartbeatRequest())
    assert len((await talk.read()).quality.directives) == MANY
    refused = await refusal(talk.call.read())
    assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, "SLOW_SUBSCRIBER")
    assert still.arbiter.books.stats.heartbeats == beats, "who is not told anything is not listened to either"
    await until(lambda: still.server.sessions == 0)
    assert still.leases == MANY + 1


async def test_worker_may_speak_on_a_new_session_when_the_old_one_is_given_up(
    still: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlet, "PATIENCE_S", 0.2)
    old = await blocked(still, worker="w")
    await until(lambda: still.server.subscribers == 0)
    assert (await Talk(still).beat(worker="w", incarnation=2, sequence=1)).HasField("heartbeat")
    await old.until(lambda message: message.HasField("quality"))
    assert (await refusal(old.call.read())).reason == "SLOW_SUBSCRIBER"


async def test_session_ends_with_its_own_error_when_it_fails_while_it_is_not_read(still: Served) -> None:
    asked = await many_leases(still)
    call = still.connect(*NARROW).stream_stream("/arbiter.v1.ArbiterService/Session", bytes, bytes)()
    await call.write(pb.SessionRequest(subscribe=asked).SerializeToString())
    await until(lambda: still.server.subscribers == 1)
    await call.write(b"\xff")
    async with asyncio.timeout(GUARD_S):
        assert await call.read()
    refused = await refusal(call.read())
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


@pytest.mark.parametrize("kind", ["stream", "session"])
async def test_no_trace_is_left_when_a_client_goes_without_having_read(still: Served, kind: str) -> None:
    cancel = (await blocked(still)).call.cancel if kind == "session" else (await unread(still)).cancel
    await asyncio.sleep(0.1)
    with capture_logs() as lines:
        cancel()
        await until(lambda: still.server.subscribers == 0 and still.server.sessions == 0)
    assert not lines
