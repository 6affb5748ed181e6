"""Wraps plain coroutines over messages into gRPC handlers: parsing, errors, and the one door for surprises.

Handlers take raw bytes, so that a message that cannot be parsed is the caller's error and not ours; and they are
registered as generic handlers, which newer releases of grpcio accept faster than registered methods.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError, Message

from arbiter_sidecar import errors
from arbiter_sidecar.rpc import status
from arbiter_sidecar.rpc.status import Context

_log = structlog.get_logger("arbiter.rpc")

_M = TypeVar("_M", bound=Message)


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


def unary(kind: type[_M], call: Callable[[_M, Context], Awaitable[Message]]) -> grpc.RpcMethodHandler[Any, Any]:
    """A unary handler around ``call``, which raises ArbiterError."""

    async def handler(raw: bytes, context: Context) -> bytes:
        try:
            return (await call(parse(kind, raw), context)).SerializeToString()
        except errors.ArbiterError as error:
            failure = error.with_traceback(None)
        except Exception as error:
            failure = surprise(error, kind.DESCRIPTOR.full_name)
        status.refuse(context, failure)
        return b""

    return grpc.unary_unary_rpc_method_handler(handler)


def server_stream(kind: type[_M], call: Callable[[_M, Context], Awaitable[None]]) -> grpc.RpcMethodHandler[Any, Any]:
    """A server-streaming handler around ``call``, which writes serialised messages itself."""

    async def handler(raw: bytes, context: Context) -> None:
        try:
            return await call(parse(kind, raw), context)
        except errors.ArbiterError as error:
            failure = error.with_traceback(None)
        except Exception as error:
            failure = surprise(error, kind.DESCRIPTOR.full_name)
        status.refuse(context, failure)

    return grpc.unary_stream_rpc_method_handler(handler)


def both_streams(
    name: str, call: Callable[[AsyncIterator[bytes], Context], Awaitable[None]]
) -> grpc.RpcMethodHandler[Any, Any]:
    """A bidirectional handler around ``call``, which reads and writes serialised messages itself."""

    async def handler(requests: AsyncIterator[bytes], context: Context) -> None:
        try:
            return await call(requests, context)
        except errors.ArbiterError as error:
            failure = error.with_traceback(None)
        except Exception as error:
            failure = surprise(error, name)
        status.refuse(context, failure)

    return grpc.stream_stream_rpc_method_handler(handler)


def service(name: str, methods: Mapping[str, grpc.RpcMethodHandler[Any, Any]]) -> grpc.GenericRpcHandler:
    """The handlers of one service."""
    return grpc.method_handlers_generic_handler(name, dict(methods))
