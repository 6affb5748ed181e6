"""What a lease, a ticket and a device must be by all that was ever said and measured, kept in books of its own.

The oracle remembers what was promised and not yet confirmed, what was measured, who beat when, and which ticket was
answered how; with that it can tell when bytes are promised twice, when a lease ends too early, when a ticket is lost,
and when authority comes back from the dead.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from arbiter_sidecar import errors
from arbiter_sidecar.arbiter import effects
from arbiter_sidecar.ledger.devices import DeviceRules
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.policy import ranking
from arbiter_sidecar.requests import AllocationRequest
from arbiter_sidecar.types import EndReason, EventKind, Priority, Ticket
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
        quiet_until: Until when silence was agreed.
        revision: Of the newest directive.
        over: It was measured above its limit since it was told.
        residue: What is held for it after its end; ``None`` while it lives.
        zeros: When nothing was measured of it after the end, since something was.
        drained: Its bytes were declared gone.
    """

    lease: Lease
    promised: int
    beat_at: float
    quiet_until: float
    revision: int
    over: bool = False
    residue: int | None = None
    zeros: list[float] = field(default_factory=list)
    drained: bool = False

    @property
    def charge(self) -> int:
        """What must be left alone for its sake."""
        if self.drained:
            return 0
        if self.residue is not None:
            return self.residue
        return max(self.promised, self.lease.measured_bytes or 0)


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
        self.truths: dict[str, Truth] = {}
        self.waiting: dict[Ticket, float] = {}
        self.arrival: dict[Ticket, int] = {}
        self.asked: dict[Ticket, tuple[AllocationRequest, float, str]] = {}
        self.closed: set[Ticket] = set()
        self.fences: dict[str, int] = {}
        self.sampled_at: float | None = None
        self.foreign = 0
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
        deadline = max(truth.beat_at + truth.lease.request.ttl_s, truth.quiet_until)
        return truth.residue is not None or deadline <= self.desk.now

    def heard(self, truth: Truth) -> None:
        """A valid heartbeat."""
        truth.beat_at = self.desk.now

    def measured(self, truth: Truth, limit: int) -> None:
        """A living lease was measured: a fall to its limit confirms that."""
        found = truth.lease.measured_bytes
        assert found is not None
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
                self.gone(effect.lease)
            elif isinstance(effect, effects.Happened) and effect.kind is EventKind.LEASE_GRANTED:
                promised_on |= self.opened(effect)
            elif isinstance(effect, effects.DirectiveChanged):
                promised_on |= self.told(effect.lease)
            elif isinstance(effect, effects.Granted | effects.Refused):
                self.answered(effect)
            elif isinstance(effect, effects.Happened):
                truth = self.truths.get(effect.lease_id)
                if truth is not None and int(effect.fields.get("credited_bytes", "0")):
                    # It may have been told less in the same command, when its new size was shared out.
                    truth.promised = max(truth.promised, int(effect.fields["memory_limit_bytes"]))
                    promised_on.add(truth.lease.device_id)
                charge = truth.charge if truth is not None else 0
                self.watch.happened(effect, truth.lease if truth is not None else None, charge, self.desk.now)
        for truth in self.truths.values():
            self.watch.credited(truth.lease)
        charges = {name: truth.charge for name, truth in self.truths.items()}
        for name in SIZES:
            self.watch.followed(self.desk.device(name), charges)
        for name in promised_on:
            self.had_room(name)

    def opened(self, event: effects.Happened) -> set[str]:
        """A new lease: a new fence, and a promise on its device; of nothing where its quality may be 0."""
        lease = self.desk.books.leases.get(event.lease_id)
        assert lease is not None
        # It may have been told less in the same command, when the next in the queue was let in.
        promised = int(event.fields["memory_bytes"])
        assert lease.fence > self.fences.get(lease.device_id, 0)
        self.fences[lease.device_id] = lease.fence
        assert lease.lease_id not in self.truths
        now, window = self.desk.now, lease.request.startup_window_s
        self.truths[lease.lease_id] = Truth(lease, promised, now, now + window, 0)
        assert not self.draining
        return {lease.device_id} if promised else set()

    def told(self, lease: Lease) -> set[str]:
        """A directive: newer than every earlier one of the lease; a rise is a promise too."""
        truth = self.truths[lease.lease_id]
        rises = truth.residue is None and lease.limit_bytes > truth.promised
        if lease.revision > truth.revision:
            truth.revision = lease.revision
            truth.over = lease.measured_bytes is not None and lease.measured_bytes > lease.limit_bytes
            truth.promised = max(truth.promised, lease.limit_bytes)
        assert lease.revision == truth.revision
        return {lease.device_id} if rises else set()

    def answered(self, effect: effects.Granted | effects.Refused) -> None:
        """A ticket gets one answer, and none after its caller has gone."""
        assert effect.ticket not in self.closed
        del self.waiting[effect.ticket]
        self.closed.add(effect.ticket)
        if isinstance(effect, effects.Granted):
            assert effect.lease.lease_id in self.truths
            if not effect.already_granted:
                self.in_turn(effect.ticket, effect.lease.device_id)
        elif isinstance(effect.error, errors.WaitTimeout):
            assert int(effect.error.metadata()["waited_ms"]) > 0

    def in_turn(self, ticket: Ticket, name: str) -> None:
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
        assert truth.residue is None
        assert lease.end_reason is not EndReason.NONE
        if lease.end_reason is EndReason.EXPIRED:
            assert self.dead(truth), "no lease ends by time before its time"
        elif lease.end_reason is EndReason.ORPHANED:
            assert self.exited.issuperset(lease.request.pids)
        elif lease.end_reason is EndReason.PREEMPTED:
            self.watch.preempted(lease, self.desk.now)
        truth.residue = truth.charge

    def gone(self, lease: Lease) -> None:
        """Bytes are declared gone: measured so, or held for the lock delay."""
        truth = self.truths[lease.lease_id]
        assert not truth.drained
        lost = lease.device_id == CARD and self.desk.device(CARD).lost
        if lease.measured_bytes is not None and not lost:
            assert len(truth.zeros) >= RULES.zero_samples
            assert truth.zeros[-1] - truth.zeros[0] >= RULES.zero_span_s
        elif not lost:
            assert self.desk.now >= lease.ended_at + max(RULES.lock_delay_s, 2 * lease.request.ttl_s)
        truth.drained = True

    def had_room(self, name: str) -> None:
        """Whoever was promised something: with all that was promised, measured and foreign, it fits."""
        charges = sum(truth.charge for truth in self.truths.values() if truth.lease.device_id == name)
        foreign = self.foreign if name == CARD else 0
        assert charges + foreign + self.desk.device(name).earmarked_bytes <= gib(SIZES[name])
        if name == CARD:
            assert self.sampled_at is not None
            assert self.desk.now - self.sampled_at <= RULES.freeze_after_s, "nothing is promised blindly"

    def prove(self) -> None:
        """Every ticket is answered, gone or waiting; every lease is what the oracle takes it to be."""
        queue = self.desk.books.queue
        assert all(queue.of(ticket) is not None for ticket in self.waiting)
        assert queue.callers == len(self.waiting)
        assert all(len(outcomes) == 1 for outcomes in self.desk.outcomes.values())
        for truth in self.truths.values():
            lease = truth.lease
            assert lease.alive is (truth.residue is None)
            assert lease.elastic.min_quality <= lease.quality <= lease.elastic.max_quality
            assert lease.request.max_quality >= lease.quality
            if lease.alive:
                assert lease.charged_bytes == truth.promised
                assert lease.limit_bytes >= lease.elastic.bytes_at(lease.quality) - ROUNDING
                assert (
                    lease.donated_at
                    or lease.credit_bytes
                    or lease.limit_bytes <= (lease.elastic.bytes_at(lease.quality))
                )
        for name in SIZES:
            book = self.desk.device(name)
            mine = [truth for truth in self.truths.values() if truth.lease.device_id == name]
            assert book.residue_bytes == sum(truth.charge for truth in mine if truth.residue is not None)
            assert book.accounted_bytes == sum(truth.charge for truth in mine if truth.residue is None)
            assert len(queue) or not (book.awaited or book.candidate)
            assert book.ceiling_bytes <= book.facts.capacity_bytes - book.foreign_bytes or book.ceiling_bytes == 0
        self.watch.answers(self.desk)
        assert all(waiter.passed <= self.backfill for waiter in queue)
        assert self.desk.books.revision >= self.revision
        self.revision = self.desk.books.revision
