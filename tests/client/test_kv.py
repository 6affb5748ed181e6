"""The token budget of an engine: what its scheduler may do now, and what the arbiter hears of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbiter.v1 import arbiter_service_pb2, lease_pb2
from arbiter_client import HeldLease, KvBudget, reports, terms
from arbiter_client.directive import Directive
from arbiter_client.holding import Contact, Holding
from tests.thorough import examples

TTL = 15.0
Usage = arbiter_service_pb2.KvUsage


class Engine:
    """A lease whose arbiter and clock are the test's."""

    def __init__(self, budget: int | None = 1000, *, block_tokens: int = 1) -> None:
        self.now = 100.0
        self.revision = 1
        lease = lease_pb2.Lease(lease_id="l", fence=1, handle=1, ttl=terms.duration(TTL))
        self.held = Holding(
            lease,
            self._directive(budget),
            sent_at=self.now,
            startup_window=0.0,
            contact=Contact(self.now),
            clock=self.clock,
            on_report=lambda _: None,
        )
        self.lease = HeldLease(self.held)
        self.budget = KvBudget(self.lease, block_tokens=block_tokens, clock=self.clock)

    def clock(self) -> float:
        return self.now

    def told(self, budget: int | None) -> None:
        """The arbiter sends a directive."""
        self.revision += 1
        self.held.obey(self._directive(budget))

    def heard(self) -> Usage | None:
        """What the next heartbeat would carry; once."""
        report: reports.Report | None = self.held.take_report()
        self.held.report_delivered()
        return None if report is None else report.kv

    def _directive(self, budget: int | None) -> Directive:
        return Directive(
            lease_id="l", revision=self.revision, quality=1.0, memory_limit_bytes=1, kv_token_budget=budget, epoch=1
        )


def test_limit_is_that_of_the_newest_directive() -> None:
    engine = Engine(1000)
    assert engine.budget.limit == 1000
    engine.told(0)
    assert engine.budget.limit == 0
    engine.told(400)
    assert engine.budget.limit == 400
    engine.told(None)
    assert engine.budget.limit == 0


def test_limit_is_nothing_when_the_lease_is_over() -> None:
    engine = Engine(1000)
    request = engine.budget.try_admit(600)
    assert request is not None
    engine.held.end("PREEMPTED")
    assert (engine.budget.limit, engine.budget.free(), engine.budget.over()) == (0, 0, 600)
    assert engine.budget.try_admit(1) is None
    assert not request.try_resize(601)
    request.finish()
    assert (engine.budget.over(), engine.budget.unfinished) == (0, 0)


def test_limit_is_nothing_when_time_has_run_out_and_no_thread_has_run_yet() -> None:
    engine = Engine(1000)
    engine.now = engine.held.lost_at
    assert engine.budget.limit == 0
    assert engine.held.end_reason == "EXPIRED"


def test_budget_is_refused_when_the_lease_or_the_block_has_none() -> None:
    with pytest.raises(ValueError, match=r"no KV token budget; ask for it with kv="):
        Engine(None)
    with pytest.raises(ValueError, match="block_tokens 0 is below 1"):
        Engine(block_tokens=0)


def test_what_is_over_shows_when_the_budget_shrinks_and_goes_when_requests_end() -> None:
    engine = Engine(1000)
    first, second = engine.budget.try_admit(600), engine.budget.try_admit(300)
    assert first is not None
    assert second is not None
    assert (engine.budget.free(), engine.budget.over()) == (100, 0)
    engine.told(500)
    assert (engine.budget.free(), engine.budget.over()) == (0, 400)
    assert engine.budget.try_admit(1) is None
    second.requeue()
    assert (engine.budget.over(), engine.budget.resident, engine.budget.demand) == (100, 600, 900)
    first.finish()
    assert (engine.budget.over(), engine.budget.free()) == (0, 500)
    assert second.try_admit()
    assert "300 of 500 tokens resident, 1 requests" in repr(engine.budget)


def test_an_engine_with_its_own_books_asks_about_what_it_counted() -> None:
    engine = Engine(1000, block_tokens=16)
    assert [engine.budget.free(resident) for resident in (0, 1, 900, 985, 1000, 5000)] == [992, 992, 96, 0, 0, 0]
    assert [engine.budget.over(resident) for resident in (0, 1000, 1001)] == [0, 0, 1]
    for ask in (engine.budget.free, engine.budget.over):
        with pytest.raises(ValueError, match="-1 tokens cannot be resident"):
            ask(-1)


@examples(200)
@given(
    limit=st.integers(0, 400),
    block=st.sampled_from([1, 16, 7]),
    before=st.lists(st.integers(1, 90), max_size=6),
    tokens=st.integers(1, 400),
    later=st.integers(0, 400),
)
def test_free_is_exactly_what_can_be_admitted(
    limit: int, block: int, before: list[int], tokens: int, later: int
) -> None:
    engine = Engine(limit, block_tokens=block)
    for size in before:
        engine.budget.try_admit(size)
    assert engine.budget.resident <= limit
    engine.told(later)
    free = engine.budget.free()
    assert free % block == 0
    assert not (free and engine.budget.over())
    assert engine.budget.resident + free <= later + engine.budget.over()
    assert (engine.budget.try_admit(tokens) is not None) is (tokens <= free)


