"""How soon the arbiter notices that a worker was killed, and hears nothing from its heartbeats."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import time

import grpc

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import arbiter_service_pb2_grpc, lease_pb2, state_service_pb2, state_service_pb2_grpc
from benchmarks import rows, servers

#: The promise: a killed worker is noticed so soon, in milliseconds, in 99 of 100 cases.
GOAL_MS = 50.0


def _listen(stub: state_service_pb2_grpc.StateServiceStub, heard: queue.Queue[tuple[str, float]]) -> grpc.Call:
    stream = stub.WatchEvents(state_service_pb2.WatchEventsRequest())
    stream.initial_metadata()

    def read() -> None:
        try:
            for message in stream:
                now = time.monotonic()
                for event in message.events:
                    if event.kind == state_service_pb2.EVENT_KIND_LEASE_ENDED:
                        heard.put((event.lease_id, now))
        except grpc.RpcError:
            return

    threading.Thread(target=read, daemon=True).start()
    return stream


def rows_(quick: bool) -> list[rows.Row]:
    """From SIGKILL to the audit event at a watcher, which includes the event's own way to it."""
    values = []
    with servers.arbiter() as target, grpc.insecure_channel(target) as channel:
        heard: queue.Queue[tuple[str, float]] = queue.Queue()
        stream = _listen(state_service_pb2_grpc.StateServiceStub(channel), heard)
        arbiter = arbiter_service_pb2_grpc.ArbiterServiceStub(channel)
        for _ in range(100 if quick else 400):
            worker = subprocess.Popen(["sleep", "60"])
            lease = arbiter.Allocate(
                pb.AllocateRequest(
                    holder="victim",
                    pids=[worker.pid],
                    workload_type=lease_pb2.WORKLOAD_TYPE_OTHER,
                    memory_bytes=1 << 20,
                )
            ).lease
            killed = time.monotonic()
            os.kill(worker.pid, signal.SIGKILL)
            lease_id, noticed = heard.get(timeout=10)
            worker.wait()
            if lease_id != lease.lease_id:
                raise RuntimeError(f"lease {lease_id} ended instead of {lease.lease_id}")
            values.append((noticed - killed) * 1000)
        stream.cancel()
    return [rows.summed_up("killed worker noticed", "ms", values, goal=f"p99 <= {GOAL_MS:g} ms", limit_p99=GOAL_MS)]
