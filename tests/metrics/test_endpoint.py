"""The endpoint answers scrapers, refuses everything else, and is held up by nobody."""

from __future__ import annotations

import asyncio
import socket
import stat
from pathlib import Path

import pytest

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter_sidecar.metrics import Endpoint, endpoint
from arbiter_sidecar.rpc.server import ListenError
from tests.metrics.conftest import Serve
from tests.metrics.scraping import OPEN_METRICS, Scraped, ask, connect, get, numbers
from tests.rpc.served import Setting
from tests.runtime.fakes import GUARD_S, until


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:0", "[::1]:0", "unix"])
async def test_both_formats_are_served_when_they_are_asked_for(scraped: Scraped, tmp_path: Path, address: str) -> None:
    other = Endpoint(scraped.reader)
    served = await other.listen(address if address != "unix" else f"unix:{tmp_path}/other.sock")
    assert not served.endswith(":0")
    plain, openly = await get(served), await get(served, accept=OPEN_METRICS)
    await other.close()
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert openly.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert openly.body.endswith("# EOF\n")
    assert set(numbers(plain).samples) == set(numbers(openly).samples)
    assert numbers(plain).get("arbiter_device_capacity_bytes", device="gpu0") == 24 << 30


async def test_query_is_passed_over(scraped: Scraped) -> None:
    assert (await get(scraped.address, "/metrics?name=x")).status == 200


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("GET / HTTP/1.1", 404),
        ("GET /metrics/ HTTP/1.1", 404),
        ("GET /metrics/../etc/passwd HTTP/1.1", 404),
        ("GET /healthz HTTP/1.1", 404),
        ("POST /metrics HTTP/1.1", 405),
        ("HEAD /metrics HTTP/1.1", 405),
        ("DELETE /metrics HTTP/1.1", 405),
        ("PRI * HTTP/2.0", 400),
        ("GET /metrics", 400),
        ("hello", 400),
        ("", 400),
    ],
)
async def test_everything_else_is_refused(scraped: Scraped, request_line: str, status: int) -> None:
    answer = await ask(scraped.address, f"{request_line}\r\nHost: localhost\r\n\r\n".encode())
    assert answer.status == status
    assert ("allow" in answer.headers) is (status == 405)
    assert (await get(scraped.address)).status == 200


async def test_request_is_refused_when_it_is_large(scraped: Scraped) -> None:
    long = "x" * (2 * endpoint.MAX_REQUEST_BYTES)
    answer = await ask(scraped.address, f"GET /metrics HTTP/1.1\r\nCookie: {long}\r\n\r\n".encode())
    assert answer.status == 431


async def test_request_is_refused_when_it_ends_early(scraped: Scraped) -> None:
    reader, writer = await connect(scraped.address)
    writer.write(b"GET /metrics HTTP/1.1\r\n")
    writer.write_eof()
    async with asyncio.timeout(GUARD_S):
        assert (await reader.read(-1)).startswith(b"HTTP/1.1 400 ")
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("accept", ["application/openmetrics-text; version=9.9x", "APPLICATION/openmetrics-text;;;=,,"])
async def test_nothing_of_the_request_comes_back(scraped: Scraped, accept: str) -> None:
    answer = await get(scraped.address, accept=accept)
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert "9.9" not in answer.headers["content-type"]
    assert numbers(answer).get("arbiter_epoch") is not None


async def test_connection_is_refused_when_there_are_too_many(scraped: Scraped) -> None:
    idle = [await connect(scraped.address) for _ in range(endpoint.MAX_CONNECTIONS)]
    answer = await get(scraped.address)
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    for _, writer in idle:
        writer.close()
        await writer.wait_closed()
    async with asyncio.timeout(GUARD_S):
        while (await get(scraped.address)).status != 200:
            await asyncio.sleep(0.01)


async def test_silent_connection_is_cut_when_its_time_is_over(scraped: Scraped, tmp_path: Path) -> None:
    hasty = Endpoint(scraped.reader, request_s=0.2)
    served = await hasty.listen(f"unix:{tmp_path}/hasty.sock")
    reader, writer = await connect(served)
    writer.write(b"GET /metrics HTTP/1.1\r\n")
    async with asyncio.timeout(GUARD_S):
        assert await reader.read(-1) == b""
    writer.close()
    assert (await get(served)).status == 200
    await hasty.close()


async def test_nobody_is_held_up_when_a_scraper_does_not_read(serve: Serve) -> None:
    scraped = await serve(Setting(devices={"gpu0": 24 << 30, **{f"card{place}": 1 << 30 for place in range(150)}}))
    held = (await scraped.lease()).lease
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.setblocking(False)
        await loop.sock_connect(deaf, scraped.address.removeprefix("unix:"))
        await loop.sock_sendall(deaf, b"GET /metrics HTTP/1.1\r\n\r\n")
        await until(lambda: scraped.endpoint.connections == 1)
        for _ in range(20):
            assert (await scraped.beat(handles=[held.handle])).results[0].verdict == pb.VERDICT_RENEWED
        assert (await scraped.scrape()).get("arbiter_device_granted_bytes", device="gpu0") == held.memory_bytes
        received = b""
        async with asyncio.timeout(GUARD_S):
            while part := await loop.sock_recv(deaf, 1 << 16):
                received += part
    # More than the kernel keeps for somebody who does not read, so the endpoint has really waited; and nothing is lost.
    assert len(received) > 256 << 10
    head, _, body = received.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}\r\n".encode() in head
    await until(lambda: not scraped.endpoint.connections)


async def test_open_connections_end_when_it_closes(serve: Serve) -> None:
    scraped = await serve(Setting())
    reader, writer = await connect(scraped.address)
    await until(lambda: scraped.endpoint.connections == 1)
    await scraped.endpoint.close()
    async with asyncio.timeout(GUARD_S):
        assert await reader.read(-1) == b""
    writer.close()
    assert not Path(scraped.address.removeprefix("unix:")).exists()
    with pytest.raises(OSError, match=r"."):
        await connect(scraped.address)


async def test_socket_is_for_owner_and_group_only(scraped: Scraped) -> None:
    assert stat.S_IMODE(Path(scraped.address.removeprefix("unix:")).stat().st_mode) == 0o660


async def test_socket_is_taken_over_when_nobody_serves_it(scraped: Scraped, tmp_path: Path) -> None:
    path = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    other = Endpoint(scraped.reader)
    await other.listen(f"unix:{path}")
    assert (await get(f"unix:{path}")).status == 200
    await other.close()


async def test_address_is_refused_when_it_cannot_be_had(scraped: Scraped, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("text")
    other = Endpoint(scraped.reader)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for address, problem in (
            (scraped.address, "somebody else"),
            (f"unix:{precious}", "is no socket"),
            (f"unix:{tmp_path}/{'x' * 120}", "107 bytes"),
            (f"unix:{tmp_path}/missing/m.sock", "No such file"),
            (f"127.0.0.1:{taken.getsockname()[1]}", "in use"),
        ):
            with pytest.raises(ListenError, match=problem):
                await other.listen(address)
    await other.close()
    assert precious.read_text() == "text"
    assert (await get(scraped.address)).status == 200
