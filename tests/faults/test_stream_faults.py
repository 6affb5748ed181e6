"""Faults of streams: who does not read is not waited for, and who comes back misses nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import arbiter_service_pb2_grpc, lease_pb2
from arbiter_client import errors
from tests.faults.changing import QUALITIES
from tests.faults.conftest import GUARD_S, MIB, Stage, request, staged
from tests.faults.starting import Run, programs
from tests.faults.talking import NARROW, OWN, talking

STATIC = ("--devices", "static", "--devices-static", "card=1000MiB")
#: So many directives do not fit into what a narrow client takes in advance.
MANY = 300
#: What a server waits for a reader that takes nothing, in seconds.
PATIENCE_S = 30.0
#: Least time between two messages of one stream.
INTERVAL_S = 0.05

Stream = Iterator[pb.StreamQualityResponse]


@pytest.fixture
def run() -> Iterator[Run]:
    with programs() as started:
        yield started


def opened(
    arbiter: arbiter_service_pb2_grpc.ArbiterServiceStub, *lease_ids: str, epoch: int = 0, revision: int = 0
) -> Stream:
    """A quality stream for these leases, from a resume point."""
    asked = pb.StreamQualityRequest(lease_ids=lease_ids, resume_epoch=epoch, resume_revision=revision)
    return arbiter.StreamQuality(asked, timeout=4 * GUARD_S)


def small_leases(arbiter: arbiter_service_pb2_grpc.ArbiterServiceStub, count: int) -> list[lease_pb2.Lease]:
    """So many leases that live for minutes without heartbeats."""
    asked = request("small", 1, ttl_s=300)
    asked.min_memory_bytes = MIB // 4
    return [arbiter.Allocate(asked, timeout=GUARD_S).lease for _ in range(count)]


def ended(stream: Iterator[object]) -> errors.ArbiterClientError:
    """How a stream ends, after what is still to be read of it."""
    with pytest.raises(grpc.RpcError) as caught:
        for _ in stream:
            pass
    return errors.from_rpc_error(caught.value)


@pytest.mark.slow
def test_streams_that_are_never_read_end_and_their_leases_live(tmp_path: Path) -> None:
    with (
        staged(tmp_path, *STATIC) as stage,
        grpc.insecure_channel(stage.server.address, options=NARROW) as channel,
        talking(stage.server.address, *NARROW) as talk,
    ):
        leases = small_leases(stage.arbiter, MANY)
        asked = pb.StreamQualityRequest(lease_ids=[lease.lease_id for lease in leases])
        begun = time.monotonic()
        unread = arbiter_service_pb2_grpc.ArbiterServiceStub(channel).StreamQuality(asked, timeout=4 * GUARD_S)
        talk.send(pb.SessionRequest(subscribe=asked))
        read = opened(stage.arbiter, leases[0].lease_id)
        deadline = begun + 2 * GUARD_S + PATIENCE_S
        while stage.server.log.text.count('"event": "slow_subscriber"') < 2:
            assert time.monotonic() < deadline, "nobody was given up"
            time.sleep(0.5)
        assert time.monotonic() - begun >= PATIENCE_S
        for stream in (unread, talk.call):
            error = ended(stream)
            assert isinstance(error, errors.SlowSubscriber)
            assert error.code is grpc.StatusCode.ABORTED
        # Who reads is not meant, and heartbeats alone decide about leases.
        assert next(read).directives
        assert [result.verdict for result in stage.beat(*leases).results] == [pb.VERDICT_RENEWED] * MANY
        assert stage.picture().stats.expired_leases == 0
        again = next(opened(stage.arbiter, *asked.lease_ids))
        assert len(again.directives) == MANY


@pytest.mark.slow
def test_memory_stays_flat_when_a_subscriber_never_reads(tmp_path: Path, run: Run) -> None:
    socket = tmp_path / "s.sock"
    server = run("changing", socket)
    assert server.hear() == ["serving"]
    with (
        grpc.insecure_channel(f"unix:{socket}") as wide,
        grpc.insecure_channel(f"unix:{socket}", options=NARROW) as channel,
    ):
        arbiter = arbiter_service_pb2_grpc.ArbiterServiceStub(wide)
        leases = small_leases(arbiter, MANY)
        ids = [lease.lease_id for lease in leases]
        unread = opened(arbiter_service_pb2_grpc.ArbiterServiceStub(channel), *ids)
        reading = opened(arbiter, *ids)
        next(reading)
        server.ask("change", 10 * len(QUALITIES) * MANY, 10_000)
        before = int(server.ask("resident")[1])
        count = 30 * len(QUALITIES) * MANY
        revision = int(server.ask("change", count, 10_000)[1])
        grown = int(server.ask("resident")[1]) - before
        # Sixty thousand directives of a hundred bytes each would be six million, and more as objects.
        assert grown < 2 * MIB, grown
        newest = {each.lease_id: each for message in until(reading, revision) for each in message.directives}
        assert {each.quality for each in newest.values()} == {0.5}
        # The one that is not read has got nothing of all that.
        assert next(unread).revision < revision - count


def until(stream: Stream, revision: int) -> Iterator[pb.StreamQualityResponse]:
    """The messages of a stream up to the one that brings its reader to a revision."""
    for message in stream:
        yield message
        if message.revision >= revision:
            return
    raise AssertionError("the stream has ended")


@pytest.mark.parametrize("kind", ["stream", "session"])
def test_reader_gets_few_messages_and_the_last_value_when_targets_change_all_the_time(
    tmp_path: Path, run: Run, kind: str
) -> None:
    socket, count = tmp_path / "s.sock", 21_000
    server = run("changing", socket)
    assert server.hear() == ["serving"]
    with grpc.insecure_channel(f"unix:{socket}") as channel, talking(f"unix:{socket}", OWN) as talk:
        arbiter = arbiter_service_pb2_grpc.ArbiterServiceStub(channel)
        asked = request("lease", 10, ttl_s=300)
        asked.min_memory_bytes = MIB
        granted = arbiter.Allocate(asked, timeout=GUARD_S)
        lease, epoch = granted.lease, granted.server_epoch
        if kind == "session":
            talk.ask(pb.SessionRequest(subscribe=pb.StreamQualityRequest(lease_ids=[lease.lease_id])))
            messages: Stream = (response.quality for response in talk.call if response.HasField("quality"))
        else:
            messages = opened(arbiter, lease.lease_id)
            next(messages)
        acknowledge(arbiter, lease, epoch, lease.directive.revision)
        begun, last, heard = time.monotonic(), lease.directive.revision + count, []
        server.tell("change", count, 10_000)
        for message in until(messages, last):
            heard.append(message)
            # Who acknowledges is told as much as anybody may be told.
            acknowledge(arbiter, lease, epoch, message.directives[0].revision)
        lasted = time.monotonic() - begun
        assert server.hear() == ["changed", str(last)]
        # The two seconds of changes alone bring forty at most; a few show that it is not the changes that were slow.
        assert 5 < len(heard) <= lasted / INTERVAL_S + 1, lasted
        revisions = [message.revision for message in heard]
        assert revisions == sorted(set(revisions))
        assert [(each.quality, each.revision) for each in heard[-1].directives] == [(0.5, last)]


def acknowledge(
    arbiter: arbiter_service_pb2_grpc.ArbiterServiceStub, lease: lease_pb2.Lease, epoch: int, revision: int
) -> None:
    """The holder runs at what it was told."""
    report = pb.HeartbeatRequest.Report(
        lease_id=lease.lease_id, fence=lease.fence, applied_revision=revision, outcome=pb.REPORT_OUTCOME_APPLIED
    )
    arbiter.Heartbeat(pb.HeartbeatRequest(server_epoch=epoch, reports=[report]), timeout=GUARD_S)


@pytest.fixture
def changed(tmp_path: Path) -> Iterator[tuple[Stage, lease_pb2.Lease, pb.StreamQualityResponse]]:
    """A server, a lease whose target was lowered after its grant, and where a stream of it stands."""
    with staged(tmp_path, *STATIC) as stage:
        asked = request("large", 800, ttl_s=300)
        asked.min_memory_bytes = 100 * MIB
        lease = stage.arbiter.Allocate(asked, timeout=GUARD_S).lease
        stage.arbiter.Allocate(request("late", 100, ttl_s=300), timeout=GUARD_S)
        stream = opened(stage.arbiter, lease.lease_id)
        yield stage, lease, next(stream)


def test_resumed_stream_says_at_once_that_nothing_is_newer(
    changed: tuple[Stage, lease_pb2.Lease, pb.StreamQualityResponse],
) -> None:
    stage, lease, seen = changed
    first = next(opened(stage.arbiter, lease.lease_id, epoch=seen.server_epoch, revision=seen.revision))
    assert (first.server_epoch, first.revision, len(first.directives)) == (seen.server_epoch, seen.revision, 0)


@pytest.mark.parametrize("kind", ["stream", "session"])
@pytest.mark.parametrize(
    ("epoch", "revision"),
    [(0, -1), (0, 1_000_000), (1, 0), (-1, 0)],
    ids=["older revision", "revision of the future", "epoch of the future", "epoch of the past"],
)
def test_resumed_stream_begins_with_everything_when_its_resume_point_is_not_the_server_s(
    changed: tuple[Stage, lease_pb2.Lease, pb.StreamQualityResponse], kind: str, epoch: int, revision: int
) -> None:
    stage, lease, seen = changed
    asked = pb.StreamQualityRequest(
        lease_ids=[lease.lease_id],
        resume_epoch=seen.server_epoch + epoch,
        resume_revision=seen.directives[0].revision + revision if revision < 0 else seen.revision + revision,
    )
    if kind == "session":
        with talking(stage.server.address) as talk:
            first = talk.ask(pb.SessionRequest(subscribe=asked)).quality
    else:
        first = next(stage.arbiter.StreamQuality(asked, timeout=GUARD_S))
    assert [(each.lease_id, each.quality) for each in first.directives] == [
        (lease.lease_id, seen.directives[0].quality)
    ]
    assert first.directives[0].quality < 1.0
    assert (first.server_epoch, first.revision) == (seen.server_epoch, seen.revision)
