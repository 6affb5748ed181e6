"""What a test says as a KV engine, and what it is told."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import lease_pb2, state_service_pb2
from arbiter_sidecar.arbiter import ArbiterConfig, KvConfig
from arbiter_sidecar.types import GIB
from tests.rpc.served import Refusal, Served, applied, refusal, report
from tests.runtime.driving import CORE
from tests.runtime.fakes import GUARD_S, until

if TYPE_CHECKING:
    import grpc

TOTAL = 4096


def tokens(total: int = TOTAL, **changes: Any) -> ArbiterConfig:
    """A core that shares so many tokens."""
    return replace(CORE, kv=KvConfig(tokens=total, **changes))


async def engine(served: Served, **share: Any) -> lease_pb2.Lease:
    """A small lease that is a KV engine."""
    changes = {name: share.pop(name) for name in ("holder", "priority") if name in share}
    answer = await served.lease(memory_bytes=GIB, kv=pb.KvShare(**share), **changes)
    return answer.lease


async def beat(served: Served, lease: lease_pb2.Lease, **usage: Any) -> lease_pb2.Directive:
    """A report of an engine's state; the directive that the answer brings, empty when there is nothing new."""
    answer = await served.beat(reports=[report(lease, kv=pb.KvUsage(**usage))])
    return answer.results[0].directive


async def obey(served: Served, lease: lease_pb2.Lease, **usage: Any) -> int:
    """An engine says that it has applied the newest directive; returns its budget."""
    told = await beat(served, lease, **usage)
    if told.revision:
        said = applied(lease, told.revision)
        said.kv.CopyFrom(pb.KvUsage(**usage))
        await served.beat(reports=[said])
    return (await shown(served, lease)).budget_tokens


async def shown(served: Served, lease: lease_pb2.Lease) -> state_service_pb2.KvEngine:
    """The engine as the picture has it."""
    return next(each for each in (await served.state()).kv_engines if each.lease_id == lease.lease_id)


def asking(lease: lease_pb2.Lease, amount: int, wait_s: float = 0.0, **changes: Any) -> pb.ReserveKvRequest:
    """A request for tokens."""
    request = pb.ReserveKvRequest(
        **{"lease_id": lease.lease_id, "fence": lease.fence, "tokens": amount, **changes},
    )
    request.wait_timeout.FromMilliseconds(round(wait_s * 1000))
    return request


async def reserve(served: Served, lease: lease_pb2.Lease, amount: int, wait_s: float = 0.0) -> pb.ReserveKvResponse:
    """Reserves tokens."""
    return await served.calls.ReserveKv(asking(lease, amount, wait_s), timeout=GUARD_S)


async def complete(served: Served, reservation_id: str, actual: int = 0) -> pb.CompleteKvResponse:
    """Returns a reservation."""
    request = pb.CompleteKvRequest(reservation_id=reservation_id, actual_tokens=actual)
    return await served.calls.CompleteKv(request, timeout=GUARD_S)


async def reserve_refused(served: Served, request: pb.ReserveKvRequest) -> Refusal:
    """How a request for tokens fails."""
    return await refusal(served.calls.ReserveKv(request, timeout=GUARD_S))


async def waiting(served: Served, lease: lease_pb2.Lease, amount: int) -> None:
    """Returns when so many tokens of an engine's reservations wait."""
    found = served.arbiter.books.leases.get(lease.lease_id)
    assert found is not None
    state = found.kv
    assert state is not None
    await until(lambda: state.wanted == amount)


async def next_directive(
    stream: grpc.aio.UnaryStreamCall[pb.StreamQualityRequest, pb.StreamQualityResponse],
) -> lease_pb2.Directive:
    """The next directive of the one lease of a stream."""
    async with asyncio.timeout(GUARD_S):
        message = await stream.read()
    assert isinstance(message, pb.StreamQualityResponse)
    assert message.directives, message
    return message.directives[0]
