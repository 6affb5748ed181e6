"""Around the arbiter's own calls: health, reflection, and guests that do not speak the language."""

from __future__ import annotations

import asyncio
import contextlib
import stat
import struct
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter_sidecar.rpc.server import ListenError
from tests.rpc.served import Served
from tests.runtime.fakes import GUARD_S

SERVICES = {
    "arbiter.v1.ArbiterService",
    "arbiter.v1.BalanceService",
    "arbiter.v1.StateService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1alpha.ServerReflection",
}
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health(served: Served, name: str) -> int:
    """What a probe is told."""
    check: grpc.aio.UnaryUnaryMultiCallable[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse] = (
        served.channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            health_pb2.HealthCheckRequest.SerializeToString,
            health_pb2.HealthCheckResponse.FromString,
        )
    )
    return (await check(health_pb2.HealthCheckRequest(service=name), timeout=GUARD_S)).status


async def reflected(
    served: Served, request: reflection_pb2.ServerReflectionRequest
) -> reflection_pb2.ServerReflectionResponse:
    """What reflection answers."""
    method: grpc.aio.StreamStreamMultiCallable[
        reflection_pb2.ServerReflectionRequest, reflection_pb2.ServerReflectionResponse
    ] = served.channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    call = method(timeout=GUARD_S)
    await call.write(request)
    answer = await call.read()
    await call.done_writing()
    assert isinstance(answer, reflection_pb2.ServerReflectionResponse)
    return answer


async def test_reflection_lists_every_service(served: Served) -> None:
    answer = await reflected(served, reflection_pb2.ServerReflectionRequest(list_services=""))
    assert {service.name for service in answer.list_services_response.service} == SERVICES


@pytest.mark.parametrize("service", sorted(SERVICES))
async def test_reflection_describes_every_service(served: Served, service: str) -> None:
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=service)
    answer = await reflected(served, request)
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(raw)
        for raw in answer.file_descriptor_response.file_descriptor_proto
    ]
    assert service in {f"{file.package}.{each.name}" for file in files for each in file.service}


@pytest.mark.parametrize(
    "name",
    ["", "liveness", "readiness", "arbiter.v1.ArbiterService", "arbiter.v1.BalanceService", "arbiter.v1.StateService"],
)
async def test_everything_is_healthy_when_it_serves(served: Served, name: str) -> None:
    assert await health(served, name) == SERVING


async def test_only_new_work_is_refused_when_it_drains(served: Served) -> None:
    await served.server.drain()
    for name in ("", "readiness", "arbiter.v1.ArbiterService"):
        assert await health(served, name) == NOT_SERVING
    for name in ("liveness", "arbiter.v1.StateService"):
        assert await health(served, name) == SERVING


async def test_health_of_an_unknown_service_is_not_found(served: Served) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health(served, "nobody")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_unknown_method_is_unimplemented(served: Served) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.raw("ArbiterService/Nothing")(b"", timeout=GUARD_S)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_socket_is_for_owner_and_group_alone(served: Served) -> None:
    assert stat.S_IMODE(served.path.stat().st_mode) == 0o660


async def test_file_is_left_alone_when_it_stands_where_the_socket_should_be(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("text")
    with pytest.raises(ListenError, match="is no socket"):
        await served.server.listen_unix(path)
    assert path.read_text() == "text"


async def test_path_is_refused_when_it_is_too_long_for_a_socket(served: Served, tmp_path: Path) -> None:
    with pytest.raises(ListenError, match="107 bytes"):
        await served.server.listen_unix(tmp_path / ("x" * 200))


async def test_socket_of_somebody_else_is_left_alone(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "other.sock"
    other = await asyncio.start_unix_server(lambda _, writer: writer.close(), path)
    inode = path.stat().st_ino
    with pytest.raises(ListenError, match="somebody else"):
        await served.server.listen_unix(path)
    assert path.stat().st_ino == inode
    other.close()
    await other.wait_closed()


async def test_socket_that_nobody_serves_is_replaced(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "stale.sock"
    other = await asyncio.start_unix_server(lambda _, writer: writer.close(), path)
    other.close()
    await other.wait_closed()
    assert path.is_socket()
    await served.server.listen_unix(path)
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        await asyncio.wait_for(channel.channel_ready(), GUARD_S)


async def test_port_is_refused_when_it_is_taken(served: Served) -> None:
    port = await served.server.listen_tcp("127.0.0.1:0")
    with pytest.raises(ListenError, match=str(port)):
        await served.server.listen_tcp(f"127.0.0.1:{port}")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await asyncio.wait_for(channel.channel_ready(), GUARD_S)


@pytest.mark.parametrize(
    "greeting",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0" * 4096,
        b"PRI * HTTP/2.0",
    ],
    ids=["http", "tls", "zeros", "half_a_preface"],
)
async def test_others_are_served_when_a_guest_speaks_another_language(served: Served, greeting: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(served.path)
    writer.write(greeting)
    await writer.drain()
    assert (await served.lease()).lease.lease_id
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    del reader


async def test_others_are_served_when_many_guests_are_mute(served: Served) -> None:
    guests = [await asyncio.open_unix_connection(served.path) for _ in range(200)]
    assert (await served.lease()).lease.lease_id
    for _, writer in guests:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_call_is_refused_when_its_metadata_is_huge(served: Served) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.calls.Release(pb.ReleaseRequest(), metadata=(("x", "y" * 20_000),), timeout=GUARD_S)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await served.lease()).lease.lease_id


def frame(kind: int, payload: bytes = b"") -> bytes:
    """An HTTP/2 frame of the connection itself."""
    no_flags, no_stream = 0, 0
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, no_flags, no_stream) + payload


async def test_guest_is_shown_the_door_when_it_pings_all_the_time(served: Served) -> None:
    reader, writer = await asyncio.open_unix_connection(served.path)
    settings, ping, goaway = 4, 6, 7
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(settings) + frame(ping, bytes(8)) * 10)
    found: dict[int, bytes] = {}
    async with asyncio.timeout(GUARD_S):
        while goaway not in found:
            head = await reader.readexactly(9)
            found[head[3]] = await reader.readexactly(int.from_bytes(head[:3], "big"))
    assert b"too_many_pings" in found[goaway]
    # It was this guest alone.
    assert (await served.lease()).lease.lease_id
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
