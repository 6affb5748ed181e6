"""The whole core under every order of commands that a machine can think of, against an oracle that keeps its own books.

``ARBITER_STATEFUL_EXAMPLES`` and ``ARBITER_STATEFUL_STEPS`` make the search longer; without them it takes seconds.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from arbiter_sidecar import errors
from arbiter_sidecar.arbiter import PreemptionConfig, QueueConfig
from arbiter_sidecar.policy.preemption import Rules
from arbiter_sidecar.policy.quality import QualityPolicy
from arbiter_sidecar.requests import Beat, Report
from arbiter_sidecar.types import (
    DeviceId,
    Priority,
    ReportOutcome,
    Verdict,
    WorkloadType,
)
from tests.arbiter.desk import LINEAR, Desk, gib, taking, wish
from tests.arbiter.lease_oracle import BOX, CARD, SIZES
from tests.arbiter.preemption_oracle import REVOKE_HOLD_S, SETTLE_S, Watch
from tests.arbiter.world_oracle import PIDS, World

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


class Machine(RuleBasedStateMachine, World):
    """Everything that can happen to an arbiter with a measured card and a box on which nothing is measured."""

    def __init__(self) -> None:
        RuleBasedStateMachine.__init__(self)
        World.__init__(self)

    @initialize(
        policy=st.sampled_from((QualityPolicy.ADAPTIVE, *QualityPolicy)),
        guarded=st.booleans(),
        crowd=st.lists(st.sampled_from((2.0, 6.0, 9.0, 12.0)), min_size=2, max_size=3),
        line=st.sampled_from(((math.inf, 0), (4.0, 0), (4.0, 2))),
        gap=st.sampled_from((2, 1)),
        held=st.sampled_from((0, 2, 4)),
    )
    def begin(
        self, policy: QualityPolicy, guarded: bool, crowd: list[float], line: tuple[float, int], gap: int, held: int
    ) -> None:
        """An arbiter with two devices, and some who hold leases on the card."""
        guard = GUARD_S if guarded else 0.0
        self.aging, self.backfill = line
        self.watch = Watch(gap)
        self.config = replace(
            LINEAR,
            policy=policy,
            pause_guard_s=guard,
            max_leases=12,
            max_waiting=4,
            queue=QueueConfig(aging_s=self.aging, backfill=self.backfill),
            preemption=PreemptionConfig(rules=Rules(gap=gap, revoke_hold_s=REVOKE_HOLD_S), settle_s=SETTLE_S),
        )
        self.guard = guard
        self.start(Desk(self.config))
        for pid, size in enumerate(crowd, start=1):
            priority = Priority(2 * pid - 1)
            request = wish("w", size, pids=(pid,), device=CARD, ttl=12.0, wait=20.0, priority=priority)
            self.want(replace(request, request_id=f"crowd-{pid}"))
        if held:
            self.behave(held, ghosts=False)

    # What callers do --------------------------------------------------------------------------------------------------

    @rule(
        size=st.sampled_from((4.0, 7.0, 9.0, 14.0, 0.5, 20.0)),
        kind=st.sampled_from(KINDS),
        bounds=st.sampled_from(((None, 1.0), (1.0, 1.0), (0.3, 1.0), (0.6, 0.8), (1.0, 1.0), (0.0, 1.0))),
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

    @precondition(lambda self: any(truth.lease.request.request_id for truth in self.truths.values()))
    @rule(choice=st.integers(0, 5), seen=st.booleans())
    def retry(self, choice: int, seen: bool) -> None:
        """A holder asks again as it did, because the answer was lost; its processes may have died since."""
        named = [truth.lease.request for truth in self.truths.values() if truth.lease.request.request_id]
        request = named[choice % len(named)]
        self.want(request if seen else replace(request, processes=()))

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
        self.gone_callers.add(ticket)
        self.look()

    @precondition(lambda self: any(truth.residue is None for truth in self.truths.values()))
    @rule(choices=st.sets(st.integers(0, 5), max_size=3), on_its_way_s=st.sampled_from((0.0, 0.0, 0.4)))
    def beat(self, choices: set[int], on_its_way_s: float) -> None:
        """Heartbeats by handle, of the living and of the dead."""
        truths = list(self.truths.values())[-6:]
        chosen = [truths[choice] for choice in sorted(choices) if choice < len(truths)]
        due = {truth.lease.handle for truth in chosen if self.dead(truth)}
        results = self.desk.beat(*(truth.lease for truth in chosen))
        bad = {result.handle: result for result in results if result.lease is None}
        for truth in chosen:
            verdict = Verdict.FENCED if truth.lease.handle in bad else Verdict.RENEWED
            self.only_the_living_are_renewed(truth, truth.lease.handle in due, verdict)
        for truth in chosen:
            if truth.lease.handle not in due:
                self.heard(truth, on_its_way_s)
        self.look()
        for truth in chosen:
            if truth.lease.handle in due:
                self.dead_are_fenced_with_their_reason(truth, bad[truth.lease.handle])

    @precondition(lambda self: any(truth.residue is None for truth in self.truths.values()))
    @rule(
        choice=st.integers(0, 5),
        outcome=st.sampled_from(ReportOutcome),
        lie=st.sampled_from((0, 0, 0, -1, 1)),
        wrong_fence=st.sampled_from((False, False, False, True)),
        achievable=st.sampled_from((None, 0.35, 0.7, 0.95, 1.0)),
        busy=st.sampled_from((0.0, 0.0, 9.0)),
        ack=st.sampled_from((None, None, False, True)),
        freed=st.sampled_from((0.0, 0.0, 0.5, 3.0)),
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
        freed: float,
    ) -> None:
        """A report, true or not."""
        self.say(self.pick(choice), outcome, lie, wrong_fence, achievable, busy, ack, freed)

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

    @precondition(lambda self: any(truth.lease.device_id == CARD for truth in self.truths.values()))
    @rule(choice=st.integers(0, 5))
    def lie(self, choice: int) -> None:
        """A holder says that it has applied and given back everything, and holds what it held."""
        truth = self.pick(choice)
        lease = truth.lease
        if lease.device_id != CARD or not lease.request.processes or truth.drained:
            return
        kept, liar = truth.charge, lease.request.processes[0].pid
        self.say(truth, ack=True)
        self.measure([1.0] * len(PIDS), ghosts=True, keeping={liar: kept})
        self.a_lie_frees_nothing(liar, kept)

    @precondition(lambda self: sum(truth.residue is None for truth in self.truths.values()) > 1)
    @rule(
        choice=st.sampled_from((0, 0, 0, 1, 5, -1)),
        need=st.sampled_from((0.5, 1.0, 3.0, 6.0, 12.0)),
        priority=st.sampled_from((None, None, None, *Priority)),
        partial=st.booleans(),
        grace=st.sampled_from((2.0, 0.4)),
    )
    def preempt(self, choice: int, need: float, priority: Priority | None, partial: bool, grace: float) -> None:
        """Somebody has memory taken from others: a lease, the most important first, or a person."""
        truths = sorted(self.truths.values(), key=lambda each: (not each.lease.alive, -each.lease.request.priority))
        lease = truths[choice].lease if 0 <= choice < len(truths) else None
        plan = self.desk.device(CARD).plan
        if plan is not None and priority is None:
            lease = plan.requester
        elif lease is None and priority is None:
            priority = Priority.CRITICAL
        self.ask_for(taking(need, lease, priority, "" if lease is not None else CARD, partial, grace))

    @precondition(lambda self: sum(truth.residue is None for truth in self.truths.values()) > 1)
    @rule(
        needs=st.lists(st.sampled_from((0.25, 0.5, 3.0, 9.0)), min_size=1, max_size=3),
        partial=st.booleans(),
        obey=st.sampled_from((0, 1, 1)),
        back=st.booleans(),
    )
    def press(self, needs: list[float], partial: bool, obey: int, back: bool) -> None:
        """The most important lease takes from others that have been held for a while; they obey, or do not.

        In the end the least important tries to take something back.
        """
        for place, need in enumerate(needs):
            self.behave(2, ghosts=False)
            living = [truth.lease for truth in self.truths.values() if truth.residue is None]
            ranked = sorted(living, key=lambda lease: lease.request.priority)
            if ranked:
                self.ask_for(taking(need, ranked[0 if back and place else -1], partial=partial))
            if obey:
                self.behave(obey, ghosts=False)

    @rule(
        sizes=st.lists(st.sampled_from((0.5, 2.0, 6.0, 14.0)), min_size=2, max_size=4),
        priority=st.sampled_from((Priority.HIGH, Priority.NORMAL)),
        may_preempt=st.booleans(),
    )
    def queue_up(self, sizes: list[float], priority: Priority, may_preempt: bool) -> None:
        """Several want what cannot shrink, the first of them for itself at any price; then everybody behaves."""
        for place, size in enumerate(sizes):
            request = wish("w", size, rigid=True, device=CARD, pids=(4,), ttl=12.0, wait=20.0, priority=priority)
            self.want(replace(request, may_preempt=may_preempt and place == 0))
        self.behave(2, ghosts=False)

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
            self.survivors.pop(PIDS[choice], None)
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
            self.ceilings[CARD] = gib(SIZES[CARD])
        desk.collect()
        self.look()
        if mishap == "drain":
            assert not (self.draining and self.waiting)

    @rule(growth=st.lists(st.sampled_from((2.0, 5.0, 9.0)), min_size=1, max_size=3), obey=st.booleans())
    def strangers_grow(self, growth: list[float], obey: bool) -> None:
        """Strangers take more and more of the card; the holders give way, or do not."""
        for number in range(len(growth)):
            if obey:
                for truth in [each for each in self.truths.values() if not self.dead(each)]:
                    self.say(truth, ack=True)
            self.measure([1.0] * len(PIDS), foreign=sum(growth[: number + 1]))
            self.pass_time(0.5)

    @precondition(lambda self: any(truth.residue is None for truth in self.truths.values()))
    @rule(measured=st.booleans())
    def restart(self, measured: bool) -> None:
        """The arbiter dies and another begins, which forgets every lease but must not repeat a fence.

        Processes live on with what they hold, as strangers of the new one.
        """
        for pid in PIDS:
            held = [truth for truth in self.on_card(pid) if not truth.drained]
            self.survivors[pid] = self.survivors.get(pid, 0) + sum(truth.lease.limit_bytes for truth in held)
        self.former = [*self.former, *(truth.lease for truth in self.truths.values())][-8:]
        old = self.desk
        self.forget()
        self.watch = Watch(self.watch.gap)
        desk = Desk(self.config, epoch=old.arbiter.epoch + 1, now=old.now)
        desk.books.names = old.books.names
        self.start(desk)
        self.former_are_not_found()
        if measured:
            self.measure([1.0] * len(PIDS))

    @precondition(lambda self: bool(self.former))
    @rule(choice=st.integers(0, 7), how=st.sampled_from(("beat", "report", "release", "preempt")))
    def return_from_before(self, choice: int, how: str) -> None:
        """The holder of a lease that an earlier arbiter gave out calls; nothing comes of it."""
        lease = self.former[choice % len(self.former)]
        now, arbiter = self.desk.now, self.desk.arbiter
        if how == "beat":
            arbiter.heartbeat(Beat(handles=(lease.handle,)), now)
        elif how == "report":
            arbiter.heartbeat(Beat(reports=(Report(lease_id=lease.lease_id, fence=lease.fence),)), now)
        elif how == "release":
            with pytest.raises(errors.LeaseNotFound):
                arbiter.release(lease.lease_id, lease.fence, now)
        else:
            with pytest.raises((errors.LeaseNotFound, errors.ShuttingDown)):
                arbiter.preempt(taking(1.0, lease), now)
        self.desk.collect()
        self.look()
        self.former_are_not_found()

    @rule(seconds=st.sampled_from((1, 3, 7)), ghosts=st.booleans())
    def behave(self, seconds: int, ghosts: bool) -> None:
        """For some seconds everybody applies, beats and holds what was told; the dead let go, or do not."""
        if not ghosts:
            self.survivors.clear()
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

    @precondition(lambda self: not self.guard)
    @rule(seconds=st.sampled_from((0.2, 3.0)))
    def be_late(self, seconds: float) -> None:
        """Time passes, and nobody has looked yet what is due."""
        self.desk.now += seconds

    @rule(seconds=st.sampled_from((0.1, 1.0, 2.5, 5.0, 6.0, 31.0)))
    def advance(self, seconds: float) -> None:
        """Time passes."""
        self.pass_time(seconds)


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
