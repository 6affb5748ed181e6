"""The core: commands with a time go in, effects come out, and nothing else happens.

Laws:

1. Only this class and the rooms beside it write to ledgers; every command runs to its end without interruption.
2. Everything is checked before the first write: a command that raises has changed nothing.
3. After each command the books are reconciled: requests are admitted, targets published, and only differences come out.
4. Order is order of grant and arrival, never that of a set or a hash.
5. A lease is dead at its deadline, even if nobody has called ``advance`` since.
6. An ended lease never lives again, and its bytes are free only when they are measured gone.
7. Unknown names are refused, never created.
8. When the arbiter itself was away, leases are extended, never ended.
"""

from __future__ import annotations

from collections.abc import Iterable

from arbiter_sidecar import errors
from arbiter_sidecar.arbiter import (
    admission,
    asking,
    effects,
    errands,
    kv,
    kv_lending,
    observing,
    overuse,
    preempting,
    publishing,
    shards,
    watching,
)
from arbiter_sidecar.arbiter.books import ArbiterConfig, Books, Names
from arbiter_sidecar.arbiter.renewal import BeatOutcome, Renewals
from arbiter_sidecar.ledger.accounts import Account
from arbiter_sidecar.ledger.devices import DeviceBook
from arbiter_sidecar.ledger.leases import Lease
from arbiter_sidecar.ledger.shards import ShardGroup
from arbiter_sidecar.ledger.waiting import Waiter
from arbiter_sidecar.policy import preemption
from arbiter_sidecar.requests import AllocationRequest, AssignmentRequest, Beat, PreemptionRequest, ReservationRequest
from arbiter_sidecar.types import (
    DeviceFacts,
    DeviceHealth,
    DeviceId,
    DeviceSample,
    EndReason,
    EventKind,
    Process,
    Ticket,
)

#: Share of its time to live that a lease gets on top when the machine has slept: one heartbeat interval.
WAKE_SHARE = 1 / 3


