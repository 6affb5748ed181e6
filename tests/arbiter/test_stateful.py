"""The whole core under every order of commands that a machine can think of, against an oracle that keeps its own books.

``ARBITER_STATEFUL_EXAMPLES`` and ``ARBITER_STATEFUL_STEPS`` make the search longer; without them it takes seconds.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from arbiter_sidecar import errors
from arbiter_sidecar.arbiter import PreemptionConfig, QueueConfig
from arbiter_sidecar.ledger.waiting import Waiter
from arbiter_sidecar.policy.preemption import Rules
from arbiter_sidecar.policy.quality import QualityPolicy
from arbiter_sidecar.requests import AllocationRequest, PreemptionRequest, ReclaimAck
from arbiter_sidecar.types import (
    DeviceId,
    Priority,
    ReportOutcome,
    Verdict,
    WorkloadType,
)
from tests.arbiter.desk import LINEAR, Desk, gib, taking, wish
from tests.arbiter.lease_oracle import BOX, CARD, SIZES, Oracle, Truth
from tests.arbiter.preemption_oracle import REVOKE_HOLD_S, SETTLE_S, Watch

PIDS = (1, 2, 3, 4)
KINDS = (
    (WorkloadType.LLM_INFERENCE, Priority.NORMAL),
    (WorkloadType.LLM_INFERENCE, Priority.HIGH),
    (WorkloadType.IMAGE_GENERATION, Priority.NORMAL),
    (WorkloadType.IMAGE_GENERATION, Priority.BACKGROUND),
    (WorkloadType.VIDEO_GENERATION, Priority.LOW),
    (WorkloadType.OTHER, Priority.CRITICAL),
)
PLACES: tuple[tuple[str, tuple[int, ...]], ...] = (
    (CARD, (1,)),
    (CARD, (2,)),
    (CARD, (3, 4)),
    (CARD, ()),
    (BOX, (4,)),
    ("", (4,)),
    ("", ()),
)
GUARD_S = 5.5


class Machine(RuleBasedStateMachine, Oracle):
    """Everything that can happen to an arbiter with a measured card and a box on which nothing is measured."""

    def __init__(self) -> None:
        RuleBasedStateMachine.__init__(self)
        Oracle.__init__(self)

    @initialize(
        policy=st.sampled_from((QualityPolicy.ADAPTIVE, *QualityPolicy)),
        guarded=st.booleans(),
        crowd=st.lists(st.sampled_from((2.0, 6.0, 9.0, 12.0)), min_size=1, max_size=3),
        line=st.sampled_from(((math.inf, 0), (4.0, 0), (4.0, 2))),
        gap=st.sampled_from((2, 1)),
    )
    def begin(
        self, policy: QualityPolicy, guarded: bool, crowd: list[float], line: tuple[float, int], gap: int
    ) -> None:
        """An arbiter with two devices, and some who hold leases on the card."""
        guard = GUARD_S if guarded else 0.0
        self.aging, self.backfill = line
        self.watch = Watch(gap)
        config = replace(
            LINEAR,
            policy=policy,
            pause_guard_s=guard,
            max_leases=12,
            max_waiting=4,
            queue=QueueConfig(aging_s=self.aging, backfill=self.backfill),
            preemption=PreemptionConfig(rules=Rules(gap=gap, revoke_hold_s=REVOKE_HOLD_S), settle_s=SETTLE_S),
        )
        self.desk = Desk(config)
        self.guard = guard
        self.desk.card(SIZES[CARD], CARD)
        self.desk.box(SIZES[BOX], BOX)
        self.sampled_at = self.desk.now
        self.seen = len(self.desk.effects)
        for pid, size in enumerate(crowd, start=1):
            self.want(wish("w", size, pids=(pid,), device=CARD, ttl=12.0, wait=20.0, priority=Priority(pid)))

    # What callers do --------------------------------------------------------------------------------------------------

    @rule(
        size=st.sampled_from((4.0, 7.0, 9.0, 14.0, 0.5, 20.0)),
        kind=st.sampled_from(KINDS),
        bounds=st.sampled_from(((None, 1.0), (0.3, 1.0), (0.6, 0.8), (1.0, 1.0), (0.0, 1.0))),
        place=st.sampled_from(PLACES),
        request_id=st.sampled_from(("", "", "", "r")),
        wait=st.sampled_from((20.0, 0.0, 60.0)),
        life=st.sampled_from(((12.0, 0.0), (3.0, 0.0), (3.0, 20.0))),
        delivered=st.sampled_from((True, True, True, False)),
        rights=st.sampled_from(((True, False), (True, True), (False, True))),
    )
    def allocate(
        self,
        size: float,
        kind: tuple[WorkloadType, Priority],
        bounds: tuple[float | None, float],
        place: tuple[str, tuple[int, ...]],
        request_id: str,
        wait: float,
        life: tuple[float, float],
        delivered: bool,
        rights: tuple[bool, bool],
    ) -> None:
        """A request of any kind."""
        request = wish(
            "w",
            size,
            workload=kind[0],
            priority=kind[1],
            min_quality=bounds[0],
            max_quality=bounds[1],
            device=place[0],
            pids=place[1],
            request_id=request_id,
            wait=wait,
            ttl=life[0],
            window=life[1],
            preemptible=rights[0],
            may_preempt=rights[1],
        )
        self.want(request, delivered)

    def want(self, request: AllocationRequest, delivered: bool = True) -> None:
        """One request: a dry run before it leaves no trace, and an error changes nothing."""
        due = self.desk.arbiter.next_deadline()
        current = due is None or due > self.desk.now
        before = self.desk.picture()
        try:
            dry = self.desk.arbiter.dry_run(request, self.desk.now)
        except errors.ArbiterError:
            dry = None
        assert self.desk.picture() == before
        known = self.desk.books.by_request.get(("default", request.request_id))
        joined = known.tickets[0] if isinstance(known, Waiter) else None
        try:
            ticket = self.desk.ask(request)
        except errors.ArbiterError:
            assert self.desk.picture() == before
            return
        assert ticket not in self.arrival
        self.arrival[ticket] = ticket if joined is None else self.arrival[joined]
        waiter = self.desk.books.queue.of(ticket)
        name = waiter.name if waiter is not None else ""
        self.asked[ticket] = (request, self.desk.now, name) if joined is None else self.asked[joined]
        self.waiting[ticket] = self.desk.now + request.wait_s
        self.look()
        if known is None and current:
            assert (ticket in self.closed and ticket in self.granted) is (dry is not None and dry.fits)
        if delivered and ticket in self.granted:
            self.desk.arbiter.delivered(ticket)

    @rule(choice=st.integers(0, 9))
    def cancel(self, choice: int) -> None:
        """A caller goes away, whether it has its answer or not."""
        tickets = [*self.waiting, *self.granted]
        if not tickets:
            return
        ticket = tickets[choice % len(tickets)]
        self.desk.cancel(ticket)
        self.waiting.pop(ticket, None)
        self.closed.add(ticket)
        self.look()

    @precondition(lambda self: any(truth.residue is None for truth in self.truths.values()))
    @rule(choices=st.sets(st.integers(0, 5), max_size=3))
    def beat(self, choices: set[int]) -> None:
        """Heartbeats by handle, of the living and of the dead."""
        truths = list(self.truths.values())[-6:]
        chosen = [truths[choice] for choice in sorted(choices) if choice < len(truths)]
        due = {truth.lease.handle for truth in chosen if self.dead(truth)}
        bad = {result.handle for result in self.desk.beat(*(truth.lease for truth in chosen)) if result.lease is None}
        assert bad == due
        for truth in chosen:
            if truth.lease.handle not in due:
                self.heard(truth)
        self.look()

    @precondition(lambda self: any(truth.residue is None for truth in self.truths.values()))
    @rule(
        choice=st.integers(0, 5),
        outcome=st.sampled_from(ReportOutcome),
        lie=st.sampled_from((0, 0, 0, -1, 1)),
        wrong_fence=st.sampled_from((False, False, False, True)),
        achievable=st.sampled_from((None, 0.35, 0.7, 0.95, 1.0)),
        busy=st.sampled_from((0.0, 0.0, 9.0)),
        ack=st.sampled_from((None, None, False, True)),
    )
    def report(
        self,
        choice: int,
        outcome: ReportOutcome,
        lie: int,
        wrong_fence: bool,
        achievable: float | None,
        busy: float,
        ack: bool | None,
    ) -> None:
        """A report, true or not."""
        self.say(self.pick(choice), outcome, lie, wrong_fence, achievable, busy, ack)

    def say(
        self,
        truth: Truth,
        outcome: ReportOutcome = ReportOutcome.APPLIED,
        lie: int = 0,
        wrong_fence: bool = False,
        achievable: float | None = None,
        busy: float = 0.0,
        ack: bool | None = None,
    ) -> None:
        """One report, and what it means."""
        lease = truth.lease
        order = lease.reclaim if ack is not None else None
        acks = () if order is None else (ReclaimAck(reclaim_id=order.reclaim_id, done=bool(ack)),)
        given = order is not None and ack is True and not order.whole
        dead, told, limit = self.dead(truth), lease.revision, lease.limit_bytes
        applied = lease.applied_revision
        result = self.desk.report(
            lease,
            outcome,
            revision=told + lie,
            fence=lease.fence + wrong_fence,
            achievable=achievable,
            busy=busy,
            acks=acks,
        )
        assert (result.verdict is Verdict.RENEWED) is not (dead or wrong_fence)
        if result.verdict is Verdict.RENEWED:
            self.heard(truth)
            if busy and lease.request.processes:
                truth.quiet_until = max(truth.quiet_until, self.desk.now + busy)
            news = lie == 0 and told > applied
            if order is not None or (news and outcome is not ReportOutcome.DEFERRED):
                self.watch.answered(lease)
            if given:
                truth.promised = limit
            if news and outcome in (ReportOutcome.APPLIED, ReportOutcome.NONE):
                truth.promised, truth.over = limit, False
        self.look()

    @precondition(lambda self: bool(self.truths))
    @rule(choice=st.integers(0, 9), wrong=st.sampled_from((False, False, True)))
    def release(self, choice: int, wrong: bool) -> None:
        """A release, with the right fence or a wrong one, once or again."""
        truth = self.pick(choice)
        lease = truth.lease
        if not wrong:
            self.let_go(truth)
        else:
            before = self.desk.picture()
            with pytest.raises(errors.Fenced):
                self.desk.arbiter.release(lease.lease_id, lease.fence + 1, self.desk.now)
            assert self.desk.picture() == before

    def let_go(self, truth: Truth) -> None:
        """A release, and another."""
        assert self.desk.release(truth.lease) is self.dead(truth)
        assert not truth.lease.alive
        self.look()
        assert self.desk.release(truth.lease)

    @rule(
        choice=st.integers(-1, 5),
        need=st.sampled_from((1.0, 3.0, 6.0, 12.0)),
        priority=st.sampled_from((None, None, *Priority)),
        partial=st.booleans(),
        grace=st.sampled_from((2.0, 0.4)),
    )
    def preempt(self, choice: int, need: float, priority: Priority | None, partial: bool, grace: float) -> None:
        """Somebody has memory taken from others: a lease, or a person."""
        truths = list(self.truths.values())[-6:]
        lease = truths[choice].lease if 0 <= choice < len(truths) else None
        asked = taking(need, lease, priority, "" if lease is not None else CARD, partial, grace)
        before = self.desk.picture()
        try:
            self.desk.arbiter.dry_preempt(asked, self.desk.now)
        except errors.ArbiterError:
            assert self.desk.picture() == before
        assert self.desk.picture() == before
        self.take(asked, before)

    def take(self, asked: PreemptionRequest, before: bytes) -> None:
        """One preemption; an error changes nothing."""
        try:
            ticket = self.desk.arbiter.preempt(asked, self.desk.now)
        except errors.ArbiterError:
            assert self.desk.picture() == before
            return
        self.desk.collect()
        self.watch.tickets[ticket] = False
        self.look()

    @precondition(lambda self: bool(self.watch.tickets))
    @rule(choice=st.integers(0, 3))
    def withdraw(self, choice: int) -> None:
        """The caller of a preemption goes away, whether it has its answer or not."""
        ticket = list(self.watch.tickets)[-1 - choice % len(self.watch.tickets)]
        self.desk.withdraw(ticket)
        self.watch.tickets[ticket] |= ticket not in self.desk.closed
        self.look()

    # What the machine does --------------------------------------------------------------------------------------------

    @rule(mishap=st.sampled_from(("exit", "stream", "failure", "drain", "lost")), choice=st.integers(0, 3))
    def befall(self, mishap: str, choice: int) -> None:
        """What happens now and then."""
        desk = self.desk
        if mishap == "exit":
            self.exited.add(PIDS[choice])
            desk.exit(PIDS[choice])
        elif mishap == "stream":
            desk.arbiter.confirm([f"lease-{choice}"], desk.now)
        elif mishap == "failure":
            desk.arbiter.sample_failed(DeviceId(CARD), "no answer", desk.now)
        elif mishap == "drain" and len(self.truths) > 6:
            desk.arbiter.drain(desk.now)
            self.draining = True
        elif mishap == "lost" and choice == 0:
            desk.sample({}, lost=True, name=CARD)
            self.sampled_at, self.foreign = None, 0
        desk.collect()
        self.look()
        if mishap == "drain":
            assert not (self.draining and self.waiting)

    @rule(seconds=st.sampled_from((1, 3, 7)), ghosts=st.booleans())
    def behave(self, seconds: int, ghosts: bool) -> None:
        """For some seconds everybody applies, beats and holds what was told; the dead let go, or do not."""
        for _ in range(seconds):
            for truth in list(self.truths.values()):
                if not self.dead(truth):
                    self.say(truth, ack=True)
                if truth.lease.leaving and not ghosts:
                    self.let_go(truth)
            self.measure([1.0] * len(PIDS), ghosts=ghosts)
            self.pass_time(1.0)

    @rule(
        shares=st.lists(st.sampled_from((0.0, 0.3, 0.9, 1.0, 1.0, 1.3, None)), min_size=4, max_size=4),
        foreign=st.sampled_from((0.0, 0.0, 1.0, 6.0, 20.0)),
        age=st.sampled_from((0.0, 0.0, 0.0, 0.5, 3.0)),
        blind=st.sampled_from((False, False, False, True)),
        ghosts=st.booleans(),
    )
    def observe(self, shares: list[float | None], foreign: float, age: float, blind: bool, ghosts: bool) -> None:
        """A sample of the card: honest, lying, unreadable or late."""
        self.measure(shares, foreign, age, blind, ghosts)

    def measure(
        self,
        shares: Sequence[float | None],
        foreign: float = 0.0,
        age: float = 0.0,
        blind: bool = False,
        ghosts: bool = False,
    ) -> None:
        """One sample, and what it means; every process holds a share of what its leases were told."""
        desk = self.desk
        held: dict[int, float | None] = {}
        for pid, share in zip(PIDS, shares, strict=True):
            limits = [
                truth.lease.limit_bytes
                for truth in self.truths.values()
                if truth.lease.device_id == CARD and pid in truth.lease.request.pids
                if truth.residue is None or (ghosts and not truth.drained)
            ]
            held[pid] = None if share is None else sum(limits) * share / gib(1)
        taken_at = max(0.0, desk.now - age)
        before = {name: truth.lease.measured_bytes for name, truth in self.truths.items()}
        limits_before = {name: truth.lease.limit_bytes for name, truth in self.truths.items()}
        desk.sample(held, foreign=None if blind else foreign, taken_at=taken_at, name=CARD)
        if not blind:
            self.sampled_at, self.foreign = taken_at, gib(foreign)
        for name, truth in self.truths.items():
            readable = all(held[pid] is not None for pid in truth.lease.request.pids) and truth.lease.request.pids
            if truth.lease.device_id != CARD or truth.drained:
                continue
            if not readable:
                assert truth.lease.measured_bytes == before[name], "not knowing is no measurement"
            elif truth.residue is None:
                self.measured(truth, limits_before[name])
            elif taken_at >= truth.lease.ended_at:
                self.measured_after_end(truth, taken_at)
        self.look()

    @precondition(lambda self: not self.guard)
    @rule(seconds=st.sampled_from((0.2, 3.0)))
    def be_late(self, seconds: float) -> None:
        """Time passes, and nobody has looked yet what is due."""
        self.desk.now += seconds

    @rule(seconds=st.sampled_from((0.1, 1.0, 2.5, 5.0, 6.0, 31.0)))
    def advance(self, seconds: float) -> None:
        """Time passes."""
        self.pass_time(seconds)

    def pass_time(self, seconds: float) -> None:
        """What is due by then is done, however long the arbiter was away."""
        now = self.desk.now + seconds
        seconds = now - self.desk.now
        if self.guard and seconds > self.guard and any(truth.residue is None for truth in self.truths.values()):
            for truth in self.truths.values():
                truth.beat_at += seconds
                truth.quiet_until += seconds
            self.watch.delayed(seconds)
        self.desk.at(now)
        self.look()
        due = self.desk.arbiter.next_deadline()
        assert due is None or due > now
        assert all(not self.dead(truth) for truth in self.truths.values() if truth.residue is None)
        assert all(deadline > now for deadline in self.waiting.values() if deadline <= self.patience())
        for device in self.desk.books.devices.values():
            plan = device.plan
            assert plan is None or plan.deadline > now
            assert plan is None or plan.requester is None or plan.requester.deadline > now

    @invariant()
    def nothing_is_lost(self) -> None:
        """Whatever has happened, the books are those of the oracle."""
        self.prove()


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=int(os.environ.get("ARBITER_STATEFUL_EXAMPLES", "30")),
    stateful_step_count=int(os.environ.get("ARBITER_STATEFUL_STEPS", "40")),
    derandomize="ARBITER_STATEFUL_EXAMPLES" not in os.environ,
    deadline=None,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
