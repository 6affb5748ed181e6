"""What both kinds of client are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from arbiter.v1 import state_service_pb2
from arbiter_client import address as addresses
from arbiter_client import beater_process, errors, grpc_transport, keeper

if TYPE_CHECKING:
    import grpc

    from arbiter_client import transport

#: Where heartbeats come from.
HeartbeatMode: TypeAlias = Literal["thread", "process"]

#: Seconds for which a request for a lease outlives an arbiter that cannot be reached: worker and sidecar often start
#: together, and a sidecar that is replaced is back within a few seconds.
CONNECT_TIMEOUT_S = 10.0
#: Seconds after the last sign of a frozen process for which its beater keeps its leases. Longer than any model load
#: that holds the interpreter, short enough that a hung worker does not keep its memory over lunch.
MAX_SILENCE_S = 300.0
#: Seconds for the answer to a question about the arbiter's state.
CALL_TIMEOUT_S = 10.0
#: Seconds for which giving a lease back is tried; after that its time to live does the same.
RELEASE_PATIENCE_S = 5.0


class Connection:
    """A transport and the keeper of its leases."""

    __slots__ = ("keeper", "transport")

    def __init__(self, source: transport.Transport, keeper_: keeper.Keeper) -> None:
        self.transport = source
        self.keeper = keeper_

    @property
    def channel(self) -> grpc.Channel:
        """The blocking gRPC channel, for stubs of ``arbiter.v1``.

        Raises:
            NotServed: The arbiter is an in-memory one.
        """
        if isinstance(self.transport, grpc_transport.GrpcTransport):
            return self.transport.channel
        raise errors.NotServed("the in-memory arbiter has no channel")

    def close(self) -> None:
        """Gives every lease back and closes everything."""
        self.keeper.close()
        self.transport.close()


def make(address: str | None, heartbeat_mode: HeartbeatMode, max_silence: float, connect_timeout: float) -> Connection:
    """A connection to the arbiter at ``address``; nothing is sent yet.

    Raises:
        ValueError: An argument is out of range.
        OSError: The beater process cannot be started.
    """
    target = addresses.target(address)
    if heartbeat_mode not in ("thread", "process"):
        raise ValueError(f"heartbeat_mode {heartbeat_mode!r} is neither 'thread' nor 'process'")
    if not 0.0 <= connect_timeout < float("inf"):
        raise ValueError(f"connect_timeout {connect_timeout} is not a span of time")
    beater = beater_process.BeaterProcess(target, max_silence) if heartbeat_mode == "process" else None
    source = grpc_transport.GrpcTransport(target)
    return Connection(source, keeper.Keeper(source, connect_timeout=connect_timeout, beater=beater))


def explain_request(
    lease_id: str | None, request_id: str | None, device_id: str | None
) -> state_service_pb2.ExplainRequest:
    """The request that asks about one thing.

    Raises:
        ValueError: None or several were named.
    """
    if sum(subject is not None for subject in (lease_id, request_id, device_id)) != 1:
        raise ValueError("name exactly one of lease_id, request_id and device_id")
    if lease_id is not None:
        return state_service_pb2.ExplainRequest(lease_id=lease_id)
    if request_id is not None:
        return state_service_pb2.ExplainRequest(request_id=request_id)
    return state_service_pb2.ExplainRequest(device_id=device_id or "")
