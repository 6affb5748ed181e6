"""What a lease, a ticket and a device must be by all that was ever said and measured, kept in books of its own.

The oracle remembers what was promised and not yet confirmed, what was measured, who beat when, and which ticket was
answered how; with that it can tell when bytes are promised twice, when a lease ends too early, when a ticket is lost,
and when authority comes back from the dead. It outlives the arbiter: what a restart must not undo is kept here too.

What must hold at the moment of an event is checked here, in a method that says what; what must hold always is in
``invariant_oracle``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from arbiter_sidecar import errors
from arbiter_sidecar.arbiter import effects
from arbiter_sidecar.ledger.devices import DeviceRules
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.policy import capacity, ranking
from arbiter_sidecar.requests import AllocationRequest
from arbiter_sidecar.types import EndReason, EventKind, PressureLevel, Priority, Ticket
from tests.arbiter.desk import Desk, gib
from tests.arbiter.preemption_oracle import Watch

CARD, BOX = "gpu", "box"
SIZES = {CARD: 16.0, BOX: 8.0}
RULES = DeviceRules()
#: A shape that is cut off at a refused quality keeps its line but for the rounding of its ends.
ROUNDING = 2


@dataclass(slots=True)
class Truth:
    """What the oracle knows of one lease.

    Attributes:
        lease: The lease, of which it reads names, limit and measurement only.
        promised: The most that the holder may rightly be using: everything it was told since the last confirmation.
        beat_at: When it last gave a valid sign of life.
        asked_at: When its holder last asked again for what it had not got.
        quiet_until: Until when silence was agreed.
        revision: Of the newest directive.
        limit: What it was told last, by the events that say so.
        told_at: When its target was moved, or it was ordered to give a part; samples from before that prove nothing.
        over: It was measured above its limit since it was told.
        residue: What is held for it after its end; ``None`` while it lives.
        zeros: When nothing was measured of it after the end, since something was.
        drained: Its bytes were declared gone.
        client_stops: When its holder, who counts from before it sends, takes the lease for lost.
        directive: What it was told with its newest revision: quality, limit, and the order to give memory back.
    """

    lease: Lease
    promised: int
    beat_at: float
    asked_at: float
    quiet_until: float
    revision: int
    limit: int
    told_at: float
    over: bool = False
    residue: int | None = None
    zeros: list[float] = field(default_factory=list)
    drained: bool = False
    client_stops: float = 0.0
    directive: tuple[float, int, str] | None = None

    @property
    def deadline(self) -> float:
        """When it ends without another sign of life."""
        return max(max(self.beat_at, self.asked_at) + self.lease.request.ttl_s, self.quiet_until)

    @property
    def charge(self) -> int:
        """What must be left alone for its sake."""
        if self.drained:
            return 0
        if self.residue is not None:
            return self.residue
        return max(self.promised, self.lease.measured_bytes or 0)


def directive_of(lease: Lease) -> tuple[float, int, str]:
    """What the holder of a lease is told at present."""
    return lease.quality, lease.limit_bytes, "" if lease.reclaim is None else lease.reclaim.reclaim_id


class Oracle:
    """The books, and what each effect means for them."""

    #: The arbiter it watches.
    desk: Desk
    #: The line's span of aging and how often its head may be passed.
    aging: float
    backfill: int
    #: What it knows of preemptions.
    watch: Watch

    def __init__(self) -> None:
        self.fences: dict[str, int] = {}
        self.former: list[Lease] = []
        self.survivors: dict[int, int] = {}
        self.forget()

    def forget(self) -> None:
        """An arbiter begins that knows nothing; what must outlive the one before stays."""
        self.truths: dict[str, Truth] = {}
        self.waiting: dict[Ticket, float] = {}
        self.arrival: dict[Ticket, int] = {}
        self.asked: dict[Ticket, tuple[AllocationRequest, float, str]] = {}
        self.closed: set[Ticket] = set()
        self.gone_callers: set[Ticket] = set()
        self.sampled_at: float | None = None
        self.foreign = 0
        self.ceilings = {name: gib(size) for name, size in SIZES.items()}
        self.levels = dict.fromkeys(SIZES, PressureLevel.LOW)
        self.ends: Counter[EndReason] = Counter()
        self.reductions = 0
        self.raises = 0
        self.seen = 0
        self.revision = 0
        self.draining = False
        self.exited: set[int] = set()

    @property
    def granted(self) -> list[Ticket]:
        """The tickets that were answered with a lease, and whose callers were not heard of since."""
        return [
            ticket
            for ticket, outcomes in self.desk.outcomes.items()
            if isinstance(outcomes[0], effects.Granted) and ticket in self.desk.books.undelivered
        ]

    def pick(self, choice: int) -> Truth:
        """One of the newest leases."""
        truths = list(self.truths.values())[-6:]
        return truths[choice % len(truths)]

    def patience(self) -> float:
        """Until when deadlines are known: who joins a request waits as long as the most patient of its callers."""
        joined = [waiter for waiter in self.desk.books.queue if len(waiter.tickets) > 1]
        return -1.0 if joined else float("inf")

    def dead(self, truth: Truth) -> bool:
        """Whether a lease has ended, or must be taken to have."""
        deadline = truth.deadline
        return truth.residue is not None or deadline <= self.desk.now

    def heard(self, truth: Truth, on_its_way_s: float = 0.0) -> None:
        """A valid heartbeat, which its holder sent so long ago."""
        truth.beat_at = self.desk.now
        sent_at = truth.beat_at - on_its_way_s
        truth.client_stops = max(truth.client_stops, sent_at + truth.lease.request.ttl_s)

    def claimed(self, before: Mapping[str, int | None]) -> int:
        """What a sample has shown for the first time of leases, of whom nothing was measured ``before``."""
        unread = (self.truths[name] for name, found in before.items() if found is None)
        return sum(truth.lease.measured_bytes or 0 for truth in unread if truth.lease.device_id == CARD)

    def ceiling_follows(self, claimed: int) -> None:
        """A sample came: the ceiling falls at once and rises by a quarter of the gap to what is known of strangers.

        At once as well by what of their fall was ``claimed`` by leases: that was no stranger that let go for a moment.
        """
        found = max(0, gib(SIZES[CARD]) - self.foreign)
        known = min(found, self.ceilings[CARD] + claimed) if found > self.ceilings[CARD] else self.ceilings[CARD]
        near = found <= known or found - known < capacity.SNAP_BYTES
        self.ceilings[CARD] = found if near else known + (found - known) // 4

    def measured(self, truth: Truth, limit: int, taken_at: float) -> None:
        """A living lease was measured: a fall to its limit confirms that, if it was measured after it was told."""
        found = truth.lease.measured_bytes
        assert found is not None
        if taken_at < truth.told_at:
            return
        if found > limit:
            truth.over = True
        elif truth.over:
            truth.over, truth.promised = False, limit

    def measured_after_end(self, truth: Truth, taken_at: float) -> None:
        """An ended lease was measured: only what is seen counts, and nothing is believed only after a while."""
        found = truth.lease.measured_bytes
        assert found is not None
        if found > 0:
            truth.residue, truth.zeros = found, []
        else:
            truth.zeros.append(taken_at)

    def look(self) -> None:
        """Takes in the effects since the last look; grants and rises must have had their bytes."""
        fresh, self.seen = self.desk.effects[self.seen :], len(self.desk.effects)
        promised_on: set[str] = set()
        for effect in fresh:
            if isinstance(effect, effects.Ended):
                self.ended(effect.lease)
            elif isinstance(effect, effects.Drained):
                self.bytes_return_only_by_measurement(effect.lease)
            elif isinstance(effect, effects.Happened) and effect.kind is EventKind.LEASE_GRANTED:
                promised_on |= self.opened(effect)
            elif isinstance(effect, effects.DirectiveChanged):
                promised_on |= self.told(effect.lease)
            elif isinstance(effect, effects.Granted | effects.Refused):
                self.every_ticket_is_answered_once(effect)
            elif isinstance(effect, effects.Happened):
                self.counted(effect)
                promised_on |= self.moved(effect)
        for truth in self.truths.values():
            self.watch.each_freed_byte_is_credited_once(truth.lease)
        charges = {name: truth.charge for name, truth in self.truths.items()}
        for name in SIZES:
            self.watch.confirmed_is_what_the_books_show(self.desk.device(name), charges)
            self.watch.orders_add_up_to_the_need(self.desk.device(name))
        self.watch.batches.clear()
        for name in promised_on:
            self.accounted_within_usable_at_each_grant(name)

    def opened(self, event: effects.Happened) -> set[str]:
        """A new lease: a new fence, and a promise on its device; of nothing where its quality may be 0."""
        lease = self.desk.books.leases.get(event.lease_id)
        assert lease is not None
        # It may have been told less in the same command, when the next in the queue was let in.
        promised = int(event.fields["memory_bytes"])
        self.fences_grow_across_restarts(lease)
        assert lease.lease_id not in self.truths
        now, window = self.desk.now, lease.request.startup_window_s
        truth = self.truths[lease.lease_id] = Truth(lease, promised, now, now, now + window, 0, promised, now)
        truth.client_stops = now + max(lease.request.ttl_s, window)
        truth.directive = directive_of(lease)
        assert not self.draining
        return {lease.device_id} if promised else set()

    def moved(self, event: effects.Happened) -> set[str]:
        """An event moves the limit of a lease, or says something of a preemption; a credit is a promise."""
        truth, now = self.truths.get(event.lease_id), self.desk.now
        if truth is None:
            self.watch.happened(event, None, 0, 0, now)
            return set()
        credited = int(event.fields.get("credited_bytes", "0")) > 0
        if event.kind is EventKind.QUALITY_CHANGED or credited:
            truth.limit = int(event.fields["memory_limit_bytes"])
        if credited:
            # It may have been told less in the same command, when its new size was shared out.
            truth.promised = max(truth.promised, truth.limit)
        part = event.kind is EventKind.RECLAIM_REQUESTED and event.fields["whole"] == "False"
        if part:
            truth.limit -= int(event.fields["memory_bytes"])
        if part or event.kind is EventKind.QUALITY_CHANGED:
            truth.told_at = now
        if part or credited or event.kind is EventKind.QUALITY_CHANGED:
            truth.over = (truth.lease.measured_bytes or 0) > truth.limit
        self.watch.happened(event, truth.lease, truth.charge, truth.limit, now)
        return {truth.lease.device_id} if credited else set()

    def fences_grow_across_restarts(self, lease: Lease) -> None:
        """A new lease has a fence above every earlier one of its device, whichever arbiter gave those out."""
        assert lease.fence > self.fences.get(lease.device_id, 0)
        self.fences[lease.device_id] = lease.fence

    def counted(self, event: effects.Happened) -> None:
        """What events say of targets and of pressure is counted, to be compared with the counters."""
        if event.kind is EventKind.QUALITY_CHANGED:
            lower = float(event.fields["quality"]) < float(event.fields["before"])
            self.reductions += lower
            self.raises += not lower
        elif event.kind is EventKind.PRESSURE_CHANGED:
            self.each_crossing_is_told_once(event)

    def each_crossing_is_told_once(self, event: effects.Happened) -> None:
        """The level that an event leaves is the one that the event before it came to, and it is another one."""
        before, after = PressureLevel[event.fields["before"]], PressureLevel[event.fields["pressure_level"]]
        assert before is self.levels[event.device_id]
        assert after is not before
        self.levels[event.device_id] = after

    def told(self, lease: Lease) -> set[str]:
        """A directive: newer than every earlier one of the lease; a rise is a promise too."""
        truth = self.truths[lease.lease_id]
        rises = truth.residue is None and lease.limit_bytes > truth.promised
        if lease.revision > truth.revision:
            truth.revision = lease.revision
            truth.promised = max(truth.promised, lease.limit_bytes)
        truth.directive = directive_of(lease)
        assert lease.revision == truth.revision
        return {lease.device_id} if rises else set()

    def every_ticket_is_answered_once(self, effect: effects.Granted | effects.Refused) -> None:
        """A ticket gets one answer, and none after its caller has gone."""
        assert effect.ticket not in self.closed
        del self.waiting[effect.ticket]
        self.closed.add(effect.ticket)
        if isinstance(effect, effects.Granted):
            assert effect.lease.lease_id in self.truths
            if effect.already_granted:
                self.truths[effect.lease.lease_id].asked_at = self.desk.now
            else:
                self.nobody_is_overtaken(effect.ticket, effect.lease.device_id)
        elif isinstance(effect.error, errors.WaitTimeout):
            assert int(effect.error.metadata()["waited_ms"]) > 0

    def nobody_is_overtaken(self, ticket: Ticket, name: str) -> None:
        """Nobody who can go nowhere else is passed by one of lower rank, unless others were made to go for that."""
        asked, since, called = self.asked.get(ticket, (None, 0.0, ""))
        if self.backfill or asked is None or called in self.watch.named:
            return
        mine = (-self.tier(asked.priority, since), self.arrival[ticket])
        for waiter in self.desk.books.queue:
            if waiter.request.device_id == name and waiter.name not in self.watch.named:
                other = (-self.tier(waiter.request.priority, waiter.since), self.arrival[waiter.tickets[0]])
                assert mine < other

    def tier(self, priority: Priority, since: float) -> Priority:
        """With which tier somebody counts by now."""
        return ranking.effective_tier(priority, since=since, now=self.desk.now, aging_s=self.aging)

    def ended(self, lease: Lease) -> None:
        """An end: once, for a reason, not before its time; and not a byte comes free."""
        truth = self.truths[lease.lease_id]
        self.bytes_of_a_lease_leave_once(truth)
        assert lease.end_reason is not EndReason.NONE
        self.ends[lease.end_reason] += 1
        if lease.end_reason is EndReason.EXPIRED:
            self.no_expiry_before_ttl(truth)
        elif lease.end_reason is EndReason.ORPHANED:
            assert self.exited.issuperset(lease.request.pids)
        elif lease.end_reason is EndReason.PREEMPTED:
            self.watch.preempted(lease, self.desk.now)
        truth.residue = truth.charge

    @staticmethod
    def bytes_of_a_lease_leave_once(truth: Truth, *, drained: bool = False) -> None:
        """A lease ends once, and once after that its bytes are gone."""
        assert (truth.residue is not None) is drained
        assert not truth.drained

    def no_expiry_before_ttl(self, truth: Truth) -> None:
        """A lease ends by time only when its whole time to live has passed since its last valid heartbeat."""
        assert self.dead(truth)

    def bytes_return_only_by_measurement(self, lease: Lease) -> None:
        """Bytes are declared gone: measured so, or held for the lock delay where they could never be measured.

        Or they have not gone, and are from now on those of a new lease that names all the processes they belong to.
        """
        truth = self.truths[lease.lease_id]
        self.bytes_of_a_lease_leave_once(truth, drained=True)
        lost = lease.device_id == CARD and self.desk.device(CARD).lost
        if lease.measured_bytes is not None and not lost:
            many = len(truth.zeros) >= RULES.zero_samples
            if not many or truth.zeros[-1] - truth.zeros[0] < RULES.zero_span_s:
                heir = self.heir_of(lease)
                assert heir is not None
                assert (heir.measured_bytes or 0) >= truth.charge
        elif not lost:
            assert self.desk.now >= lease.ended_at + max(RULES.lock_delay_s, 2 * lease.request.ttl_s)
        truth.drained = True

    def heir_of(self, former: Lease) -> Lease | None:
        """The lease that is being granted in this command to all the processes of one that has ended."""
        named = frozenset(former.request.processes)
        fresh = (
            lease for lease in self.desk.device(former.device_id).live.values() if lease.lease_id not in self.truths
        )
        heirs = (lease for lease in fresh if named and named.issubset(lease.request.processes))
        return next(heirs, None)

    def accounted_within_usable_at_each_grant(self, name: str) -> None:
        """Whoever was promised something: with all that was promised, measured and foreign, it fits."""
        charges = sum(truth.charge for truth in self.truths.values() if truth.lease.device_id == name)
        foreign = self.foreign if name == CARD else 0
        assert charges + foreign + self.desk.device(name).earmarked_bytes <= gib(SIZES[name])
        if name == CARD:
            assert self.sampled_at is not None
            assert self.desk.now - self.sampled_at <= RULES.freeze_after_s, "nothing is promised blindly"
