"""A whole server in this process, and a client of it over a real Unix socket."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import arbiter_service_pb2_grpc, lease_pb2, state_service_pb2, state_service_pb2_grpc
from arbiter_sidecar.adapters.clock import MonotonicClock
from arbiter_sidecar.ports import Clock
from arbiter_sidecar.rpc.convert import LeaseTimes
from arbiter_sidecar.rpc.server import Limits, Server
from arbiter_sidecar.types import GIB, DirectiveReason
from tests.runtime.driving import EPOCH, Driven, Outside
from tests.runtime.fakes import GUARD_S

LLM = lease_pb2.WORKLOAD_TYPE_LLM_INFERENCE
IMAGE = lease_pb2.WORKLOAD_TYPE_IMAGE_GENERATION


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting(Outside):
    """What a test may choose about its server.

    Attributes:
        clock: The clock; a real one unless the test wants to move it.
        times: Bounds of the time to live.
        limits: Of the server.
    """

    clock: Clock = field(default_factory=MonotonicClock)
    times: LeaseTimes = field(default_factory=LeaseTimes)
    limits: Limits = field(default_factory=Limits)


class Served(Driven):
    """A server and what a test needs to talk to it and to look into it."""

    def __init__(self, setting: Setting, path: Path) -> None:
        super().__init__(setting)
        self.path = path
        self.server = Server(self.runtime, times=setting.times, limits=setting.limits, notes=["a note"])
        self._channels: list[grpc.aio.Channel] = []

    async def start(self) -> None:
        """Serves."""
        await self.runtime.start()
        await self.server.listen_unix(self.path)
        await self.server.ready()
        self.channel = self.connect()
        self.calls = arbiter_service_pb2_grpc.ArbiterServiceStub(self.channel)
        self.states = state_service_pb2_grpc.StateServiceStub(self.channel)

    async def stop(self) -> None:
        """Goes away."""
        for channel in self._channels:
            await channel.close()
        await self.server.stop(0.0)
        await self.runtime.stop()

    def connect(self, *options: tuple[str, int]) -> grpc.aio.Channel:
        """Another connection."""
        own = ("grpc.use_local_subchannel_pool", 1)
        channel = grpc.aio.insecure_channel(f"unix:{self.path}", options=[own, *options])
        self._channels.append(channel)
        return channel

    def announce(self, lease_id: str) -> None:
        """Gives a lease a new directive that says what the last one said."""
        books = self.arbiter.books
        lease = books.leases.get(lease_id)
        assert lease is not None
        books.announce(lease, DirectiveReason.CONFIG)
        # Any command carries the effects out.
        self.runtime.confirm(())

    def raw(self, method: str) -> grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]:
        """A unary call that takes whatever bytes it gets."""
        return self.channel.unary_unary(f"/arbiter.v1.{method}", bytes, bytes)

    def raw_stream(self, method: str) -> grpc.aio.UnaryStreamMultiCallable[bytes, bytes]:
        """The same for a call that answers with a stream."""
        return self.channel.unary_stream(f"/arbiter.v1.{method}", bytes, bytes)

    async def state(self, **asked: Any) -> state_service_pb2.GetStateResponse:
        """The picture."""
        return await self.states.GetState(state_service_pb2.GetStateRequest(**asked), timeout=GUARD_S)

    async def lease(self, **changes: Any) -> pb.AllocateResponse:
        """A lease that fits."""
        return await self.calls.Allocate(wish(**changes), timeout=GUARD_S)

    async def beat(self, **fields: Any) -> pb.HeartbeatResponse:
        """A heartbeat of this epoch."""
        return await self.calls.Heartbeat(pb.HeartbeatRequest(**{"server_epoch": EPOCH, **fields}), timeout=GUARD_S)

    async def release(self, lease: lease_pb2.Lease) -> pb.ReleaseResponse:
        """Gives a lease back."""
        request = pb.ReleaseRequest(lease_id=lease.lease_id, fence=lease.fence)
        return await self.calls.Release(request, timeout=GUARD_S)


Serve = Callable[[Setting], Awaitable[Served]]


def wish(**changes: Any) -> pb.AllocateRequest:
    """A request for 4 GiB that is as it should be, but for the changes."""
    return pb.AllocateRequest(**{"holder": "worker", "workload_type": LLM, "memory_bytes": 4 * GIB, **changes})


def report(lease: lease_pb2.Lease, **fields: Any) -> pb.HeartbeatRequest.Report:
    """A report of the lease's holder."""
    return pb.HeartbeatRequest.Report(lease_id=lease.lease_id, fence=lease.fence, **fields)


def applied(lease: lease_pb2.Lease, revision: int) -> pb.HeartbeatRequest.Report:
    """The holder runs at what it was told."""
    return report(lease, applied_revision=revision, outcome=pb.REPORT_OUTCOME_APPLIED)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A failed call, with everything that it carries."""

    code: grpc.StatusCode
    message: str
    reason: str
    domain: str
    metadata: Mapping[str, str]
    violations: tuple[tuple[str, str], ...]
    retry_s: float | None
    plain_reason: str
    plain_metadata: Mapping[str, str]

    @property
    def fields(self) -> set[str]:
        """Names of the bad fields."""
        return {name for name, _ in self.violations}


async def refusal(call: Awaitable[object]) -> Refusal:
    """How a call failed; it must fail, and with details."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return told(caught.value)


def told(error: grpc.aio.AioRpcError) -> Refusal:
    """What an error carries."""
    status = rpc_status.from_call(cast("grpc.Call", error))
    assert status is not None, error
    assert status.message == error.details()
    found = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    kinds = {id(kind) for detail in status.details for kind in (found, bad, retry) if detail.Unpack(kind)}
    assert len(kinds) == len(status.details)
    assert id(found) in kinds
    plain = {key: value for key, value in error.trailing_metadata() if key.startswith("arbiter-")}
    return Refusal(
        code=error.code(),
        message=status.message,
        reason=found.reason,
        domain=found.domain,
        metadata=dict(found.metadata),
        violations=tuple((each.field, each.description) for each in bad.field_violations),
        retry_s=retry.retry_delay.ToNanoseconds() / 1e9 if id(retry) in kinds else None,
        plain_reason=str(plain["arbiter-error-reason"]),
        plain_metadata=json.loads(plain["arbiter-error-metadata"]),
    )