class Arbiter:
    """Decides who may use how much. Single-threaded, synchronous, without clock, randomness or input and output.

    Every command takes ``now``: monotonic seconds that never go back (an earlier value is read as the last one).
    """

    def __init__(self, config: ArbiterConfig, *, epoch: int, names: Names, now: float) -> None:
        self.books = Books(config, epoch=epoch, names=names, now=now)
        self._renewals = Renewals(self.books)
        self._now = now
        self._tickets = 0

    @property
    def epoch(self) -> int:
        """The epoch of this run; revisions and fences belong to it."""
        return self.books.epoch

    # Commands ---------------------------------------------------------------------------------------------------------

    def add_device(self, facts: DeviceFacts, now: float) -> None:
        """Enters a device. One that is measured grants nothing before its first sample."""
        now = self._enter(now)
        assert facts.device_id not in self.books.devices
        device = self.books.devices[facts.device_id] = DeviceBook(
            facts, self.books.config.rules, kv_tokens=self.books.config.kv.tokens
        )
        device.kv.bounded = not self.books.config.observe_only
        self._reconcile([device], now)

    def allocate(self, request: AllocationRequest, now: float, *, since: float | None = None) -> Ticket:
        """Asks for a lease. The answer comes as ``Granted`` or ``Refused`` with the returned ticket, now or later.

        ``since`` is when its waiting began, where that was before.

        Raises:
            ShuttingDown: The server drains.
            QueueFull: Too many leases or waiting requests.
            IdempotencyMismatch: The request id was used with other arguments.
            DeviceNotFound: It names a device that is not there.
            ExceedsCapacity: It can never fit.
            DeviceStale: Every device that is large enough is lost.
        """
        now = self._enter(now)
        books = self.books
        if books.draining:
            raise errors.ShuttingDown()
        began = now if since is None else min(since, now)
        known = self._known(request, now)
        if known is None:
            admission.eligible(books, request)
        self._bound(known)
        self._tickets += 1
        ticket = Ticket(self._tickets)
        books.stats.requests += 1
        if isinstance(known, Lease):
            # Whoever asks again has not got it yet, and counts its time to live from this very call.
            known.deadline = max(known.deadline, now + known.ttl_s)
            books.answer(ticket, known, waited_s=0.0, already_granted=True)
        elif known is not None:
            books.queue.join(known, ticket, began + request.wait_s)
        else:
            self._ask(Waiter(request, ticket, began), now)
        return ticket

    def _known(self, request: AllocationRequest, now: float) -> Lease | Waiter | None:
        """What an earlier call with the same request id has led to, as long as it lives."""
        known = self.books.by_request.get((request.namespace, request.request_id)) if request.request_id else None
        if known is None or (isinstance(known, Lease) and known.deadline <= now):
            return None
        if known.request != request:
            raise errors.IdempotencyMismatch(request_id=request.request_id)
        return known

    def _bound(self, known: Lease | Waiter | None) -> None:
        """Refuses what would grow a table beyond its limit; who asks again for a living lease takes no place."""
        books, config = self.books, self.books.config
        if isinstance(known, Lease):
            return
        if books.queue.callers >= config.max_waiting:
            raise errors.QueueFull(f"{books.queue.callers} callers wait already, no more are let in")
        if known is None and books.leases.total + len(books.queue) >= config.max_leases:
            raise errors.QueueFull(f"{books.leases.total} leases live or drain already, no more are let in")

    def _ask(self, waiter: Waiter, now: float) -> None:
        books, request = self.books, waiter.request
        books.queue.add(waiter)
        self._admit(now)
        if books.queue.of(waiter.tickets[0]) is not None:
            if request.wait_s > 0.0:
                if request.request_id:
                    books.by_request[(request.namespace, request.request_id)] = waiter
                books.event(
                    EventKind.REQUEST_WAITING,
                    request_id=waiter.name,
                    request=request,
                    device_id=waiter.device_id or "",
                    reason=waiter.reason or "earlier requests come first",
                )
            else:
                books.queue.remove(waiter)
                best = None
                if waiter.device_id is not None:
                    best = admission.prospect(books, books.devices[waiter.device_id], request, now)
                books.stats.refused += 1
                books.fail(waiter, admission.refusal(best, request))
                self._admit(now)
        self._publish(books.devices.values(), now)

    def dry_run(self, request: AllocationRequest, now: float) -> admission.Dry:
        """What ``allocate`` would do now; changes nothing.

        Raises:
            ShuttingDown: The server drains.
            DeviceNotFound: It names a device that is not there.
            ExceedsCapacity: It can never fit.
            InsufficientMemory: It would have to wait for somebody to leave.
            InsufficientQuality: It would fit below the minimum quality it asks.
            DeviceStale: The device cannot be measured, or is lost.
        """
        now = self._enter(now)
        if self.books.draining:
            raise errors.ShuttingDown()
        able = admission.eligible(self.books, request)
        closed = admission.closed(self.books, request.priority, now)
        open_to_it = [device for device in able if device.device_id not in closed]
        best = max(
            (admission.prospect(self.books, device, request, now) for device in open_to_it or able),
            key=lambda each: each.rank,
        )
        if not best.feasible or best.frozen:
            raise admission.refusal(best, request)
        return admission.Dry(
            device_id=best.device.device_id,
            quality=best.quality,
            memory_bytes=best.start_bytes,
            fits=best.fits and best.device.device_id not in closed,
        )

    def preempt(self, asked: PreemptionRequest, now: float) -> Ticket:
        """Has memory taken from others. The answer comes as ``PlanClosed`` with the returned ticket, now or later.

        Raises:
            ShuttingDown: The server drains.
            LeaseNotFound: The lease that asks is unknown or has ended.
            DeviceNotFound: There is no such device.
            InvalidRequest: Neither lease nor device is named, or the priority is above the lease's.
            IdempotencyMismatch: The request id was used with other arguments.
            NoDonor: Those who may be asked have too little.
            QueueFull: Too many wait for their turn already.
            ObserveOnly: Nothing is taken from anybody.
        """
        now = self._enter(now)
        if self.books.draining:
            raise errors.ShuttingDown()
        if self.books.config.observe_only:
            raise errors.ObserveOnly()
        ticket = Ticket(self._tickets + 1)
        device = asking.ask(self.books, asked, ticket, now)
        self._tickets = ticket
        self._reconcile([device], now)
        return ticket

    def dry_preempt(self, asked: PreemptionRequest, now: float) -> preemption.Plan:
        """Who would lose what; changes nothing. Raises what ``preempt`` raises about the request itself."""
        now = self._enter(now)
        return asking.dry(self.books, asked, now)

    def withdraw(self, ticket: Ticket, now: float) -> None:
        """The caller of a preemption has gone; when nobody is left that waits for it the donors are let off."""
        now = self._enter(now)
        device = asking.leave(self.books, ticket, now)
        if device is not None:
            self._reconcile([device], now)

    def reserve(self, asked: ReservationRequest, now: float) -> Ticket:
        """Reserves KV tokens. The answer comes as ``Reserved`` or ``ReservationRefused`` with the returned ticket.

        Raises:
            ShuttingDown: The server drains.
            LeaseNotFound: The lease is unknown or has been forgotten.
            Fenced: The fence is not the lease's, or it has ended.
            InvalidRequest: The lease is no KV engine.
            IdempotencyMismatch: The request id was used with another number of tokens.
            ExceedsCapacity: It can never fit.
            QueueFull: Too many reservations wait or are open already.
        """
        now = self._enter(now)
        if self.books.draining:
            raise errors.ShuttingDown()
        ticket = Ticket(self._tickets + 1)
        device = kv.reserve(self.books, asked, ticket, now)
        self._tickets = ticket
        self._reconcile([device], now)
        return ticket

    def complete(self, reservation_id: str, now: float) -> None:
        """Returns a reservation of KV tokens; once more is fine. Raises ReservationNotFound."""
        now = self._enter(now)
        device = kv.complete(self.books, reservation_id)
        if device is not None:
            self._reconcile([device], now)

    def abandon(self, ticket: Ticket, now: float) -> None:
        """The caller of a reservation has gone: it neither waits nor holds anything."""
        now = self._enter(now)
        device = kv.withdraw(self.books, ticket)
        if device is not None:
            self._reconcile([device], now)

    def evaluate_balance(self, namespace: str, group: str, layers: int, now: float) -> shards.Evaluation:
        """Whether layers of a split model should move; or, with ``layers`` above 0, where so many should go at first.

        Raises:
            ShardNotFound: No living shard of such a group.
            InvalidRequest: A first placement is asked for, and its shards hold layers already.
        """
        now = self._enter(now)
        found = shards.find(self.books, namespace, group)
        if layers:
            return shards.place(self.books, found, layers, now)
        return shards.evaluate(self.books, found, now)

    def assign(self, asked: AssignmentRequest, now: float) -> ShardGroup:
        """Moves the layers of a split model: tells every shard its own. Once more with the same plan changes nothing.

        Raises:
            ShuttingDown: The server drains.
            ObserveOnly: Nothing is done to anybody.
            ShardNotFound: The group, or a shard that is named, is unknown.
            StalePlan: The plan is not the one that is suggested now.
            InvalidRequest: Neither a plan nor an assignment is named.
            InvalidAssignment: The assignment does not give every layer to one shard that can take it.
        """
        now = self._enter(now)
        if self.books.draining:
            raise errors.ShuttingDown()
        if self.books.config.observe_only:
            raise errors.ObserveOnly("this server only observes and moves no layers")
        group = shards.apply(self.books, asked, now)
        shards.follow(self.books, now)
        return group

    def delivered(self, ticket: Ticket) -> None:
        """The caller has its lease: from here on only heartbeats keep it."""
        lease = self.books.undelivered.pop(ticket, None)
        if lease is not None:
            lease.delivered = True

    def cancel(self, ticket: Ticket, now: float) -> None:
        """The caller of a ticket has gone. Its request leaves the queue; a grant that nobody ever saw is undone."""
        now = self._enter(now)
        books = self.books
        lease = books.undelivered.pop(ticket, None)
        if lease is not None:
            books.stats.granted -= 1
            books.stats.cancelled += 1
            if lease.alive and not lease.delivered and lease not in books.undelivered.values():
                books.end(lease, EndReason.UNDELIVERED, now)
                self._reconcile([books.device_of(lease)], now)
        elif books.queue.of(ticket) is not None:
            books.stats.cancelled += 1
            waiter = books.queue.leave(ticket)
            if waiter is not None:
                books.fail(waiter, errors.Cancelled())
                self._reconcile(books.devices.values(), now)

    def heartbeat(self, beat: Beat, now: float) -> BeatOutcome:
        """Renews leases and takes reports in. One bad lease has its own verdict, the others are renewed."""
        now = self._enter(now)
        outcome = self._renewals.take(beat, now)
        if outcome.touched:
            self._reconcile([self.books.devices[device_id] for device_id in outcome.touched], now)
        if self.books.shards.news:
            shards.follow(self.books, now)
        for device_id in outcome.eased:
            watching.pressure(self.books, self.books.devices[device_id], now)
        return outcome

    def confirm(self, lease_ids: Iterable[str], now: float) -> None:
        """The holder has opened a quality stream: the leases are confirmed, but not renewed."""
        now = self._enter(now)
        for lease_id in lease_ids:
            lease = self.books.leases.get(lease_id)
            if lease is not None and lease.alive and now < lease.deadline:
                self._renewals.confirm(lease)

    def release(self, lease_id: str, fence: int, now: float) -> bool:
        """Gives a lease back; True when it had ended before.

        Raises:
            LeaseNotFound: No such lease.
            Fenced: The fence is not the lease's.
        """
        now = self._enter(now)
        lease = self.books.leases.get(lease_id)
        known = lease if lease is not None else self.books.leases.grave(lease_id)
        if known is None:
            raise errors.LeaseNotFound(f"no lease {lease_id!r}; it may have been forgotten", lease_id=lease_id)
        if known.fence != fence:
            raise errors.Fenced(f"fence {fence} is not that of lease {lease_id!r}", lease_id=lease_id)
        if lease is None or not lease.alive:
            return True
        late = lease.deadline <= now
        if late:
            self._renewals.expire(lease, now)
        else:
            self.books.stats.released += 1
            self.books.end(lease, EndReason.RELEASED, now)
        self._reconcile([self.books.device_of(lease)], now)
        return late

    def process_exited(self, process: Process, now: float) -> None:
        """A process has exited. A lease ends when all its processes have, if all of them could be seen."""
        now = self._enter(now)
        touched: dict[DeviceId, DeviceBook] = {}
        for lease in self.books.leases.holding(process):
            lease.exited |= {process}
            seen = len(lease.request.processes) == len(lease.request.pids)
            if lease.alive and seen and lease.exited.issuperset(lease.request.processes):
                self.books.stats.orphaned += 1
                self.books.end(lease, EndReason.ORPHANED, now)
                touched[lease.device_id] = self.books.device_of(lease)
        self._reconcile(touched.values(), now)

    def observe(self, sample: DeviceSample, taken_at: float, now: float) -> None:
        """Takes in what was measured. ``taken_at`` is when measuring began."""
        now = self._enter(now)
        books = self.books
        device = books.devices[sample.device_id]
        if sample.lost:
            self._lose(device, sample.detail, now)
            return
        for lease in device.ended.values():
            # With the bytes that it was seen to keep until now.
            books.settle(lease, now)
        for lease in device.observe(sample, taken_at):
            books.bury(lease, now)
        overuse.look(books, device, now)
        for lease in device.live.values():
            # What was measured before it was told less proves nothing.
            proven = lease.measured_over and lease.measured_at >= lease.told_at
            if proven and (lease.measured_bytes or 0) <= lease.limit_bytes:
                device.charge(lease, lease.limit_bytes)
        self._reconcile([device], now)

    def sample_failed(self, device_id: DeviceId, detail: str, now: float) -> None:
        """Measuring failed: the last figures stay, and grow old."""
        now = self._enter(now)
        device = self.books.devices[device_id]
        device.failure = detail
        watching.health(self.books, device, now)

    def resumed(self, slept_s: float, now: float) -> None:
        """The machine has slept: its devices are measured anew before they grant, and nobody's time is up for it.

        Deadlines stood still meanwhile, as the workers did; each lease gets one heartbeat interval more to wake up in.
        """
        now = self._enter(now)
        books = self.books
        for lease in books.leases:
            # One that is past its deadline is dead, whether or not the sweep has come by.
            if lease.alive and lease.deadline > now:
                lease.deadline += lease.ttl_s * WAKE_SHARE
        for device in books.devices.values():
            device.distrust(now)
        books.event(EventKind.RESUMED, slept_s=round(slept_s, 3), leases=len(books.leases))
        self._reconcile(books.devices.values(), now)

    def drain(self, now: float) -> None:
        """Stops granting: those who wait are refused, those who hold are told and may go on."""
        now = self._enter(now)
        books = self.books
        if books.draining:
            return
        books.draining = True
        books.event(EventKind.DRAINING, leases=len(books.leases))
        for waiter in books.queue:
            books.queue.remove(waiter)
            books.stats.refused += len(waiter.tickets)
            books.fail(waiter, errors.ShuttingDown())
        asking.shut(books, now)
        kv.shut(books)
        self._reconcile(books.devices.values(), now)

    def advance(self, now: float, limit: int = 64) -> bool:
        """Lets time pass; True when more is due than ``limit`` allowed, so that no call takes long."""
        now = self._enter(now)
        touched: dict[DeviceId, DeviceBook] = {}
        for _ in range(limit):
            device = self._advance_one(now)
            if device is None:
                break
            touched[device.device_id] = device
        shards.catch_up(self.books, now)
        rise = self.books.queue.next_rise
        if len(self.books.queue) and rise is not None and rise <= now:
            touched.update(self.books.devices)
        for device in self.books.devices.values():
            watching.health(self.books, device, now)
            if device.next_step is not None and device.next_step <= now:
                touched[device.device_id] = device
        self._reconcile(touched.values(), now)
        due = self.next_deadline()
        return due is not None and due <= now

    def _advance_one(self, now: float) -> DeviceBook | None:
        """One thing that is due; the device it touches, ``None`` when nothing is due."""
        books = self.books
        lease = books.leases.due(now)
        if lease is not None:
            if lease.deadline <= now:
                self._renewals.expire(lease, now)
            else:
                lease.suspect = True
                books.device_of(lease).kv.dirty |= lease.kv is not None
                books.happened(EventKind.LEASE_SUSPECT, lease, silent_s=round(now - lease.last_beat, 3))
            return books.device_of(lease)
        waiter = books.queue.due(now)
        if waiter is not None:
            self._time_out(waiter, now)
            return next(iter(books.devices.values()))
        errand = books.due_errand(now)
        if errand is None:
            return None
        return errands.run(books, self._renewals, *errand, now)

    # Queries ----------------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When ``advance`` has something to do; may be early, never late."""
        times: list[float | None] = [
            self.books.leases.next_attention(),
            self.books.queue.next_deadline(),
            self.books.next_errand(),
            self.books.shards.next_due,
            self.books.queue.next_rise if len(self.books.queue) else None,
        ]
        for device in self.books.devices.values():
            times.append(device.next_step)
            if device.reported_health is DeviceHealth.OK and device.sampled_at is not None:
                times.append(device.sampled_at + device.rules.stale_after_s)
        return min((time for time in times if time is not None), default=None)

    def take_effects(self) -> list[effects.Effect]:
        """What is to be done outside, in order; each effect is handed out once."""
        pending, self.books.pending = self.books.pending, []
        return pending

    def accounts(self, now: float) -> list[Account]:
        """What sharing has cost each holder up to now."""
        for lease in self.books.leases:
            self.books.settle(lease, max(now, lease.settled_at))
        return [account for account in self.books.accounts if not account.blank]

    def check(self) -> None:
        """Raises ``AssertionError`` where the books contradict themselves; looks at everything, so it is slow."""
        self.books.check()

    # ------------------------------------------------------------------------------------------------------------------

    def _enter(self, now: float) -> float:
        now = max(now, self._now)
        gap, guard = now - self._now, self.books.config.pause_guard_s
        self._now = now
        if guard and gap > guard and len(self.books.leases):
            self.books.leases.delay(gap)
            preempting.delay(self.books, gap)
            kv_lending.delay(self.books, gap)
            self.books.event(EventKind.PAUSE_ABSORBED, seconds=round(gap, 3), leases=len(self.books.leases))
        return now

    def _reconcile(self, devices: Iterable[DeviceBook], now: float) -> None:
        if self.books.shards.news:
            shards.follow(self.books, now)
        everywhere = self.books.devices.values()
        for device in everywhere:
            preempting.follow(self.books, device, now)
            kv_lending.follow(self.books, device, now)
            if self.books.asks.waiting:
                asking.next_turn(self.books, device, now)
        if len(self.books.queue) or any(device.awaited for device in everywhere):
            # Who waits for one device may find room on another; and nobody is made room for any more who has gone.
            self._admit(now)
            devices = everywhere
        self._publish(devices, now)

    def _admit(self, now: float) -> None:
        if self.books.config.observe_only:
            observing.admit(self.books, now)
        else:
            admission.admit(self.books, now)

    def _publish(self, devices: Iterable[DeviceBook], now: float) -> None:
        for device in devices:
            if self.books.config.observe_only:
                observing.advise(self.books, device, now)
            elif (short := publishing.publish(self.books, device, now)) > 0:
                preempting.for_machine(self.books, device, short, now)
            kv.publish(self.books, device, now)
            watching.health(self.books, device, now)
            watching.pressure(self.books, device, now)

    def _lose(self, device: DeviceBook, detail: str, now: float) -> None:
        device.lose(detail)
        if device.plan is not None:
            lost = errors.DeviceStale(f"device {device.device_id} is lost", device_id=device.device_id)
            preempting.close(self.books, device.plan, now, withdrawn=lost)
        for lease in list(device.live.values()):
            self.books.end(lease, EndReason.DEVICE_LOST, now)
        for lease in list(device.ended.values()):
            self.books.bury(lease, now)
        self._reconcile([device], now)

    def _time_out(self, waiter: Waiter, now: float) -> None:
        books = self.books
        books.queue.remove(waiter)
        books.stats.timed_out += len(waiter.tickets)
        waited_ms = round((now - waiter.since) * 1000)
        detail = f": {waiter.reason}" if waiter.reason else ""
        books.fail(
            waiter,
            errors.WaitTimeout(
                f"waited {waited_ms} ms in vain{detail}",
                waited_ms=waited_ms,
                requested_bytes=waiter.request.memory_bytes,
                device_id=waiter.device_id or waiter.request.device_id,
            ),
        )
