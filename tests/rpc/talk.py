"""A session as a test holds it: it writes what it wants and reads what comes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import grpc

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import arbiter_service_pb2_grpc
from tests.rpc.served import Served, wish
from tests.runtime.driving import EPOCH
from tests.runtime.fakes import GUARD_S


class Talk:
    """One session. Pushes and answers come in the order in which the server sent them."""

    def __init__(self, served: Served, channel: grpc.aio.Channel | None = None) -> None:
        stub: arbiter_service_pb2_grpc.ArbiterServiceAsyncStub = arbiter_service_pb2_grpc.ArbiterServiceStub(
            channel or served.channel
        )
        self.call = stub.Session(timeout=3 * GUARD_S)
        self._numbers = itertools.count(1)

    async def send(self, correlation_id: int | None = None, **request: Any) -> int:
        """Writes a message; returns its correlation id."""
        number = next(self._numbers) if correlation_id is None else correlation_id
        async with asyncio.timeout(GUARD_S):
            await self.call.write(pb.SessionRequest(correlation_id=number, **request))
        return number

    async def read(self) -> pb.SessionResponse:
        """The next message; there must be one."""
        async with asyncio.timeout(GUARD_S):
            message = await self.call.read()
        assert isinstance(message, pb.SessionResponse), message
        return message

    async def until(self, wanted: Callable[[pb.SessionResponse], bool]) -> pb.SessionResponse:
        """The next message that is wanted."""
        while not wanted(message := await self.read()):
            pass
        return message

    async def ask(self, **request: Any) -> pb.SessionResponse:
        """Writes a message and reads its answer; pushes in between are passed over."""
        number = await self.send(**request)
        return await self.until(lambda message: message.correlation_id == number)

    async def beat(self, **fields: Any) -> pb.SessionResponse:
        """A heartbeat and its answer."""
        return await self.ask(heartbeat=pb.HeartbeatRequest(**{"server_epoch": EPOCH, **fields}))

    async def lease(self, **changes: Any) -> pb.AllocateResponse:
        """A lease that fits."""
        answer = await self.ask(allocate=wish(**changes))
        assert answer.HasField("allocate"), answer
        return answer.allocate

    async def hear(self) -> pb.StreamQualityResponse:
        """The next push."""
        return (await self.until(lambda message: message.correlation_id == 0)).quality

    async def finish(self) -> None:
        """Has nothing more to say."""
        await self.call.done_writing()

    async def end(self) -> grpc.StatusCode:
        """How it ends, after whatever is still to be read."""
        async with asyncio.timeout(GUARD_S):
            while await self.call.read() is not grpc.aio.EOF:
                pass
            return await self.call.code()
