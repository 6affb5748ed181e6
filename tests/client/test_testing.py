"""The in-memory arbiter that workers are tested with."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

import arbiter_client
from arbiter.v1 import lease_pb2
from arbiter_client import Donation, Preemption, ReclaimLevel, errors
from arbiter_client.testing import Acknowledged, InMemoryArbiter
from tests.client.scripted_server import GUARD_S


def test_push_reaches_the_worker_and_its_answer_the_test() -> None:
    with InMemoryArbiter(capacity="8GiB") as arbiter, arbiter.blocking_client() as client:
        with client.lease("w", memory="2GiB", workload_type="llm") as lease:
            assert arbiter.applied(lease.lease_id).outcome == ""
            revision = arbiter.push(lease.lease_id, quality=0.5, memory_limit_bytes="1GiB", kv_token_budget=64)
            for directive in lease.directives(timeout=GUARD_S):
                if directive.revision == revision:
                    lease.applied(directive, used_memory_bytes=7)
                    break
            said = arbiter.applied(lease.lease_id, revision=revision, timeout=GUARD_S)
            assert (said.revision, said.outcome, said.used_memory_bytes) == (revision, "APPLIED", 7)
            assert (lease.memory_limit_bytes, lease.directive.kv_token_budget) == (1 << 30, 64)
            later = arbiter.push(lease.lease_id, reclaim=lease_pb2.Reclaim(reclaim_id="r", memory_bytes=5))
            updates = lease.directives(timeout=GUARD_S)
            shown = next(directive for directive in updates if directive.revision == later)
            assert shown.reclaim is not None
            assert (shown.reclaim.reclaim_id, shown.quality) == ("r", 0.5)
            lease.refused(shown, achievable_quality=0.4)
            assert arbiter.applied(lease.lease_id, revision=later, timeout=GUARD_S).achievable_quality == 0.4
        assert arbiter.applied(lease.lease_id).outcome == "REFUSED"
        assert not arbiter.state().leases


def test_reclaim_reaches_the_worker_and_its_answers_the_test() -> None:
    with (
        InMemoryArbiter() as arbiter,
        arbiter.blocking_client() as client,
        client.lease("w", memory="2GiB", workload_type="llm") as lease,
    ):
        reclaim_id = arbiter.reclaim(lease.lease_id, memory_bytes="512MiB", grace=3.0)
        arbiter.push(lease.lease_id, quality=0.5)
        with pytest.raises(TimeoutError, match="begun"):
            arbiter.acknowledged(lease.lease_id)
        told = next(each for each in lease.directives(timeout=GUARD_S) if each.quality == 0.5)
        assert told.reclaim is not None, "an open order is repeated"
        assert (told.reclaim.reclaim_id, told.reclaim.memory_bytes, told.reclaim.grace) == (reclaim_id, 1 << 29, 3.0)
        assert (told.memory_limit_bytes, told.reclaim.level) == (3 << 29, ReclaimLevel.SOFT)
        lease.acknowledge(told.reclaim, will_free=7, eta=1.0)
        begun = arbiter.acknowledged(lease.lease_id, timeout=GUARD_S)
        assert begun == Acknowledged(reclaim_id=reclaim_id, will_free_bytes=7, eta=1.0)
        with pytest.raises(TimeoutError, match="done"):
            arbiter.acknowledged(lease.lease_id, done=True)
        lease.applied(told, used_memory_bytes=3 << 29)
        assert arbiter.acknowledged(lease.lease_id, done=True, timeout=GUARD_S).done
        later = arbiter.push(lease.lease_id, quality=0.4)
        assert next(each for each in lease.directives(timeout=GUARD_S) if each.revision == later).reclaim is None
        with pytest.raises(ValueError, match="more than the memory limit"):
            arbiter.reclaim(lease.lease_id, memory_bytes="2GiB")
        with pytest.raises(ValueError, match="no open order"):
            arbiter.cancel_reclaim(lease.lease_id)


def test_cancel_reclaim_takes_the_order_back() -> None:
    with (
        InMemoryArbiter() as arbiter,
        arbiter.blocking_client() as client,
        client.lease("w", memory="2GiB", workload_type="llm") as lease,
    ):
        arbiter.reclaim(lease.lease_id, memory_bytes="1GiB")
        updates = lease.directives(timeout=GUARD_S)
        assert any(each.reclaim is not None for each in updates)
        arbiter.cancel_reclaim(lease.lease_id)
        assert next(updates).reclaim is None
        assert lease.memory_limit_bytes == 1 << 30


def test_preemptions_are_answered_as_the_test_says() -> None:
    taken = Preemption(plan_id="p", donations=(Donation("d", "h", 5, 5, "CONFIRMED"),), confirmed_bytes=5)
    with InMemoryArbiter() as arbiter, arbiter.blocking_client() as client:
        arbiter.answer_next_preemption(taken)
        with client.lease("w", memory=1, workload_type="llm") as lease:
            assert lease.preempt(memory=5) == taken
            with pytest.raises(errors.NoDonor):
                lease.preempt(memory=5)
        with pytest.raises(errors.NoDonor):
            client.preempt(memory=5, device="memory")


async def test_a_cancelled_task_leaves_an_in_memory_arbiter_in_order() -> None:
    with InMemoryArbiter() as arbiter:
        async with arbiter.client() as client:
            for _ in range(20):
                asking = asyncio.create_task(client.lease("w", memory=1, workload_type="llm").acquire())
                await asyncio.sleep(0)
                asking.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await asking
            async with client.lease("w", memory=1, workload_type="llm") as lease:
                assert not lease.lost
        assert not arbiter.state().leases


def test_end_loses_the_lease_with_its_reason() -> None:
    with InMemoryArbiter() as arbiter, arbiter.blocking_client() as client:
        with client.lease("w", memory=1, workload_type="llm") as lease:
            arbiter.end(lease.lease_id, "PREEMPTED")
            assert lease.wait_lost(GUARD_S)
            assert lease.end_reason == "PREEMPTED"
        with pytest.raises(errors.LeaseNotFound):
            arbiter.end(lease.lease_id)


def test_silence_lets_leases_run_out_and_speaking_keeps_them() -> None:
    with InMemoryArbiter(ttl=0.5) as arbiter, arbiter.blocking_client() as client:
        with client.lease("w", memory=1, workload_type="llm") as lease:
            assert not lease.wait_lost(1.5)
            arbiter.silence()
            assert lease.wait_lost(GUARD_S)
            assert lease.end_reason == "EXPIRED"
        arbiter.speak()
        with client.lease("w", memory=1, workload_type="llm", ttl=5) as lease:
            assert not lease.lost


def test_refusals_come_when_asked_for_or_when_it_does_not_fit() -> None:
    with InMemoryArbiter(capacity="1GiB") as arbiter, arbiter.blocking_client() as client:
        arbiter.refuse_next("NO_DONOR")
        with pytest.raises(errors.NoDonor):
            client.lease("w", memory=1, workload_type="llm").acquire()
        with client.lease("w", memory="1GiB", workload_type="llm"), pytest.raises(errors.InsufficientMemory):
            client.lease("w", memory=1, workload_type="llm").acquire()
        with pytest.raises(errors.ExceedsCapacity):
            client.lease("w", memory="2GiB", workload_type="llm").acquire()
        with pytest.raises(errors.InvalidRequest):
            client.lease("", memory=1, workload_type="llm").acquire()
        with pytest.raises(ValueError, match="is not a reason"):
            arbiter.refuse_next("BAD_WEATHER")


def test_disconnect_is_survived() -> None:
    with (
        InMemoryArbiter(ttl=3.0) as arbiter,
        arbiter.blocking_client() as client,
        client.lease("w", memory=1, workload_type="llm") as lease,
    ):
        arbiter.disconnect()
        revision = arbiter.push(lease.lease_id, quality=0.5)
        assert any(directive.revision == revision for directive in lease.directives(timeout=GUARD_S))


def test_the_same_request_id_gives_the_same_lease() -> None:
    with InMemoryArbiter() as arbiter, arbiter.blocking_client() as client:
        first, second = (client.lease("w", memory=1, workload_type="llm", request_id="r").acquire() for _ in range(2))
        assert (first.lease_id, first.fence) == (second.lease_id, second.fence)
        with pytest.raises(errors.Fenced):
            client.release(first.lease_id, first.fence + 1)
        assert client.release(first.lease_id, first.fence) is False
        assert client.release(first.lease_id, first.fence) is True
        with pytest.raises(errors.LeaseNotFound):
            client.release("nobody", 1)


def test_state_shows_leases_without_their_secrets() -> None:
    with (
        InMemoryArbiter(capacity="4GiB") as arbiter,
        arbiter.blocking_client() as client,
        client.lease("w", memory="1GiB", workload_type="llm"),
    ):
        picture = client.state()
        assert picture.devices[0].available_bytes == 3 << 30
        assert (picture.leases[0].holder, picture.leases[0].handle, picture.leases[0].fence) == ("w", 0, 0)


def test_what_needs_a_real_arbiter_is_refused_aloud() -> None:
    with InMemoryArbiter() as arbiter, arbiter.blocking_client() as client:
        with pytest.raises(errors.NotServed):
            client.explain(lease_id="l")
        with pytest.raises(errors.NotServed):
            client.watch()
        with pytest.raises(errors.NotServed):
            client.channel.close()


def test_mistakes_of_the_test_are_told() -> None:
    with InMemoryArbiter() as arbiter, arbiter.blocking_client() as client:
        with client.lease("w", memory=1, workload_type="llm") as lease:
            with pytest.raises(ValueError, match="quality"):
                arbiter.push(lease.lease_id, quality=2.0)
            with pytest.raises(TimeoutError, match="nothing was said"):
                arbiter.applied(lease.lease_id, revision=99)
        with pytest.raises(errors.LeaseNotFound):
            arbiter.applied("nobody")


def test_many_threads_share_one_client() -> None:
    with InMemoryArbiter() as arbiter, arbiter.blocking_client() as client:
        failures: list[BaseException] = []

        def work() -> None:
            try:
                for _ in range(20):
                    with client.lease("w", memory=1, workload_type="llm") as lease:
                        lease.applied(lease.directive)
                        lease.check()
            except arbiter_client.ArbiterClientError as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(GUARD_S)
        assert failures == []
        assert not arbiter.state().leases
