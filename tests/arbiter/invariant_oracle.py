"""What must always be true of the core, one method for each law, checked after every step of the state machine.

Laws about the moment of an event – a grant, an end, an order to give – are in ``lease_oracle`` and
``preemption_oracle``; both kinds are listed in the definitions.
"""

from __future__ import annotations

from hypothesis.stateful import invariant

from arbiter_sidecar.arbiter import BeatResult, effects
from arbiter_sidecar.policy import preemption
from arbiter_sidecar.policy.preemption import Candidate, Requester
from arbiter_sidecar.requests import AllocationRequest, Beat, PreemptionRequest, Report
from arbiter_sidecar.types import EndReason, EventKind, PressureLevel, Priority, Ticket, Verdict
from tests.arbiter.desk import gib, process
from tests.arbiter.lease_oracle import CARD, ROUNDING, SIZES, Oracle, Truth, directive_of
from tests.policy import preemption_oracle

#: Lower bounds of MODERATE, HIGH and CRITICAL, and how far below one the pressure must fall.
LEVELS, LEVEL_MARGIN = (0.5, 0.75, 0.9), 0.03


class Invariants(Oracle):
    """The laws, by name."""

    @invariant()
    def every_law_holds(self) -> None:
        """After every step each law is looked at by itself."""
        self.nothing_happens_without_an_effect()
        self.newest_directive_is_what_was_told()
        self.one_live_fence_for_each_lease()
        self.ended_never_lives_again()
        self.client_stops_before_the_server_does()
        self.nobody_outlives_its_deadline()
        self.granted_never_passes_the_capacity()
        self.figures_are_those_of_the_leases()
        self.counters_are_those_of_the_events()
        self.available_charged_draining_and_foreign_are_the_capacity()
        self.nothing_is_left_when_all_have_gone()
        self.pressure_is_what_is_promised_draining_and_foreign()
        self.level_is_that_of_the_pressure()
        self.every_request_has_one_outcome()
        self.heads_are_passed_a_bounded_number_of_times()
        self.told_stays_within_what_was_agreed()
        self.kept_bytes_have_an_open_plan()

    def on_card(self, pid: int) -> list[Truth]:
        """The leases on the card that name a process which could be seen when they did."""
        return [truth for truth in self.mine(CARD) if process(pid) in truth.lease.request.processes]

    def mine(self, name: str) -> list[Truth]:
        """The leases of a device."""
        return [truth for truth in self.truths.values() if truth.lease.device_id == name]

    # Leases -----------------------------------------------------------------------------------------------------------

    def one_live_fence_for_each_lease(self) -> None:
        """A lease keeps its one fence, no two have the same on a device, and each is of this epoch."""
        live = [truth.lease for truth in self.truths.values() if truth.residue is None]
        assert len({(lease.device_id, lease.fence) for lease in live}) == len({lease.lease_id for lease in live})
        assert all(lease.fence >> 32 == self.desk.arbiter.epoch for lease in live)
        assert all(lease.fence <= self.fences[lease.device_id] for lease in live)

    def ended_never_lives_again(self) -> None:
        """Who has ended is not alive, and no living lease bears any of its names."""
        books = self.desk.books
        for truth in self.truths.values():
            lease = truth.lease
            assert lease.alive is (truth.residue is None)
            if truth.residue is not None:
                assert books.leases.get(lease.lease_id) is (None if truth.drained else lease)
                assert books.leases.by_handle(lease.handle) is (None if truth.drained else lease)
                assert lease.fence not in books.device_of(lease).live

    @staticmethod
    def only_the_living_are_renewed(truth: Truth, dead: bool, verdict: Verdict) -> None:
        """Whoever lives is renewed, and nobody else."""
        assert truth.lease.alive or dead
        assert (verdict is Verdict.RENEWED) is not dead

    def dead_are_fenced_with_their_reason(self, truth: Truth, result: BeatResult) -> None:
        """The heartbeat of an ended lease is answered FENCED, and why it ended."""
        assert (result.verdict, result.end_reason) == (Verdict.FENCED, truth.lease.end_reason)

    def former_are_not_found(self) -> None:
        """A lease of an earlier arbiter is unknown to this one, by every name, so that its holder allocates anew."""
        handles = tuple(lease.handle for lease in self.former)
        reports = tuple(Report(lease_id=lease.lease_id, fence=lease.fence) for lease in self.former)
        before = self.desk.picture()
        outcome = self.desk.arbiter.heartbeat(Beat(handles=handles, reports=reports), self.desk.now)
        assert [result.verdict for result in outcome.results] == [Verdict.NOT_FOUND] * 2 * len(self.former)
        self.desk.books.stats.heartbeats -= 1
        assert self.desk.picture() == before

    def client_stops_before_the_server_does(self) -> None:
        """A holder that counts from before it sends takes its lease for lost no later than the arbiter does."""
        for truth in self.truths.values():
            if truth.residue is None:
                assert truth.client_stops <= truth.lease.deadline

    def nobody_outlives_its_deadline(self) -> None:
        """A lease whose deadline has passed is never renewed: it has ended, or ends before anything else happens."""
        for truth in self.truths.values():
            if truth.residue is None:
                assert abs(truth.lease.deadline - truth.deadline) < 1e-6

    def truth_of(self, request: AllocationRequest) -> Truth | None:
        """The living lease that an earlier call with the same request id has led to."""
        named = [
            truth
            for truth in self.truths.values()
            if request.request_id and truth.lease.request.request_id == request.request_id and not self.dead(truth)
        ]
        assert len(named) <= 1
        return named[0] if named else None

    def same_request_same_lease(self, same: Truth | None, ticket: Ticket) -> None:
        """A repeated request is answered with the lease of the first, as long as that lives."""
        if same is not None:
            (outcome,) = self.desk.outcomes.get(ticket, [None])
            assert isinstance(outcome, effects.Granted)
            assert outcome.already_granted
            assert (outcome.lease.lease_id, outcome.lease.fence) == (same.lease.lease_id, same.lease.fence)

    def newest_directive_is_what_was_told(self) -> None:
        """Whoever reads every directive ends with the newest: nothing changes without one, revisions only grow."""
        for truth in self.truths.values():
            if truth.residue is None:
                assert truth.lease.revision == truth.revision or not truth.revision
                assert truth.directive == directive_of(truth.lease)
                assert truth.limit == truth.lease.limit_bytes
        assert self.desk.books.revision >= self.revision
        self.revision = self.desk.books.revision

    def nothing_happens_without_an_effect(self) -> None:
        """Who lives and who drains is what the effects said, so that whoever keeps those knows everything."""
        opened: dict[str, effects.Effect] = {}
        draining: dict[str, effects.Effect] = {}
        for effect in self.desk.effects:
            if isinstance(effect, effects.Opened):
                opened[effect.lease.lease_id] = effect
            elif isinstance(effect, effects.Ended):
                draining[effect.lease.lease_id] = opened.pop(effect.lease.lease_id)
            elif isinstance(effect, effects.Drained):
                del draining[effect.lease.lease_id]
        for name in SIZES:
            book = self.desk.device(name)
            assert {lease.lease_id for lease in book.live.values()} <= opened.keys()
            assert {lease.lease_id for lease in book.ended.values()} <= draining.keys()
        assert len(opened) == len(self.desk.books.leases)
        assert len(opened) + len(draining) == self.desk.books.leases.total

    # Bytes ------------------------------------------------------------------------------------------------------------

    def granted_never_passes_the_capacity(self) -> None:
        """What living leases were promised together is never more than the device has."""
        for name, size in SIZES.items():
            promised = sum(truth.promised for truth in self.mine(name) if truth.residue is None)
            assert promised == self.desk.device(name).granted_bytes
            assert promised <= gib(size)

    def figures_are_those_of_the_leases(self) -> None:
        """Every sum that decisions are taken by is that of the leases, as far as they were told and measured."""
        for truth in self.truths.values():
            if truth.residue is None:
                assert truth.lease.charged_bytes == truth.promised
        for name in SIZES:
            book = self.desk.device(name)
            assert book.residue_bytes == sum(each.charge for each in self.mine(name) if each.residue is not None)
            assert book.accounted_bytes == sum(each.charge for each in self.mine(name) if each.residue is None)

    def counters_are_those_of_the_events(self) -> None:
        """Each counter is the number of the events that it counts."""
        stats = self.desk.books.stats
        released, expired = self.ends[EndReason.RELEASED], self.ends[EndReason.EXPIRED]
        assert (stats.released, stats.expired, stats.orphaned) == (released, expired, self.ends[EndReason.ORPHANED])
        assert (stats.reductions, stats.raises) == (self.reductions, self.raises)
        assert stats.events == sum(isinstance(each, effects.Happened) for each in self.desk.effects)

    def available_charged_draining_and_foreign_are_the_capacity(self) -> None:
        """Not a byte is lost or made: what is free is the ceiling less what is charged, draining and kept."""
        for name in SIZES:
            book = self.desk.device(name)
            taken = sum(truth.charge for truth in self.mine(name)) + book.earmarked_bytes
            assert book.ceiling_bytes == self.ceilings[name]
            assert book.available_bytes + taken == self.ceilings[name]
            assert (
                self.ceilings[name] <= gib(SIZES[name]) - (self.foreign if name == CARD else 0)
                or not book.ceiling_bytes
            )

    def nothing_is_left_when_all_have_gone(self) -> None:
        """What was lent and credited goes with the leases: an empty device is as it was at first."""
        for name in SIZES:
            book = self.desk.device(name)
            if all(truth.drained for truth in self.mine(name)):
                assert (book.granted_bytes, book.accounted_bytes, book.residue_bytes) == (0, 0, 0)
                assert (book.demand_bytes, book.below_best, book.earmarked_bytes) == (0, 0, 0)

    def a_lie_frees_nothing(self, pid: int, kept: int) -> None:
        """Whatever a holder says, what its process was seen to hold is charged to those who name it."""
        assert sum(truth.charge for truth in self.on_card(pid)) >= kept

    # Pressure ---------------------------------------------------------------------------------------------------------

    def pressure_is_what_is_promised_draining_and_foreign(self) -> None:
        """Pressure is read from the same books; its level was told, and is never below what the pressure demands."""
        for name in SIZES:
            book = self.desk.device(name)
            assert book.pressure == self.pressure_of(name)
            assert book.level is self.levels[name]
            assert book.level >= PressureLevel(1 + sum(book.pressure >= bound for bound in LEVELS))

    def level_is_that_of_the_pressure(self) -> None:
        """The level has fallen as well, at once, where the pressure is below its boundary by the margin."""
        for name in SIZES:
            held = sum(self.pressure_of(name) >= bound - LEVEL_MARGIN for bound in LEVELS)
            assert self.desk.device(name).level <= PressureLevel(1 + held)

    def pressure_of(self, name: str) -> float:
        """How full a device is, by what was told and measured."""
        taken = sum(each.promised if each.residue is None else each.charge for each in self.mine(name))
        return (taken + (self.foreign if name == CARD else 0)) / gib(SIZES[name])

    # The waiting line -------------------------------------------------------------------------------------------------

    def every_request_has_one_outcome(self) -> None:
        """Every caller waits, has one answer, or has gone; the counters say the same."""
        queue, stats = self.desk.books.queue, self.desk.books.stats
        assert all(queue.of(ticket) is not None for ticket in self.waiting)
        assert queue.callers == len(self.waiting)
        assert all(len(outcomes) == 1 for outcomes in self.desk.outcomes.values())
        answered = sum(ticket not in self.gone_callers for ticket in self.desk.outcomes)
        assert stats.granted + stats.refused + stats.timed_out == answered
        assert stats.requests == answered + stats.cancelled + len(self.waiting)

    def heads_are_passed_a_bounded_number_of_times(self) -> None:
        """Nobody starves: a blocked head is passed so often and no more, and only a line makes anybody wait."""
        queue = self.desk.books.queue
        assert all(waiter.passed <= self.backfill for waiter in queue)
        for name in SIZES:
            book = self.desk.device(name)
            assert len(queue) or not (book.awaited or book.candidate)

    # Quality and preemption -------------------------------------------------------------------------------------------

    def told_stays_within_what_was_agreed(self) -> None:
        """Nobody is told less than its minimum nor more than its maximum, and its bytes follow its quality."""
        for truth in self.truths.values():
            lease, shape = truth.lease, truth.lease.elastic
            assert shape.min_quality <= lease.quality <= shape.max_quality <= lease.request.max_quality
            if lease.alive:
                assert lease.limit_bytes >= shape.floor_bytes
                assert lease.limit_bytes >= shape.bytes_at(lease.quality) - ROUNDING
                given = lease.donated_at or lease.credit_bytes
                assert given or lease.limit_bytes <= shape.bytes_at(lease.quality)

    def lowest_give_first_and_nobody_more_than_needed(self, asked: PreemptionRequest, plan: preemption.Plan) -> None:
        """A plan is the one of the definition: all or nothing, from the lowest, exactly, nobody below its minimum."""
        lease = self.desk.books.leases.get(asked.lease_id)
        own = Priority.NORMAL if lease is None else lease.request.priority
        priority = own if asked.priority is None else asked.priority
        requester = Requester(priority=priority, lease_id=None if lease is None else lease.lease_id)
        name = asked.device_id if lease is None else lease.device_id
        candidates = [self._candidate(truth) for truth in self.mine(name) if truth.residue is None]
        candidates = [each for each in candidates if each.lease_id in plan.reasons]
        preemption_oracle.check(
            plan,
            candidates,
            requester,
            self.desk.now,
            self.desk.books.config.preemption.rules,
            allow_partial=asked.allow_partial,
        )

    def _candidate(self, truth: Truth) -> Candidate:
        lease = truth.lease
        orders = self.watch.orders.get(lease.lease_id, [])
        return Candidate(
            lease_id=lease.lease_id,
            priority=lease.request.priority,
            granted_at=lease.created_at,
            shrinkable=max(0, lease.limit_bytes - lease.elastic.floor_bytes),
            whole=truth.charge,
            preemptible=lease.request.preemptible,
            healthy=not lease.suspect,
            donated_at=tuple(order.at for order in orders),
            spared_until=lease.spared_until,
        )

    def kept_bytes_have_an_open_plan(self) -> None:
        """Bytes are kept for a requester that lives and has an open plan, and every caller of one has one answer."""
        self.watch.every_preemption_is_answered_once(self.desk)
        for name in SIZES:
            book = self.desk.device(name)
            assert book.plan is not None or not book.earmarked_bytes
        settled = self.desk.events(EventKind.PREEMPTION_SETTLED)
        enough = sum(event.fields["outcome"] == "enough" for event in settled)
        assert self.desk.books.stats.preemptions == enough
