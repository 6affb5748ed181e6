"""Wraps plain coroutines over messages into gRPC handlers: parsing, errors, and the one door for surprises.

Handlers take raw bytes, so that a message that cannot be parsed is the caller's error and not ours; and they are
registered as generic handlers, which newer releases of grpcio accept faster than registered methods.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from time import perf_counter
from typing import Any, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError, Message

from arbiter_sidecar import errors
from arbiter_sidecar.rpc import status
from arbiter_sidecar.rpc.status import Context

_log = structlog.get_logger("arbiter.rpc")

_M = TypeVar("_M", bound=Message)

#: Kinds of calls, as dashboards call them.
UNARY, SERVER_STREAM, BOTH_STREAMS = "unary", "server_stream", "bidi_stream"
#: Upper bounds of the buckets in which the duration of unary calls is counted, in seconds; the last bucket is open.
#: The first bounds are for calls that only look something up, the last for those that wait in the admission queue.
BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
#: How a call counts whose caller has gone: nothing below is reached then.
_GONE = "CANCELLED"


class Tally:
    """What is counted of one method, in plain numbers: this is on the way of every call.

    Attributes:
        kind: Kind of the calls.
        service: Full name of the service.
        method: Name of the method.
        started: Calls that have begun.
        handled: Calls that have ended, by code.
        buckets: Unary calls that have ended, by duration.
        seconds: Σ of the durations.
    """

    __slots__ = ("buckets", "handled", "kind", "method", "seconds", "service", "started")

    def __init__(self, kind: str, service: str, method: str) -> None:
        self.kind = kind
        self.service = service
        self.method = method
        self.started = 0
        self.handled = {"OK": 0}
        self.buckets = [0] * (len(BUCKETS_S) + 1)
        self.seconds = 0.0

    def end(self, code: str) -> None:
        """A call has ended."""
        self.handled[code] = self.handled.get(code, 0) + 1

    def time(self, seconds: float) -> None:
        """A unary call took so long."""
        self.buckets[bisect_left(BUCKETS_S, seconds)] += 1
        self.seconds += seconds


#: Of this process, whichever socket a call came through: a process serves one arbiter.
_tallies: dict[tuple[str, str], Tally] = {}

#: A handler that counts, once it knows where.
Method = tuple[str, Callable[[Tally], "grpc.RpcMethodHandler[Any, Any]"]]


def tallies() -> Iterable[Tally]:
    """What was counted of each method since this process has started."""
    return _tallies.values()


def parse(kind: type[_M], raw: bytes) -> _M:
    """A message from its bytes.

    Raises:
        InvalidRequest: They are not such a message.
    """
    message = kind()
    try:
        message.ParseFromString(raw)
    except DecodeError as error:
        raise errors.InvalidRequest([("", f"not a {kind.DESCRIPTOR.full_name}")]) from error
    return message


def surprise(error: Exception, method: str) -> status.Internal:
    """Logs a defect with its story and returns what the caller is told instead."""
    _log.error("call_failed", method=method, error=repr(error), exc_info=error)
    return status.Internal()


def unary(kind: type[_M], call: Callable[[_M, Context], Awaitable[Message]]) -> Method:
    """A unary method around ``call``, which raises ArbiterError."""

    def counted(tally: Tally) -> grpc.RpcMethodHandler[Any, Any]:
        async def handler(raw: bytes, context: Context) -> bytes:
            tally.started += 1
            begun, code = perf_counter(), _GONE
            try:
                answer = (await call(parse(kind, raw), context)).SerializeToString()
                code = "OK"
                return answer
            except errors.ArbiterError as error:
                failure = error.with_traceback(None)
                code = failure.code
            except Exception as error:
                failure = surprise(error, kind.DESCRIPTOR.full_name)
                code = failure.code
            finally:
                tally.end(code)
                tally.time(perf_counter() - begun)
            status.refuse(context, failure)
            return b""

        return grpc.unary_unary_rpc_method_handler(handler)

    return UNARY, counted


def server_stream(kind: type[_M], call: Callable[[_M, Context], Awaitable[None]]) -> Method:
    """A server-streaming method around ``call``, which writes serialised messages itself."""

    def counted(tally: Tally) -> grpc.RpcMethodHandler[Any, Any]:
        async def handler(raw: bytes, context: Context) -> None:
            await _stream(tally, context, kind.DESCRIPTOR.full_name, lambda: call(parse(kind, raw), context))

        return grpc.unary_stream_rpc_method_handler(handler)

    return SERVER_STREAM, counted


def both_streams(name: str, call: Callable[[AsyncIterator[bytes], Context], Awaitable[None]]) -> Method:
    """A bidirectional method around ``call``, which reads and writes serialised messages itself."""

    def counted(tally: Tally) -> grpc.RpcMethodHandler[Any, Any]:
        async def handler(requests: AsyncIterator[bytes], context: Context) -> None:
            await _stream(tally, context, name, lambda: call(requests, context))

        return grpc.stream_stream_rpc_method_handler(handler)

    return BOTH_STREAMS, counted


async def _stream(tally: Tally, context: Context, name: str, serve: Callable[[], Awaitable[None]]) -> None:
    """Serves a stream to its end, counts it, and tells the caller what went wrong."""
    tally.started += 1
    code = _GONE
    try:
        await serve()
        code = "OK"
        return
    except errors.ArbiterError as error:
        failure = error.with_traceback(None)
        code = failure.code
    except Exception as error:
        failure = surprise(error, name)
        code = failure.code
    finally:
        tally.end(code)
    status.refuse(context, failure)


def service(name: str, methods: Mapping[str, Method]) -> grpc.GenericRpcHandler:
    """The handlers of one service."""
    made = {}
    for method, (kind, counted) in methods.items():
        made[method] = counted(_tallies.setdefault((name, method), Tally(kind, name, method)))
    return grpc.method_handlers_generic_handler(name, made)
