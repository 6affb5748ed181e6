"""A bare grpc.aio server that returns what it gets."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc


async def _echo(raw: bytes, _: grpc.aio.ServicerContext[Any, Any]) -> bytes:
    return raw


async def _serve(path: str) -> None:
    server = grpc.aio.server()
    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {"Call": grpc.unary_unary_rpc_method_handler(_echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", methods),))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
