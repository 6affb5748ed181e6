"""The book of one device: what it has, what was measured, what is charged to whom.

Running sums are kept beside the leases so that a decision reads four numbers instead of every lease; ``check`` proves
them equal to what they stand for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from arbiter_sidecar.ledger.kv import KvBook, derived_tokens
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.ledger.own_memory import NOTHING, Own
from arbiter_sidecar.ledger.plans import Donation, Plan
from arbiter_sidecar.policy import attribution, capacity
from arbiter_sidecar.policy.publication import Published
from arbiter_sidecar.policy.quality import Elastic
from arbiter_sidecar.requests import AllocationRequest
from arbiter_sidecar.types import (
    Attribution,
    DeviceFacts,
    DeviceHealth,
    DeviceId,
    DeviceSample,
    EndReason,
    Guest,
    PressureLevel,
    Process,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRules:
    """When measurements are believed and bytes count as gone. Seconds throughout.

    Attributes:
        stale_after_s: A sample older than this makes the device stale: figures stay, people are told.
        freeze_after_s: Beyond this age nothing is granted: too much may have changed.
        zero_samples: How often nothing must have been measured before the bytes of an ended lease are gone …
        zero_span_s: … and over how long at least, so that one missed reading does not free memory that is there.
        lock_delay_s: Bytes whose release cannot be seen are held at least so long …
        lock_delay_ttls: … and at least so many times to live; a lock delay of 0 believes the holder instead.
        drain_grace_s: How long an ended lease may keep bytes before that is an alarm.
        startup_fence_s: For how long at most a starting lease keeps others from growing and shrinking.
    """

    stale_after_s: float = 2.0
    freeze_after_s: float = 5.0
    zero_samples: int = 3
    zero_span_s: float = 0.3
    lock_delay_s: float = 30.0
    lock_delay_ttls: float = 2.0
    drain_grace_s: float = 10.0
    startup_fence_s: float = 60.0


class DeviceBook:
    """Capacity, measurements and charges of one device.

    Attributes:
        granted_bytes: Σ charged bytes of living leases.
        accounted_bytes: Σ of the larger of charged and measured, of living leases.
        residue_bytes: Σ bytes still held for ended leases.
        demand_bytes: Σ bytes of living leases at their best quality.
        ceiling_bytes: Capacity less foreign use, smoothed.
        guests: What processes that ask for a lease, and have none here, were measured to hold.
        next_step: When the next publication is due; ``None`` when none is.
        awaited: Somebody waits for its memory; whoever comes later waits behind.
        candidate: The waiting request for which lower targets are published.
        starter: The newest lease that announced a start-up window.
        plan: The preemption that is under way.
        earmarked_bytes: Bytes that came free for a requester and are nobody else's.
        trusted_from: Samples of which measuring began earlier say nothing any more.
        starved: A rise was due for which there were no bytes.
        below_best: How many living leases are published below their best quality.
        kv: Its KV tokens.
        peak_bytes: The most that was taken of it at any time.
        advised_donors: Who would be asked to go if the arbiter did more than observe.
    """

    def __init__(self, facts: DeviceFacts, rules: DeviceRules, *, kv_tokens: int | None = None) -> None:
        self.facts = facts
        self.rules = rules
        self.kv = KvBook(derived_tokens(facts.capacity_bytes) if kv_tokens is None else kv_tokens)
        self.live: dict[int, Lease] = {}
        self.ended: dict[int, Lease] = {}
        self.granted_bytes = 0
        self.accounted_bytes = 0
        self.residue_bytes = 0
        self.demand_bytes = 0
        self.below_best = 0
        self.ceiling_bytes = facts.capacity_bytes
        self.foreign_bytes = 0
        self.foreign_estimated = facts.attribution is Attribution.DEVICE_ONLY
        self.used_bytes: int | None = None
        self.machine_available_bytes: int | None = None
        self.guests: dict[Process, Guest] = {}
        self._read: frozenset[Process] = frozenset()
        self.sampled_at: float | None = None
        self.trusted_from = -math.inf
        self.failure = ""
        self.lost = False
        self.level = PressureLevel.LOW
        self.next_step: float | None = None
        self.awaited = False
        self.candidate: AllocationRequest | None = None
        self.starved = False
        self.starter: Lease | None = None
        self.plan: Plan | None = None
        self.earmarked_bytes = 0
        self.peak_bytes = 0
        self.advised_donors: tuple[str, ...] = ()
        self.reported_health = DeviceHealth.OK if not self.measured else DeviceHealth.UNKNOWN

    @property
    def device_id(self) -> DeviceId:
        """Identity."""
        return self.facts.device_id

    @property
    def measured(self) -> bool:
        """Whether anything is ever measured here."""
        return self.facts.attribution is not Attribution.SELF_REPORTED

    @property
    def attributes(self) -> bool:
        """Whether memory is measured for each process."""
        return self.facts.attribution in (Attribution.PER_PROCESS, Attribution.TRANSLATED)

    @property
    def available_bytes(self) -> int:
        """What could still be promised; negative when more is resident than there should be."""
        return self.ceiling_bytes - self.accounted_bytes - self.residue_bytes - self.earmarked_bytes

    @property
    def pressure(self) -> float:
        """How full the device is, unclamped."""
        return capacity.pressure(
            self.granted_bytes + self.residue_bytes, self.foreign_bytes, self.used_bytes, self.facts.capacity_bytes
        )

    @property
    def taken_bytes(self) -> int:
        """What is taken of it: promised, still held and foreign together, or what was measured where that is more."""
        return max(self.granted_bytes + self.residue_bytes + self.foreign_bytes, self.used_bytes or 0)

    @property
    def expecting(self) -> bool:
        """Whether bytes are expected to come free, so that measuring often pays."""
        asked = any(lease.reclaim is not None for lease in self.live.values())
        return self.candidate is not None or self.plan is not None or asked

    def health(self, now: float) -> DeviceHealth:
        """Whether the figures can be trusted."""
        if self.lost:
            return DeviceHealth.LOST
        if not self.measured:
            return DeviceHealth.OK
        if self.sampled_at is None:
            return DeviceHealth.UNKNOWN
        # The same sum as that of the next deadline: a difference would round otherwise, and the deadline never pass.
        return DeviceHealth.STALE if now >= self.sampled_at + self.rules.stale_after_s else DeviceHealth.OK

    def frozen(self, now: float) -> bool:
        """Whether nothing may be granted because too little is known."""
        old = self.sampled_at is None or now - self.sampled_at > self.rules.freeze_after_s
        return self.lost or (self.measured and old)

    def fence_ends(self, lease: Lease) -> float:
        """Until when a starting lease keeps others from growing and shrinking, at the latest."""
        return lease.starting_until

    def fenced_by(self, now: float) -> Lease | None:
        """The lease that is starting up: it measures what is free, so nobody else may change that meanwhile."""
        starter = self.starter
        if starter is None or not starter.alive or starter.applied_revision or now >= self.fence_ends(starter):
            return None
        return starter

    def fits(self, more_bytes: int, now: float, *, kept_bytes: int = 0, own: Own = NOTHING) -> bool:
        """Whether so many bytes more can be promised now.

        Args:
            more_bytes: What would be promised.
            now: Monotonic seconds.
            kept_bytes: What of the bytes that are kept for a preemption is kept for just this promise.
            own: What is there already of whom it would be promised to; those bytes are not needed again.
        """
        room = self.available_bytes - self._beyond_bytes + kept_bytes
        if self.frozen(now) or more_bytes - min(more_bytes, own.charged_bytes) > room:
            return False
        if self.machine_available_bytes is None:
            return True
        return max(0, more_bytes - own.seen_bytes) + self._promised_unused() <= self.machine_available_bytes

    @property
    def _beyond_bytes(self) -> int:
        """Foreign use beyond the capacity, of which the ceiling, never negative, knows nothing."""
        return max(0, self.foreign_bytes - self.facts.capacity_bytes)

    def _ceiling_without(self, foreign_bytes: int) -> int:
        """The ceiling if so much of the foreign use were a lease's."""
        return max(0, self.ceiling_bytes - self._beyond_bytes + foreign_bytes)

    def knows(self, request: AllocationRequest) -> bool:
        """Whether the last sample told what every process of a request holds, as far as this device ever tells."""
        return not self.attributes or self._read.issuperset(request.processes)

    def own(self, request: AllocationRequest | None) -> Own:
        """What the processes of a request hold here already; nothing unless all of them could be read.

        Bytes of the donors of a preemption are not among it: they are on their way to somebody else.
        """
        if request is None or not request.processes or not self.attributes or not self.knows(request):
            return NOTHING
        named = frozenset(request.processes)
        promised = self.plan.donations if self.plan is not None else {}
        former = tuple(
            lease
            for lease in self.ended.values()
            if lease.lease_id not in promised and self.traceable(lease) and named.issuperset(lease.request.processes)
        )
        found = [self.guests[process] for process in named if process in self.guests]
        held = sum(guest.held_bytes for guest in found)
        if not held and not former:
            return NOTHING
        foreign = min(self.foreign_bytes, sum(guest.foreign_bytes for guest in found))
        return Own(guest_bytes=held, foreign_bytes=foreign, leases=former)

    def _promised_unused(self) -> int:
        """Bytes that living leases may still take from the machine."""
        return sum(max(0, lease.charged_bytes - (lease.measured_bytes or 0)) for lease in self.live.values())

    def lease(self, lease_id: str) -> Lease:
        """The living lease of this id. Raises StopIteration where there is none."""
        return next(lease for lease in self.live.values() if lease.lease_id == lease_id)

    def publish(self, lease: Lease, published: Published) -> None:
        """Sets what a living lease is told. A rise is reserved at once; a fall stays charged until it is confirmed."""
        self._tell(lease, published, lease.elastic.bytes_at(published.quality))

    def squeeze(self, lease: Lease, *, quality: float, limit_bytes: int) -> None:
        """Tells a donor an exact limit and the quality that it allows."""
        self._tell(lease, Published(quality), limit_bytes)

    def _tell(self, lease: Lease, published: Published, limit_bytes: int) -> None:
        self._count_out(lease)
        lease.published = published
        self._count_in(lease)
        lease.limit_bytes = limit_bytes
        lease.measured_over = lease.measured_bytes is not None and lease.measured_bytes > limit_bytes
        if limit_bytes > lease.charged_bytes:
            self.charge(lease, limit_bytes)

    def open(self, lease: Lease, own: Own = NOTHING) -> None:
        """Enters a newly granted lease with its charge, and with what its processes hold already.

        That is its own from here on: no foreign use any more. Whoever calls buries the ended leases it was held for.
        """
        for process in lease.request.processes:
            self.guests.pop(process, None)
        if own is not NOTHING:
            self.ceiling_bytes = self._ceiling_without(own.foreign_bytes)
            self.foreign_bytes -= own.foreign_bytes
            lease.measured_bytes = own.present_bytes
        self.live[lease.fence] = lease
        if lease.kv is not None:
            self.kv.open(lease)
        if lease.request.startup_window_s > 0.0:
            self.starter = lease
            lease.starting_until = lease.created_at + min(lease.request.startup_window_s, self.rules.startup_fence_s)
        self.granted_bytes += lease.charged_bytes
        self.accounted_bytes += lease.accounted_bytes
        self._count_in(lease)

    def charge(self, lease: Lease, charged_bytes: int) -> None:
        """Changes what a living lease is charged."""
        self.granted_bytes += charged_bytes - lease.charged_bytes
        self.accounted_bytes -= lease.accounted_bytes
        lease.charged_bytes = charged_bytes
        self.accounted_bytes += lease.accounted_bytes

    def reshape(self, lease: Lease, elastic: Elastic) -> None:
        """Changes the shape of a living lease: the policy changed, or it cannot go as low as it said."""
        self._count_out(lease)
        lease.elastic = elastic
        self._count_in(lease)

    def grow(self, lease: Lease, elastic: Elastic, more_bytes: int) -> None:
        """Gives a living lease a larger shape and exactly so many bytes more at its present quality."""
        self.reshape(lease, elastic)
        self._tell(lease, lease.published, lease.limit_bytes + more_bytes)

    def demand(self, lease: Lease, donation: Donation | None) -> None:
        """Notes what a living lease is asked to give, or that it is not asked any more."""
        self._count_out(lease)
        lease.reclaim = donation
        self._count_in(lease)

    def _count_in(self, lease: Lease) -> None:
        """Adds a lease to the sums of what is wanted; one that is leaving wants nothing."""
        if not lease.leaving:
            self.demand_bytes += lease.elastic.bytes_at(lease.elastic.max_quality)
            self.below_best += lease.quality < lease.elastic.max_quality

    def _count_out(self, lease: Lease) -> None:
        if not lease.leaving:
            self.demand_bytes -= lease.elastic.bytes_at(lease.elastic.max_quality)
            self.below_best -= lease.quality < lease.elastic.max_quality

    @property
    def staying(self) -> list[Lease]:
        """The living leases that one can plan with."""
        return [lease for lease in self.live.values() if not lease.leaving]

    def close(self, lease: Lease) -> None:
        """Moves a lease that has just ended to the draining ones; nothing becomes free."""
        del self.live[lease.fence]
        held = max(lease.charged_bytes, lease.measured_bytes or 0)
        self.granted_bytes -= lease.charged_bytes
        self.accounted_bytes -= held
        self._count_out(lease)
        lease.residue_bytes = held
        # One that was made to go had nothing left in anybody's plan.
        lease.planned_at_end = 0 if lease.leaving else min(held, lease.limit_bytes)
        lease.reclaim = None
        self.residue_bytes += held
        self.ended[lease.fence] = lease

    def drained(self, lease: Lease) -> None:
        """Strikes out an ended lease; its bytes are free, as far as the last sample does not show them still there."""
        del self.ended[lease.fence]
        self.residue_bytes -= lease.residue_bytes
        lease.residue_bytes = 0
        if self.foreign_estimated and self.used_bytes is not None:
            self.foreign_bytes = self._unexplained(self.used_bytes)
            self.ceiling_bytes = min(self.ceiling_bytes, max(0, self.facts.capacity_bytes - self.foreign_bytes))

    def watched(self, lease: Lease) -> bool:
        """Whether processes are known whose memory can be looked for here."""
        return self.attributes and bool(lease.request.processes)

    def traceable(self, lease: Lease) -> bool:
        """Whether the bytes of this lease can be seen to go: its processes have been read at least once."""
        return self.attributes and lease.measured_bytes is not None

    def lock_delay_ends(self, lease: Lease) -> float:
        """When the bytes of an ended lease that cannot be traced count as gone."""
        if self.rules.lock_delay_s == 0.0:
            return lease.ended_at
        return lease.ended_at + max(self.rules.lock_delay_s, self.rules.lock_delay_ttls * lease.ttl_s)

    def lose(self, detail: str) -> None:
        """The device is gone, and what was measured on it with it; should it come back, it is measured afresh."""
        self.lost, self.failure = True, detail
        self.sampled_at = None
        self.used_bytes = self.machine_available_bytes = None
        self.foreign_bytes, self.ceiling_bytes = 0, self.facts.capacity_bytes
        self.guests, self._read = {}, frozenset()

    def distrust(self, now: float) -> None:
        """What was measured until now counts for nothing: nothing is granted before it was measured anew."""
        self.sampled_at = None
        self.trusted_from = now

    def observe(self, sample: DeviceSample, taken_at: float) -> list[Lease]:
        """Takes over a sample, if it can be trusted; returns the ended leases whose bytes it shows to be gone.

        One that tells neither the use of the device nor that of strangers does not make the figures any younger.

        Args:
            sample: What was measured.
            taken_at: When measuring began; a lease that ended later learns nothing from it.
        """
        if taken_at < self.trusted_from:
            return []
        self.lost = False
        if sample.used_bytes is not None or sample.foreign_bytes is not None:
            self.sampled_at = taken_at
        self.failure = sample.detail
        self.used_bytes = sample.used_bytes
        self.machine_available_bytes = sample.machine_available_bytes
        if not self.attributes:
            self._see_foreign(sample)
            return []
        unread = [lease for lease in (*self.live.values(), *self.ended.values()) if lease.measured_bytes is None]
        gone = self._attribute(sample.held_bytes, taken_at)
        leased = self._see_guests(sample)
        # As far as foreign use falls by what new leases turn out to hold, no stranger has let go, perhaps for a moment.
        claimed = sum(lease.measured_bytes or 0 for lease in unread)
        self._see_foreign(sample, leased_bytes=leased, claimed_bytes=claimed)
        return gone

    def _see_guests(self, sample: DeviceSample) -> int:
        """Takes over who holds what without a lease.

        Returns:
            Foreign bytes of those who got a lease while that was being measured.
        """
        readable = {process for process, held in sample.held_bytes.items() if held is not None}
        self._read = frozenset(readable.union(sample.guests))
        leased = frozenset(self.processes())
        # What is part of a foreign use that is not known is nobody's own.
        known = sample.foreign_bytes is not None or sample.used_bytes is not None
        found = sample.guests if known else {}
        self.guests = {process: guest for process, guest in found.items() if process not in leased}
        return sum(guest.foreign_bytes for process, guest in sample.guests.items() if process in leased)

    def _attribute(self, held_bytes: Mapping[Process, int | None], taken_at: float) -> list[Lease]:
        leases = [*self.live.values(), *self.ended.values()]
        claims = [attribution.Claim(lease.request.processes, self._expected(lease)) for lease in leases]
        gone = []
        for lease, found in zip(leases, attribution.attribute(claims, held_bytes), strict=True):
            if found is None:
                # What cannot be read stays as it was read last: not knowing frees nothing.
                continue
            if lease.alive:
                self._measure(lease, found, taken_at)
            elif taken_at >= lease.ended_at and self._see_residue(lease, found, taken_at):
                gone.append(lease)
        return gone

    @staticmethod
    def _expected(lease: Lease) -> int:
        return lease.charged_bytes if lease.alive else lease.residue_bytes

    def _measure(self, lease: Lease, found: int, taken_at: float) -> None:
        self.accounted_bytes -= lease.accounted_bytes
        lease.measured_bytes, lease.measured_at = found, taken_at
        self.accounted_bytes += lease.accounted_bytes
        if found > lease.limit_bytes and taken_at >= lease.told_at:
            lease.measured_over = True

    def _see_residue(self, lease: Lease, found: int, taken_at: float) -> bool:
        lease.measured_bytes = found
        if found > 0:
            self.residue_bytes += found - lease.residue_bytes
            lease.residue_bytes = found
            lease.zero_samples = 0
            return False
        # Nothing measured is believed only when it lasts; until then the bytes stay charged.
        if lease.zero_samples == 0:
            lease.zero_since = taken_at
        lease.zero_samples += 1
        return lease.zero_samples >= self.rules.zero_samples and taken_at - lease.zero_since >= self.rules.zero_span_s

    def _see_foreign(self, sample: DeviceSample, *, leased_bytes: int = 0, claimed_bytes: int = 0) -> None:
        before = self.foreign_bytes
        if sample.foreign_bytes is not None:
            self.foreign_bytes = max(0, sample.foreign_bytes - leased_bytes)
        elif sample.used_bytes is not None:
            self.foreign_bytes = self._unexplained(sample.used_bytes)
        else:
            # Not knowing lets nobody grow.
            return
        self.foreign_estimated = sample.foreign_bytes is None
        measured = max(0, self.facts.capacity_bytes - self.foreign_bytes)
        claimed = min(claimed_bytes, max(0, before - self.foreign_bytes))
        self.ceiling_bytes = capacity.smooth_ceiling(min(measured, self.ceiling_bytes + claimed), measured)

    def _unexplained(self, used_bytes: int) -> int:
        """Use beyond what the leases hold; one that is not measured is taken to hold all that it is charged."""
        leases = (*self.live.values(), *self.ended.values())
        return max(0, used_bytes - sum(lease.present_bytes for lease in leases))

    def elsewhere_bytes(self, now: float, own: Own = NOTHING) -> int:
        """What the solver must leave alone: foreign use and what ended leases still hold, but for a newcomer's own.

        Within the grace an ended lease counts with no more than it had been told to use, so that its end alone never
        makes anybody smaller.
        """
        held = sum(self._held(lease, now) for lease in self.ended.values() if lease not in own.leases)
        ceiling = self.ceiling_bytes if own is NOTHING else self._ceiling_without(own.foreign_bytes)
        return self.facts.capacity_bytes - ceiling + held

    def _held(self, lease: Lease, now: float) -> int:
        if now - lease.ended_at >= self.rules.drain_grace_s:
            return lease.residue_bytes
        return min(lease.residue_bytes, lease.planned_at_end)

    def returning_bytes(self, now: float, own: Own = NOTHING) -> int:
        """What of that comes back by itself: not the bytes of those who have kept them past the grace."""
        return sum(
            self._held(lease, now)
            for lease in self.ended.values()
            if not lease.residue_alarmed and lease not in own.leases
        )

    def excess_bytes(self, newcomer: Elastic | None, now: float, own: Own = NOTHING) -> int:
        """What is missing when everybody is at the minimum, with those who were asked to go; 0: they may stay.

        The ``newcomer``, if there is one, needs what it holds already as its ``own`` not again.
        """
        shapes = [lease.elastic for lease in self.live.values()] + ([newcomer] if newcomer else [])
        return self._missing(shapes, now, own)

    def shortage_bytes(self, now: float) -> int:
        """What is missing when everybody who stays is at the minimum: the device itself is short."""
        return self._missing([lease.elastic for lease in self.staying], now)

    def _missing(self, shapes: Iterable[Elastic], now: float, own: Own = NOTHING) -> int:
        floors = sum(shape.floor_bytes for shape in shapes)
        return max(0, self.elsewhere_bytes(now, own) + floors - self.facts.capacity_bytes)

    def processes(self) -> Iterable[Process]:
        """Every process whose memory matters here, each once, in order of the leases."""
        return dict.fromkeys(
            process
            for book in (self.live, self.ended)
            for lease in book.values()
            for process in lease.request.processes
        )

    def check(self) -> None:
        """Raises ``AssertionError`` where the book contradicts itself."""
        live, ended = self.live.values(), self.ended.values()
        assert self.granted_bytes == sum(lease.charged_bytes for lease in live)
        assert self.accounted_bytes == sum(lease.accounted_bytes for lease in live)
        assert self.residue_bytes == sum(lease.residue_bytes for lease in ended)
        staying = self.staying
        assert self.demand_bytes == sum(lease.elastic.bytes_at(lease.elastic.max_quality) for lease in staying)
        assert self.below_best == sum(lease.quality < lease.elastic.max_quality for lease in staying)
        assert self.earmarked_bytes >= 0
        self.kv.check()
        assert list(self.kv.engines.values()) == [lease for lease in live if lease.kv is not None]
        if self.plan is None:
            assert self.earmarked_bytes == 0, "bytes are kept for an open plan only"
            assert all(
                lease.reclaim is None or (lease.overuse is not None and lease.reclaim is lease.overuse.order)
                for lease in live
            ), "only an open plan asks for memory, or overuse"
        assert all(lease.end_reason is EndReason.NONE for lease in live)
        assert all(lease.residue_bytes >= 0 and not lease.alive for lease in ended)
        for lease in live:
            assert lease.limit_bytes <= lease.charged_bytes, "nobody is told more than was reserved"
            assert lease.elastic.floor_bytes <= lease.limit_bytes <= lease.elastic.full_bytes
        assert 0 <= self.ceiling_bytes <= self.facts.capacity_bytes
        named = {process for lease in (*live, *ended) for process in lease.request.processes}
        assert named.isdisjoint(self.guests), "who has a lease here, or had one, is no guest"
