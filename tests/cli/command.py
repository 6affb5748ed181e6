"""Runs the command as a person would, and talks to what it serves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import arbiter_service_pb2_grpc, lease_pb2, state_service_pb2, state_service_pb2_grpc
from tests.running import GUARD_S, ROOT, Log

#: A device of a fixed size; nothing of the machine matters, and memory is free as soon as a lease ends.
STATIC = ("--devices", "static", "--devices-static", "gpu0=24GiB", "--lease-lock-delay", "0s")


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that has ended."""

    code: int
    output: str
    errors: str


def run(*words: str, environment: dict[str, str] | None = None) -> Ran:
    """Runs ``arbiter-sidecar`` with these words to its end, in an environment without settings of its own."""
    found = subprocess.run(
        [sys.executable, "-m", "arbiter_sidecar", *words],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{ROOT}/clients/python/src", **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=GUARD_S,
        check=False,
    )
    return Ran(found.returncode, found.stdout, found.stderr)


@dataclass(frozen=True, slots=True)
class Caller:
    """A client of a server in another process."""

    calls: arbiter_service_pb2_grpc.ArbiterServiceStub
    states: state_service_pb2_grpc.StateServiceStub

    def lease(self, **changes: Any) -> lease_pb2.Lease:
        """A lease of 1 GiB."""
        wished = {"holder": "worker", "workload_type": lease_pb2.WORKLOAD_TYPE_OTHER, "memory_bytes": 1 << 30}
        return self.calls.Allocate(pb.AllocateRequest(**{**wished, **changes}), timeout=GUARD_S).lease

    def beat(self, lease: lease_pb2.Lease) -> pb.HeartbeatResponse:
        """A heartbeat."""
        return self.calls.Heartbeat(pb.HeartbeatRequest(handles=[lease.handle]), timeout=GUARD_S)

    def release(self, lease: lease_pb2.Lease) -> pb.ReleaseResponse:
        """Gives a lease back."""
        return self.calls.Release(pb.ReleaseRequest(lease_id=lease.lease_id, fence=lease.fence), timeout=GUARD_S)

    def state(self) -> state_service_pb2.GetStateResponse:
        """The picture."""
        return self.states.GetState(state_service_pb2.GetStateRequest(), timeout=GUARD_S)


@contextmanager
def calling(address: str) -> Iterator[Caller]:
    """A connection to a server."""
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield Caller(
            arbiter_service_pb2_grpc.ArbiterServiceStub(channel),
            state_service_pb2_grpc.StateServiceStub(channel),
        )


def lines(log: Log) -> list[dict[str, Any]]:
    """The log, each line of which must be one JSON object of plain ASCII."""
    text = log.text
    assert text.isascii()
    found = [json.loads(line) for line in text.splitlines()]
    assert all(isinstance(line, dict) for line in found)
    return found


def said(log: Log, event: str) -> dict[str, Any]:
    """The line about this event."""
    return next(line for line in lines(log) if line["event"] == event)
