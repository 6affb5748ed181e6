"""``ArbiterService``: unary calls, the quality stream and the session, all over the same bodies."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter_sidecar import errors
from arbiter_sidecar.rpc import convert, handlers
from arbiter_sidecar.rpc.calls import Calls
from arbiter_sidecar.rpc.outlet import Outlet
from arbiter_sidecar.rpc.session import Session, Sessions
from arbiter_sidecar.rpc.status import Context
from arbiter_sidecar.rpc.subscriber import Subscriber
from arbiter_sidecar.rpc.subscriptions import Subscriptions

if TYPE_CHECKING:
    import grpc

#: A message without news is sent this often, so that a subscriber can tell silence from a dead connection.
BOOKMARK_S = 30.0
#: Bookmarks are spread by this share, so that streams that were opened together do not speak together for ever.
BOOKMARK_JITTER = 0.1


class ArbiterServicer:
    """Speaks ``arbiter.v1.ArbiterService``."""

    name = "arbiter.v1.ArbiterService"

    def __init__(self, calls: Calls, subscriptions: Subscriptions, *, max_streams: int, max_sessions: int) -> None:
        self._calls = calls
        self._subscriptions = subscriptions
        self._sessions = Sessions(max_sessions)
        self._max_streams = max_streams
        self._streams = 0

    @property
    def sessions(self) -> int:
        """How many sessions are open."""
        return len(self._sessions)

    def handler(self) -> grpc.GenericRpcHandler:
        """Everything this service answers."""
        return handlers.service(
            self.name,
            {
                "Allocate": handlers.unary(pb.AllocateRequest, self._allocate),
                "Heartbeat": handlers.unary(pb.HeartbeatRequest, self._heartbeat),
                "Release": handlers.unary(pb.ReleaseRequest, self._release),
                "StreamQuality": handlers.server_stream(pb.StreamQualityRequest, self._stream_quality),
                "Session": handlers.both_streams("arbiter.v1.SessionRequest", self._session),
                "RequestPreemption": handlers.unary(pb.RequestPreemptionRequest, self._preempt),
                "ReserveKv": handlers.unary(pb.ReserveKvRequest, self._reserve),
                "CompleteKv": handlers.unary(pb.CompleteKvRequest, self._complete),
            },
        )

    def close(self) -> None:
        """Ends the sessions and the quality streams, politely."""
        self._sessions.close()
        self._subscriptions.close()

    async def _allocate(self, message: pb.AllocateRequest, context: Context) -> pb.AllocateResponse:
        return await self._calls.allocate(message, context.time_remaining())

    async def _heartbeat(self, message: pb.HeartbeatRequest, _: Context) -> pb.HeartbeatResponse:
        return self._calls.heartbeat(self._calls.beat(message))

    async def _release(self, message: pb.ReleaseRequest, _: Context) -> pb.ReleaseResponse:
        return self._calls.release(message)

    async def _preempt(self, message: pb.RequestPreemptionRequest, context: Context) -> pb.RequestPreemptionResponse:
        return await self._calls.preempt(message, context.time_remaining())

    async def _reserve(self, message: pb.ReserveKvRequest, context: Context) -> pb.ReserveKvResponse:
        return await self._calls.reserve(message, context.time_remaining())

    async def _complete(self, message: pb.CompleteKvRequest, _: Context) -> pb.CompleteKvResponse:
        return self._calls.complete(message)

    async def _stream_quality(self, message: pb.StreamQualityRequest, context: Context) -> None:
        lease_ids = convert.subscription(message)
        if self._streams >= self._max_streams:
            raise errors.QueueFull("too many quality streams are open")
        subscriber = Subscriber()
        self._streams += 1
        try:
            self._subscriptions.subscribe(subscriber, lease_ids, resume=(message.resume_epoch, message.resume_revision))
            await self._tell(subscriber, context)
        finally:
            self._streams -= 1
            self._subscriptions.unsubscribe(subscriber)

    async def _tell(self, subscriber: Subscriber, context: Context) -> None:
        outlet = Outlet(context, lambda _: self._subscriptions.unsubscribe(subscriber))
        while True:
            await _turn(subscriber)
            raw = self._subscriptions.message(subscriber)
            if raw is not None:
                await outlet.write(raw)
                subscriber.sent()
            if not subscriber.pending and (subscriber.finished or not subscriber.lease_ids):
                return

    async def _session(self, requests: AsyncIterator[bytes], context: Context) -> None:
        session = Session(self._calls, self._subscriptions, self._sessions, context)
        await session.serve(requests)


async def _turn(subscriber: Subscriber) -> None:
    """Waits until there is something to say, and if that takes long until a message without news is due."""
    loop = asyncio.get_running_loop()
    bookmark_at = loop.time() + BOOKMARK_S * random.uniform(1 - BOOKMARK_JITTER, 1 + BOOKMARK_JITTER)
    while (now := loop.time()) < subscriber.look_at:
        if now >= bookmark_at:
            return subscriber.announce()
        subscriber.news.clear()
        try:
            async with asyncio.timeout_at(min(bookmark_at, subscriber.look_at)):
                await subscriber.news.wait()
        except TimeoutError:
            continue
