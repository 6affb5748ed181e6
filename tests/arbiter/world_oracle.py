"""What callers, holders and the machine do to an arbiter, each act with what it means by the oracle's books."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from arbiter_sidecar import errors
from arbiter_sidecar.arbiter import ArbiterConfig
from arbiter_sidecar.ledger.waiting import Waiter
from arbiter_sidecar.requests import AllocationRequest, PreemptionRequest, ReclaimAck
from arbiter_sidecar.types import Attribution, ReportOutcome, Verdict
from tests.arbiter.desk import Desk, gib
from tests.arbiter.invariant_oracle import Invariants
from tests.arbiter.lease_oracle import BOX, CARD, SIZES, Truth

PIDS = (1, 2, 3, 4)


class World(Invariants):
    """An arbiter with a measured card and a box on which nothing is measured, and everybody around it."""

    #: Its settings, which a restart keeps.
    config: ArbiterConfig
    #: A longer gap between two calls is taken for a pause; 0: none is.
    guard: float

    def start(self, desk: Desk) -> None:
        """An arbiter finds its devices and measures what is on the card, which may be memory of nobody it knows."""
        self.desk = desk
        desk.add(CARD, SIZES[CARD], Attribution.PER_PROCESS)
        desk.box(SIZES[BOX], BOX)
        self.measure([1.0] * len(PIDS))

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
        same = self.truth_of(request)
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
        self.same_request_same_lease(same, ticket)
        if known is None and current:
            assert (ticket in self.closed and ticket in self.granted) is (dry is not None and dry.fits)
        if delivered and ticket in self.granted:
            self.desk.arbiter.delivered(ticket)

    def say(
        self,
        truth: Truth,
        outcome: ReportOutcome = ReportOutcome.APPLIED,
        lie: int = 0,
        wrong_fence: bool = False,
        achievable: float | None = None,
        busy: float = 0.0,
        ack: bool | None = None,
        freed: float = 0.0,
    ) -> None:
        """One report, and what it means; an order to give is answered with what was freed, in GiB, or as done."""
        lease = truth.lease
        order = lease.reclaim if ack is not None else None
        acks: tuple[ReclaimAck, ...] = ()
        if order is not None:
            acks = (ReclaimAck(reclaim_id=order.reclaim_id, freed_bytes=gib(freed), done=bool(ack)),)
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
        self.only_the_living_are_renewed(truth, dead or wrong_fence, result.verdict)
        if result.verdict is Verdict.RENEWED:
            self.heard(truth)
            if busy and lease.request.processes:
                truth.quiet_until = max(truth.quiet_until, self.desk.now + busy)
            news = lie == 0 and told > applied
            if order is not None or (news and outcome is not ReportOutcome.DEFERRED):
                self.watch.answered(lease)
            if order is not None and not order.whole:
                left = self.watch.left_by(lease, limit, None if ack else gib(freed))
                truth.promised = min(truth.promised, left)
            if news and outcome in (ReportOutcome.APPLIED, ReportOutcome.NONE):
                truth.promised, truth.over = limit, False
        self.look()

    def let_go(self, truth: Truth) -> None:
        """A release, and another."""
        assert self.desk.release(truth.lease) is self.dead(truth)
        assert not truth.lease.alive
        self.look()
        assert self.desk.release(truth.lease)

    def ask_for(self, asked: PreemptionRequest) -> None:
        """One preemption, after a dry run that leaves no trace and plans as the definition says."""
        before = self.desk.picture()
        try:
            chosen = self.desk.arbiter.dry_preempt(asked, self.desk.now)
        except errors.ArbiterError:
            assert self.desk.picture() == before
        else:
            self.lowest_give_first_and_nobody_more_than_needed(asked, chosen)
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

    def measure(
        self,
        shares: Sequence[float | None],
        foreign: float = 0.0,
        age: float = 0.0,
        blind: bool = False,
        ghosts: bool = False,
        keeping: Mapping[int, int] | None = None,
    ) -> None:
        """One sample, and what it means; every process holds a share of what its leases were told.

        What it held when an earlier arbiter died it holds still; ``keeping`` names who holds exactly so much instead.
        """
        desk = self.desk
        held: dict[int, float | None] = {}
        for pid, share in zip(PIDS, shares, strict=True):
            leases = [truth for truth in self.on_card(pid) if not truth.drained]
            limits = [truth.lease.limit_bytes for truth in leases if truth.residue is None or ghosts]
            kept = self.survivors.get(pid, 0)
            held[pid] = None if share is None else (sum(limits) * share + kept) / gib(1)
            if keeping is not None and pid in keeping:
                held[pid] = keeping[pid] / gib(1)
            elif not leases:
                # It is nobody's process, so what it kept is a stranger's.
                foreign += kept / gib(1)
        taken_at = max(0.0, desk.now - age)
        before = {name: truth.lease.measured_bytes for name, truth in self.truths.items()}
        limits_before = {name: truth.lease.limit_bytes for name, truth in self.truths.items()}
        desk.sample(held, foreign=None if blind else foreign, taken_at=taken_at, name=CARD)
        if not blind:
            fell = max(0, self.foreign - gib(foreign))
            self.sampled_at, self.foreign = taken_at, gib(foreign)
            self.ceiling_follows(min(fell, self.claimed(before)))
        for name, truth in self.truths.items():
            seen = truth.lease.request.processes
            readable = seen and all(held[each.pid] is not None for each in seen)
            if truth.lease.device_id != CARD or truth.drained:
                continue
            if not readable:
                assert truth.lease.measured_bytes == before[name], "not knowing is no measurement"
            elif truth.residue is None:
                self.measured(truth, limits_before[name], taken_at)
            elif taken_at >= truth.lease.ended_at:
                self.measured_after_end(truth, taken_at)
        self.look()

    def pass_time(self, seconds: float) -> None:
        """What is due by then is done, however long the arbiter was away."""
        now = self.desk.now + seconds
        seconds = now - self.desk.now
        if self.guard and seconds > self.guard and any(truth.residue is None for truth in self.truths.values()):
            for truth in self.truths.values():
                truth.beat_at += seconds
                truth.asked_at += seconds
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
