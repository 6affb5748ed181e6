"""The way down of one stream, which notices when nobody at its other end takes what is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
import structlog

from arbiter_sidecar import errors
from arbiter_sidecar.rpc.status import Context

#: A message that the other side has not taken for so many seconds ends the stream.
PATIENCE_S = 30.0
#: A call whose other side has gone is cancelled within so many seconds; else the failed write was something else.
CANCEL_GUARD_S = 5.0

_log = structlog.get_logger("arbiter.rpc")


class Outlet:
    """Writes to one stream, one message at a time.

    A write that is under way cannot be called off: gRPC could not end the call any more. So a stream that is given up
    is let go of at once, and told so when it takes its message after all.
    """

    def __init__(self, context: Context, give_up: Callable[[errors.SlowSubscriber], None]) -> None:
        """``give_up`` is called once, when the other side has not taken a message for too long."""
        self._context = context
        self._give_up = give_up
        self._loop = asyncio.get_running_loop()
        self._too_slow: errors.SlowSubscriber | None = None

    async def write(self, raw: bytes) -> None:
        """Returns when the other side has room for the message.

        Raises:
            SlowSubscriber: It had none for too long.
        """
        patience = self._loop.call_later(PATIENCE_S, self._lose_patience)
        try:
            await self._context.write(raw)
        except grpc.aio.InternalError:
            # So gRPC says that the other side has gone in the middle; that the call is cancelled comes right after.
            await asyncio.sleep(CANCEL_GUARD_S)
            raise
        finally:
            patience.cancel()
        if self._too_slow is not None:
            raise self._too_slow

    def _lose_patience(self) -> None:
        self._too_slow = errors.SlowSubscriber(f"took no message for {PATIENCE_S:g} s; read faster, subscribe again")
        _log.warning("slow_subscriber", patience_s=PATIENCE_S)
        self._give_up(self._too_slow)
