"""Session: everything of one worker on one stream, and never more than one stream that speaks for a worker."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import Any

import grpc
import pytest

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import lease_pb2
from arbiter_sidecar.rpc import session, subscriber
from arbiter_sidecar.rpc.server import Limits
from arbiter_sidecar.types import GIB
from tests.rpc.served import Serve, Served, Setting, applied, refusal, report, wish
from tests.rpc.talk import Talk
from tests.runtime.driving import CORE, EPOCH
from tests.runtime.fakes import GUARD_S, FakeClock, until

FULL = {"holder": "first", "memory_bytes": 24 * GIB, "min_quality": 1.0}
RIGID = {"holder": "late", "memory_bytes": 10 * GIB, "min_quality": 1.0}
SMALL = {"memory_bytes": 1 << 20}


async def waiting(served: Served, callers: int = 1) -> None:
    """Returns when so many callers wait."""
    await until(lambda: served.arbiter.books.queue.callers == callers)


async def test_everything_goes_over_one_stream(served: Served) -> None:
    talk = Talk(served)
    first = (await talk.lease(memory_bytes=20 * GIB)).lease
    assert first.handle
    other = (await served.lease(holder="other", memory_bytes=2 * GIB)).lease
    pushed = await talk.hear()
    [directive] = pushed.directives
    assert (directive.lease_id, pushed.server_epoch) == (first.lease_id, EPOCH)
    beat = (await talk.beat(worker="w", incarnation=1, sequence=1, handles=[first.handle])).heartbeat
    assert beat.sequence == 1
    assert beat.results[0].directive == directive
    beat = (await talk.beat(reports=[applied(first, directive.revision)])).heartbeat
    assert not beat.results[0].HasField("directive")
    both = [first.lease_id, other.lease_id]
    subscribed = await talk.ask(subscribe=pb.StreamQualityRequest(lease_ids=both))
    assert [each.lease_id for each in subscribed.quality.directives] == both
    released = await talk.ask(release=pb.ReleaseRequest(lease_id=first.lease_id, fence=first.fence))
    assert released.HasField("release")
    assert not released.release.already_released
    assert [each.lease_id for each in (await talk.hear()).ended] == [first.lease_id]
    await talk.finish()
    assert await talk.end() is grpc.StatusCode.OK
    assert served.server.subscribers == 0
    # Leases outlive the session; only silence ends them.
    assert (await served.beat(reports=[report(other)])).results[0].verdict == pb.VERDICT_RENEWED


async def test_session_goes_on_when_messages_fail(served: Served) -> None:
    talk = Talk(served)
    bad: list[tuple[dict[str, Any], grpc.StatusCode, str]] = [
        ({}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ({"allocate": pb.AllocateRequest()}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ({"heartbeat": pb.HeartbeatRequest(sequence=-1)}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ({"release": pb.ReleaseRequest(lease_id="none", fence=1)}, grpc.StatusCode.NOT_FOUND, "LEASE_NOT_FOUND"),
        ({"subscribe": pb.StreamQualityRequest()}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        (
            {"subscribe": pb.StreamQualityRequest(lease_ids=["none"])},
            grpc.StatusCode.NOT_FOUND,
            "LEASE_NOT_FOUND",
        ),
        ({"request_preemption": pb.RequestPreemptionRequest()}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ({"reserve_kv": pb.ReserveKvRequest()}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ({"complete_kv": pb.CompleteKvRequest()}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
    ]
    for request, code, reason in bad:
        answer = await talk.ask(**request)
        assert (answer.error.code, answer.error.reason) == (code.value[0], reason)
        assert answer.error.message
    failed = (await talk.ask(allocate=pb.AllocateRequest())).error
    assert set(failed.metadata["fields"].split(",")) == {"holder", "workload_type", "memory_bytes"}
    assert (await talk.lease()).lease.lease_id
    await talk.finish()
    assert await talk.end() is grpc.StatusCode.OK


async def test_session_ends_when_bytes_are_no_message(served: Served) -> None:
    call = served.channel.stream_stream("/arbiter.v1.ArbiterService/Session", bytes, bytes)()
    await call.write(b"\xff")
    refused = await refusal(call.read())
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


async def test_later_messages_are_answered_when_an_allocation_waits(served: Served) -> None:
    first = (await served.lease(**FULL)).lease
    talk = Talk(served)
    number = await talk.send(allocate=wish(**RIGID))
    await waiting(served)
    assert (await talk.beat(handles=[first.handle])).HasField("heartbeat")
    released = await talk.ask(release=pb.ReleaseRequest(lease_id=first.lease_id, fence=first.fence))
    assert released.HasField("release")
    granted = await talk.until(lambda message: message.correlation_id == number)
    assert granted.allocate.lease.holder == "late"
    assert granted.allocate.waited.ToNanoseconds() > 0


async def test_new_lease_is_heard_of_when_the_session_asked_for_it(served: Served) -> None:
    talk = Talk(served)
    lease = (await talk.lease()).lease
    served.announce(lease.lease_id)
    assert [each.lease_id for each in (await talk.hear()).directives] == [lease.lease_id]
    again = await talk.ask(
        allocate=pb.AllocateRequest(reattach=pb.Reattach(lease_id=lease.lease_id, fence=lease.fence))
    )
    assert again.allocate.already_granted
    served.announce(lease.lease_id)
    assert len((await talk.hear()).directives) == 1


async def test_dry_run_changes_nothing_when_it_comes_in_a_session(served: Served) -> None:
    talk = Talk(served)
    assert (await talk.lease(dry_run=True)).lease.lease_id == ""
    assert not (await served.state()).leases
    assert served.server.subscribers == 0


async def test_former_leases_are_forgotten_when_the_subscription_is_replaced(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pushes are held back, so that news of the former lease waits when the subscription is replaced.
    monkeypatch.setattr(subscriber, "MIN_INTERVAL_S", GUARD_S)
    talk = Talk(served)
    former, ended, other = [(await served.lease(memory_bytes=GIB)).lease for _ in range(3)]
    await talk.ask(subscribe=pb.StreamQualityRequest(lease_ids=[former.lease_id, ended.lease_id]))
    served.announce(former.lease_id)
    await served.release(ended)
    answer = await talk.ask(subscribe=pb.StreamQualityRequest(lease_ids=[other.lease_id]))
    assert [each.lease_id for each in answer.quality.directives] == [other.lease_id]
    assert not answer.quality.ended


async def test_subscription_stays_when_its_replacement_is_refused(served: Served) -> None:
    talk = Talk(served)
    lease = (await served.lease()).lease
    await talk.ask(subscribe=pb.StreamQualityRequest(lease_ids=[lease.lease_id]))
    assert (await talk.ask(subscribe=pb.StreamQualityRequest(lease_ids=["none"]))).HasField("error")
    served.announce(lease.lease_id)
    assert [each.lease_id for each in (await talk.hear()).directives] == [lease.lease_id]


async def test_resumed_subscription_is_empty_when_nothing_is_newer(served: Served) -> None:
    lease = (await served.lease()).lease
    resumed = pb.StreamQualityRequest(
        lease_ids=[lease.lease_id], resume_epoch=EPOCH, resume_revision=lease.directive.revision
    )
    answer = await Talk(served).ask(subscribe=resumed)
    assert answer.HasField("quality")
    assert not answer.quality.directives


async def test_only_errors_are_answered_when_no_answer_is_wanted(served: Served) -> None:
    talk = Talk(served)
    lease = (await served.lease()).lease
    await talk.send(0, heartbeat=pb.HeartbeatRequest(handles=[lease.handle]))
    await talk.send(0, release=pb.ReleaseRequest(lease_id=lease.lease_id, fence=lease.fence))
    await talk.send(0, release=pb.ReleaseRequest(lease_id="none", fence=1))
    failed = await talk.read()
    assert (failed.correlation_id, failed.error.reason) == (0, "LEASE_NOT_FOUND")
    assert (await served.state()).stats.released_leases == 1


async def test_session_moves_when_a_higher_incarnation_speaks(served: Served) -> None:
    old, new = Talk(served), Talk(served)
    lease = (await old.lease()).lease
    await old.beat(worker="w", incarnation=1, sequence=9, handles=[lease.handle])
    answer = await new.beat(worker="w", incarnation=2, sequence=1, handles=[lease.handle])
    assert not answer.heartbeat.stale
    refused = await refusal(old.read())
    assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, "SESSION_MOVED")
    assert refused.metadata == {"worker": "w"}
    assert (await new.beat(worker="w", incarnation=2, sequence=2)).HasField("heartbeat")
    assert (await served.beat(reports=[report(lease)])).results[0].verdict == pb.VERDICT_RENEWED


async def test_lower_incarnation_is_refused_and_renews_nothing(serve: Serve) -> None:
    clock = FakeClock()
    served = await serve(Setting(clock=clock))
    new, old = Talk(served), Talk(served)
    lease = (await served.lease()).lease
    await new.beat(worker="w", incarnation=5, sequence=1, handles=[lease.handle])
    clock.advance(1.0)
    before = (await served.state()).leases[0].expire_time
    answer = await old.beat(worker="w", incarnation=4, sequence=100, handles=[lease.handle])
    assert (answer.error.code, answer.error.reason) == (grpc.StatusCode.ABORTED.value[0], "SESSION_MOVED")
    assert (await served.state()).leases[0].expire_time == before
    assert (await new.beat(worker="w", incarnation=5, sequence=2)).HasField("heartbeat")


async def test_newest_session_wins_when_incarnations_are_equal(served: Served) -> None:
    old, new = Talk(served), Talk(served)
    await old.beat(worker="w", incarnation=1, sequence=1)
    # What the old one still has on its way must not take the worker back.
    flood = asyncio.create_task(_flood(old))
    await until(lambda: served.arbiter.books.stats.heartbeats > 20)
    await new.beat(worker="w", incarnation=1, sequence=100_000)
    for sequence in range(100_001, 100_020):
        assert (await new.beat(worker="w", incarnation=1, sequence=sequence)).HasField("heartbeat")
    flood.cancel()
    [outcome] = await asyncio.gather(flood, return_exceptions=True)
    assert isinstance(outcome, (grpc.aio.AioRpcError, asyncio.CancelledError))


async def _flood(talk: Talk) -> None:
    for sequence in range(2, 50_000):
        await talk.send(heartbeat=pb.HeartbeatRequest(worker="w", incarnation=1, sequence=sequence))
        await asyncio.sleep(0)


async def test_nothing_moves_when_the_heartbeat_is_malformed(served: Served) -> None:
    good, bad = Talk(served), Talk(served)
    await good.beat(worker="w", incarnation=1, sequence=1)
    answer = await bad.beat(worker="w", incarnation=2, sequence=-1)
    assert answer.error.reason == "INVALID_REQUEST"
    assert (await good.beat(worker="w", incarnation=1, sequence=2)).HasField("heartbeat")


async def test_former_name_is_free_when_a_session_takes_another(served: Served) -> None:
    fickle, other = Talk(served), Talk(served)
    await fickle.beat(worker="a", incarnation=9, sequence=1)
    await fickle.beat(worker="b", incarnation=9, sequence=1)
    assert (await other.beat(worker="a", incarnation=1, sequence=1)).HasField("heartbeat")
    assert (await fickle.beat(worker="b", incarnation=9, sequence=2)).HasField("heartbeat")
    await fickle.finish()
    assert await fickle.end() is grpc.StatusCode.OK


async def test_name_is_free_when_its_session_has_ended(served: Served) -> None:
    first, second = Talk(served), Talk(served)
    await first.beat(worker="w", incarnation=9, sequence=1)
    await first.finish()
    assert await first.end() is grpc.StatusCode.OK
    assert (await second.beat(worker="w", incarnation=1, sequence=1)).heartbeat.stale


async def test_pending_answers_come_when_the_worker_has_nothing_more_to_say(served: Served) -> None:
    first = (await served.lease(**FULL)).lease
    talk = Talk(served)
    number = await talk.send(allocate=wish(**RIGID))
    await waiting(served)
    await talk.finish()
    await served.release(first)
    assert (await talk.read()).correlation_id == number
    assert await talk.end() is grpc.StatusCode.OK


async def test_session_moves_at_once_when_the_old_one_only_waits_for_an_answer(served: Served) -> None:
    await served.lease(**FULL, ttl={"seconds": 300})
    old, new = Talk(served), Talk(served)
    await old.beat(worker="w", incarnation=1, sequence=1)
    await old.send(allocate=wish(**RIGID, wait_timeout={"seconds": 300}))
    await waiting(served)
    await old.finish()
    await new.beat(worker="w", incarnation=2, sequence=1)
    assert (await refusal(old.read())).reason == "SESSION_MOVED"
    await waiting(served, 0)


@pytest.mark.parametrize("how", ["cancel", "close"])
async def test_waiting_allocations_are_cancelled_when_the_session_ends(served: Served, how: str) -> None:
    await served.lease(**FULL)
    channel = served.connect()
    talk = Talk(served, channel)
    for number in range(3):
        await talk.send(allocate=wish(**RIGID, request_id=f"r{number}"))
    await waiting(served, 3)
    if how == "cancel":
        talk.call.cancel()
    else:
        await channel.close()
    await waiting(served, 0)
    assert (await served.state()).stats.cancelled_allocations == 3
    await until(lambda: served.server.subscribers == 0)


async def test_allocation_is_refused_when_too_many_of_the_session_wait(served: Served) -> None:
    first = (await served.lease(**FULL)).lease
    talk = Talk(served)
    for _ in range(session.MAX_WAITING):
        await talk.send(allocate=wish(**SMALL))
    await waiting(served, session.MAX_WAITING)
    refused = (await talk.ask(allocate=wish(**SMALL))).error
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], "QUEUE_FULL")
    assert (await talk.beat(handles=[first.handle])).HasField("heartbeat")
    await served.release(first)
    granted = {(await talk.read()).allocate.lease.lease_id for _ in range(session.MAX_WAITING)}
    assert len(granted) == session.MAX_WAITING


async def test_worker_is_not_read_from_when_it_does_not_read(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MAX_UNSENT", 16)
    lease = (await served.lease()).lease
    channel = served.connect(("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 16384))
    talk = Talk(served, channel)
    # Each of these makes an answer of 100 kB; nobody reads them, and at some time no more can be written.
    beat = pb.HeartbeatRequest(handles=range(1, 2001))
    sent = 0
    with contextlib.suppress(TimeoutError):
        for sent in range(1, 2000):
            async with asyncio.timeout(0.5):
                await talk.call.write(pb.SessionRequest(correlation_id=sent, heartbeat=beat))
    assert sent < 1999
    # Others are not held up meanwhile.
    assert (await served.beat(handles=[lease.handle])).results[0].verdict == pb.VERDICT_RENEWED
    # What was not answered yet, and what the transport had room for.
    assert served.arbiter.books.stats.heartbeats < 16 + 200
    await channel.close()
    await until(lambda: served.server.sessions == 0)


async def test_session_is_refused_when_too_many_are_open(serve: Serve) -> None:
    served = await serve(Setting(limits=Limits(sessions=1)))
    first = Talk(served)
    await first.beat()
    refused = await refusal(Talk(served).read())
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    await first.finish()
    assert await first.end() is grpc.StatusCode.OK
    assert (await Talk(served).beat()).HasField("heartbeat")


async def test_session_hears_of_draining_and_ends_with_ok_when_the_server_stops(served: Served) -> None:
    talk = Talk(served)
    lease = (await talk.lease()).lease
    await served.server.drain()
    assert (await talk.hear()).draining
    assert (await talk.beat(handles=[lease.handle])).heartbeat.draining
    assert (await talk.ask(allocate=wish())).error.reason == "SHUTTING_DOWN"
    await served.server.stop(GUARD_S)
    assert await talk.end() is grpc.StatusCode.OK


async def test_newest_value_is_pushed_when_there_are_many(served: Served) -> None:
    talk = Talk(served)
    lease = (await talk.lease()).lease
    loop = asyncio.get_running_loop()
    begun = loop.time()
    for _ in range(500):
        served.announce(lease.lease_id)
        await asyncio.sleep(0)
    heard = [await talk.hear()]
    while heard[-1].revision < served.arbiter.books.revision:
        heard.append(await talk.hear())
    assert heard[-1].directives[0].revision == heard[-1].revision
    assert len(heard) <= 3 + (loop.time() - begun) / subscriber.MIN_INTERVAL_S


async def test_large_push_is_whole_when_a_session_holds_many_leases(serve: Serve) -> None:
    served = await serve(Setting(core=replace(CORE, soft_target=1.0)))
    leases = [(await served.lease(**SMALL)).lease for _ in range(300)]
    talk = Talk(served)
    answer = await talk.ask(subscribe=pb.StreamQualityRequest(lease_ids=[lease.lease_id for lease in leases]))
    assert len(answer.quality.directives) == 300
    for lease in leases:
        served.announce(lease.lease_id)
    directives: dict[str, lease_pb2.Directive] = {}
    while len(directives) < 300:
        directives |= {each.lease_id: each for each in (await talk.hear()).directives}
    assert {each.reason for each in directives.values()} == {lease_pb2.DIRECTIVE_REASON_CONFIG}


async def test_no_trace_is_left_when_sessions_are_cancelled(served: Served) -> None:
    lease = (await served.lease()).lease
    for cycle in range(200):
        talk = Talk(served)
        await talk.send(subscribe=pb.StreamQualityRequest(lease_ids=[lease.lease_id]))
        if cycle % 2:
            await talk.beat(worker=f"w{cycle}", incarnation=1, sequence=1)
        talk.call.cancel()
    await until(lambda: served.server.subscribers == 0 and served.server.sessions == 0)
