"""Token budgets that come from an arbiter while an engine works: with asyncio and without, read from many threads."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from arbiter.v1 import arbiter_service_pb2, lease_pb2
from arbiter_client import KvBudget, KvLayout
from arbiter_client.testing import InMemoryArbiter
from tests.client.scripted_server import GUARD_S, until

LAYOUT = KvLayout(layers=32, kv_heads=8, head_size=128)
SHARE = LAYOUT.share(min_tokens=160, max_tokens=1600)
Usage = arbiter_service_pb2.KvUsage


def test_budgets_reach_the_scheduler_and_its_state_the_arbiter() -> None:
    with (
        InMemoryArbiter() as arbiter,
        arbiter.blocking_client() as client,
        client.lease("engine", memory="2GiB", workload_type="llm", kv=SHARE) as lease,
    ):
        budget = KvBudget(lease)
        assert budget.limit == 1600
        running = budget.try_admit(1000, priority="low")
        assert running is not None
        with budget.queue(800) as waiting:
            assert not waiting.try_admit()
            budget.tell()
            until(
                lambda: (
                    arbiter.applied(lease.lease_id).kv
                    == Usage(
                        active=True,
                        resident_tokens=1008,
                        demand_tokens=1808,
                        lowest_running_priority=lease_pb2.Priority.PRIORITY_LOW,
                        freeable_tokens=1008,
                    )
                )
            )
            revision = arbiter.push(lease.lease_id, kv_token_budget=480)
            until(lambda: budget.over() == 528)
            running.requeue()
            lease.applied(lease.directive)
            assert arbiter.applied(lease.lease_id, revision=revision, timeout=GUARD_S).outcome == "APPLIED"
            assert budget.free() == 480
            arbiter.push(lease.lease_id, kv_token_budget=960)
            until(waiting.try_admit)
        running.finish()
        until(lambda: arbiter.applied(lease.lease_id).kv == Usage(demand_tokens=0))
        arbiter.end(lease.lease_id, "PREEMPTED")
        assert lease.wait_lost(GUARD_S)
        assert (budget.limit, budget.free()) == (0, 0)


async def test_a_scheduler_on_an_event_loop_follows_its_budget() -> None:
    """It serves ten requests under a budget that is taken away and comes back, and waits on directives when it is 0."""
    done: list[int] = []

    async def serve(budget: KvBudget, tokens: int, changed: asyncio.Event) -> None:
        with budget.queue(tokens) as request:
            while not request.try_admit():
                changed.clear()
                await changed.wait()
            await asyncio.sleep(0)
            done.append(tokens)
        changed.set()

    with InMemoryArbiter() as arbiter:
        async with (
            arbiter.client() as client,
            client.lease("engine", memory="2GiB", workload_type="llm", kv=SHARE) as lease,
        ):
            budget, changed = KvBudget(lease), asyncio.Event()
            arbiter.push(lease.lease_id, kv_token_budget=0)
            serving: list[asyncio.Task[None]] = []
            async with asyncio.timeout(GUARD_S):
                async for directive in lease.directives():
                    if directive.kv_token_budget == 0:
                        serving = [asyncio.create_task(serve(budget, 16 * each, changed)) for each in range(1, 11)]
                        await asyncio.sleep(0)
                        assert (budget.demand, budget.resident, done) == (880, 0, [])
                        arbiter.push(lease.lease_id, kv_token_budget=160)
                    elif directive.kv_token_budget == 160:
                        changed.set()
                        break
                await asyncio.gather(*serving)
        assert sorted(done) == [16 * each for each in range(1, 11)]
        assert (budget.limit, budget.resident, budget.demand, budget.unfinished) == (0, 0, 0, 0)


def test_schedulers_on_many_threads_read_whole_budgets_while_directives_come() -> None:
    last = 4800
    with (
        InMemoryArbiter() as arbiter,
        arbiter.blocking_client() as client,
        client.lease("engine", memory="2GiB", workload_type="llm", kv=LAYOUT.share()) as lease,
    ):
        budget, stop, admitted = KvBudget(lease), threading.Event(), threading.Event()

        def schedule() -> int:
            seen = 0
            while not stop.is_set():
                limit = budget.limit
                assert limit % 16 == 0
                assert limit >= seen, "a budget that was replaced came back"
                seen = limit
                if (request := budget.try_admit(400)) is not None:
                    with request:
                        admitted.set()
                        assert budget.resident <= budget.limit, "budgets only grow here"
            return seen

        with ThreadPoolExecutor(3) as pool:
            schedulers = [pool.submit(schedule) for _ in range(3)]
            for tokens in range(16, last + 1, 16):
                arbiter.push(lease.lease_id, kv_token_budget=tokens)
            until(lambda: budget.limit == last)
            assert admitted.wait(GUARD_S)
            stop.set()
            assert all(each.result(GUARD_S) <= last for each in schedulers)
        assert (budget.resident, budget.unfinished) == (0, 0)


@pytest.mark.parametrize(
    ("share", "granted"),
    [
        (LAYOUT.share(min_tokens=160, max_tokens=1600), 1600),
        (LAYOUT.share(min_tokens=160), 160),
        (LAYOUT.share(), 0),
    ],
)
def test_in_memory_arbiter_grants_what_the_engine_may_have_until_told_otherwise(
    share: arbiter_service_pb2.KvShare, granted: int
) -> None:
    with (
        InMemoryArbiter() as arbiter,
        arbiter.blocking_client() as client,
        client.lease("engine", memory=1, workload_type="llm", kv=share) as lease,
    ):
        assert KvBudget(lease).limit == granted
        assert arbiter.applied(lease.lease_id).kv is None


def test_budget_is_refused_when_the_lease_was_not_asked_for_with_kv() -> None:
    with (
        InMemoryArbiter() as arbiter,
        arbiter.blocking_client() as client,
        client.lease("engine", memory=1, workload_type="llm") as lease,
        pytest.raises(ValueError, match="has no KV token budget"),
    ):
        KvBudget(lease)
