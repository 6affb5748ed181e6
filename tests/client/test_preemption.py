"""Taking memory from others: what is sent, what comes back, and what is left behind when nobody waits any more."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING

import grpc
import pytest

import arbiter_client
from arbiter.v1 import arbiter_service_pb2, lease_pb2
from arbiter_client import Donation, Preemption, RejectedDonor, errors, preemption
from tests.client import scripted_server
from tests.client.scripted_server import GUARD_S, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from arbiter_client import BlockingClient, Client
    from tests.client.scripted_server import ScriptedServer

TAKEN = Preemption(
    plan_id="plan-7-1",
    donations=(Donation("d", "trainer", 5, 4, "PARTIAL"), Donation("e", "painter", 3, 3, "REVOKED")),
    confirmed_bytes=7,
    rejected=(RejectedDonor("f", "priority_gap"),),
)


@pytest.fixture
async def aclient(server: ScriptedServer) -> AsyncIterator[Client]:
    async with arbiter_client.connect(server.address) as connected:
        yield connected


async def seen(server: ScriptedServer, condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(server.wait, condition)


# What is sent and what comes back.


def test_message_says_everything() -> None:
    need = preemption.Need(
        memory="2GiB", priority="high", allow_partial=True, timeout=timedelta(seconds=1.5), dry_run=True
    )
    request = preemption.message(need, lease_id="l", device="gpu0")
    assert (request.lease_id, request.device_id, request.memory_bytes) == ("l", "gpu0", 2 << 30)
    assert request.priority == lease_pb2.Priority.PRIORITY_HIGH
    assert (request.timeout.seconds, request.timeout.nanos) == (1, 500_000_000)
    assert request.allow_partial
    assert request.dry_run
    assert len(request.request_id) == 32


def test_message_leaves_to_the_arbiter_what_was_not_said() -> None:
    request = preemption.message(preemption.Need(memory=1, priority=None, timeout=None))
    assert request.priority == lease_pb2.Priority.PRIORITY_UNSPECIFIED
    assert not request.HasField("timeout")
    assert (request.lease_id, request.device_id) == ("", "")


def test_values_survive_the_way_there_and_back() -> None:
    assert preemption.from_message(preemption.to_message(TAKEN)) == TAKEN
    assert preemption.from_message(preemption.to_message(Preemption())) == Preemption()
    assert TAKEN.planned_bytes == 8
    with pytest.raises(ValueError, match="DONATION_OUTCOME_STOLEN"):
        preemption.to_message(Preemption(donations=(Donation("d", "h", 1, 1, "STOLEN"),)))


def test_an_outcome_that_is_new_reads_as_none() -> None:
    answer = arbiter_service_pb2.RequestPreemptionResponse()
    answer.donations.add(lease_id="d", outcome=arbiter_service_pb2.DonationOutcome.ValueType(99))
    assert preemption.from_message(answer).donations == (Donation("d", "", 0),)


def test_lease_asks_for_itself(server: ScriptedServer, client: BlockingClient) -> None:
    server.script.preemption = preemption.to_message(TAKEN)
    with client.lease("w", memory=1, workload_type="llm") as lease:
        assert lease.preempt(memory="1GiB", timeout=3) == TAKEN
    (asked,) = server.preemptions
    assert (asked.lease_id, asked.device_id, asked.memory_bytes) == ("lease-1", "", 1 << 30)
    assert asked.timeout.seconds == 3


def test_client_asks_for_nobody_in_particular(server: ScriptedServer, client: BlockingClient) -> None:
    server.script.draft = preemption.to_message(TAKEN)
    assert client.preempt(memory=5, device="gpu0", priority="critical", dry_run=True) == TAKEN
    (asked,) = server.preemptions
    assert (asked.lease_id, asked.device_id, asked.memory_bytes) == ("", "gpu0", 5)
    assert asked.priority == lease_pb2.Priority.PRIORITY_CRITICAL


async def test_asyncio_clients_ask_in_the_same_words(server: ScriptedServer, aclient: Client) -> None:
    server.script.preemption = preemption.to_message(TAKEN)
    async with aclient.lease("w", memory=1, workload_type="llm") as lease:
        assert await lease.preempt(memory=2) == TAKEN
        assert await aclient.preempt(memory=3, device="gpu0") == TAKEN
    assert [(asked.lease_id, asked.device_id) for asked in server.preemptions] == [("lease-1", ""), ("", "gpu0")]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, errors.NoDonor),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.QueueFull),
        (grpc.StatusCode.NOT_FOUND, errors.DeviceNotFound),
    ],
)
def test_refusals_arrive_as_their_class(
    server: ScriptedServer,
    client: BlockingClient,
    code: grpc.StatusCode,
    kind: type[errors.ArbiterClientError],
) -> None:
    server.script.preempt_errors.append(scripted_server.error(code, kind.default_reason, needed="5"))
    with pytest.raises(kind) as raised:
        client.preempt(memory=5, device="gpu0")
    assert raised.value.metadata == {"needed": "5"}


def test_bad_needs_are_refused_before_anything_is_sent(server: ScriptedServer, client: BlockingClient) -> None:
    with pytest.raises(ValueError, match="lots"):
        client.preempt(memory="lots", device="gpu0")
    with pytest.raises(ValueError, match="PRIORITY_URGENT"):
        client.preempt(memory=1, device="gpu0", priority="urgent")
    assert server.sessions == 0


def test_learning_is_waited_for(server: ScriptedServer, client: BlockingClient) -> None:
    server.script.preempt_errors.append(scripted_server.error(grpc.StatusCode.UNAVAILABLE, "LEARNING"))
    assert client.preempt(memory=5, device="gpu0") == Preemption()
    assert len(server.preemptions) == 2


def test_a_server_that_comes_late_is_found(tmp_path: Path) -> None:
    server = scripted_server.ScriptedServer(tmp_path / "late.sock")
    with arbiter_client.connect_blocking(server.address) as client, ThreadPoolExecutor(1) as pool:
        asking = pool.submit(client.preempt, memory=5, device="gpu0")
        server.start()
        assert asking.result(GUARD_S) == Preemption()
    server.stop()
    assert len(server.preemptions) == 1


def test_it_is_not_asked_again_when_the_session_is_cut(server: ScriptedServer, client: BlockingClient) -> None:
    server.script.holds_preemptions = True
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(client.preempt, memory=5, device="gpu0")
        server.wait(lambda: len(server.preemptions) == 1)
        server.drop()
        with pytest.raises(errors.ArbiterUnreachable, match="before it said what was taken"):
            asking.result(GUARD_S)
    with client.lease("w", memory=1, workload_type="llm"):
        assert server.sessions == 2
    assert len(server.preemptions) == 1


def test_closing_fails_those_who_wait(server: ScriptedServer) -> None:
    server.script.holds_preemptions = True
    client = arbiter_client.connect_blocking(server.address)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(client.preempt, memory=5, device="gpu0")
        server.wait(lambda: len(server.preemptions) == 1)
        client.close()
        with pytest.raises(errors.Cancelled, match="closed"):
            asking.result(GUARD_S)
    with pytest.raises(errors.Cancelled, match="closed"):
        client.preempt(memory=5, device="gpu0")


# Taking back what nobody waits for.


async def test_a_cancelled_task_takes_its_allocation_back(server: ScriptedServer, aclient: Client) -> None:
    server.script.holds_allocates = True
    asking = asyncio.create_task(aclient.lease("w", memory=1, workload_type="llm").acquire())
    await seen(server, lambda: len(server.allocates) == 1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await seen(server, lambda: len(server.cancels) == 1)
    server.grant_held()
    async with aclient.lease("next", memory=1, workload_type="llm") as lease:
        assert lease.lease_id == "lease-1"
    assert server.cancels == ["allocate"]
    assert [given.lease_id for given in server.releases] == ["lease-1"]


async def test_a_timeout_takes_a_preemption_back(server: ScriptedServer, aclient: Client) -> None:
    server.script.holds_preemptions = True
    asking = asyncio.create_task(aclient.preempt(memory=5, device="gpu0"))
    await seen(server, lambda: len(server.preemptions) == 1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asking, 0.01)
    await seen(server, lambda: len(server.cancels) == 1)
    assert server.cancels == ["request_preemption"]
    server.script.holds_preemptions = False
    assert await aclient.preempt(memory=5, device="gpu0") == Preemption()


async def test_a_grant_that_crosses_the_cancel_is_given_back(server: ScriptedServer, aclient: Client) -> None:
    server.script.holds_allocates = True
    server.script.answers_cancels = False
    asking = asyncio.create_task(aclient.lease("w", memory=1, workload_type="llm").acquire())
    await seen(server, lambda: len(server.allocates) == 1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await seen(server, lambda: len(server.cancels) == 1)
    server.grant_held()
    await seen(server, lambda: len(server.releases) == 1)
    assert server.releases[0].lease_id == "lease-1"


async def test_a_preemption_that_crosses_the_cancel_is_passed_over(server: ScriptedServer, aclient: Client) -> None:
    server.script.holds_preemptions = True
    server.script.answers_cancels = False
    asking = asyncio.create_task(aclient.preempt(memory=5, device="gpu0"))
    await seen(server, lambda: len(server.preemptions) == 1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await seen(server, lambda: len(server.cancels) == 1)
    server.grant_held()
    assert await aclient.preempt(memory=5, device="gpu0", dry_run=True) == Preemption()
    assert server.releases == []


async def test_what_waits_to_be_said_again_is_dropped_when_cancelled(server: ScriptedServer, aclient: Client) -> None:
    learning = scripted_server.error(grpc.StatusCode.UNAVAILABLE, "LEARNING")
    server.script.allocate_errors.extend([learning] * 100)
    asking = asyncio.create_task(aclient.lease("w", memory=1, workload_type="llm", request_id="r").acquire())
    await seen(server, lambda: len(server.allocates) >= 2)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    server.script.allocate_errors.clear()
    # The same request id is free again only once the first request is forgotten.
    async with asyncio.timeout(GUARD_S):
        while True:
            try:
                lease = await aclient.lease("w", memory=1, workload_type="llm", request_id="r").acquire()
                break
            except errors.InvalidRequest:
                await asyncio.sleep(0)
    assert await lease.release() is False
    assert [given.lease_id for given in server.releases] == [lease.lease_id]


PROGRAM = """
import sys, arbiter_client
with arbiter_client.connect_blocking(sys.argv[1]) as client:
    print("asking", flush=True)
    try:
        if sys.argv[2] == "preempt":
            client.preempt(memory=5, device="gpu0")
        else:
            client.lease("w", memory=1, workload_type="llm").acquire()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.stdin.readline()
