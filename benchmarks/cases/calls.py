"""Unary calls of one Python caller against a bare echo on the same stack, alternating in small slices."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import grpc

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import arbiter_service_pb2_grpc, lease_pb2
from benchmarks import rows, servers

#: Calls of one slice: a tenth of a second.
SLICE = 200


def _p50_us(call: Callable[[], object]) -> float:
    times = []
    for _ in range(SLICE):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e6


def rows_(quick: bool) -> list[rows.Row]:
    """Medians of slices, divided pair by pair; the order within a pair alternates."""
    rounds = 6 if quick else 20
    request = pb.AllocateRequest(
        holder="caller", workload_type=lease_pb2.WORKLOAD_TYPE_LLM_INFERENCE, memory_bytes=1 << 20, dry_run=False
    )
    payload = bytes(100)
    with (
        servers.echo() as echo_target,
        servers.arbiter() as target,
        grpc.insecure_channel(echo_target) as echo_channel,
        grpc.insecure_channel(target) as channel,
    ):
        arbiter = arbiter_service_pb2_grpc.ArbiterServiceStub(channel)
        echo: grpc.UnaryUnaryMultiCallable[bytes, bytes] = echo_channel.unary_unary("/bench.Echo/Call")
        held: list[lease_pb2.Lease] = []
        handle = arbiter.Allocate(request).lease.handle

        def allocate() -> None:
            held.append(arbiter.Allocate(request).lease)

        def release() -> None:
            lease = held.pop()
            arbiter.Release(pb.ReleaseRequest(lease_id=lease.lease_id, fence=lease.fence))

        calls: dict[str, Callable[[], object]] = {
            "echo": lambda: echo(payload),
            "echo again": lambda: echo(payload),
            "Allocate": allocate,
            "Release": release,
            "Heartbeat, 1 lease": lambda: arbiter.Heartbeat(pb.HeartbeatRequest(handles=[handle])),
        }
        seen: dict[str, list[float]] = {name: [] for name in calls}
        for place in range(rounds):
            names = (
                list(calls) if place % 2 == 0 else ["Allocate", "Release", "Heartbeat, 1 lease", "echo again", "echo"]
            )
            for name in names:
                seen[name].append(_p50_us(calls[name]))
    found = [rows.summed_up("echo, p50 of a slice", "us", seen["echo"])]
    for name in list(calls)[1:]:
        label = "noise: echo / echo" if name == "echo again" else f"{name} / echo, p50"
        pairs = [value / echo_value for value, echo_value in zip(seen[name], seen["echo"], strict=True)]
        found.append(rows.ratio(label, pairs))
    return found
