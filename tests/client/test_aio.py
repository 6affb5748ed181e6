"""The asyncio client against a scripted server and the in-memory arbiter."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

import arbiter_client
from arbiter.v1 import lease_pb2, state_service_pb2
from arbiter_client import errors
from arbiter_client.testing import InMemoryArbiter
from tests.client.scripted_server import GUARD_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from arbiter_client import Client, Directive, Lease
    from tests.client.scripted_server import ScriptedServer


@pytest.fixture
async def aclient(server: ScriptedServer) -> AsyncIterator[Client]:
    async with arbiter_client.connect(server.address) as connected:
        yield connected


async def seen(server: ScriptedServer, condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(server.wait, condition)


async def test_lease_is_granted_told_and_given_back(server: ScriptedServer, aclient: Client) -> None:
    told: list[Directive] = []

    async def follow(lease: Lease) -> None:
        async for directive in lease.directives():
            told.append(directive)
            lease.applied(directive, used_memory_bytes=123)

    async with aclient.lease("w", memory="1MiB", workload_type="image", ttl=3) as lease:
        following = asyncio.create_task(follow(lease))
        await seen(server, lambda: len(server.reports()) == 1)
        server.push(lease.lease_id, 0.5)
        await seen(server, lambda: len(server.reports()) == 2)
        assert lease.quality == 0.5
    await asyncio.wait_for(following, GUARD_S)
    assert [directive.quality for directive in told] == [1.0, 0.5]
    assert [report.applied_revision for report in server.reports()] == [1, 2]
    assert len(server.releases) == 1


async def test_wait_lost_returns_when_the_lease_ends(server: ScriptedServer, aclient: Client) -> None:
    async with aclient.lease("w", memory=1, workload_type="llm") as lease:
        waiting = asyncio.create_task(lease.wait_lost())
        server.push_end(lease.lease_id, lease_pb2.EndReason.END_REASON_REVOKED)
        await asyncio.wait_for(waiting, GUARD_S)
        assert (lease.lost, lease.end_reason) == (True, "REVOKED")
    assert server.releases == []


async def test_a_busy_loop_loses_no_lease(server: ScriptedServer, aclient: Client) -> None:
    async with aclient.lease("w", memory=1, workload_type="llm", ttl=0.6) as lease:
        began = time.monotonic()
        while time.monotonic() - began < 2.5:
            # Python code that never returns to the loop.
            sum(range(1000))
        assert not lease.lost
    assert len([beat for _, beat in server.beats if beat.handles]) >= 4


async def test_a_grant_that_comes_after_the_task_was_cancelled_is_given_back(
    server: ScriptedServer, aclient: Client
) -> None:
    server.script.holds_allocates = True
    asking = asyncio.create_task(aclient.lease("w", memory=1, workload_type="llm").acquire())
    await seen(server, lambda: len(server.allocates) == 1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    server.grant_held()
    await seen(server, lambda: len(server.releases) == 1)
    assert server.releases[0].lease_id == "lease-1"


async def test_errors_arrive_as_their_class(aclient: Client) -> None:
    with pytest.raises(errors.DeviceNotFound):
        await aclient.explain(device_id="gpu9")


async def test_state_release_and_channel(server: ScriptedServer, aclient: Client) -> None:
    server.script.state.revision = 4
    assert (await aclient.state()).revision == 4
    assert await aclient.release("somebody", 9) is False
    assert aclient.channel is aclient.channel
    assert aclient.address == server.address
    assert aclient.heartbeat_mode == "thread"


async def test_watch_ends_when_its_task_is_cancelled(server: ScriptedServer, aclient: Client) -> None:
    server.script.events.append(state_service_pb2.Event(sequence=5))
    arrived: asyncio.Queue[int] = asyncio.Queue()

    async def follow() -> None:
        async for event in aclient.watch():
            arrived.put_nowait(event.sequence)

    watching = asyncio.create_task(follow())
    assert await asyncio.wait_for(arrived.get(), GUARD_S) == 5
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching


async def test_the_in_memory_arbiter_serves_asyncio_clients() -> None:
    with InMemoryArbiter() as arbiter:
        async with arbiter.client() as client, client.lease("w", memory="1GiB", workload_type="llm") as lease:
            revision = arbiter.push(lease.lease_id, quality=0.5)
            async for directive in lease.directives():
                lease.applied(directive)
                if directive.revision == revision:
                    break
            said = await asyncio.to_thread(arbiter.applied, lease.lease_id, revision=revision, timeout=GUARD_S)
            assert said.outcome == "APPLIED"
