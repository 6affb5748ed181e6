"""KV budgets, reservations and loans under every order of commands that a machine can think of.

``ARBITER_STATEFUL_EXAMPLES`` and ``ARBITER_STATEFUL_STEPS`` make the search longer; without them it takes seconds.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from arbiter_sidecar import errors
from arbiter_sidecar.arbiter import ArbiterConfig
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.requests import KvUsage, ReclaimAck
from arbiter_sidecar.types import Priority, Ticket
from tests.arbiter.kv_oracle import Known, KvOracle, Wanted
from tests.arbiter.kv_stage import KvDesk, lending, sharing, usage

TOTAL = 1000
AMOUNTS = st.sampled_from((1, 40, 100, 250, 600, 1000))


class Machine(RuleBasedStateMachine):
    """Engines on one device."""

    desk: KvDesk
    oracle: KvOracle
    config: ArbiterConfig

    @initialize(permille=st.sampled_from((1000, 1000, 600)), weights=st.lists(st.sampled_from((1, 3)), max_size=3))
    def begin(self, permille: int, weights: list[int]) -> None:
        """A device, and some who work on it already."""
        self.permille = permille
        self.config = sharing(TOTAL, permille)
        self.start(KvDesk(self.config))
        for number, weight in enumerate(weights):
            self.register(weight, 0, None, 1, Priority(2 * number + 1), 30.0)
        for known in list(self.oracle.engines.values()):
            self.say(known, usage(100, freeable=100, running=known.lease.request.priority))

    def start(self, desk: KvDesk) -> None:
        """An arbiter begins that knows nothing."""
        self.desk = desk
        self.oracle = KvOracle(desk, TOTAL, self.permille)

    def pick(self, choice: int) -> Known:
        """One of the engines."""
        engines = list(self.oracle.engines.values())
        return engines[choice % len(engines)]

    def refuses(self, command: Callable[[], Ticket]) -> Ticket | None:
        """The ticket of a command; an error changes nothing."""
        before = self.desk.picture()
        try:
            return command()
        except errors.ArbiterError:
            assert self.desk.picture() == before
            return None

    # Engines ----------------------------------------------------------------------------------------------------------

    @rule(
        weight=st.sampled_from((1, 1, 3, 100)),
        floor=st.sampled_from((0, 0, 100, 333)),
        cap=st.sampled_from((None, None, 300, 0)),
        block=st.sampled_from((1, 1, 10, 16)),
        priority=st.sampled_from(Priority),
        ttl=st.sampled_from((12.0, 30.0)),
    )
    def register(self, weight: int, floor: int, cap: int | None, block: int, priority: Priority, ttl: float) -> None:
        """A new engine."""
        if len(self.oracle.engines) >= 6 or floor + self.desk.book.floors > TOTAL:
            return
        if cap is not None:
            floor = min(floor, cap)
        revision = self.desk.books.leases.total
        lease = self.desk_engine(weight, floor, cap, block, priority, ttl)
        assert self.desk.books.leases.total == revision + 1
        assert lease.alive

    def desk_engine(
        self, weight: int, floor: int, cap: int | None, block: int, priority: Priority, ttl: float
    ) -> Lease:
        """Enters an engine into the oracle's books before its first budget is looked at."""
        lease = self.desk.engine(weight, floor=floor, cap=cap, block=block, priority=priority, ttl=ttl)
        assert lease.request.kv is not None
        self.oracle.engines[lease.lease_id] = Known(lease, lease.request.kv)
        self.oracle.look()
        return lease

    @precondition(lambda self: bool(self.oracle.engines))
    @rule(
        choice=st.integers(0, 5),
        active=st.sampled_from((True, True, False)),
        demand=st.sampled_from((None, None, 0, 100, 400, 1000)),
        resident=st.sampled_from((0, 1, 37, 200, 500, 900, 5000)),
        freeable=st.sampled_from((0, 0, 50, 1000)),
        running=st.sampled_from(Priority),
        applied=st.sampled_from((True, True, True, False)),
        acked=st.booleans(),
    )
    def report(
        self,
        choice: int,
        active: bool,
        demand: int | None,
        resident: int,
        freeable: int,
        running: Priority,
        applied: bool,
        acked: bool,
    ) -> None:
        """An engine says anything, true or not."""
        said = usage(resident, active=active, demand=demand, freeable=freeable, running=running)
        self.say(self.pick(choice), said, applied=applied, acked=acked)

    @precondition(lambda self: bool(self.oracle.engines))
    @rule(choice=st.integers(0, 5))
    def beat(self, choice: int) -> None:
        """A heartbeat that says nothing."""
        self.desk.beat(self.pick(choice).lease)
        self.oracle.look()

    def say(self, known: Known, said: KvUsage | None = None, *, applied: bool = True, acked: bool = False) -> None:
        """One report, and what it means."""
        order = self.desk.state(known.lease).order
        acks = (ReclaimAck(reclaim_id=order.reclaim_id, done=True),) if acked and order is not None else ()
        revision = known.lease.revision if applied else 0
        self.oracle.heard(known, said, max(revision, known.lease.applied_revision))
        self.desk.say(known.lease, said, revision=revision, acks=acks)
        self.oracle.look()

    @precondition(lambda self: bool(self.oracle.engines))
    @rule(choice=st.integers(0, 5))
    def release(self, choice: int) -> None:
        """An engine goes; its tokens are shared in the same command."""
        self.desk.release(self.pick(choice).lease)
        self.oracle.look()

    @rule(rounds=st.integers(1, 3))
    def behave(self, rounds: int) -> None:
        """Everybody does what it was told and keeps no more; after some rounds each has exactly its part."""
        for _ in range(3 * rounds):
            for known in list(self.oracle.engines.values()):
                within = min(known.budget, self.oracle.resident(known))
                said = known.usage
                if said is not None:
                    self.say(
                        known,
                        usage(
                            within,
                            active=said.active,
                            demand=said.demand_tokens,
                            freeable=said.freeable_tokens,
                            running=said.lowest_running_priority,
                        ),
                    )
                else:
                    self.say(known)
        overdrawn = any(self.oracle.resident(known) > known.budget for known in self.oracle.engines.values())
        if rounds == 3 and not overdrawn and self.desk.book.plan is None:
            told = {lease_id: known.budget for lease_id, known in self.oracle.engines.items()}
            assert told == self.oracle.targets(exactly=False)

    # Reservations -----------------------------------------------------------------------------------------------------

    @precondition(lambda self: bool(self.oracle.engines))
    @rule(
        choice=st.integers(0, 5),
        tokens=AMOUNTS,
        wait=st.sampled_from((0.0, 3.0, 30.0)),
        request_id=st.sampled_from(("", "", "r")),
    )
    def reserve(self, choice: int, tokens: int, wait: float, request_id: str) -> None:
        """An engine reserves, now or later, once or again."""
        known = self.pick(choice)
        expected = Ticket(self.desk.arbiter._tickets + 1)
        self.oracle.wanted[expected] = Wanted(known.lease, tokens, self.desk.now + wait, request_id)
        ticket = self.refuses(lambda: self.desk.reserve(known.lease, tokens, wait=wait, request_id=request_id))
        if ticket is None:
            del self.oracle.wanted[expected]
        else:
            assert ticket == expected
        self.oracle.look()

    @precondition(lambda self: bool(self.oracle.wanted))
    @rule(choice=st.integers(0, 9))
    def complete(self, choice: int) -> None:
        """A reservation is returned, once or again."""
        wanted = list(self.oracle.wanted.values())[-1 - choice % len(self.oracle.wanted)]
        if not wanted.reservation_id or not wanted.lease.alive:
            return
        self.desk.complete(wanted.reservation_id)
        self.oracle.returned(wanted.reservation_id)
        self.oracle.look()

    @precondition(lambda self: bool(self.oracle.wanted))
    @rule(choice=st.integers(0, 9))
    def abandon(self, choice: int) -> None:
        """The caller of a reservation goes away, before it has its answer."""
        ticket = list(self.oracle.wanted)[-1 - choice % len(self.oracle.wanted)]
        wanted = self.oracle.wanted[ticket]
        if ticket in self.desk.answers or wanted.gone:
            return
        wanted.gone = wanted.closed = True
        self.desk.abandon(ticket)
        self.oracle.look()

    # Loans ------------------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.oracle.engines) > 1)
    @rule(
        choice=st.integers(0, 5),
        need=AMOUNTS,
        partial=st.booleans(),
        grace=st.sampled_from((None, 0.5)),
        request_id=st.sampled_from(("", "", "r")),
        waited=st.sampled_from((0.0, 1.0)),
    )
    def lend(self, choice: int, need: int, partial: bool, grace: float | None, request_id: str, waited: float) -> None:
        """An engine asks for tokens of others, mostly the most important."""
        self.pass_time(waited)
        if not self.oracle.engines:
            return
        ranked = sorted(self.oracle.engines.values(), key=lambda each: -each.lease.request.priority)
        lease = ranked[max(0, choice - 3) % len(ranked)].lease
        asked = lending(need, lease, partial=partial, grace=grace, request_id=request_id)
        before = self.desk.picture()
        try:
            chosen = self.desk.arbiter.dry_preempt(asked, self.desk.now)
        except errors.ArbiterError:
            assert self.desk.picture() == before
        else:
            self.oracle.lent_from_the_lowest_and_no_more_than_needed(asked, chosen)
        expected = Ticket(self.desk.arbiter._tickets + 1)
        self.oracle.asked[expected] = True
        ticket = self.refuses(lambda: self.desk.lend(need, lease, partial=partial, grace=grace, request_id=request_id))
        if ticket is None:
            del self.oracle.asked[expected]
        self.oracle.look()

    @precondition(lambda self: any(self.oracle.asked.values()))
    @rule(choice=st.integers(0, 3))
    def withdraw(self, choice: int) -> None:
        """The caller of a request for tokens goes away."""
        waiting = [ticket for ticket, open_still in self.oracle.asked.items() if open_still]
        ticket = waiting[choice % len(waiting)]
        self.oracle.asked[ticket] = False
        self.desk.withdraw(ticket)
        assert ticket not in self.desk.closed
        self.oracle.look()

    # Time -------------------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from((0.5, 1.0, 2.0, 6.0, 31.0, 901.0)))
    def advance(self, seconds: float) -> None:
        """Time passes; the silent end, and what is abandoned returns."""
        self.pass_time(seconds)

    def pass_time(self, seconds: float) -> None:
        """In steps, so that what is due in between is looked at one thing after the other."""
        until = self.desk.now + seconds
        while self.desk.now < until:
            due = self.desk.arbiter.next_deadline()
            self.desk.at(until if due is None else min(until, max(due, self.desk.now)))
            self.oracle.look()
            if due is None or due >= until:
                break
        self.desk.at(until)
        self.oracle.look()

    @precondition(lambda self: bool(self.oracle.engines))
    @rule()
    def restart(self) -> None:
        """The arbiter dies, and another begins; engines of before are unknown to it."""
        former = [known.lease for known in self.oracle.engines.values()]
        old = self.desk
        self.start(KvDesk(self.config, epoch=old.arbiter.epoch + 1, now=old.now))
        self.desk.books.names = old.books.names
        for lease in former:
            with pytest.raises(errors.LeaseNotFound):
                self.desk.reserve(lease, 1)
        self.oracle.look()

    @invariant()
    def every_law_holds(self) -> None:
        """After every step."""
        self.oracle.laws()
        waits = {ticket for asked in self.desk.books.asks.waiting.values() for ticket in asked.tickets}
        if self.desk.book.plan is not None:
            waits |= set(self.desk.book.plan.asked.tickets)
        assert waits == {ticket for ticket, open_still in self.oracle.asked.items() if open_still}


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=int(os.environ.get("ARBITER_STATEFUL_EXAMPLES", "24")),
    stateful_step_count=int(os.environ.get("ARBITER_STATEFUL_STEPS", "40")),
    derandomize="ARBITER_STATEFUL_EXAMPLES" not in os.environ,
    deadline=None,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
