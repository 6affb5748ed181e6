"""Memory is taken from real processes: it counts when it is measured gone, and not before."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import arbiter_service_pb2_grpc, lease_pb2, state_service_pb2
from tests.e2e.conftest import Start
from tests.e2e.watching import Events, events_of
from tests.running import running_server

MIB = 1 << 20
FLAGS = (
    "--devices",
    "host",
    "--host-budget",
    "400MiB",
    "--preemption-revoke-hold",
    "0s",
    "--preemption-shrink-hold",
    "0s",
)


class Scene:
    """A server, a worker in the background that holds memory and hears nothing, and an important lease."""

    def __init__(self, channel: grpc.Channel, events: Events, threads: ThreadPoolExecutor, start: Start) -> None:
        self.events = events
        self._calls = arbiter_service_pb2_grpc.ArbiterServiceStub(channel)
        self._threads = threads
        self.deaf, small = start("hoarder", 150 * MIB), start("hoarder", MIB)
        for process in (self.deaf, small):
            assert process.stdout is not None
            assert process.stdout.readline() == "holding\n"
        self.victim = self._lease("deaf", lease_pb2.PRIORITY_BACKGROUND, 300, self.deaf.pid)
        self.asking = self._lease("asking", lease_pb2.PRIORITY_HIGH, 50, small.pid)

    def _lease(self, holder: str, priority: lease_pb2.Priority.ValueType, mib: int, pid: int) -> lease_pb2.Lease:
        request = pb.AllocateRequest(
            holder=holder,
            pids=[pid],
            workload_type=lease_pb2.WORKLOAD_TYPE_OTHER,
            priority=priority,
            memory_bytes=mib * MIB,
            min_quality=1.0,
        )
        request.ttl.FromSeconds(300)
        return self._calls.Allocate(request).lease

    def preempt(self, mib: int) -> Future[pb.RequestPreemptionResponse]:
        """Asks for so much in a thread."""
        request = pb.RequestPreemptionRequest(lease_id=self.asking.lease_id, memory_bytes=mib * MIB)
        request.timeout.FromMilliseconds(500)
        return self._threads.submit(self._calls.RequestPreemption, request, timeout=60)


@contextmanager
def scene(folder: Path, start: Start, *flags: str) -> Iterator[Scene]:
    """Everything of it, until the block ends."""
    with (
        running_server(folder, *FLAGS, *flags) as server,
        grpc.insecure_channel(server.address) as channel,
        events_of(channel) as events,
        ThreadPoolExecutor() as threads,
    ):
        yield Scene(channel, events, threads, start)


def since_s(before: state_service_pb2.Event, after: state_service_pb2.Event) -> float:
    """Seconds from one event to another."""
    return (after.time.ToMicroseconds() - before.time.ToMicroseconds()) / 1e6


def test_deaf_holder_loses_its_lease_and_its_bytes_count_when_they_are_gone(tmp_path: Path, start: Start) -> None:
    with scene(tmp_path, start) as here:
        asked = here.preempt(100)
        ordered, _ = here.events.until(state_service_pb2.EVENT_KIND_RECLAIM_REQUESTED, here.victim.lease_id)
        pressed, _ = here.events.until(state_service_pb2.EVENT_KIND_RECLAIM_ESCALATED, here.victim.lease_id)
        ended, _ = here.events.until(state_service_pb2.EVENT_KIND_LEASE_ENDED, here.victim.lease_id)
        assert ended.fields["reason"] == "PREEMPTED"
        # By the server's own times: pressed before its grace is over, taken no earlier than that.
        assert since_s(ordered, pressed) < float(ordered.fields["grace_s"])
        assert since_s(ordered, ended) >= float(ordered.fields["grace_s"]) - 0.01
        assert not asked.done(), "its process still holds the bytes"
        here.deaf.kill()
        answer = asked.result(timeout=30)
        assert answer.confirmed >= 100 * MIB
        assert answer.donations[0].outcome == pb.DONATION_OUTCOME_REVOKED


def test_deaf_holder_is_ended_where_that_is_configured(tmp_path: Path, start: Start) -> None:
    with scene(tmp_path, start, "--enforcer-enabled", "on", "--enforcer-patience", "100ms") as here:
        answer = here.preempt(100).result(timeout=30)
        assert answer.confirmed >= 100 * MIB
        assert here.deaf.wait(30) != 0
