"""Reserving KV tokens: what is sent, what comes back, and what is left behind when nobody waits any more."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import TYPE_CHECKING

import grpc
import pytest

import arbiter_client
from arbiter.v1 import arbiter_service_pb2, lease_pb2, state_service_pb2
from arbiter_client import Donation, KvLayout, Preemption, cli, errors, kv_reservations, preemption, requests, tables
from arbiter_client.kv_reservations import Reserved
from arbiter_client.testing import InMemoryArbiter
from tests.client.scripted_server import GUARD_S, until
from tests.running import running_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from arbiter_client import BlockingClient, BlockingLease, Client, Lease
    from tests.client.scripted_server import ScriptedServer
    from tests.running import Running

TOTAL = 4096
SHARE = KvLayout(layers=1, kv_heads=1, head_size=64).share()
FLAGS = ("--devices", "static", "--devices-static", "card=8GiB", "--kv-tokens", str(TOTAL))


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with running_server(tmp_path, *FLAGS) as served:
        yield served


def reservation(wait: float = 5.0, asked_at: float = 100.0) -> requests.Reservation:
    return requests.Reservation(kv_reservations.message("l", 1, 16, wait, "r"), asked_at)


async def reserved(client: Client) -> int:
    (engine,) = (await client.state()).kv_engines
    return engine.reserved_tokens


async def becomes(client: Client, tokens: int) -> None:
    """Waits until the arbiter has reserved so many."""
    async with asyncio.timeout(GUARD_S):
        while await reserved(client) != tokens:
            await asyncio.sleep(0.01)


# What is said.


def test_message_says_everything() -> None:
    request = kv_reservations.message("l", 7, 100, timedelta(seconds=1.5), "mine")
    assert (request.lease_id, request.fence, request.tokens, request.request_id) == ("l", 7, 100, "mine")
    assert (request.wait_timeout.seconds, request.wait_timeout.nanos) == (1, 500_000_000)
    assert len(kv_reservations.message("l", 7, 100, 0, None).request_id) == 32


@pytest.mark.parametrize("tokens", [0, -1, 2**63])
def test_message_is_refused_when_the_tokens_make_no_sense(tokens: int) -> None:
    with pytest.raises(ValueError, match="between 1 and 2\\^63-1"):
        kv_reservations.message("l", 7, tokens, 0, None)


@pytest.mark.parametrize("wait", [-1.0, float("inf"), float("nan")])
def test_message_is_refused_when_the_span_makes_no_sense(wait: float) -> None:
    with pytest.raises(ValueError, match="span of time"):
        kv_reservations.message("l", 7, 1, wait, None)


def test_repeated_message_waits_for_what_is_left() -> None:
    asked = reservation()
    assert asked.message(100.0).wait_timeout.ToMilliseconds() == 5000
    assert asked.message(103.0).wait_timeout.ToMilliseconds() == 2000
    assert asked.message(200.0).wait_timeout.ToMilliseconds() == 0
    asked.future.cancel()
    assert asked.message(100.0).wait_timeout.ToMilliseconds() == 0


def test_reservation_outlives_its_session_and_whoever_waited_when_it_may_have_been_granted() -> None:
    waiting = requests.Waiting(10.0)
    unsent, sent, completion = reservation(), reservation(), requests.Completion("x", 1, until=200.0)
    sent.request.request_id = "sent"
    sent.sent_at = 100.0
    for asked in (unsent, sent, completion):
        assert waiting.begin(asked)
    unsent.future.cancel()
    sent.future.cancel()
    waiting.disconnected()
    # Tokens go back before others are asked for.
    assert list(waiting) == [completion, sent]


def test_completion_is_given_up_when_the_lease_cannot_live_any_more() -> None:
    waiting = requests.Waiting(10.0)
    completion = requests.Completion("x", 1, until=105.0)
    waiting.begin(completion)
    assert waiting.returns == 1
    waiting.give_up(104.9, 100.0, errors.ArbiterUnreachable)
    assert not completion.future.done()
    waiting.give_up(105.0, 100.0, errors.ArbiterUnreachable)
    assert isinstance(completion.future.exception(), errors.ArbiterUnreachable)


# With a real arbiter in a process of its own.


async def test_tokens_are_reserved_for_the_block_and_return_with_it(running: Running) -> None:
    async with (
        arbiter_client.connect(running.address) as client,
        client.lease("engine", memory="1GiB", workload_type="llm", kv=SHARE) as lease,
    ):
        async with lease.reserve_kv(1000) as held:
            assert held.tokens == 1000
            assert held.reservation_id
            assert await reserved(client) == 1000
            held.used(800)
            assert "1000 tokens held" in repr(held)
        await becomes(client, 0)
        assert "returned" in repr(held)
        await held.complete()
        with pytest.raises(ValueError, match="used tokens -1"):
            held.used(-1)


async def test_tokens_return_when_the_block_fails(running: Running) -> None:
    async with (
        arbiter_client.connect(running.address) as client,
        client.lease("engine", memory="1GiB", workload_type="llm", kv=SHARE) as lease,
    ):
        with pytest.raises(ZeroDivisionError):
            async with lease.reserve_kv(1000):
                raise ZeroDivisionError
        # Sent on the same session before it, so nothing has to be waited for.
        async with lease.reserve_kv(TOTAL):
            assert await reserved(client) == TOTAL


async def test_waiting_ends_when_tokens_come_back_and_when_time_is_up(running: Running) -> None:
    async with (
        arbiter_client.connect(running.address) as client,
        client.lease("engine", memory="1GiB", workload_type="llm", kv=SHARE) as lease,
    ):
        first = await lease.reserve_kv(TOTAL).acquire()
        with pytest.raises(errors.InsufficientTokens) as refused:
            await lease.reserve_kv(16).acquire()
        assert refused.value.metadata == {"requested_tokens": "16", "available_tokens": "0"}
        with pytest.raises(errors.InsufficientTokens):
            await lease.reserve_kv(16, wait=0.1).acquire()
        asking = asyncio.create_task(lease.reserve_kv(32, wait=GUARD_S).acquire())
        await asyncio.sleep(0.05)
        assert not asking.done()
        await first.complete(TOTAL * 2)
        second = await asyncio.wait_for(asking, GUARD_S)
        assert second.tokens == await reserved(client) == 32
        await second.complete()
        assert await reserved(client) == 0
        with pytest.raises(errors.ExceedsCapacity):
            await lease.reserve_kv(TOTAL + 1, wait=GUARD_S).acquire()


async def test_nothing_is_kept_for_a_task_that_was_cancelled(running: Running) -> None:
    async with (
        arbiter_client.connect(running.address) as client,
        client.lease("engine", memory="1GiB", workload_type="llm", kv=SHARE) as lease,
    ):
        first = await lease.reserve_kv(TOTAL).acquire()
        asking = asyncio.create_task(lease.reserve_kv(32, wait=600).acquire())
        await asyncio.sleep(0.05)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await first.complete()
        # Whatever came of it, all tokens are free again.
        async with asyncio.timeout(GUARD_S), lease.reserve_kv(TOTAL, wait=GUARD_S):
            assert await reserved(client) == TOTAL


async def test_waiting_ends_when_the_lease_does(running: Running) -> None:
    async with arbiter_client.connect(running.address) as client:
        lease = await client.lease("engine", memory="1GiB", workload_type="llm", kv=SHARE).acquire()
        first = await lease.reserve_kv(TOTAL).acquire()
        asking = asyncio.create_task(lease.reserve_kv(32, wait=600).acquire())
        await asyncio.sleep(0.05)
        await lease.release()
        with pytest.raises(errors.Fenced, match="the lease has ended: RELEASED"):
            await asyncio.wait_for(asking, GUARD_S)
        with pytest.raises(arbiter_client.LeaseLost):
            await lease.reserve_kv(16).acquire()
        with pytest.raises(errors.ReservationNotFound):
            await first.complete()


async def test_reserving_is_refused_when_the_lease_is_no_engine(running: Running) -> None:
    async with (
        arbiter_client.connect(running.address) as client,
        client.lease("plain", memory="1GiB", workload_type="llm") as lease,
    ):
        with pytest.raises(errors.InvalidRequest, match="no KV engine"):
            await lease.reserve_kv(16).acquire()


def test_blocking_lease_reserves_too(running: Running) -> None:
    with (
        arbiter_client.connect_blocking(running.address) as client,
        client.lease("engine", memory="1GiB", workload_type="llm", kv=SHARE) as lease,
    ):
        with lease.reserve_kv(1000, wait=GUARD_S) as held:
            assert client.state().kv_engines[0].reserved_tokens == held.tokens == 1000
        with lease.reserve_kv(TOTAL):
            assert client.state().kv_engines[0].reserved_tokens == TOTAL
        kept = lease.reserve_kv(64).acquire()
        kept.complete(10)
        kept.complete()
        assert client.state().kv_engines[0].reserved_tokens == 0


async def lend(donor: Lease, taker: Lease, client: Client) -> None:
    """The donor runs LOW work in all its half, the taker has work as well; both do as they are told."""

    async def obey(lease: Lease, *, busy: bool) -> None:
        async for told in lease.directives():
            budget = told.kv_token_budget or 0
            state = arbiter_service_pb2.KvUsage(active=True)
            if busy:
                state.resident_tokens = state.freeable_tokens = budget
                state.lowest_running_priority = lease_pb2.Priority.PRIORITY_LOW
            lease.report(kv=state)
            lease.applied(told)

    following = [asyncio.create_task(obey(donor, busy=True)), asyncio.create_task(obey(taker, busy=False))]
    try:
        async with asyncio.timeout(GUARD_S):
            while {engine.budget_tokens for engine in (await client.state()).kv_engines} != {TOTAL // 2}:
                await asyncio.sleep(0.01)
        # Whoever was granted a lease just now is not asked.
        await asyncio.sleep(1.0)
        draft = await taker.preempt(kv_tokens=1024, dry_run=True)
        assert draft.donations == (Donation(donor.lease_id, "batch", planned_tokens=1024),)
        assert (draft.planned_tokens, draft.planned_bytes, draft.confirmed_tokens) == (1024, 0, 0)
        taken = await taker.preempt(kv_tokens=1024)
        assert (taken.confirmed_tokens, taken.confirmed_bytes) == (1024, 0)
        assert taken.donations == (
            Donation(donor.lease_id, "batch", outcome="CONFIRMED", planned_tokens=1024, confirmed_tokens=1024),
        )
    finally:
        for task in following:
            task.cancel()


async def test_tokens_are_lent_on_request(running: Running) -> None:
    async with (
        arbiter_client.connect(running.address) as client,
        client.lease("batch", memory="1GiB", workload_type="llm", kv=SHARE) as donor,
        client.lease("chat", memory="1GiB", workload_type="llm", kv=SHARE, priority="high") as taker,
    ):
        await lend(donor, taker, client)
        donated, borrowed = (await client.state()).kv_engines
        assert (donated.donated_tokens, borrowed.borrowed_tokens) == (1024, 1024)


def test_preemption_needs_one_need() -> None:
    with pytest.raises(ValueError, match="either memory or kv_tokens"):
        preemption.message(preemption.Need())
    with pytest.raises(ValueError, match="either memory or kv_tokens"):
        preemption.message(preemption.Need(memory=1, kv_tokens=1))
    with pytest.raises(ValueError, match="kv_tokens 0"):
        preemption.message(preemption.Need(kv_tokens=0))
    assert preemption.message(preemption.Need(kv_tokens=5), lease_id="l").kv_tokens == 5


def test_answers_in_tokens_survive_the_way_there_and_back() -> None:
    taken = Preemption(
        "plan-1",
        (Donation("d", "batch", outcome="PARTIAL", planned_tokens=64, confirmed_tokens=32),),
        confirmed_tokens=32,
    )
    assert preemption.from_message(preemption.to_message(taken), tokens=True) == taken


# The arbiter in memory.


def engine_of(client: BlockingClient) -> BlockingLease:
    share = KvLayout(layers=1, kv_heads=1, head_size=64).share(max_tokens=160)
    return client.lease("engine", memory="1GiB", workload_type="llm", kv=share).acquire()


def test_in_memory_arbiter_reserves_within_the_budget_it_was_told_to_push() -> None:
    with InMemoryArbiter() as arbiter, arbiter.blocking_client() as client, engine_of(client) as lease:
        with lease.reserve_kv(100, request_id="mine") as held:
            assert arbiter.reserved_tokens(lease.lease_id) == 100
            assert lease.reserve_kv(100, request_id="mine").acquire().reservation_id == held.reservation_id
            with pytest.raises(errors.InsufficientTokens, match="61 tokens are wanted, 60 are free"):
                lease.reserve_kv(61, wait=10).acquire()
            arbiter.push(lease.lease_id, kv_token_budget=320)
            with lease.reserve_kv(220) as second:
                second.used(7)
            until(lambda: arbiter.reserved_tokens(lease.lease_id) == 100)
            assert arbiter.used_tokens(second.reservation_id) == 7
            with pytest.raises(errors.ReservationNotFound):
                arbiter.used_tokens(held.reservation_id)
        until(lambda: arbiter.reserved_tokens(lease.lease_id) == 0)
        kept = lease.reserve_kv(50).acquire()
        arbiter.end(lease.lease_id)
        assert arbiter.reserved_tokens(lease.lease_id) == 0
        with pytest.raises(errors.ReservationNotFound):
            kept.complete()


def test_in_memory_arbiter_takes_reservations_with_their_lease_and_refuses_others() -> None:
    with InMemoryArbiter() as arbiter, arbiter.blocking_client() as client:
        plain = client.lease("plain", memory=1, workload_type="llm").acquire()
        with pytest.raises(errors.InvalidRequest, match="no KV engine"):
            plain.reserve_kv(1).acquire()
        with engine_of(client) as lease:
            lease.reserve_kv(100).acquire()
        assert arbiter.reserved_tokens(lease.lease_id) == 0


def test_reservation_is_sent_again_when_the_session_was_cut() -> None:
    with InMemoryArbiter() as arbiter, arbiter.blocking_client() as client, engine_of(client) as lease:
        arbiter.disconnect()
        with lease.reserve_kv(100):
            assert arbiter.reserved_tokens(lease.lease_id) == 100
            arbiter.disconnect()
        until(lambda: arbiter.reserved_tokens(lease.lease_id) == 0)


# When the connection ends.


async def held_back(server: ScriptedServer, lease: Lease) -> asyncio.Task[arbiter_client.KvReservation]:
    """A reservation that the server has taken in and not answered."""
    server.script.holds_reservations = True
    asking = asyncio.create_task(lease.reserve_kv(16, wait=60, request_id="mine").acquire())
    await asyncio.to_thread(server.wait, lambda: len(server.reservations) == 1)
    return asking


async def test_waiting_goes_on_over_another_session_for_what_is_left_of_it(server: ScriptedServer) -> None:
    async with arbiter_client.connect(server.address) as client:
        lease = await client.lease("engine", memory="1GiB", workload_type="llm", kv=SHARE).acquire()
        asking = await held_back(server, lease)
        server.script.holds_reservations = False
        server.drop()
        held = await asyncio.wait_for(asking, GUARD_S)
        first, again = server.reservations
        assert (held.reservation_id, held.tokens, again.request_id) == ("of mine", 16, first.request_id)
        assert again.wait_timeout.ToNanoseconds() < first.wait_timeout.ToNanoseconds() <= 60 * 10**9
        assert not server.completions


async def test_tokens_that_nobody_waits_for_any_more_are_found_and_returned_over_another_session(
    server: ScriptedServer,
) -> None:
    server.script.answers_cancels = False
    async with arbiter_client.connect(server.address) as client:
        lease = await client.lease("engine", memory="1GiB", workload_type="llm", kv=SHARE).acquire()
        asking = await held_back(server, lease)
        asking.cancel()
        await asyncio.to_thread(server.wait, lambda: server.cancels == ["reserve_kv"])
        server.script.holds_reservations = False
        # It may have been granted just before; only asking again tells.
        server.drop()
        await asyncio.to_thread(server.wait, lambda: len(server.completions) == 1)
        assert server.reservations[1].request_id == "mine"
        assert server.reservations[1].wait_timeout.ToNanoseconds() == 0
        assert (server.completions[0].reservation_id, server.completions[0].actual_tokens) == ("of mine", 0)


async def test_tokens_come_back_over_another_session_when_the_first_one_ended_with_them(server: ScriptedServer) -> None:
    async with arbiter_client.connect(server.address) as client:
        lease = await client.lease("engine", memory="1GiB", workload_type="llm", kv=SHARE).acquire()
        async with lease.reserve_kv(16) as held:
            held.used(5)
            server.drop()
        await asyncio.to_thread(server.wait, lambda: bool(server.completions))
        assert (server.completions[0].reservation_id, server.completions[0].actual_tokens) == (held.reservation_id, 5)


# What people see.


def picture() -> state_service_pb2.GetStateResponse:
    response = state_service_pb2.GetStateResponse(version="1", server_epoch=1)
    response.devices.add(device_id="gpu0", kv_total_tokens=4096, kv_charged_tokens=4000)
    response.devices.add(device_id="gpu1")
    response.kv_engines.add(
        lease_id="e1",
        holder="cha\x1b",
        device_id="gpu0",
        share_weight=3,
        min_tokens=160,
        max_tokens=2048,
        active=True,
        demand_tokens=5000,
        resident_tokens=1500,
        reserved_tokens=16,
        budget_tokens=2048,
        charged_tokens=2048,
        borrowed_tokens=512,
    )
    response.kv_engines.add(lease_id="e2", holder="batch", device_id="gpu0", share_weight=1, donated_tokens=512)
    return response


#: What would steer the terminal is shown as this.
BLOT = "\N{REPLACEMENT CHARACTER}"
TABLE = f"""\
DEVICE  KV TOKENS  CHARGED  FREE
gpu0         4096     4000    96

