"""Builds the gRPC servers: one for each socket, all over the same state."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from arbiter_sidecar.rpc import symbols
from arbiter_sidecar.rpc.arbiter_servicer import ArbiterServicer
from arbiter_sidecar.rpc.balance_servicer import BalanceServicer
from arbiter_sidecar.rpc.calls import Calls
from arbiter_sidecar.rpc.convert import LeaseTimes
from arbiter_sidecar.rpc.render import Renderer
from arbiter_sidecar.rpc.state_servicer import StateServicer
from arbiter_sidecar.rpc.subscriptions import Subscriptions
from arbiter_sidecar.runtime import Runtime

if TYPE_CHECKING:
    from google.protobuf import descriptor_pool

#: Largest request: a heartbeat with everything in it is half of this.
MAX_REQUEST_BYTES = 64 * 1024
#: Bytes that the kernel allows for the path of a Unix socket.
MAX_SOCKET_PATH = 107
#: Health names beside those of the services: is the process alive, and does it take work?
LIVENESS = "liveness"
READINESS = "readiness"

OPTIONS = (
    # A second server on the same port must fail instead of sharing it.
    ("grpc.so_reuseport", 0),
    # Our own limits refuse aloud; this one would let calls wait in silence until their deadline.
    ("grpc.max_concurrent_streams", 10_000),
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_metadata_size", 4096),
    ("grpc.absolute_max_metadata_size", 8192),
    # After a restart every worker of the machine connects at once; the defaults would cancel a fifth of three thousand.
    ("grpc.server.max_pending_requests", 10_000),
    ("grpc.server.max_pending_requests_hard_limit", 20_000),
    # ping_timeout is what really cuts a dead peer; keepalive_timeout alone took a minute.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 4_000),
)


class ListenError(OSError):
    """An address cannot be served; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one server takes at most.

    Attributes:
        sessions: Open sessions.
        streams: Open quality streams.
    """

    sessions: int = 4_096
    streams: int = 16_384


class Server:
    """Serves one runtime on a Unix socket and, where asked, on loopback TCP."""

    def __init__(self, runtime: Runtime, *, times: LeaseTimes, limits: Limits, notes: Sequence[str]) -> None:
        renderer = Renderer(runtime.clock)
        subscriptions = Subscriptions(runtime, renderer)
        runtime.feed(subscriptions)
        calls = Calls(runtime, renderer, times)
        self._runtime = runtime
        self._subscriptions = subscriptions
        self._arbiter = ArbiterServicer(calls, subscriptions, max_streams=limits.streams, max_sessions=limits.sessions)
        self._state = StateServicer(runtime, renderer, tuple(notes))
        self._balance = BalanceServicer(runtime)
        self._health = health.aio.HealthServicer()
        self._servers: list[grpc.aio.Server] = []

    @property
    def subscribers(self) -> int:
        """How many streams and sessions hear of leases."""
        return len(self._subscriptions)

    @property
    def sessions(self) -> int:
        """How many sessions are open."""
        return self._arbiter.sessions

    async def listen_unix(self, path: Path) -> None:
        """Serves on a Unix socket that only the owner and the group may use.

        Raises:
            ListenError: The path is taken by something that is no socket or that somebody serves, or cannot be bound.
        """
        if len(os.fsencode(path)) > MAX_SOCKET_PATH:
            raise ListenError(
                f"{path} is longer than the {MAX_SOCKET_PATH} bytes a Unix socket may have; choose a shorter path"
            )
        if path.exists() and not stat.S_ISSOCK(path.stat().st_mode):
            raise ListenError(f"{path} exists and is no socket; remove it or choose another path")
        if _is_served(path):
            raise ListenError(f"{path} is served by somebody else; choose another path")
        # The mode must be right from the first moment, so it comes from the mask and not from a change afterwards.
        before = os.umask(0o117)
        try:
            await self._listen(f"unix:{path}")
        finally:
            os.umask(before)

    async def listen_tcp(self, address: str) -> int:
        """Serves on a TCP address; returns the port. Raises ListenError."""
        return await self._listen(address)

    async def _listen(self, address: str) -> int:
        server = grpc.aio.server(options=OPTIONS)
        server.add_generic_rpc_handlers((self._arbiter.handler(), self._state.handler(), self._balance.handler()))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        pool = cast("descriptor_pool.DescriptorPool", symbols.Symbols())
        reflection.enable_server_reflection((*self._services(), reflection.SERVICE_NAME), server, pool=pool)
        try:
            port = server.add_insecure_port(address)
        except RuntimeError as error:
            raise ListenError(f"cannot listen on {address}: {error}") from error
        await server.start()
        self._servers.append(server)
        return port

    def _services(self) -> tuple[str, ...]:
        own = (self._arbiter.name, self._state.name, self._balance.name)
        return (*own, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)

    async def ready(self) -> None:
        """Tells health checks that work is taken."""
        for name in ("", LIVENESS, READINESS, self._arbiter.name, self._state.name, self._balance.name):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def drain(self) -> None:
        """Takes no new work and tells everybody; what is open goes on."""
        for name in ("", READINESS, self._arbiter.name):
            await self._health.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
        self._runtime.drain()

    async def stop(self, grace_s: float) -> None:
        """Ends the streams, then the servers; what has not ended after the grace is cut."""
        self._arbiter.close()
        self._state.close()
        self._balance.close()
        await asyncio.gather(*(server.stop(grace_s) for server in self._servers))


def _is_served(path: Path) -> bool:
    """Whether somebody listens on a socket; grpcio would replace it without asking."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as guest:
        guest.setblocking(False)
        try:
            guest.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except BlockingIOError:
            # So many are in line that there must be somebody at its head.
            return True
        return True