def test_usage_is_what_the_requests_add_up_to() -> None:
    engine = Engine(1000)
    assert engine.budget.usage() == Usage(demand_tokens=0)
    high = engine.budget.try_admit(100, priority="high")
    low = engine.budget.try_admit(200, priority="low")
    also_low = engine.budget.try_admit(50, priority="low")
    waiting = engine.budget.queue(400, priority="background")
    assert high is not None
    assert low is not None
    assert also_low is not None
    assert engine.budget.usage() == Usage(
        active=True,
        resident_tokens=350,
        demand_tokens=750,
        lowest_running_priority=lease_pb2.Priority.PRIORITY_LOW,
        freeable_tokens=250,
    )
    low.finish()
    also_low.requeue()
    assert engine.budget.usage() == Usage(
        active=True,
        resident_tokens=100,
        demand_tokens=550,
        lowest_running_priority=lease_pb2.Priority.PRIORITY_HIGH,
        freeable_tokens=100,
    )
    high.finish()
    assert engine.budget.usage() == Usage(active=True, demand_tokens=450)
    waiting.finish()
    also_low.finish()
    assert engine.budget.usage() == Usage(demand_tokens=0)


def test_usage_can_be_said_when_requests_claim_more_than_a_message_can() -> None:
    engine = Engine(2**63 - 1)
    requests = [engine.budget.queue(1) for _ in range(2)]
    for request in requests:
        request.record(2**63 - 1)
    assert engine.budget.usage().demand_tokens == 2**63 - 1
    for request in requests:
        request.record(1)
        assert request.try_admit()
    for request in requests:
        request.record(2**63 - 1)
    usage = engine.budget.usage()
    assert (usage.resident_tokens, usage.freeable_tokens, usage.demand_tokens) == (2**63 - 1,) * 3
    assert engine.budget.over() == 2**63 - 1
    assert engine.budget.tell()
    for request in requests:
        request.finish()
    assert (engine.budget.demand, engine.budget.unfinished) == (0, 0)


def test_work_and_its_end_are_told_without_being_asked() -> None:
    engine = Engine(1000)
    assert engine.heard() is None
    waiting = engine.budget.queue(500)
    assert engine.heard() == Usage(active=True, demand_tokens=500)
    assert waiting.try_admit()
    assert engine.heard() is None, "in the next round"
    waiting.finish()
    assert engine.heard() == Usage(demand_tokens=0)
    request = engine.budget.try_admit(200)
    assert request is not None
    heard = engine.heard()
    assert heard is not None
    assert (heard.active, heard.resident_tokens) == (True, 200)


def test_tell_says_something_only_when_something_changed() -> None:
    engine = Engine(1000)
    assert engine.budget.tell()
    assert engine.heard() == Usage(demand_tokens=0)
    engine.now += TTL * 0.9
    assert not engine.budget.tell()
    assert engine.heard() is None


def test_tell_waits_for_a_beat_when_the_change_is_small() -> None:
    engine = Engine(1000)
    request = engine.budget.try_admit(400)
    assert request is not None
    engine.heard()
    request.record(420)
    assert not engine.budget.tell()
    engine.now += TTL / 3 - 0.1
    assert not engine.budget.tell()
    engine.now += 0.1
    assert engine.budget.tell()
    heard = engine.heard()
    assert heard is not None
    assert (heard.resident_tokens, heard.demand_tokens, heard.freeable_tokens) == (420, 420, 420)
    assert not engine.budget.tell()


def counted(
    *,
    active: bool = True,
    resident: int = 400,
    demand: int | None = 600,
    lowest: lease_pb2.Priority.ValueType = lease_pb2.Priority.PRIORITY_NORMAL,
    freeable: int = 100,
) -> Usage:
    """What an engine with books of its own has counted."""
    return Usage(
        active=active,
        resident_tokens=resident,
        demand_tokens=demand,
        lowest_running_priority=lowest,
        freeable_tokens=freeable,
    )


@pytest.mark.parametrize(
    "changed",
    [
        counted(resident=421),
        counted(resident=379),
        counted(demand=631),
        counted(demand=None),
        counted(freeable=94),
        counted(freeable=0),
        counted(active=False),
        counted(lowest=lease_pb2.Priority.PRIORITY_LOW),
    ],
)
def test_tell_does_not_wait_when_the_change_matters(changed: Usage) -> None:
    engine = Engine(1000)
    assert engine.budget.tell(counted())
    assert engine.heard() == counted()
    assert not engine.budget.tell(counted(resident=420))
    assert engine.budget.tell(changed)
    assert engine.heard() == changed


def test_tell_does_not_wait_when_a_demand_of_nothing_becomes_unknown() -> None:
    engine = Engine(1000)
    assert engine.budget.tell(counted(demand=0))
    assert engine.budget.tell(counted(demand=None))


def test_tell_does_not_wait_when_a_small_change_drains_what_was_over() -> None:
    engine = Engine(1000)
    request = engine.budget.try_admit(1000)
    assert request is not None
    engine.heard()
    engine.told(970)
    assert engine.budget.tell(), "it is over now"
    request.record(980)
    assert not engine.budget.tell()
    request.record(970)
    assert engine.budget.tell()
    heard = engine.heard()
    assert heard is not None
    assert heard.resident_tokens == 970


def test_nothing_is_told_when_the_lease_is_over() -> None:
    engine = Engine(1000)
    engine.held.end("REVOKED")
    with engine.budget.queue(100):
        engine.budget.tell()
    assert engine.heard() is None
    assert engine.budget.unfinished == 0
