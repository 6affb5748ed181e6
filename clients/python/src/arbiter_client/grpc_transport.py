"""Sessions and calls over gRPC.

gRPC's threads do not survive ``fork``: make a client after forking, and never share one between processes.
"""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import grpc

from arbiter.v1 import arbiter_service_pb2_grpc, state_service_pb2_grpc
from arbiter_client import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from arbiter.v1 import arbiter_service_pb2, state_service_pb2
    from arbiter_client import transport

#: Options of every channel.
OPTIONS: tuple[tuple[str, int], ...] = (
    # A frozen peer is noticed in 15 s. The ping timeout is what works; keepalive_timeout alone was seen to take a
    # minute.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Bandwidth probing grows the receive window until megabytes of outdated directives can wait in it.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    # The arbiter is on this machine; a proxy from the environment never is the way to it.
    ("grpc.enable_http_proxy", 0),
)
#: Sessions and beaters take a fresh connection for each attempt, so that their own schedule decides when to try again
#: and not the back-off that a shared connection has reached.
FRESH_OPTIONS: tuple[tuple[str, int], ...] = (*OPTIONS, ("grpc.use_local_subchannel_pool", 1))

#: Messages that may wait for a session to take them. Normal use has fewer than ten; a session that lets a thousand pile
#: up is not being read.
MAX_QUEUED = 1024

Message = TypeVar("Message")
Message_co = TypeVar("Message_co", covariant=True)


class Incoming(Protocol[Message_co]):
    """What gRPC returns for a streaming call."""

    def __next__(self) -> Message_co:
        """The next message."""

    def cancel(self) -> bool:
        """Ends the call."""


class GrpcLink:
    """One session over a connection of its own."""

    def __init__(self, target: str, on_response: transport.OnResponse, on_end: transport.OnEnd) -> None:
        self._target = target
        self._on_response = on_response
        self._on_end = on_end
        # Unbounded by type so that the closing None always fits; send() keeps the bound.
        self._outbound: queue.SimpleQueue[arbiter_service_pb2.SessionRequest | None] = queue.SimpleQueue()
        self._closed = False
        self._channel = grpc.insecure_channel(target, FRESH_OPTIONS)
        self._call = arbiter_service_pb2_grpc.ArbiterServiceStub(self._channel).Session(self._requests())
        threading.Thread(target=self._read, name="arbiter-session", daemon=True).start()

    def send(self, request: arbiter_service_pb2.SessionRequest) -> bool:
        """Queues a message without blocking."""
        if self._closed:
            return False
        if self._outbound.qsize() >= MAX_QUEUED:
            self.close()
            return False
        self._outbound.put(request)
        return True

    def close(self) -> None:
        """Cancels the stream; the reading thread then ends."""
        self._closed = True
        self._call.cancel()
        self._outbound.put(None)

    def _requests(self) -> Iterator[arbiter_service_pb2.SessionRequest]:
        return iter(self._outbound.get, None)

    def _read(self) -> None:
        error: errors.ArbiterClientError | None = None
        try:
            for response in self._call:
                self._on_response(response)
        except grpc.RpcError as failure:
            error = errors.from_rpc_error(failure, self._target)
        finally:
            self._closed = True
            self._outbound.put(None)
            self._channel.close()
            self._on_end(error)


class GrpcStream(Generic[Message]):
    """Messages of one streaming call."""

    def __init__(self, call: Incoming[Message], target: str) -> None:
        self._call = call
        self._target = target
        self._cancelled = False

    def next(self) -> Message | None:
        """The next message, or ``None`` at the end."""
        try:
            return next(self._call)
        except StopIteration:
            return None
        except grpc.RpcError as failure:
            if self._cancelled:
                return None
            raise errors.from_rpc_error(failure, self._target) from failure

    def cancel(self) -> None:
        """Ends the stream and wakes the reader."""
        self._cancelled = True
        self._call.cancel()


class GrpcCalls:
    """The calls beside the session."""

    def __init__(self, channel: grpc.Channel, target: str) -> None:
        self._state = state_service_pb2_grpc.StateServiceStub(channel)
        self._arbiter = arbiter_service_pb2_grpc.ArbiterServiceStub(channel)
        self._target = target

    def get_state(
        self, request: state_service_pb2.GetStateRequest, timeout: float
    ) -> state_service_pb2.GetStateResponse:
        """The picture."""
        return self._checked(lambda: self._state.GetState(request, timeout=timeout))

    def explain(self, request: state_service_pb2.ExplainRequest, timeout: float) -> state_service_pb2.ExplainResponse:
        """The reason."""
        return self._checked(lambda: self._state.Explain(request, timeout=timeout))

    def watch_events(
        self, request: state_service_pb2.WatchEventsRequest
    ) -> GrpcStream[state_service_pb2.WatchEventsResponse]:
        """The events."""
        return GrpcStream(self._state.WatchEvents(request), self._target)

    def stream_quality(
        self, request: arbiter_service_pb2.StreamQualityRequest
    ) -> GrpcStream[arbiter_service_pb2.StreamQualityResponse]:
        """The directives."""
        return GrpcStream(self._arbiter.StreamQuality(request), self._target)

    def _checked(self, call: Callable[[], Message]) -> Message:
        try:
            return call()
        except grpc.RpcError as failure:
            raise errors.from_rpc_error(failure, self._target) from failure


class GrpcTransport:
    """Reaches an arbiter at a gRPC target."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None

    @property
    def address(self) -> str:
        """The target."""
        return self._target

    @property
    def channel(self) -> grpc.Channel:
        """The channel of all calls but sessions; made at first use."""
        with self._lock:
            if self._channel is None:
                self._channel = grpc.insecure_channel(self._target, OPTIONS)
            return self._channel

    @property
    def calls(self) -> GrpcCalls:
        """The calls beside the session."""
        return GrpcCalls(self.channel, self._target)

    def open(self, on_response: transport.OnResponse, on_end: transport.OnEnd) -> GrpcLink:
        """Begins a session at once."""
        return GrpcLink(self._target, on_response, on_end)

    def close(self) -> None:
        """Closes the channel of the calls; sessions close by themselves."""
        with self._lock:
            if self._channel is not None:
                self._channel.close()
                self._channel = None
