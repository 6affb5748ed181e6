"""Taking memory from others with a real arbiter in a process of its own."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

import arbiter_client
from arbiter_client import Donation, cli, errors
from tests.client.scripted_server import GUARD_S
from tests.running import running_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from arbiter_client import Client, Lease, LeaseRequest
    from tests.running import Running

GIB = 1 << 30
#: Leases may be asked at once, and a donor has as long as the slowest machine may need to answer.
FLAGS = (
    *("--devices", "static", "--devices-static", "card=8GiB", "--lease-lock-delay", "0s"),
    *("--preemption-shrink-hold", "0s", "--preemption-grace", "10s"),
)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with running_server(tmp_path, *FLAGS) as served:
        yield served


def background(client: Client) -> LeaseRequest:
    return client.lease("trainer", memory="3GiB", min_memory="1GiB", workload_type="other", priority="background")


def important(client: Client) -> LeaseRequest:
    return client.lease("chat", memory="2GiB", workload_type="llm", priority="high")


async def give_way(lease: Lease) -> list[int]:
    """Obeys like a worker; returns what was ordered back."""
    orders: dict[str, int] = {}
    async for told in lease.directives():
        if told.reclaim is not None and told.reclaim.reclaim_id not in orders:
            orders[told.reclaim.reclaim_id] = told.reclaim.memory_bytes
            lease.acknowledge(told.reclaim, eta=0.1)
            lease.applied(told, used_memory_bytes=told.memory_limit_bytes)
    return list(orders.values())


async def limit_of(lease: Lease, wanted: int) -> None:
    """Waits until the lease may use so much."""
    async with asyncio.timeout(GUARD_S):
        async for told in lease.directives():
            if told.memory_limit_bytes == wanted:
                return


async def test_the_unimportant_shrinks_and_the_important_grows_by_it(running: Running) -> None:
    async with arbiter_client.connect(running.address) as trainer, arbiter_client.connect(running.address) as chat:
        async with background(trainer) as donor, important(chat) as lease:
            giving = asyncio.create_task(give_way(donor))
            before, held = lease.memory_limit_bytes, donor.memory_limit_bytes
            draft = await lease.preempt(memory="1GiB", dry_run=True)
            assert draft.donations == (Donation(donor.lease_id, "trainer", GIB),)
            assert [(each.lease_id, each.reason) for each in draft.rejected] == [(lease.lease_id, "own_lease")]
            taken = await lease.preempt(memory="1GiB")
            assert taken.donations == (Donation(donor.lease_id, "trainer", GIB, GIB, "CONFIRMED"),)
            assert taken.confirmed_bytes == GIB
            assert taken.plan_id
            await limit_of(lease, before + GIB)
            assert donor.memory_limit_bytes == held - GIB
            assert not donor.lost
        assert await asyncio.wait_for(giving, GUARD_S) == [GIB]


async def test_a_cancelled_preemption_lets_its_donor_off(running: Running) -> None:
    async with (
        arbiter_client.connect(running.address) as trainer,
        arbiter_client.connect(running.address) as chat,
        background(trainer) as donor,
        important(chat) as lease,
    ):
        updates = donor.directives()
        assert (await anext(updates)).reclaim is None
        asking = asyncio.create_task(lease.preempt(memory="1GiB"))
        told = await asyncio.wait_for(anext(updates), GUARD_S)
        assert told.reclaim is not None
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        async with asyncio.timeout(GUARD_S):
            while (await anext(updates)).reclaim is not None:
                pass
        assert not donor.lost
        # Nothing of it is left in the way of the next one, but that the donor is spared for a moment.
        with pytest.raises(errors.NoDonor, match="cooling_down"):
            await lease.preempt(memory="1GiB")


async def test_a_cancelled_allocation_does_not_wait_at_the_arbiter(running: Running) -> None:
    async with arbiter_client.connect(running.address) as client, background(client):
        asking = asyncio.create_task(
            client.lease("big", memory="8GiB", min_memory="8GiB", workload_type="other", wait=60).acquire()
        )
        async with asyncio.timeout(GUARD_S):
            while not (await client.state()).waiting:
                await asyncio.sleep(0.01)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            while (await client.state()).waiting:
                await asyncio.sleep(0.01)


async def test_the_command_takes_and_gives_back(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    async def arbiter(*arguments: str) -> int:
        return await asyncio.to_thread(cli.main, ["--address", running.address, *arguments])

    async with arbiter_client.connect(running.address) as client, background(client) as donor:
        giving = asyncio.create_task(give_way(donor))
        asks = ("preempt", "--device", donor.device_id, "--priority", "high", "--yes")
        assert await arbiter(*asks, "--memory", "1GiB", "--json") == 0
        out = json.loads(capsys.readouterr().out)
        assert [(each["lease_id"], each["confirmed"]) for each in out["donations"]] == [(donor.lease_id, GIB)]
        assert await arbiter("preempt", "--device", donor.device_id, "--priority", "low", "--memory", "1GiB") == 1
        streams = capsys.readouterr()
        assert "priority gap" in streams.err
        assert "[NO_DONOR]" in streams.err
        assert await arbiter("release", donor.lease_id, "--fence", str(donor.fence)) == 0
        assert capsys.readouterr().out == "released\n"
        assert await asyncio.wait_for(giving, GUARD_S) == [GIB]
        assert donor.end_reason == "RELEASED"
        assert await arbiter("release", donor.lease_id, "--fence", str(donor.fence)) == 0
        assert capsys.readouterr().out == "it had ended before\n"
