"""StateService: the picture, the reasons and the events, without anybody's secrets."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import lease_pb2
from arbiter.v1 import state_service_pb2 as state_pb
from arbiter_sidecar import __version__
from arbiter_sidecar.rpc import state_servicer
from arbiter_sidecar.runtime import events
from arbiter_sidecar.types import GIB, EventKind
from tests.rpc.served import IMAGE, Serve, Served, Setting, applied, refusal, report, wish
from tests.runtime.driving import EPOCH
from tests.runtime.fakes import GUARD_S, FakeClock, until

Watch = grpc.aio.UnaryStreamCall[state_pb.WatchEventsRequest, state_pb.WatchEventsResponse]


def watching(served: Served, **asked: Any) -> Watch:
    """A watch of the events."""
    return served.states.WatchEvents(state_pb.WatchEventsRequest(**asked), timeout=3 * GUARD_S)


async def begun(served: Served, **asked: Any) -> Watch:
    """A watch that certainly has begun."""
    watch = watching(served, **asked)
    async with asyncio.timeout(GUARD_S):
        await watch.initial_metadata()
    return watch


async def collect(watch: Watch, last: state_pb.EventKind.ValueType) -> list[state_pb.Event]:
    """Every event up to the first of this kind."""
    found: list[state_pb.Event] = []
    while not any(event.kind == last for event in found):
        async with asyncio.timeout(GUARD_S):
            message = await watch.read()
        assert isinstance(message, state_pb.WatchEventsResponse), message
        assert message.events
        found.extend(message.events)
    return found


async def explain(served: Served, **subject: str) -> state_pb.ExplainResponse:
    """A reason."""
    return await served.states.Explain(state_pb.ExplainRequest(**subject), timeout=GUARD_S)


def findings(answer: state_pb.ExplainResponse) -> dict[str, str]:
    """What was looked at."""
    return {finding.name: finding.value for finding in answer.findings}


async def test_picture_is_coherent_when_there_is_a_bit_of_everything(served: Served) -> None:
    language = (await served.lease(holder="chat", memory_bytes=12 * GIB, namespace="a", labels={"k": "v"})).lease
    image = (await served.lease(holder="paint", memory_bytes=4 * GIB, workload_type=IMAGE)).lease
    late = asyncio.create_task(served.lease(holder="late", memory_bytes=24 * GIB, min_quality=1.0, namespace="b"))
    await until(lambda: served.arbiter.books.queue.callers == 1)
    await served.beat(reports=[report(language, used_memory_bytes=11 * GIB)])
    state = await served.state()
    assert (state.version, state.server_epoch, state.quality_policy) == (__version__, EPOCH, "adaptive")
    assert list(state.notes) == ["a note"]
    assert state.uptime.ToNanoseconds() > 0
    assert [lease.holder for lease in state.leases] == ["chat", "paint"]
    shown = state.leases[0]
    assert (shown.lease_id, shown.namespace, dict(shown.labels)) == (language.lease_id, "a", {"k": "v"})
    assert shown.reported_memory_bytes == 11 * GIB
    assert not shown.HasField("measured_memory_bytes")
    assert shown.directive == language.directive
    [device] = state.devices
    assert device.granted_bytes == 16 * GIB == sum(lease.memory_bytes for lease in state.leases)
    assert device.available_bytes == 8 * GIB
    assert (device.kind, device.health) == (state_pb.DEVICE_KIND_STATIC, state_pb.DEVICE_HEALTH_OK)
    assert device.attribution == state_pb.ATTRIBUTION_SELF_REPORTED
    assert device.pressure == pytest.approx(16 / 24)
    assert device.level == state_pb.PRESSURE_LEVEL_MODERATE
    [queued] = state.waiting
    assert (queued.holder, queued.position, queued.request_id[0]) == ("late", 0, "#")
    assert state.state.active_llm_workloads == state.state.active_diffusion_workloads == 1
    assert state.state.memory_used_bytes + state.state.memory_available_bytes == 24 * GIB
    assert (state.stats.total_allocations, state.stats.successful_allocations) == (3, 2)
    assert image.lease_id == state.leases[1].lease_id
    late.cancel()
    await asyncio.gather(late, return_exceptions=True)


async def test_secrets_are_shown_to_the_holder_alone(served: Served) -> None:
    lease = (await served.lease(request_id="r1")).lease
    await served.release(lease)
    other = (await served.lease(request_id="r2")).lease
    watch = await begun(served, after_sequence=1)
    texts = [
        str(await served.state(include_ended=True)),
        str(await explain(served, lease_id=other.lease_id)),
        str(await explain(served, request_id="r2")),
        str(await explain(served, device_id="gpu0")),
        str(await collect(watch, state_pb.EVENT_KIND_LEASE_ENDED)),
    ]
    for text in texts:
        assert not any(f"{name}:" in text for name in ("handle", "fence"))
        for secret in (lease.fence, other.fence):
            assert str(secret) not in text
    assert all(shown.handle == shown.fence == 0 for shown in (await served.state(include_ended=True)).leases)


async def test_only_one_namespace_is_shown_when_one_is_asked(served: Served) -> None:
    for namespace in ("a", "b", ""):
        await served.lease(namespace=namespace, memory_bytes=GIB)
    assert [lease.namespace for lease in (await served.state()).leases] == ["a", "b", "default"]
    assert [lease.namespace for lease in (await served.state(namespace="b")).leases] == ["b"]
    assert not (await served.state(namespace="none")).leases
    late = asyncio.create_task(served.lease(namespace="b", memory_bytes=24 * GIB, min_quality=1.0))
    await until(lambda: served.arbiter.books.queue.callers == 1)
    assert not (await served.state(namespace="a")).waiting
    assert len((await served.state(namespace="b")).waiting) == 1
    late.cancel()
    await asyncio.gather(late, return_exceptions=True)


async def test_ended_lease_is_shown_when_it_drains_and_one_asks(serve: Serve) -> None:
    served = await serve(Setting(devices={}, measured={"gpu0": 24 * GIB}, pids=(42,)))
    lease = (await served.lease(pids=[42])).lease
    [process] = served.watch.watched
    served.probes["gpu0"].held[process] = 3 * GIB
    await until(lambda: served.arbiter.books.devices[served.probes["gpu0"].facts.device_id].used_bytes == 3 * GIB)
    await served.release(lease)
    assert not (await served.state()).leases
    await until(lambda: any(each.residue_bytes == 3 * GIB for each in served.arbiter.books.leases))
    state = await served.state(include_ended=True)
    [ended] = state.leases
    assert (ended.state, ended.end_reason) == (lease_pb2.LEASE_STATE_ENDED, lease_pb2.END_REASON_RELEASED)
    assert ended.memory_bytes == state.devices[0].draining_bytes == 3 * GIB
    assert state.devices[0].measured_bytes == 3 * GIB
    served.probes["gpu0"].held[process] = 0
    await until(lambda: served.arbiter.books.leases.total == 0)
    assert not (await served.state(include_ended=True)).leases


async def test_measured_memory_is_shown_beside_the_granted(serve: Serve) -> None:
    served = await serve(Setting(devices={}, measured={"gpu0": 24 * GIB}, pids=(42,)))
    await served.lease(pids=[42])
    [process] = served.watch.watched
    served.probes["gpu0"].held[process] = 5 * GIB
    served.probes["gpu0"].foreign_bytes = GIB
    [held] = served.arbiter.books.leases
    await until(lambda: held.measured_bytes == 5 * GIB)
    state = await served.state()
    assert state.leases[0].measured_memory_bytes == 5 * GIB
    assert state.leases[0].memory_bytes == 4 * GIB
    [device] = state.devices
    assert (device.foreign_bytes, device.measured_bytes) == (GIB, 6 * GIB)
    assert not device.foreign_estimated
    assert device.sample_age.ToNanoseconds() >= 0


async def test_failure_of_a_device_is_shown_escaped(serve: Serve) -> None:
    served = await serve(Setting(devices={}, measured={"gpu0": 24 * GIB}))
    served.probes["gpu0"].failure = "driver\nsays \x1b[31mno"
    book = served.arbiter.books.devices[served.probes["gpu0"].facts.device_id]
    await until(lambda: bool(book.failure))
    [device] = (await served.state()).devices
    assert device.health_detail == r"driver\nsays \x1b[31mno"


async def test_quality_is_explained_when_a_lease_is_asked_about(served: Served) -> None:
    lease = (await served.lease(memory_bytes=20 * GIB)).lease
    best = await explain(served, lease_id=lease.lease_id)
    assert best.rule == "best"
    assert "quality 1.00" in best.summary
    await served.lease(holder="other", memory_bytes=3 * GIB)
    lowered = await explain(served, lease_id=lease.lease_id)
    assert lowered.rule == "water_filling"
    numbers = findings(lowered)
    assert (numbers["priority"], numbers["full_bytes"]) == ("NORMAL", str(20 * GIB))
    assert float(numbers["published"]) < 1.0
    await served.release(lease)
    assert (await explain(served, lease_id=lease.lease_id)).rule in {"lock_delay", "ended"}
    await until(lambda: served.arbiter.books.leases.total == 1)
    gone = await explain(served, lease_id=lease.lease_id)
    assert gone.rule == "ended"
    assert "RELEASED" in gone.summary


async def test_wait_and_refusal_are_explained_when_a_request_is_asked_about(served: Served) -> None:
    first = (await served.lease(memory_bytes=20 * GIB, request_id="held")).lease
    late = asyncio.create_task(served.lease(holder="late", memory_bytes=10 * GIB, request_id="late"))
    await until(lambda: served.arbiter.books.queue.callers == 1)
    waits = await explain(served, request_id="late")
    assert waits.rule == "ranked_line"
    assert findings(waits)["position"] == "0"
    held = await explain(served, request_id="held")
    assert "quality" in held.summary
    [told] = (await served.beat(handles=[first.handle])).results
    await served.beat(reports=[applied(first, told.directive.revision)])
    await late
    assert "quality" in (await explain(served, request_id="late")).summary
    await refusal(served.lease(memory_bytes=24 * GIB, min_quality=1.0, request_id="no", wait_timeout={}))
    refused = await explain(served, request_id="no")
    assert refused.rule == "insufficient_memory"
    assert findings(refused)["requested_bytes"] == str(24 * GIB)


async def test_numbers_are_told_when_a_device_is_asked_about(served: Served) -> None:
    await served.lease()
    numbers = findings(await explain(served, device_id="gpu0"))
    assert numbers["capacity_bytes"] == str(24 * GIB)
    assert numbers["granted_bytes"] == str(4 * GIB)
    assert numbers["policy"] == "adaptive"


@pytest.mark.parametrize(
    ("subject", "reason"),
    [("lease_id", "LEASE_NOT_FOUND"), ("request_id", "LEASE_NOT_FOUND"), ("device_id", "DEVICE_NOT_FOUND")],
)
async def test_explain_says_not_found_when_nobody_knows_the_name(served: Served, subject: str, reason: str) -> None:
    refused = await refusal(explain(served, **{subject: "nobody"}))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, reason)
    for name in ("", "a\nb", "x" * 129):
        refused = await refusal(explain(served, **{subject: name}))
        assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, {subject})


async def test_explain_needs_a_subject(served: Served) -> None:
    refused = await refusal(explain(served))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, {"subject"})


async def test_events_come_as_they_happen_when_one_watches_from_now(serve: Serve) -> None:
    clock = FakeClock()
    served = await serve(Setting(clock=clock))
    await served.lease(holder="before")
    watch = await begun(served)
    lease = (await served.lease(holder="watched", request_id="r1", namespace="n")).lease
    await served.beat(handles=[lease.handle])
    await served.release(lease)
    found = await collect(watch, state_pb.EVENT_KIND_LEASE_ENDED)
    kinds = [event.kind for event in found if event.lease_id == lease.lease_id]
    assert kinds == [
        state_pb.EVENT_KIND_LEASE_GRANTED,
        state_pb.EVENT_KIND_LEASE_CONFIRMED,
        state_pb.EVENT_KIND_LEASE_ENDED,
    ]
    assert "before" not in {event.holder for event in found}
    granted = found[0]
    assert (granted.holder, granted.request_id, granted.namespace) == ("watched", "r1", "n")
    assert granted.device_id == "gpu0"
    assert granted.fields["quality"] == "1.0"
    assert granted.time.ToSeconds() == int(clock.wall())
    numbers = [event.sequence for event in found]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    watch.cancel()


async def test_events_begin_after_a_number_when_they_are_remembered(served: Served) -> None:
    for number in range(5):
        await served.lease(holder=f"h{number}", memory_bytes=1 << 20)
    early = await begun(served, after_sequence=1)
    message = await early.read()
    assert isinstance(message, state_pb.WatchEventsResponse)
    assert [event.sequence for event in message.events] == [2, 3, 4, 5]
    future = await begun(served, after_sequence=1_000_000)
    await served.lease(holder="new", memory_bytes=1 << 20)
    assert [event.holder for event in await collect(future, state_pb.EVENT_KIND_LEASE_GRANTED)] == ["new"]


async def test_gap_is_told_when_events_are_no_longer_remembered(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "BACKLOG", 3)
    for _ in range(10):
        await served.lease(memory_bytes=1 << 20)
    watch = await begun(served, after_sequence=2)
    found = await collect(watch, state_pb.EVENT_KIND_LEASE_GRANTED)
    assert found[0].kind == state_pb.EVENT_KIND_GAP
    assert found[0].fields["missed"] == "5"
    assert [event.sequence for event in found[1:]] == [8, 9, 10]


async def test_gap_is_told_when_a_watcher_is_too_slow(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "BACKLOG", 10)
    watch = await begun(served)
    before = served.runtime.events.sequence
    lease = (await served.lease(memory_bytes=1 << 20)).lease
    first = await collect(watch, state_pb.EVENT_KIND_LEASE_GRANTED)
    # In one turn of the loop, so that the watcher cannot keep up.
    known = served.arbiter.books.leases.get(lease.lease_id)
    assert known is not None
    for _ in range(50):
        served.arbiter.books.happened(EventKind.LEASE_GRANTED, known)
    served.runtime.confirm(())
    found = await collect(watch, state_pb.EVENT_KIND_LEASE_GRANTED)
    assert first[0].sequence == before + 1
    assert found[0].kind == state_pb.EVENT_KIND_GAP
    assert found[0].fields["missed"] == "40"
    assert [event.sequence for event in found[1:]] == list(range(before + 42, before + 52))


async def test_only_one_namespace_is_watched_when_one_is_asked(served: Served) -> None:
    watch = await begun(served, namespace="b")
    for namespace in ("a", "b", "a"):
        await served.lease(namespace=namespace, memory_bytes=1 << 20)
    await served.release((await served.lease(namespace="b", memory_bytes=1 << 20)).lease)
    found = await collect(watch, state_pb.EVENT_KIND_LEASE_ENDED)
    assert {event.namespace for event in found} == {"b"}


async def test_many_events_come_in_several_messages(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_servicer, "EVENTS_PER_MESSAGE", 4)
    for _ in range(10):
        await served.lease(memory_bytes=1 << 20)
    watch = await begun(served, after_sequence=1)
    sizes: list[int] = []
    while sum(sizes) < 9:
        message = await watch.read()
        assert isinstance(message, state_pb.WatchEventsResponse)
        sizes.append(len(message.events))
    assert sizes == [4, 4, 1]


async def test_watchers_are_bounded_and_leave_no_trace(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_servicer, "MAX_WATCHERS", 1)
    before = served.runtime.events.watchers
    first = await begun(served)
    refused = await refusal(watching(served).read())
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    first.cancel()
    await until(lambda: served.runtime.events.watchers == before)
    await begun(served)


async def test_watch_ends_with_ok_when_the_server_stops(served: Served) -> None:
    watch = await begun(served)
    await served.server.drain()
    [event] = await collect(watch, state_pb.EVENT_KIND_DRAINING)
    assert event.namespace == ""
    await served.server.stop(GUARD_S)
    assert await watch.read() is grpc.aio.EOF
    assert await watch.code() is grpc.StatusCode.OK


async def test_dry_run_leaves_no_event(served: Served) -> None:
    before = served.runtime.events.sequence
    await served.calls.Allocate(wish(dry_run=True), timeout=GUARD_S)
    await refusal(served.calls.Allocate(pb.AllocateRequest(), timeout=GUARD_S))
    assert served.runtime.events.sequence == before