"""


@pytest.mark.parametrize(("what", "kind"), [("preempt", "request_preemption"), ("lease", "allocate")])
def test_ctrl_c_takes_back_what_a_blocking_program_waits_for(server: ScriptedServer, what: str, kind: str) -> None:
    server.script.holds_allocates = server.script.holds_preemptions = True
    # Tests that run in the background ignore the signal, and a child would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, server.address, what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": ":".join(path for path in sys.path if path)},
    )
    signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    assert process.stdout.readline() == "asking\n"
    server.wait(lambda: len(server.preemptions) + len(server.allocates) == 1)
    process.send_signal(signal.SIGINT)
    # The client is still open, so it was the message that took it back and not the end of the session.
    server.wait(lambda: server.cancels == [kind])
    out, _ = process.communicate("\n", timeout=GUARD_S)
    assert (out, process.returncode) == ("interrupted\n", 0)


# Being asked to give.


def order(reclaim_id: str = "r", memory_bytes: int = 5) -> lease_pb2.Reclaim:
    reclaim = lease_pb2.Reclaim(reclaim_id=reclaim_id, memory_bytes=memory_bytes)
    reclaim.level = lease_pb2.ReclaimLevel.RECLAIM_LEVEL_SOFT
    reclaim.grace.FromSeconds(2)
    return reclaim


def acks(server: ScriptedServer) -> list[arbiter_service_pb2.ReclaimAck]:
    return [ack for report in server.reports() for ack in report.reclaim_acks]


def test_a_reclaim_is_acknowledged_worked_off_and_done(server: ScriptedServer, client: BlockingClient) -> None:
    with client.lease("w", memory=100, workload_type="llm") as lease:
        server.push(lease.lease_id, 0.5, 95, order())
        told = next(each for each in lease.directives(timeout=GUARD_S) if each.reclaim is not None)
        assert told.reclaim is not None
        lease.acknowledge(told.reclaim, eta=0.5)
        server.wait(lambda: len(acks(server)) == 1)
        lease.freed(told.reclaim, freed_bytes=3, done=False)
        server.wait(lambda: len(acks(server)) == 2)
        lease.freed(told.reclaim, freed_bytes="5B", freed_tokens=7)
        server.wait(lambda: len(acks(server)) == 3)
    begun, part, done = acks(server)
    assert (begun.reclaim_id, begun.will_free_bytes, begun.eta.nanos, begun.done) == ("r", 5, 500_000_000, False)
    assert (part.freed_bytes, part.done) == (3, False)
    assert (done.freed_bytes, done.freed_tokens, done.done) == (5, 7, True)


@pytest.mark.parametrize(("used", "done"), [(95, True), (96, False), (None, False)])
def test_applied_says_that_a_reclaim_is_done_only_where_that_shows(
    server: ScriptedServer, client: BlockingClient, used: int | None, done: bool
) -> None:
    with client.lease("w", memory=100, workload_type="llm") as lease:
        server.push(lease.lease_id, 0.5, 95, order())
        told = next(each for each in lease.directives(timeout=GUARD_S) if each.reclaim is not None)
        lease.applied(told, used_memory_bytes=used)
        server.wait(lambda: len(server.reports()) == 1)
    assert [(ack.reclaim_id, ack.done) for ack in acks(server)] == ([("r", True)] if done else [])


def test_a_slow_reader_finds_the_open_reclaim_in_the_newest_directive(
    server: ScriptedServer, client: BlockingClient
) -> None:
    with client.lease("w", memory=100, workload_type="llm") as lease:
        updates = lease.directives(timeout=GUARD_S)
        assert next(updates).reclaim is None
        server.push(lease.lease_id, 0.5, 95, order())
        newest = server.push(lease.lease_id, 0.4, 90, order())
        until(lambda: lease.directive.revision == newest)
        told = next(updates)
        assert told.reclaim is not None
        assert (told.reclaim.reclaim_id, told.memory_limit_bytes) == ("r", 90)


async def test_a_reclaim_that_is_no_longer_wanted_wakes_those_who_follow(
    server: ScriptedServer, aclient: Client
) -> None:
    async with aclient.lease("w", memory=100, workload_type="llm") as lease:
        updates = lease.directives()
        assert (await anext(updates)).reclaim is None
        server.push(lease.lease_id, 0.5, 95, order())
        told = await asyncio.wait_for(anext(updates), GUARD_S)
        assert told.reclaim is not None
        server.push_reclaim_cancelled("r")
        later = await asyncio.wait_for(anext(updates), GUARD_S)
        assert later.reclaim is None
        assert (later.revision, later.memory_limit_bytes) == (told.revision, 95)
        assert told.reclaim is not None


# Fencing oneself.


def test_guarded_begins_nothing_once_the_lease_is_lost(server: ScriptedServer, client: BlockingClient) -> None:
    ran: list[int] = []
    with client.lease("w", memory=100, workload_type="llm") as lease:

        @lease.guarded()
        def batch(number: int) -> int:
            ran.append(number)
            return number

        assert batch(1) == 1
        assert batch(2) == 2
        with lease.guarded() as told:
            assert told is lease.directive
        server.push_end(lease.lease_id, lease_pb2.EndReason.END_REASON_PREEMPTED)
        assert lease.wait_lost(GUARD_S)
        with pytest.raises(arbiter_client.LeaseLost, match="PREEMPTED"):
            batch(3)
        with pytest.raises(arbiter_client.LeaseLost), lease.guarded():
            ran.append(4)
    assert ran == [1, 2]


def test_guarded_goes_by_the_clock_when_the_arbiter_is_silent(server: ScriptedServer, client: BlockingClient) -> None:
    with client.lease("w", memory=100, workload_type="llm", ttl=0.6) as lease:
        server.stop_answering()
        until(lambda: lease.lost)
        with pytest.raises(arbiter_client.LeaseLost, match="EXPIRED"), lease.guarded():
            pytest.fail("it began all the same")