ENGINE  HOLDER  DEVICE  WORK  SHARE  FLOOR   CAP  DEMAND  RESIDENT  RESERVED  BUDGET  DONATED  BORROWED
e1      cha{BLOT}    gpu0    yes       3    160  2048    5000      1500        16    2048        0       512
e2      batch   gpu0    no        1      0     -       -         0         0       0      512         0"""


def test_table_of_engines_has_everything() -> None:
    assert tables.engines(picture(), colour=False) == TABLE
    assert TABLE in tables.state(picture(), 0.0, colour=False)
    assert tables.engines(state_service_pb2.GetStateResponse(), colour=False) == "no KV engines"
    assert "KV" not in tables.state(state_service_pb2.GetStateResponse(), 0.0, colour=False)


def test_directives_show_tokens_and_orders_for_them() -> None:
    message = arbiter_service_pb2.StreamQualityResponse()
    told = message.directives.add(lease_id="e1", revision=3, quality=1.0, kv_token_budget=0)
    told.reclaim.reclaim_id = "kv-1-1"
    told.reclaim.kv_tokens = 512
    told.reclaim.level = lease_pb2.RECLAIM_LEVEL_SOFT
    line = tables.quality(message)
    assert "kv 0 tokens" in line
    assert "give 512 tokens in 0.0s  soft  kv-1-1" in line


def test_preemption_is_told_in_tokens() -> None:
    donor = Donation("d", "batch", outcome="CONFIRMED", planned_tokens=64)
    assert tables.donations(Preemption("", (donor,)), colour=False).endswith("64 tokens would be taken")
    nothing = tables.donations(Preemption("plan-1", (donor,)), colour=False)
    assert "64 tokens" in nothing
    assert nothing.endswith("0 tokens came free in plan-1")


async def test_commands_show_engines_and_take_tokens(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    async def arbiter(*arguments: str) -> int:
        return await asyncio.to_thread(cli.main, ["--address", running.address, *arguments])

    assert await arbiter("engines") == 0
    assert capsys.readouterr().out == "no KV engines\n"
    assert await arbiter("engines", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []
    async with (
        arbiter_client.connect(running.address) as client,
        client.lease("batch", memory="1GiB", workload_type="llm", kv=SHARE) as lease,
    ):
        assert await arbiter("engines") == 0
        out = capsys.readouterr().out
        assert lease.lease_id in out
        assert "4096" in out
        assert await arbiter("engines", "--json") == 0
        (engine,) = json.loads(capsys.readouterr().out)
        assert (engine["holder"], engine["budget_tokens"], engine["active"]) == ("batch", TOTAL, False)
        assert await arbiter("state") == 0
        assert "ENGINE" in capsys.readouterr().out
        asks = ("preempt", "--kv-tokens", "64", "--yes")
        assert await arbiter(*asks, "--lease", lease.lease_id) == 1
        assert "nobody can be made to give 64 tokens" in capsys.readouterr().err
        assert await arbiter(*asks, "--device", "card") == 1
        assert "tokens are lent to an engine" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [("--kv-tokens", "0"), ("--kv-tokens", "x"), ("--kv-tokens", "1", "--memory", "1")])
def test_command_is_refused_when_the_tokens_make_no_sense(
    wrong: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["preempt", "--lease", "l", *wrong])
    assert ended.value.code == 2
    assert "--kv-tokens" in capsys.readouterr().err


def test_reserved_is_a_value() -> None:
    answer = arbiter_service_pb2.ReserveKvResponse(reservation_id="r", granted_tokens=5)
    assert kv_reservations.from_message(answer) == Reserved("r", 5)
    assert errors.ReservationNotFound().code is grpc.StatusCode.NOT_FOUND
