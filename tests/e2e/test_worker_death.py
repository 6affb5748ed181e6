"""A worker is killed: its lease ends at once, its bytes come back when they are measured gone and not before."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import arbiter_service_pb2_grpc, lease_pb2, state_service_pb2, state_service_pb2_grpc
from tests import fake_nvml
from tests.e2e.conftest import Start
from tests.e2e.watching import events_of
from tests.running import running_server

MIB = 1 << 20
#: Ten times the promised 50 ms: a guard, the promise itself is a row of the benchmarks.
NOTICE_GUARD_S = 0.5


def _request(holder: str, memory_mib: int, pid: int) -> pb.AllocateRequest:
    return pb.AllocateRequest(
        holder=holder,
        pids=[pid],
        workload_type=lease_pb2.WORKLOAD_TYPE_OTHER,
        memory_bytes=memory_mib * MIB,
        min_memory_bytes=memory_mib * MIB,
    )


def test_killed_worker_is_noticed_at_once_and_its_bytes_return_when_gone(tmp_path: Path, start: Start) -> None:
    flags = ("--devices", "host", "--host-budget", "200MiB")
    with running_server(tmp_path, *flags) as server, grpc.insecure_channel(server.address) as channel:
        arbiter = arbiter_service_pb2_grpc.ArbiterServiceStub(channel)
        with events_of(channel) as events:
            worker = start("hoarder", 64 * MIB)
            assert worker.stdout is not None
            assert worker.stdout.readline() == "holding\n"
            lease = arbiter.Allocate(_request("hoarder", 120, worker.pid)).lease
            assert lease.pids_visible
            killed = time.monotonic()
            os.kill(worker.pid, signal.SIGKILL)
            ended, noticed = events.until(state_service_pb2.EVENT_KIND_LEASE_ENDED, lease.lease_id)
            assert ended.fields["reason"] == "ORPHANED"
            assert noticed - killed < NOTICE_GUARD_S
            # Its bytes are still charged at that moment; a request for them waits for the measurement.
            waited = arbiter.Allocate(_request("next", 150, os.getpid()))
            _, drained = events.until(state_service_pb2.EVENT_KIND_LEASE_DRAINED, lease.lease_id)
            granted, _ = events.until(state_service_pb2.EVENT_KIND_LEASE_GRANTED, waited.lease.lease_id)
            assert drained > noticed
            assert granted.sequence > ended.sequence


def test_bytes_of_a_dead_worker_stay_charged_while_the_driver_still_shows_them(tmp_path: Path, start: Start) -> None:
    library = fake_nvml.build(tmp_path)
    card = fake_nvml.FakeCard(uuid="GPU-1", total_bytes=10_000 * MIB)
    driver = fake_nvml.FakeDriver(tmp_path / "nvml", card)
    environment = {"LD_LIBRARY_PATH": str(library.parent), fake_nvml.STATE_VARIABLE: str(driver.path)}
    flags = ("--devices", "nvidia", "--devices-sample-interval", "100ms", "--lease-drain-grace", "500ms")
    with (
        running_server(tmp_path, *flags, environment=environment) as server,
        grpc.insecure_channel(server.address) as channel,
        events_of(channel) as events,
        ThreadPoolExecutor() as threads,
    ):
        arbiter = arbiter_service_pb2_grpc.ArbiterServiceStub(channel)
        state = state_service_pb2_grpc.StateServiceStub(channel)
        worker = start("hoarder", MIB)
        assert worker.stdout is not None
        assert worker.stdout.readline() == "holding\n"
        card.compute[worker.pid] = 6_000 * MIB
        driver.write()
        lease = arbiter.Allocate(_request("holder", 6_000, worker.pid)).lease
        os.kill(worker.pid, signal.SIGKILL)
        events.until(state_service_pb2.EVENT_KIND_LEASE_ENDED, lease.lease_id)
        waiting = threads.submit(arbiter.Allocate, _request("next", 6_000, os.getpid()), timeout=60)
        alarm, _ = events.until(state_service_pb2.EVENT_KIND_RESIDUE_ALARM, lease.lease_id)
        assert int(alarm.fields["residue_bytes"]) == 6_000 * MIB
        device = state.GetState(state_service_pb2.GetStateRequest()).devices[0]
        assert device.draining_bytes == 6_000 * MIB
        assert not waiting.done(), "nobody may have the bytes that the driver still shows"
        card.compute.clear()
        driver.write()
        assert waiting.result(timeout=30).lease.memory_bytes == 6_000 * MIB
        events.until(state_service_pb2.EVENT_KIND_LEASE_DRAINED, lease.lease_id)
